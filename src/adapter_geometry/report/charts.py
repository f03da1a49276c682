"""The figures of the report's page: which there are, from which table, with which words.

Comes after `findings` and `svg`, before `page`. With up to eight adapters what runs over the layers
is drawn as lines, one look per adapter all through the page; more are rows of cells, in the order
in which similar ones stand side by side.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from adapter_geometry import geometry
from adapter_geometry.report import findings as found
from adapter_geometry.report import module_maps, svg
from adapter_geometry.report.findings import Findings, with_reference
from adapter_geometry.report.module_maps import COSINE, DEGREES, SHARE, beside_chance, by_pair

_LINES = 8  # adapters that are told apart as lines, and maps of a figure
_WRITTEN = 12  # adapters whose matrix has room for numbers
_SIMILAR = 4  # pairs of unequal rank that have maps
_CELLS = 8000  # of the maps of one figure: about 200 kB
_COUNTED = {"layer", "index of the angle", "index of the singular value"}  # axes in whole numbers
_HATCHED = "Hatched: within what chance gives."
_SIDES = {"left": "outputs", "right": "inputs"}


class Panel(NamedTuple):
    """One chart of a figure."""

    heading: str
    chart: str


class Figure(NamedTuple):
    """A figure for the template. source: formula and paper of what it shows."""

    heading: str
    caption: str
    source: str
    panels: list[Panel]
    legend: Sequence[tuple[str, str]] = ()
    scale: svg.Scale | None = None
    is_wide: bool = False


class Section(NamedTuple):
    """Figures that answer one question."""

    heading: str
    figures: list[Figure]


def are_many(findings: Findings) -> bool:
    """Whether there are more adapters than can be told apart as lines."""
    return len(findings.compared.runs) > _LINES


def sections(
    findings: Findings, layout: module_maps.Layout, statistics: Sequence[module_maps.Statistic]
) -> list[Section]:
    """The figures of the page in their order; sections without any are left out."""
    parts = {
        "Directions": [
            _cosine(findings),
            *_groups(findings),
            *_cosine_by_layer(findings),
            *_angles(findings),
            *_similarities(findings),
        ],
        "Without what all share": [*_shares(findings), *_without_shared(findings)],
        "Module by module": [_maps(findings, layout, each) for each in statistics],
        "Size and spectrum": [
            *_norm_by_layer(findings),
            *_relative_norm(findings),
            *_spectra(findings),
        ],
        "On the base's spectrum": [*_intruders(findings), *_shifts(findings)],
        "On the texts": [*_losses(findings), *_cka(findings)],
    }
    return [Section(heading, figures) for heading, figures in parts.items() if figures]


# --- pairs ----------------------------------------------------------------------------------------


def _cosine(findings: Findings) -> Figure:
    """The matrix of cosines; with many adapters in the order of a tree, which stands beside it."""
    compared = findings.compared
    cosine, _ = geometry.stacked_cosine(compared)
    table = beside_chance(findings.tables["cosine"].query("scope == 'global'"))
    low, high = (by_pair(findings, table, column) for column in ("chance_low", "chance_high"))
    names, is_many = compared.runs, are_many(findings)
    order = found.order(findings) if is_many else list(range(len(names)))
    widest = (
        f"95 of 100 pairs of unrelated updates lie within {np.nanmax(high):.3f} of zero."
        if np.isfinite(high).any()
        else "None is defined."
    )
    chart = _matrix(
        findings, order, cosine, low, high, _branches(findings, order) if is_many else ()
    )
    caption = f"Cosine of the updates, all modules stacked. {widest} {_HATCHED}"
    if is_many:
        caption += (
            " The tree joins adapters by the mean of 1 - cosine (Sokal & Michener 1958); they stand"
            " in its order."
        )
    return Figure(
        "Cosine",
        caption,
        "⟨dW, dW'⟩ / (|dW| |dW'|); by chance, the wider of: one of the two multiplied by a "
        "random rotation of each module's outputs; Gaussian B on each update's own A.",
        [Panel("", chart)],
        scale=COSINE,
        is_wide=len(names) > 4,
    )


def _matrix(
    findings: Findings,
    order: Sequence[int],
    values: Float[np.ndarray, "adapter adapter"],
    low: Float[np.ndarray, "adapter adapter"],
    high: Float[np.ndarray, "adapter adapter"],
    tree: Sequence[Sequence[tuple[float, float]]] = (),
) -> str:
    """A matrix of cosines between the adapters, in this order, hatched within their bands."""
    names = findings.compared.runs
    rows = [
        svg.Row(names[number], svg.look_of(number), number=str(place))
        for place, number in enumerate(order, start=1)
    ]
    chosen = np.ix_(order, order)
    return _square(
        values[chosen], ((values >= low) & (values <= high))[chosen], rows, "adapter", tree
    )


def _square(
    values: Float[np.ndarray, "row row"],
    within: Bool[np.ndarray, "row row"],
    rows: Sequence[svg.Row],
    what: str,
    tree: Sequence[Sequence[tuple[float, float]]] = (),
) -> str:
    """A square matrix of cosines between what the rows are, in colours, and in numbers where there
    is room; its first pairs in words."""
    pairs = [
        f"{rows[a].label} and {rows[b].label} "
        + (f"{values[a, b]:.2f}" if np.isfinite(values[a, b]) else "undefined")
        for a, b in itertools.combinations(range(len(rows)), 2)
    ]
    alternative = f"Matrix of cosines: {', '.join(pairs[:40])}{', ...' * (len(pairs) > 40)}"
    size = max(6.0, min(48.0, 560 / len(rows)))
    return svg.cells(
        values,
        rows,
        [row.number for row in rows],
        COSINE,
        what,
        alternative,
        within,
        2 if len(rows) <= _WRITTEN else None,
        (size, max(size * 0.6, 15.0)),
        tree,
    )


def _branches(findings: Findings, order: Sequence[int]) -> list[list[tuple[float, float]]]:
    """The tree beside the matrix, from the `tree` table: brackets of (share of the
    width, row), the leaves on the right."""
    joins = findings.tables["tree"]
    count, widest = len(order), max(joins.distance.max(), 1e-12)
    places = {adapter: (1.0, float(row)) for row, adapter in enumerate(order)}
    branches = []
    for number, join in enumerate(joins.itertuples()):
        (x_a, row_a), (x_b, row_b) = places[join.first], places[join.second]
        x = 1 - join.distance / widest
        branches.append([(x_a, row_a), (x, row_a), (x, row_b), (x_b, row_b)])
        places[count + number] = x, (row_a + row_b) / 2
    return branches


def _groups(findings: Findings) -> list[Figure]:
    """The matrix of mean cosines between groups of adapters."""
    if "groups" not in findings.tables:
        return []
    table = findings.tables["groups"]
    names = list(dict.fromkeys([*table.group_a, *table.group_b]))
    i, j = (pd.Index(names).get_indexer(table[group]) for group in ("group_a", "group_b"))
    values, within = np.full((len(names), len(names)), np.nan), np.zeros((len(names),) * 2, bool)
    values[i, j] = values[j, i] = table.cosine
    within[i, j] = within[j, i] = table.cosine.between(table.chance_low, table.chance_high)
    rows = [svg.Row(name, number=str(place)) for place, name in enumerate(names, start=1)]
    return [
        Figure(
            "Cosine of groups",
            "Mean over the pairs of adapters of two groups, all modules stacked; on the diagonal, "
            f"over the pairs within a group. {_HATCHED}",
            "Mean of ⟨dW, dW'⟩ / (|dW| |dW'|); by chance: all adapters of one of the two groups "
            "multiplied by one random rotation of each module's outputs, which leaves what they "
            "share with each other; within a group, each by its own.",
            [Panel("", _square(values, within, rows, "group"))],
            scale=COSINE,
        )
    ]


def _similarities(findings: Findings) -> list[Figure]:
    """Maps of the likeness of subspaces of all sizes, of pairs of unequal rank."""
    if "similarity" not in findings.tables:
        return []
    table = with_reference(findings, findings.tables["similarity"])
    names = list(dict.fromkeys(table.run))
    caption = (
        "How much of the top i directions of one update lies in the top j of another of a "
        "different rank, mean over modules: 1 where the smaller is part of the larger one. "
        f"Down: {findings.reference}; across: the other."
    )
    if len(names) > _SIMILAR:
        cosine = np.abs(geometry.stacked_cosine(findings.compared)[0])
        reference = findings.compared.runs.index(findings.reference)
        nearness = dict(zip(findings.compared.runs, np.nan_to_num(cosine[reference]), strict=True))
        names = sorted(names, key=lambda name: -nearness[name])[:_SIMILAR]
        caption += f" The {_SIMILAR} nearest by the cosine of the whole updates."
    panels = []
    for name in names:
        for side, rows in table[table.run == name].groupby("side", sort=False):
            rows = rows[
                rows.i.isin(_sizes(int(rows.i.max()))) & rows.j.isin(_sizes(int(rows.j.max())))
            ]
            values, limits = (
                rows.pivot(index="i", columns="j", values=column)
                for column in ("similarity", "chance_high")
            )
            heading = f"{name}, {_SIDES[side]}"
            chart = svg.cells(
                values.to_numpy(),
                [svg.Row(str(i)) for i in values.index],
                [str(j) for j in values.columns],
                SHARE,
                f"top directions of {name}",
                f"Map of the likeness of subspaces: {findings.reference} and {heading}",
                values.to_numpy() <= limits.to_numpy(),
            )
            panels.append(Panel(heading, chart))
    return [
        Figure(
            "Subspaces of any size",
            f"{caption} {_HATCHED}",
            "φ(i, j) = |U_i' U_j|² / min(i, j) (Hu et al. 2021); by chance: outputs drawn at "
            "random, row spaces of A kept.",
            panels,
            scale=SHARE,
            is_wide=True,
        )
    ]


def _sizes(largest: int) -> list[int]:
    """Sizes of subspaces that a map shows: all small ones, then four for each doubling.

    >>> _sizes(16)
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    """
    return [
        size for size in range(1, largest + 1) if size % max(1, 2 ** (size.bit_length() - 3)) == 0
    ]


# --- without what all share -----------------------------------------------------------------------


def _shares(findings: Findings) -> list[Figure]:
    """How much of each adapter lies in the direction that all share."""
    if "shared" not in findings.tables:
        return []
    table = findings.tables["shared"].query("scope == 'run'")
    (mean,) = findings.tables["shared"].query("scope == 'global'").itertuples()
    names = findings.compared.runs
    order = found.order(findings) if are_many(findings) else range(len(names))
    rows = [svg.Row(names[number], svg.look_of(number)) for number in order]
    shares, limits = (table[column].to_numpy()[list(order)] for column in ("share", "chance_high"))
    chart = svg.cells(
        shares[:, None],
        rows,
        ["share"],
        SHARE,
        "of |dW|²",
        "Shares in the common direction: "
        + ", ".join(f"{names[number]} {table.share.iloc[number]:.2f}" for number in order),
        (shares <= limits)[:, None],
        2,
        (60.0, 18.0),
    )
    return [
        Figure(
            "Share in one direction",
            "Share of each update's squared norm that lies in the direction which the updates have "
            f"most in common, all modules stacked; on average {mean.share:.2f}, of unrelated "
            f"updates up to {mean.chance_high:.2f}. {_HATCHED}",
            "The first principal component of the updates scaled to length 1; by chance: that of "
            "unrelated updates, of which each holds about one part in their number.",
            [Panel("", chart)],
            scale=SHARE,
        )
    ]


def _without_shared(findings: Findings) -> list[Figure]:
    """The matrix of cosines of what is left of the adapters without the direction they share."""
    if "without_shared" not in findings.tables:
        return []
    table = findings.tables["without_shared"]
    cosine, low, high = (
        by_pair(findings, table, column) for column in ("cosine", "chance_low", "chance_high")
    )
    names = findings.compared.runs
    order = found.order(findings) if are_many(findings) else list(range(len(names)))
    defined = table.dropna()
    outside = int((~defined.cosine.between(defined.chance_low, defined.chance_high)).sum())
    middle = ((defined.chance_low + defined.chance_high) / 2).mean()
    return [
        Figure(
            "Cosine without it",
            "Cosine of what is left without that direction. Updates that share it and nothing "
            f"else would be around {middle:.2f}, and one pair in 20 outside its band: here "
            f"{outside} of {len(defined)} are. {_HATCHED}",
            "Cosines of dW - ⟨dW, s⟩ s; by chance: unrelated updates with the same cosines with "
            "one direction, whose own cosines spread as above.",
            [Panel("", _matrix(findings, order, cosine, low, high))],
            scale=COSINE,
            is_wide=len(names) > 4,
        )
    ]


# --- over the layers ------------------------------------------------------------------------------


def _cosine_by_layer(findings: Findings) -> list[Figure]:
    by_layer = findings.tables["cosine"].query("scope == 'layer'").dropna(subset="layer")
    return _over(
        findings,
        "Cosine by layer",
        f"Cosine with {findings.reference}, the modules of a layer stacked.",
        "As above, with the sums over the modules of the layer.",
        beside_chance(with_reference(findings, by_layer)),
        ("layer", "cosine"),
        ("layer", "cosine"),
        COSINE,
    )


def _norm_by_layer(findings: Findings) -> list[Figure]:
    return _over(
        findings,
        "Norm by layer",
        "Frobenius norm of the update, the modules of a layer stacked.",
        "|dW| = (Σ σ²)^½ over the singular values σ of all modules of the layer.",
        _norms(findings),
        ("layer", "norm"),
        ("layer", "norm of dW"),
        None,
    )


def _relative_norm(findings: Findings) -> list[Figure]:
    table = findings.tables["updates"]
    if table.relative_norm.isna().all():
        return []
    return _over(
        findings,
        "Relative norm by layer",
        "Norm of the update over the norm of the base's weights, the modules of a layer stacked.",
        "|dW| / |W0|",
        _norms(findings),
        ("layer", "relative_norm"),
        ("layer", "norm of dW over that of W0"),
        None,
    )


def _norms(findings: Findings) -> pd.DataFrame:
    """Norms, and relative ones, of each adapter's layers."""
    modules = findings.tables["updates"].query("scope == 'module'").dropna(subset="layer")
    # norm / relative norm is the norm of W0, which an update of zero does not tell, but another
    of_base = (modules.norm / modules.relative_norm).groupby(modules.module).transform("max")
    modules = modules.assign(squares=modules.norm**2, of_base=of_base**2)
    keys = ["run", "stack", "layer"]
    sums = modules.groupby(keys, sort=False, dropna=False)[["squares", "of_base"]].sum()
    layers = sums.reset_index()
    layers["norm"] = np.sqrt(layers.squares)
    layers["relative_norm"] = np.sqrt(layers.squares / layers.of_base.where(layers.of_base > 0))
    return layers


