"""The summary of a comparison as lines of text for a terminal: findings in three sentences, and the
overview that it shares with the page.

Comes after `findings`; reads its tables and prints nothing itself.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtri

from adapter_geometry import geometry
from adapter_geometry.report.findings import (
    Findings,
    chance_of_cosine,
    measures,
    order,
    sizes,
    smallest_angles,
    with_reference,
)
from adapter_geometry.wording import counted, span

_SAME = 5e-6  # 1 - |cosine| of a copy whose factors were rounded to bfloat16
_NEAR = 0.9
_NAMED = 3  # adapters that a sentence names; it counts the others
_MOST_ROWS = 40  # of a table in the terminal
_KINDS = 8  # of modules that are named
_WIDEST_NAME = 32  # characters of a name in the terminal
_SHARES = "{verb} unrelated to {reference} in direction but {verb} not in subspaces"
_HEADINGS = {  # of the columns of `measures`, in the order in which a reader meets them
    "norm": "norm",
    "relative_norm": "relative norm",
    "effective_rank": "effective rank",
    "zero_modules": "zero modules",
    "cosine": "cosine",
    "cosine_chance": "by chance, up to",
    "angle": "smallest angle",
    "angle_chance": "by chance, from",
    "barrier": "barrier",
    "barrier_noise": "by noise, up to",
    "cka": "CKA",
    "kl": "KL from the base",
    "kl_null_high": "of null adapters, up to",
    "loss": "loss of the texts",
    "intruders": "intruders per module",
    "spectral_shift": "spectral shift",
}


def printable(text: str) -> str:
    """A line for the terminal: control characters, which names in a foreign file may hold, become
    question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def overview(findings: Findings) -> pd.DataFrame:
    """One row per adapter, columns as headings for a reader: norms, rank, and its direction beside
    the reference with the chance level of each. What none of the adapters has is no column."""
    measured = measures(findings)
    if not measured.zero_modules.any():
        measured = measured.drop(columns="zero_modules")
    measured = measured.dropna(axis=1, how="all")
    chosen = {name: heading for name, heading in _HEADINGS.items() if name in measured}
    table = measured[list(chosen)].rename(columns=chosen)
    ranks = [span(ranks.min(), ranks.max()) for ranks in findings.compared.rank.T]
    table.insert(0, "rank", ranks)
    return table.rename_axis("adapter").reset_index()


# --- findings in sentences ------------------------------------------------------------------------


def findings(findings: Findings) -> list[str]:
    """What was found, in at most three sentences written from the numbers, after one that names the
    adapters that are zero, if any is: the directions of the others beside the reference, the sizes,
    and behaviour, or the nearest pair, or the layers.

    The directions are called by the cosine c of the whole updates: within its band "unrelated" (of
    more than one comparison, the band that holds all of them together, by Bonferroni);
    outside it "nearly" from |c| = .9, "close to" from .5, "partly along" from .2, and "hardly
    along" below; a copy, up to a factor, where 1 - |c| is that of rounding to bfloat16.
    """
    measured = measures(findings)
    zero = [name for name, norm in measured.norm.items() if norm == 0]
    sentences = []
    if zero:
        verb, their = ("is", "its") if len(zero) == 1 else ("are", "their")
        sentences.append(
            f"{_some(zero)} {verb} zero in all modules: nothing was trained, or {their} factors "
            "were saved under names that were not found."
        )
    others = measured.drop(index=[*zero, findings.reference], errors="ignore")
    if findings.reference in zero:
        sentences.append(
            f"The reference {findings.reference} is zero, so that no other can be like it: "
            "choose another reference."
        )
    elif len(others):
        sentences.append(_directions(findings, others))
    lengths = measured.drop(index=zero)
    if len(lengths):
        sentences.append(_lengths(findings, lengths))
    third = _behaviour(measured) or _nearest_pair(findings) or _layers(findings, others)
    return [*sentences, *([third] if third else [])]


def _directions(findings: Findings, others: pd.DataFrame) -> str:
    """How every adapter that is not zero points beside the reference, those alike together."""
    wider = _wider(len(others))
    angles = smallest_angles(findings).reindex(others.index)
    middle = (angles.chance_low + angles.chance_high) / 2
    others = others.assign(
        chance=others.cosine_chance * wider,
        shares=angles.degrees < middle - wider * (middle - angles.chance_low),
    )
    kinds: dict[str, list[str]] = {}
    for name, row in others.iterrows():
        kinds.setdefault(_kind(row), []).append(str(name))
    parts = []
    for kind, names in kinds.items():
        rows = others.loc[names]
        verb = "is" if len(names) == 1 else "are"
        of = kind.format(reference=findings.reference, factor=_range(rows.norm_ratio), verb=verb)
        numbers = f"cosine {_range(rows.cosine)}, chance up to {_short(rows.chance.max())}"
        if kind == _SHARES:
            numbers += f", smallest angle {_degrees(rows.angle)}, chance from "
            numbers += _degrees(rows.angle_chance)
        parts.append(f"{_some(names)} {of}: {numbers}")
    over = f" (over {len(others)} comparisons)" if len(others) > 1 else ""
    return "; ".join(parts) + over + "."


