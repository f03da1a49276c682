"""The verdict: what of the paper's claims the tables of this book support, and against which control.

Last in the flow of data: reads the tables that the notebooks wrote, and nothing else. A claim *holds* when the ordering that it
states is true here and our interval lies outside the band of its control; what is true but inside the band, or true whatever
the data are, is said to be so.
"""

import numpy as np
import pandas as pd

from helpers import store
from helpers.figures import LABELS

FAMILY = ("sft", "rft", "dft", "rift", "offline-grpo")
HOLDS, CHANCE, CONSTRUCTION, FAILS = "holds", "holds, but at chance", "holds, by construction", "does not hold here"
TABLES = ("accuracy", "mcnemar", "updates", "cosine", "angles", "orthogonal", "connectivity", "barriers", "cka")
_DRAWS = 2000
_TOLERANCE = 0.01  # nats by which a curve may leave the range of its ends and still count as lying between them


def verdict_table(profile_name):
    """The `verdict` table: one row a claim; columns part, claim, paper, value, low, high, control, verdict, ours, paper_value, chance_low, chance_high.

    `value` with its interval `low` to `high` is in the claim's own unit; `ours` is the same as text; `control` says what the value would
    be by chance or without what the claim is about, `chance_low` to `chance_high` is that band, and `paper_value` the paper's number
    where it is one of the same quantity.
    """
    tables = {name: store.read_table(profile_name, name) for name in TABLES}
    return pd.DataFrame([*_behaviour(tables), *_direction(tables), *_size(tables), *_angles(tables), *_paths(tables), *_representations(tables)])


def judge(is_true, low, high, band=None, by_construction=False):
    """One of the four verdicts, from the truth of the ordering, our interval, and the control's band (none where the claim is an absence)."""
    if not is_true:
        return FAILS
    if by_construction:
        return CONSTRUCTION
    return HOLDS if band is None or low > band[1] or high < band[0] else CHANCE


def _row(part, claim, paper, interval, control, is_true, band=None, number=np.nan, by_construction=False, form="{:.3f}"):
    value, low, high = (float(number) for number in interval)
    ours = f"{form.format(value)} ({form.format(low)} to {form.format(high)})"
    return {"part": part, "claim": claim, "paper": paper, "value": value, "low": low, "high": high, "control": control,
            "verdict": judge(is_true, low, high, band, by_construction), "ours": ours, "paper_value": number,
            "chance_low": band[0] if band else np.nan, "chance_high": band[1] if band else np.nan}


# --- what the claims are computed from -----------------------------------------------------------------------------

def _pair(table, a, b):
    """The rows of a table about two runs, in whichever order they stand."""
    return table[((table.run_a == a) & (table.run_b == b)) | ((table.run_a == b) & (table.run_b == a))]


def _over_modules(statistic, *columns, seed=0):
    """(value, low, high) of a statistic of per-module columns, the interval by resampling modules."""
    columns = [np.asarray(column, float) for column in columns]
    chosen = np.random.default_rng(seed).integers(len(columns[0]), size=(_DRAWS, len(columns[0])))
    drawn = [statistic(*(column[rows] for column in columns)) for rows in chosen]
    return statistic(*columns), *np.quantile(drawn, (0.025, 0.975))


def _module_norms(tables, run):
    rows = tables["updates"]
    return rows[(rows.run == run) & (rows.layer >= 0)].set_index(["layer", "projection"]).norm


def _stacked(cosine, norm_a, norm_b):
    """Cosine of two stacked updates from the cosines and norms of their modules."""
    return (cosine * norm_a * norm_b).sum() / np.sqrt((norm_a ** 2).sum() * (norm_b ** 2).sum())


def _modules(tables, a, b):
    """(cosine, norm of a, norm of b), one value a module."""
    rows = _pair(tables["cosine"], a, b).query("scope == 'module'").set_index(["layer", "projection"])
    return rows.cosine, *(_module_norms(tables, run).loc[rows.index] for run in (a, b))