def _angles(findings: Findings) -> list[Figure]:
    medians = with_reference(findings, findings.tables["angles"].query("scope == 'global'"))
    k = found.sizes(findings.compared)
    return _over(
        findings,
        "Principal angles",
        f"Principal angles with {findings.reference} between the subspaces of the top {k} singular "
        "vectors, of outputs (left) and of inputs (right), medians over modules.",
        "θ = arccos σ(U'U'') of bases U, U'' of the two subspaces (Björck & Golub 1973); by chance:"
        " outputs drawn at random, row spaces of A kept.",
        beside_chance(medians).assign(side=medians.side.map(_SIDES)),
        ("index", "degrees"),
        ("index of the angle", "degrees"),
        DEGREES,
        by="side",
    )


def _spectra(findings: Findings) -> list[Figure]:
    """The figure of singular values; none where all updates are zero."""
    sigma = findings.compared.singular_values  # (module, adapter, largest r)
    largest = sigma[..., :1]
    shares = np.divide(sigma, largest, out=np.full_like(sigma, np.nan), where=largest > 0)
    index = np.arange(1, sigma.shape[2] + 1)
    # pandas' mean leaves out NaN, which numpy's would warn of where a whole column is NaN
    means = [pd.DataFrame(shares[:, i]).mean() for i in range(sigma.shape[1])]
    spectra = pd.concat(
        [
            pd.DataFrame({"run": name, "index": index, "share": mean})
            for name, mean in zip(findings.compared.runs, means, strict=True)
        ]
    ).dropna()
    return _over(
        findings,
        "Spectra",
        "Singular values of each update over the largest, mean over modules.",
        "σ_i / σ_1; their entropy gives the effective rank, exp(-Σ p log p) with p = σ / Σ σ "
        "(Roy & Vetterli 2007).",
        spectra,
        ("index", "share"),
        ("index of the singular value", "over the largest"),
        SHARE,
    )