def _wider(comparisons: int) -> float:
    """How many times wider than the 95 % band of one comparison the band is that holds all of
    several together in 95 % of cases (Bonferroni, of normal distributions)."""
    return float(ndtri(1 - 0.025 / comparisons) / ndtri(0.975))


def _kind(row: pd.Series) -> str:
    """In words, with places for the names, the direction of an adapter beside the reference."""
    size = abs(row.cosine)
    opposite = "" if row.cosine > 0 else "the opposite of "
    if size <= row.chance:
        # directions may be shared where the cosine, which they enter with signs, shows none
        return _SHARES if row.shares else "{verb} unrelated to {reference}"
    if size > 1 - _SAME:
        if abs(row.norm_ratio - 1) < 1e-3:
            return f"{{verb}} {opposite or 'the same as '}{{reference}}"
        return f"{{verb}} {opposite}{{reference}} times {{factor}}"
    if size >= _NEAR:
        return f"{{verb}} nearly {opposite}{{reference}}"
    how = "close to" if size >= 0.5 else "partly along" if size >= 0.2 else "hardly along"
    return f"{{verb}} {how} {opposite}{{reference}}"


def _lengths(findings: Findings, lengths: pd.DataFrame) -> str:
    """The norms, which a cosine is blind to."""
    smallest, largest = lengths.norm.idxmin(), lengths.norm.idxmax()
    if len(lengths) == 1 or lengths.norm[largest] < 1.001 * lengths.norm[smallest]:
        of = f"{_some(list(lengths.index))} {'has' if len(lengths) == 1 else 'have'}"
        sentence = f"{of} the norm {lengths.norm[largest]:.3g}"
    else:
        ratio = lengths.norm[largest] / lengths.norm[smallest]
        sentence = (
            f"The norms run from {lengths.norm[smallest]:.3g} ({smallest}) to "
            f"{lengths.norm[largest]:.3g} ({largest}), {ratio:.3g} times as long"
        )
    if "relative_norm" in lengths and lengths.relative_norm.notna().all():
        shares = 100 * lengths.relative_norm
        sentence += f"; they are {_percent(shares.min(), shares.max())} of the base's weights"
    return sentence + "."


def _behaviour(measured: pd.DataFrame) -> str | None:
    """What the adapters change on the texts, beside null adapters; None without texts."""
    if "kl" not in measured:
        return None
    parts = [
        f"{name} {row.kl:.2g} ({row.kl_null_high:.2g})"
        for name, row in measured.sort_values("kl", ascending=False).head(_NAMED).iterrows()
    ]
    return (
        "Next-token distributions on the texts move by a KL, in nats per token, and in brackets up "
        f"to that of null adapters of equal size and spectrum, of: {', '.join(parts)}."
    )


def _nearest_pair(findings: Findings) -> str | None:
    """The nearest two adapters of which neither is the reference; None where there are none outside
    chance."""
    pairs = findings.tables["cosine"].query("scope == 'global'")
    reference = findings.reference
    pairs = pairs[(pairs.run_a != reference) & (pairs.run_b != reference)].dropna(subset="cosine")
    if not len(pairs):
        return None
    wider = _wider(len(pairs))
    nearest = pairs.assign(chance=chance_of_cosine(pairs) * wider).loc[pairs.cosine.idxmax()]
    if nearest.cosine <= nearest.chance:
        return f"No two of the others are nearer than chance ({_short(nearest.cosine)} at most)."
    return (
        f"Of the others {nearest.run_a} and {nearest.run_b} are nearest: "
        f"cosine {_short(nearest.cosine)}, chance up to {_short(nearest.chance)}."
    )