def _cosine(tables, a, b):
    """((value, low, high), (chance_low, chance_high)) of the cosine of two updates, all modules stacked."""
    everything = _pair(tables["cosine"], a, b).query("scope == 'global'").iloc[0]
    return _over_modules(_stacked, *_modules(tables, a, b)), (everything.chance_low, everything.chance_high)


def _angle(tables, run, index):
    """((value, low, high), (chance_low, chance_high)) of the median over modules of one left principal angle with SFT, in degrees."""
    rows = _pair(tables["angles"], "sft", run).query("side == 'left' and index == @index")
    return _over_modules(np.median, rows.degrees), (rows.chance_low.median(), rows.chance_high.median())


def _curve(tables, a, b):
    rows = tables["connectivity"].query("run_a == @a and run_b == @b and metric == 'boxed answer' and 0 <= t <= 1")
    return rows.sort_values("t").value.to_numpy()


def _barrier(tables, a, b):
    """((height above the chord, low, high), its noise) of the bare answer's loss on a path."""
    row = tables["barriers"].query("run_a == @a and run_b == @b and metric == 'boxed answer'").iloc[0]
    return (row.above_chord, row.low, row.high), row.noise


# --- the claims ----------------------------------------------------------------------------------------------------

def _behaviour(tables):
    tests = tables["mcnemar"].query("split == 'test'")
    among = tests[tests.run_a.isin(FAMILY) & tests.run_b.isin(FAMILY)]
    largest = among.loc[among.difference.abs().idxmax()]
    sign = np.sign(largest.difference) or 1.0
    ends = sorted((sign * largest.low, sign * largest.high))
    yield _row("behaviour", "SFT, RFT, DFT, RIFT and Offline GRPO are equally accurate", "87.3–88.2%, each p ≥ .15",
               [100 * abs(largest.difference), *(100 * end for end in ends)],
               f"largest difference of ten pairs, points; smallest adjusted p {among.p_holm.min():.2g}; "
               f"{100 * among.detectable.max():.1f} points would have been seen", bool((among.p_holm >= 0.05).all()), form="{:.1f}")
    signed = _pair_differences(tests, "dpo")
    family = signed[signed.other.isin(FAMILY)]
    least = family.loc[family.difference.idxmin()]
    yield _row("behaviour", "DPO is more accurate than each of the five", "+5.3 to +6.2 points, p < 10⁻⁹",
               [100 * least.difference, 100 * least.low, 100 * least.high], "smallest of the five differences, points; by chance 0",
               bool((family.difference > 0).all() and (family.p_holm < 0.05).all()), (0, 0), form="{:+.1f}")
    base = signed[signed.other == "base"].iloc[0]
    yield _row("behaviour", "DPO keeps the accuracy of the base", "93.5% beside 93–94%", [100 * base.difference, 100 * base.low, 100 * base.high],
               f"DPO minus base, points; adjusted p {base.p_holm:.2g}", bool(base.p_holm >= 0.05 or base.difference > 0), form="{:+.1f}")


def _pair_differences(tests, run):
    """Each other model's difference to `run`: run minus other."""
    rows = tests[(tests.run_a == run) | (tests.run_b == run)]
    is_first = rows.run_a == run
    return pd.DataFrame({"other": rows.run_b.where(is_first, rows.run_a), "difference": rows.difference.where(is_first, -rows.difference),
                         "low": rows.low.where(is_first, -rows.high), "high": rows.high.where(is_first, -rows.low), "p_holm": rows.p_holm})