def _intruders(findings: Findings) -> list[Figure]:
    if "intruders" not in findings.tables:
        return []
    return _over(
        findings,
        "Intruder dimensions",
        "How many of the ten leading left singular vectors of W0 + dW have no overlap of .5 or "
        "more with any of W0: means over the modules of a layer.",
        "#{i ≤ 10: max_j |u_i(W0 + dW)' u_j(W0)| < ½} (Shuttleworth et al. 2024)",
        _of_base(findings, "count", "count_by_chance"),
        ("layer", "count"),
        ("layer", "intruders per module"),
        None,
    )


def _shifts(findings: Findings) -> list[Figure]:
    if "intruders" not in findings.tables:
        return []
    return _over(
        findings,
        "Spectral shift",
        "Change of the base weights' singular values over their norm, mean over the modules of "
        "a layer.",
        "|σ(W0 + dW) - σ(W0)| / |σ(W0)|; at most |dW| / |W0| (Mirsky 1960)",
        _of_base(findings, "spectral_shift", "shift_by_chance"),
        ("layer", "spectral_shift"),
        ("layer", "shift"),
        None,
    )


def _of_base(findings: Findings, column: str, null: str) -> pd.DataFrame:
    """Means over the modules of a layer of a column of `intruders`, and of its null."""
    modules = findings.tables["intruders"].dropna(subset="layer").rename(columns={null: "null"})
    keys = ["run", "stack", "layer"]
    means = modules.groupby(keys, sort=False, dropna=False)[[column, "null"]].mean()
    return means.reset_index()