def _layers(findings: Findings, others: pd.DataFrame) -> str | None:
    """Where the adapter nearest the reference is most and least like it; None where the model has
    one layer, and where it is the same in all."""
    if findings.reference not in findings.compared.runs or not len(others):
        return None
    name = others.cosine.abs().idxmax() if others.cosine.notna().any() else None
    layers = with_reference(findings, findings.tables["cosine"].query("scope == 'layer'"))
    layers = layers[(layers.run == name) & layers.layer.notna()].dropna(subset="cosine")
    if len(layers) < 2 or np.ptp(layers.cosine) < 0.01:
        return None
    has_stacks = layers["stack"].nunique() > 1
    least, most = (
        f"{_short(row.cosine)} ({row['stack'] + ', ' if has_stacks else ''}layer {row.layer})"
        for row in (layers.loc[layers.cosine.idxmin()], layers.loc[layers.cosine.idxmax()])
    )
    return f"By layer, the cosine of {name} with {findings.reference} runs from {least} to {most}."


def _some(names: Sequence[str]) -> str:
    """The first names in words, and how many others there are."""
    shown = list(names) if len(names) <= _NAMED + 1 else [*names[:_NAMED]]
    rest = len(names) - len(shown)
    if rest:
        return f"{', '.join(shown)} and {rest} others"
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _range(numbers: pd.Series) -> str:
    return span(_short(numbers.min()), _short(numbers.max()))


def _short(number: float) -> str:
    """Two decimals without the zero before the point, and more where a number below 1 would be
    rounded to 1.

    >>> [_short(number) for number in (0.943, -0.02, -0.001, 0.99996, 1.0, 2.5)]
    ['.94', '-.02', '.00', '.99996', '1.00', '2.50']
    """
    digits = next(
        (count for count in range(2, 6) if abs(round(number, count)) != 1 or abs(number) == 1), 2
    )
    text = f"{round(number, digits) or 0.0:.{digits}f}"  # 0 has no sign
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _degrees(angles: pd.Series) -> str:
    return span(f"{angles.min():.0f}", f"{angles.max():.0f}")


def _percent(low: float, high: float) -> str:
    shown = (f"{number:.2g}" if number < 100 else f"{number:.0f}" for number in (low, high))
    return f"{span(*shown)} %"


# --- how to read it -------------------------------------------------------------------------------


def about(findings: Findings) -> Iterator[str]:
    """Sentences that say what was compared and how to read the columns."""
    modules, angles = findings.compared.modules, findings.tables["angles"]
    layers = modules.dropna(subset="layer").groupby(["stack", "layer"], dropna=False).ngroups
    kinds = list(modules.projection.unique())
    more = f" and {len(kinds) - _KINDS} more" if len(kinds) > _KINDS else ""
    yield (
        f"{len(findings.compared.runs)} adapters, {len(modules)} common modules in {layers} layers "
        f"({', '.join(kinds[:_KINDS])}{more}); reference: {findings.reference}."
    )
    if any(findings.left_out.values()):
        yield "All numbers, norms too, are of the common modules."
    yield (
        "Cosines are of the updates dW = scale B A, all modules stacked; by chance: 97.5 % of "
        "unrelated updates lie below, those with these spectra or those with a Gaussian B on these "
        "A, whichever is wider. Angles are medians over modules, in "
        f"degrees, between the top {sizes(findings.compared)} left singular subspaces; by chance: "
        "97.5 % of such medians of random ones lie above. Effective rank is the mean over modules "
        "that are not zero."
    )
    if len(findings.compared.runs) > 2 and len(with_reference(findings, angles)) == len(angles):
        yield (
            f"Of so many adapters, numbers by module are of the pairs with {findings.reference}; "
            "the cosines of whole updates are of all pairs."
        )
    if "similarity" in findings.tables:
        yield (
            "Where ranks differ, as many directions are compared as the smaller one gives; the "
            "table similarity has all sizes of both."
        )
    yield from _between_groups(findings)
    if "barriers" in findings.tables:
        yield (
            "Barriers are of the loss of the texts, in nats per token, above the chord of the "
            f"straight path from {findings.reference}; by noise: a straight path of the loss stays "
            "below in 19 of 20 samples of texts. CKA is debiased, of the last layer, one token per "
            "text."
        )
    if "behaviour" in findings.tables:
        yield (
            "KL is from the base to the adapter, mean over the completions' tokens, in nats; of "
            f"null adapters: the largest of {findings.tables['behaviour'].nulls.max()} updates "
            "with the adapter's norms, spectra and right vectors and random left ones."
        )
    if findings.base is None:
        yield (
            "Without the base model there are no relative norms, intruder dimensions and spectral "
            "shifts: add --base."
        )


def _between_groups(findings: Findings) -> Iterator[str]:
    """Sentences on the groups of adapters: each one's mean cosine within it and with the others."""
    if "groups" not in findings.tables:
        return
    for row in findings.tables["groups"].itertuples():
        where = (
            f"within {row.group_a}"
            if row.group_a == row.group_b
            else f"between {row.group_a} and {row.group_b}"
        )
        yield (
            f"Mean cosine {where}, over {counted(row.pairs, 'pair')}: {_short(row.cosine)}, chance "
            f"up to {_short(row.chance_high)}."
        )