def _direction(tables):
    found = {(a, b): _cosine(tables, a, b) for a, b in (("sft", "rft"), ("sft", "rift"), ("rft", "rift"), ("sft", "dft"), ("sft", "offline-grpo"),
                                                        *((run, "dpo") for run in FAMILY))}
    value = {pair: interval[0] for pair, (interval, _) in found.items()}
    lowest = min(value["sft", "rft"], value["sft", "rift"], value["rft", "rift"])
    middle = value["sft", "dft"], value["sft", "offline-grpo"]
    nearest = max((abs(value[run, "dpo"]), run) for run in FAMILY)[1]
    claims = (
        ("sft", "rft", "SFT and RFT find nearly the same update", ".977", 0.977, lowest > max(middle)),
        ("sft", "rift", "RIFT is one of their cluster", ".967 with SFT, .969 with RFT", 0.967, lowest > max(middle)),
        ("sft", "offline-grpo", "Offline GRPO is near the cluster, but not in it", "about .74", 0.74, abs(value[nearest, "dpo"]) < middle[1] < lowest),
        ("sft", "dft", "DFT is between the cluster and DPO too", ".572", 0.572, abs(value[nearest, "dpo"]) < middle[0] < lowest),
        (nearest, "dpo", "DPO is nearly orthogonal to all others", ".057–.065", 0.065, abs(value[nearest, "dpo"]) < min(middle)))
    for a, b, claim, paper, number, is_true in claims:
        interval, band = found[a, b]
        label = "cosine" if b != "dpo" else f"largest of the five cosines, with {LABELS[a]}"
        yield _row("direction", claim, paper, interval, f"{label}; unrelated updates of these spectra {band[0]:+.3f} to {band[1]:+.3f}", is_true, band, number)
    gap = _over_modules(lambda *columns: _stacked(*columns[:3]) - _stacked(*columns[3:]),
                        *_modules(tables, "sft", "offline-grpo"), *_modules(tables, "sft", "dft"))
    yield _row("direction", "DFT is further from SFT than Offline GRPO is", ".572 beside about .74", gap, "difference of the two cosines; no difference 0",
               gap[0] > 0, (0, 0), form="{:+.3f}")
    share = tables["orthogonal"].query("scope == 'global' and run == 'offline-grpo' and reference == 'sft'").by_norm.item()
    (_, low, high), band = found["sft", "offline-grpo"]
    yield _row("direction", "Two thirds of Offline GRPO are orthogonal to SFT", ".67 of its norm",
               [share, np.sqrt(1 - high ** 2), np.sqrt(1 - low ** 2)],
               f"√(1 − cos²) of the cosine above, as energy {share ** 2:.2f}; unrelated updates above {np.sqrt(1 - max(np.abs(band)) ** 2):.3f}",
               0 < share < 1, None, 0.67, by_construction=True)
    layers = tables["orthogonal"].query("scope == 'module' and run == 'offline-grpo' and reference == 'sft'")
    count = layers.layer.nunique()
    late = layers[layers.layer >= count - max(1, round(count / 7))].by_norm
    rest = layers[layers.layer.between(count // 3, count - 1 - count // 3)].by_norm
    draws = np.random.default_rng(0)
    drawn = [draws.choice(late, len(late)).mean() - draws.choice(rest, len(rest)).mean() for _ in range(_DRAWS)]
    yield _row("direction", "It is most orthogonal in the last layers", ".79–.86 there, .55 in the middle",
               [late.mean() - rest.mean(), *np.quantile(drawn, (0.025, 0.975))],
               "last seventh of the layers minus the middle third; by chance 0", late.mean() > rest.mean(), (0, 0), form="{:+.3f}")


def _size(tables):
    norms = {run: _module_norms(tables, run) for run in (*FAMILY, "dpo")}
    ratio = _over_modules(lambda x, y: np.sqrt((x ** 2).sum() / (y ** 2).sum()), norms["sft"], norms["dpo"].loc[norms["sft"].index])
    yield _row("size", "DPO's update is many times shorter", "13 times", ratio,
               "SFT's norm over DPO's; equal norms 1; DPO's learning rate is a tenth of SFT's", ratio[0] > 1, (1, 1), 13, form="{:.1f}")
    rows = tables["updates"][tables["updates"].layer >= 0].pivot(index=["layer", "projection"], columns="run", values="effective_rank")
    highest = rows[list(FAMILY)].mean().idxmax()
    difference = _over_modules(lambda x, y: (x - y).mean(), rows["dpo"], rows[highest])
    yield _row("size", "DPO's update has the highest effective rank", "24.5 beside 14.8–16, of 32", difference,
               f"DPO ({rows['dpo'].mean():.1f}) minus the highest of the five, {LABELS[highest]} ({rows[highest].mean():.1f}); by chance 0",
               difference[0] > 0, (0, 0), form="{:+.2f}")


def _angles(tables):
    order = ["rft", "rift", "offline-grpo", "dft", "dpo"]
    smallest = {run: _angle(tables, run, 1) for run in order}
    medians = [smallest[run][0][0] for run in order]
    index = int(tables["angles"]["index"].max())
    interval, band = smallest["rft"]
    yield _row("angles", "RFT's leading output direction is one of SFT's", "6.7° smallest angle", interval, _degrees("median over modules", band),
               medians[0] < min(medians[2:]), band, 6.7, form="{:.1f}")
    interval, band = smallest["dpo"]
    yield _row("angles", "The angle to SFT grows from RFT over RIFT, Offline GRPO and DFT to DPO", "6.7, 8.2, 18.5, 26.7, 54.6°", interval,
               _degrees("here " + ", ".join(f"{median:.1f}" for median in medians) + "°; ours: the last", band), medians == sorted(medians), band, 54.6,
               form="{:.1f}")
    interval, band = _angle(tables, "dpo", index)
    yield _row("angles", "In its worst direction DPO is orthogonal to SFT", "90° largest angle", interval, _degrees("median over modules", band),
               interval[0] > 80, band, 90, form="{:.1f}")


def _degrees(what, band):
    return f"{what}; random subspaces {band[0]:.1f} to {band[1]:.1f}°"


def _paths(tables):
    for a, b, paper in (("sft", "offline-grpo", "2.06 to 4.93, monotone"), ("rift", "offline-grpo", "4.93 to 2.25, monotone")):
        curve, (interval, noise) = _curve(tables, a, b), _barrier(tables, a, b)
        lies_between = curve.max() <= max(curve[0], curve[-1]) + _TOLERANCE and curve.min() >= min(curve[0], curve[-1]) - _TOLERANCE
        yield _row("paths", f"No barrier between {LABELS[a]} and {LABELS[b]}", paper, interval,
                   f"height above the chord, nats; by chance up to {noise:.3f}; the loss is {curve[0]:.2f} and {curve[-1]:.2f} at the ends, "
                   f"between {curve.min():.2f} and {curve.max():.2f} on the way", lies_between)
    (interval, noise), ((shrunk, low, high), _) = _barrier(tables, "rift", "dpo"), _barrier(tables, "rift", "base")
    yield _row("paths", "A barrier between RIFT and DPO", "3.82, 7.06, 8.64", interval,
               f"height above the chord, nats; by chance up to {noise:.3f}; "
               f"from RIFT to the base, which is shrinkage alone, {shrunk:.3f} ({low:.3f} to {high:.3f})",
               interval[0] > noise, (low, high))


def _representations(tables):
    cka = tables["cka"]
    last = int(cka.layer.max())

    def at(a, b, layer):
        row = _pair(cka[cka.layer == layer], a, b).iloc[0]
        return np.array([row.debiased, row.low, row.high])

    pairs = [(a, b) for place, a in enumerate((*FAMILY, "dpo")) for b in (*FAMILY, "dpo")[place + 1:]]
    with_dpo = min(at(a, b, last)[0] for a, b in pairs if b == "dpo")
    same = at("sft", "rift", last)
    yield _row("representations", "SFT and RIFT have the same representations", "CKA > .99", same,
               "debiased CKA after the last layer; unrelated features 0", same[0] > with_dpo, (0, 0), 0.99)
    for run in ("offline-grpo", "dft"):
        late, early = at(run, "dpo", last), at(run, "dpo", round(last * 2 / 3))
        yield _row("representations", f"{LABELS[run]} and DPO part in the last third of the layers", "CKA from .93 to about .45",
                   [late[0] - early[0], late[1] - early[2], late[2] - early[1]],
                   f"debiased CKA after the last layer ({late[0]:.3f}) minus that at two thirds of the depth ({early[0]:.3f}); no change 0",
                   late[0] < early[0], (0, 0), form="{:+.3f}")