def _losses(findings: Findings) -> list[Figure]:
    if "connectivity" not in findings.tables:
        return []
    return _over(
        findings,
        "Loss along straight paths",
        f"Loss of the texts from {findings.reference} (0) to each other adapter and to the "
        "base model (1), with 95 % bootstrap intervals over texts.",
        "loss of W0 + (1 - t) dW + t dW' (Frankle et al. 2020)",
        findings.tables["connectivity"].rename(columns={"run_b": "run"}),
        ("t", "value"),
        ("position on the path", "loss in nats per token"),
        None,
    )


def _cka(findings: Findings) -> list[Figure]:
    if "cka" not in findings.tables:
        return []
    with_base = findings.tables["cka"].query("end_a == 'base model'")
    return _over(
        findings,
        "Likeness of representations",
        "Debiased CKA of hidden states with the base, one token per text; "
        "0 for unrelated features.",
        "HSIC(X, Y) / (HSIC(X, X) HSIC(Y, Y))^½, U-statistics (Kornblith et al. 2019; Murphy "
        "et al. 2024)",
        with_base.rename(columns={"run_b": "run"}),
        ("layer", "debiased"),
        ("layer", "CKA with the base"),
        SHARE,
    )


def _over(
    findings: Findings,
    heading: str,
    caption: str,
    source: str,
    table: pd.DataFrame,
    columns: tuple[str, str],
    labels: tuple[str, str],
    scale: svg.Scale | None,
    by: str = "stack",
) -> list[Figure]:
    """The figure of what runs over an axis, of each adapter (the column `run`; a missing one is the
    base model), a panel for each value of the column `by`, if the table has it. None
    where the table is empty.

    columns: of the table, along x and up; `chance_low` and `chance_high` are the band by chance,
    `null` is the value of a null update beside each, `low` and `high` an interval. scale: of the
    colours where adapters are rows; none: from 0 to the largest value.
    """
    if not len(table):
        return []
    table = table.rename(columns={columns[0]: "x", columns[1]: "y"})
    parts = (
        [(str(part), rows) for part, rows in table.groupby(by, sort=False)]
        if by in table and table[by].nunique() > 1
        else [("", table)]
    )
    has_chance = "chance_low" in table and bool(table.chance_low.notna().any())
    has_null = "null" in table
    looks = {
        name: _look(findings, name) for name in findings.compared.runs if name in set(table.run)
    }
    scale = scale or svg.Scale(0, table.y.max() if table.y.max() > 0 else 1)
    if is_many := are_many(findings):
        caption += f" {_HATCHED}" * has_chance
        caption += " Hatched: no more than the copy with turned outputs." * has_null
    else:
        caption += " Dashed: a copy of each with turned outputs." * has_null
        caption += " Grey: what chance gives, the widest band of the pairs." * has_chance
    panels = []
    for part, rows in parts:
        if is_many:
            chart = _rows(findings, rows, labels, scale, f"{heading}, rows of cells {part}")
        else:
            chart = _lines(rows, looks, labels, f"{heading}, lines: {part or caption}")
        panels.append(Panel(part, chart))
    if is_many:
        return [Figure(heading, caption, source, panels, scale=scale, is_wide=True)]
    legend = [(name, svg.legend_marker(look)) for name, look in looks.items()]
    if table.run.isna().any():
        legend.append((_named(None), svg.legend_marker(svg.OF_BASE)))
    return [Figure(heading, caption, source, panels, legend, is_wide=len(panels) > 1)]