# --- for the terminal -----------------------------------------------------------------------------


def lines(found: Findings) -> Iterator[str]:
    """The summary: findings, warnings and notes, the sentences of `about`, the overview, and the
    cosine of every pair, or, where that is wider than the terminal, the nearest of each.

    Names are in it as they are; `printable` makes it safe for a terminal.
    """
    width = shutil.get_terminal_size((100, 24)).columns
    yield from findings(found)
    yield from (f"warning: {warning}" for warning in found.warnings)
    for name, notes in found.notes.items():
        yield from (f"note: {name}: {note}" for note in notes)
    yield from (f"note: {note}" for note in (found.provenance.get("base") or {}).get("notes", []))
    yield ""
    yield from about(found)
    yield ""
    names = dict(zip(found.compared.runs, _cut(found.compared.runs), strict=True))
    yield from _fitting(_rows_shown(overview(found), found.reference), names, width)
    yield ""
    cosine, _ = geometry.stacked_cosine(found.compared)
    matrix = pd.DataFrame(cosine, list(names.values()), list(names.values()))
    shown = matrix.to_string(float_format="{:+.3f}".format)
    if max(map(len, shown.splitlines())) <= width:
        yield "cosine of every pair:"
        yield shown
    else:
        yield "nearest adapter of each, by cosine, similar ones side by side:"
        yield from _fitting(_rows_shown(nearest(found), found.reference), names, width)


def nearest(findings: Findings) -> pd.DataFrame:
    """One row per adapter, similar ones side by side: its nearest other by the cosine of the whole
    updates, that cosine, and up to where chance gives one. Missing for an update of zero."""
    pairs = findings.tables["cosine"].query("scope == 'global'")
    pairs = pairs.assign(chance=chance_of_cosine(pairs))
    columns = ["run", "other", "cosine", "chance"]
    both = [
        pairs.rename(columns={one: "run", other: "other"})[columns]
        for one, other in (("run_a", "run_b"), ("run_b", "run_a"))
    ]
    ways = pd.concat(both, ignore_index=True).dropna(subset="cosine")
    rows = ways.loc[ways.groupby("run").cosine.idxmax()].set_index("run")
    rows = rows.reindex([findings.compared.runs[number] for number in order(findings)])
    headings = {
        "run": "adapter",
        "other": "nearest",
        "chance": "by chance, up to",
    }
    return rows.reset_index().rename(columns=headings)


def _rows_shown(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """The rows of a table of adapters that are shown in a terminal: all, or the first, the
    reference among them."""
    if len(table) <= _MOST_ROWS:
        return table
    is_reference = table.adapter == reference
    return pd.concat([table[is_reference], table[~is_reference].head(_MOST_ROWS - 1)])


def _fitting(table: pd.DataFrame, names: dict[str, str], width: int) -> Iterator[str]:
    """A table of adapters as lines of at most `width` characters (or one column): blocks of columns
    below each other, each beginning with the adapter, and how many rows are not shown."""
    table = table.assign(
        **{
            column: table[column].map(names, na_action="ignore")
            for column in ("adapter", "nearest")
            if column in table
        }
    )
    block: list[str] = []
    for group in _groups(table.columns[1:]):
        if block and _width(_text(table[["adapter", *block, *group]])) > width:
            yield _text(table[["adapter", *block]])
            yield ""
            block = []
        block += group
    yield _text(table[["adapter", *block]])
    if len(names) > len(table):
        yield f"... and {len(names) - len(table)} more: in the tables that --out writes"


def _groups(columns: Iterable[str]) -> Iterator[list[str]]:
    """Columns that stay together: each number with its chance level."""
    group: list[str] = []
    for column in columns:
        if group and not column.startswith(("by ", "of ")):
            yield group
            group = []
        group.append(column)
    yield group


def _text(table: pd.DataFrame) -> str:
    text: str = table.to_string(
        index=False,
        float_format=lambda number: f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}",
        na_rep="",
    )
    return text


def _width(text: str) -> int:
    return max(map(len, text.splitlines()))


def _cut(names: Sequence[str]) -> list[str]:
    """Names for a terminal: the middle of long ones is left out, unless two would look alike."""
    half = (_WIDEST_NAME - 1) // 2
    short = [
        name if len(name) <= _WIDEST_NAME else f"{name[:half]}…{name[-half:]}" for name in names
    ]
    return short if len(set(short)) == len(names) else list(names)