def _named(run: Any) -> str:
    return "base model" if pd.isna(run) else str(run)


def _look(findings: Findings, run: Any) -> svg.Look:
    if pd.isna(run):
        return svg.OF_BASE
    return svg.look_of(findings.compared.runs.index(run))


def _lines(
    table: pd.DataFrame, looks: Mapping[Any, svg.Look], labels: tuple[str, str], alternative: str
) -> str:
    """One line per adapter, over the widest band by chance."""
    drawn = []
    for name, rows in table.groupby("run", sort=False, dropna=False):
        rows = rows.sort_values("x")
        interval = [_floats(rows[end]) for end in ("low", "high") if end in rows]
        look = svg.OF_BASE if pd.isna(name) else looks[name]
        if "null" in rows:
            dashed = look._replace(colour=f"{look.colour} null")
            drawn.append(svg.Line(_named(name), dashed, _floats(rows.x), _floats(rows["null"])))
        drawn.append(svg.Line(_named(name), look, _floats(rows.x), _floats(rows.y), *interval))
    band = None
    if "chance_low" in table:
        limits = table.groupby("x")[["chance_low", "chance_high"]]
        low, high = limits.min().chance_low, limits.max().chance_high
        band = svg.Band(_floats(low.index), _floats(low), _floats(high))
    return svg.lines(drawn, band, *labels, alternative, is_whole=labels[0] in _COUNTED)


def _rows(
    findings: Findings,
    table: pd.DataFrame,
    labels: tuple[str, str],
    scale: svg.Scale,
    alternative: str,
) -> str:
    """One row of cells per adapter, the base model last."""
    names = [findings.compared.runs[number] for number in found.order(findings)]
    shown = [name for name in names if (table.run == name).any()]
    parts = [(name, table[table.run == name], _look(findings, name)) for name in shown]
    if table.run.isna().any():
        parts.append(("base model", table[table.run.isna()], svg.OF_BASE))
    places = sorted(table.x.unique())
    columns = [f"{place:.3g}" for place in places]
    values = np.full((len(parts), len(places)), np.nan)
    within = np.zeros(values.shape, dtype=bool)
    for row, (_, part, _) in enumerate(parts):
        column = pd.Index(places).get_indexer(part.x)
        values[row, column] = _floats(part.y)
        if "chance_low" in part:
            within[row, column] = part.y.between(part.chance_low, part.chance_high)
        elif "null" in part:
            within[row, column] = part.y <= part["null"]
    cell = max(5.0, min(26.0, 640 / len(places))), 18.0
    rows = [svg.Row(name, look) for name, _, look in parts]
    return svg.cells(values, rows, columns, scale, labels[0], alternative, within, cell=cell)


def _floats(values: pd.Series | pd.Index) -> np.ndarray:
    numbers: np.ndarray = values.to_numpy(dtype=float, na_value=np.nan)
    return numbers


# --- module by module -----------------------------------------------------------------------------


def _maps(
    findings: Findings, layout: module_maps.Layout, statistic: module_maps.Statistic
) -> Figure:
    """Maps of a statistic of the reference with the others, the nearest of them where they are
    many."""
    names, cosine = findings.compared.runs, geometry.stacked_cosine(findings.compared)[0]
    reference = names.index(findings.reference)
    others = [number for number in range(len(names)) if number != reference]
    count = max(1, min(_LINES, _CELLS // len(layout.row)))
    caption = f"{statistic.caption} First: {findings.reference}."
    if len(others) > count:
        nearness = np.nan_to_num(np.abs(cosine[reference]))
        others = sorted(others, key=lambda number: -nearness[number])[:count]
        caption += f" The {count} nearest by the cosine of the whole updates; others above."
    if statistic.is_within_chance.any():
        caption += f" {_HATCHED}"
    heading = f"{statistic.name}, {statistic.side}" if statistic.side else statistic.name
    panels = [
        Panel(
            names[other],
            module_maps.chart(
                layout,
                statistic,
                reference,
                other,
                f"Map of layers and projections: {heading}, {findings.reference} and "
                f"{names[other]}",
            ),
        )
        for other in others
    ]
    title = f"{heading}, by module"
    is_wide = len(panels) > 1
    return Figure(title, caption, statistic.source, panels, (), statistic.scale, is_wide)
