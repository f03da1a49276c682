"""The verdict: what of the paper's claims the tables of this book support, and against which control.

Last in the flow of data: reads the tables that the notebooks wrote, and nothing else. A claim *holds* when the ordering that it
states is true here at every seed and our interval lies outside the band of its control; what is true but inside the band, or true
whatever the data are, is said to be so.
"""

import contextlib

import numpy as np
import pandas as pd

from helpers import store
from helpers.analysis import replication
from helpers.analysis.paper import COSINES
from helpers.book.figures import LABELS
from helpers.evaluation import statistics

FAMILY = ("sft", "rft", "dft", "rift", "offline-grpo")
HOLDS, CHANCE, CONSTRUCTION, FAILS = (
    "holds",
    "holds, but at chance",
    "holds, by construction",
    "does not hold here",
)
UNTESTED = "can't be tested at this size"
PRETRAINED = "smollm2-135m"  # the study that others are set beside as a second model
_LEAD = 5.3  # points, the smallest lead of the paper's DPO over the other five: two accuracies are equal if they differ by less
_TOLERANCE = 0.01  # nats by which a curve may leave the range of its ends and still count as lying between them


def verdict_table(profile_name):
    """The `verdict` table: one row a claim; columns part, claim, paper, value, low, high, control, verdict, ours, paper_value, chance_low, chance_high.

    `value` with its interval `low` to `high` is in the claim's own unit; `ours` is the same as text; `control` says what the value would
    be by chance or without what the claim is about, `chance_low` to `chance_high` is that band, and `paper_value` the paper's number
    where it is one of the same quantity. Intervals are over seeds (`controls.interval`), for accuracies over seeds and problems.
    Parts that need a table of a page that the profile has no controls for are left out.
    """
    tables, rows = _Tables(profile_name), []
    for part in (
        _behaviour,
        _rate,
        _direction,
        _vectors,
        _size,
        _angles,
        _seeds,
        _paths,
        _representations,
        _online,
        _second,
        _untested,
    ):
        with contextlib.suppress(FileNotFoundError):
            rows += list(part(tables))
    return pd.DataFrame(rows)


class _Tables(dict):
    """The tables of a profile by name, each read when it is first asked for; FileNotFoundError for one that no page wrote."""

    def __init__(self, profile_name):
        super().__init__()
        self.profile_name = profile_name

    def __missing__(self, name):
        self[name] = store.read_table(self.profile_name, name)
        return self[name]


def judge(is_true, low, high, band=None, by_construction=False, margin=None):
    """One of the verdicts, from the truth of the ordering, our interval, and the control's band (none where the claim is an absence).

    With `margin`, the claim is an equality: no difference is seen, and the interval must also leave out every difference of that size.
    """
    if not is_true:
        return FAILS
    if by_construction:
        return CONSTRUCTION
    if margin is not None:
        return HOLDS if -margin < low and high < margin else CHANCE
    return HOLDS if band is None or low > band[1] or high < band[0] else CHANCE


def agreement(profile_name, other):
    """Claims by where they hold: {"in both": [...], "in <one> only": [...], "in neither": [...]}, of those that both studies have a verdict on that says so."""
    held = {
        name: store.read_table(name, "verdict")
        .query("verdict != @UNTESTED")
        .set_index("claim")
        .verdict
        == HOLDS
        for name in (profile_name, other)
    }
    both = pd.DataFrame(held).dropna().astype(bool)
    first, second = both[profile_name], both[other]
    return {
        "in both": [*both.index[first & second]],
        f"in {profile_name} only": [*both.index[first & ~second]],
        f"in {other} only": [*both.index[~first & second]],
        "in neither": [*both.index[~first & ~second]],
    }


def side_by_side(profile_names):
    """The verdicts of several profiles beside one another, in the order of the first: claim, paper, and for each profile its "ours" and "verdict"."""
    found = {name: store.read_table(name, "verdict").set_index("claim") for name in profile_names}
    papers = pd.concat([table.paper for table in found.values()])
    papers = papers[~papers.index.duplicated()]
    columns = {
        (name, column): table[column].reindex(papers.index)
        for name, table in found.items()
        for column in ("ours", "verdict")
    }
    return pd.concat([papers.to_frame(), pd.DataFrame(columns)], axis=1)


def _row(
    part,
    claim,
    paper,
    interval,
    control,
    is_true,
    band=None,
    number=np.nan,
    by_construction=False,
    form="{:.3f}",
    margin=None,
):
    value, low, high = (float(number) for number in interval)
    ours = form.format(value) + (
        f" ({form.format(low)} to {form.format(high)})" if low < high else ", one run"
    )
    return {
        "part": part,
        "claim": claim,
        "paper": paper,
        "value": value,
        "low": low,
        "high": high,
        "control": control,
        "verdict": judge(bool(is_true), low, high, band, by_construction, margin),
        "ours": ours,
        "paper_value": number,
        "chance_low": band[0] if band else np.nan,
        "chance_high": band[1] if band else np.nan,
    }


# --- what the claims are computed from -----------------------------------------------------------------------------


def _pair(table, a, b):
    """The rows of a table about two runs, in whichever order they stand."""
    return table[
        ((table.run_a == a) & (table.run_b == b)) | ((table.run_a == b) & (table.run_b == a))
    ]


def _band(tables, a, b):
    """Chance band of the global cosine of two main runs."""
    row = _pair(tables["cosine"], a, b).query("scope == 'global'").iloc[0]
    return row.chance_low, row.chance_high


def _chance(tables, statistic, a, b):
    """Matched chance band of another statistic of two main runs."""
    rows = _pair(tables["chance"], a, b)
    row = rows[(rows.statistic == statistic) & (rows.null == "matched")].iloc[0]
    return row.low, row.high


def _at_seeds(tables, statistic, a, b=None):
    return replication.at_seeds(tables["replicas"], statistic, a, b)


def _turned(row, run, extremes=()):
    """Differences of accuracy of a row of paired results in points, as `run` minus the other: (difference, low, high), and two `extremes` if named."""
    values = [100 * row[column] for column in ("difference", "low", "high", *extremes)]
    if row.run_a != run:
        values = [-values[place] for place in ((0, 2, 1, 4, 3) if extremes else (0, 2, 1))]
    return np.array(values)


def _difference(tables, a, b):
    """(difference, low, high, least, most) of two accuracies over seeds, in points, a minus b."""
    return _turned(_pair(tables["accuracy_seeds"], a, b).iloc[0], a, ("least", "most"))


def _of(table, run):
    return table[table.run == run].iloc[0]


def _apart(first, second):
    """(difference, low, high) of two independent accuracies with intervals, in points."""
    value = first.accuracy - second.accuracy
    below = np.hypot(first.accuracy - first.low, second.high - second.accuracy)
    above = np.hypot(first.high - first.accuracy, second.accuracy - second.low)
    return 100 * value, 100 * (value - below), 100 * (value + above)


# --- the claims ----------------------------------------------------------------------------------------------------


def _behaviour(tables):
    pairs = [(a, b) for place, a in enumerate(FAMILY) for b in FAMILY[place + 1 :]]
    found = {pair: _difference(tables, *pair) for pair in pairs}
    largest = max(pairs, key=lambda pair: abs(found[pair][0]))
    difference = found[largest] if found[largest][0] >= 0 else -found[largest][[0, 2, 1, 4, 3]]
    tests = tables["mcnemar"].query("split == 'test'")
    among = tests[tests.run_a.isin(FAMILY) & tests.run_b.isin(FAMILY)]
    yield _row(
        "behaviour",
        "SFT, RFT, DFT, RIFT and Offline GRPO are equally accurate",
        "87.3–88.2%, each p ≥ .15",
        difference[:3],
        f"largest difference of ten pairs, points, to lie within ±{_LEAD}; at the main seed the smallest adjusted p is {among.p_holm.min():.2g}, and "
        f"{100 * among.detectable.max():.1f} points would have been seen",
        all(low <= 0 <= high for _, low, high, *_ in found.values())
        and (among.p_holm >= 0.05).all(),
        form="{:.1f}",
        margin=_LEAD,
    )
    over = {run: _difference(tables, "dpo", run) for run in (*FAMILY, "base")}
    least = min(FAMILY, key=lambda run: over[run][0])
    yield _row(
        "behaviour",
        "DPO is more accurate than each of the five",
        "+5.3 to +6.2 points, p < 10⁻⁹",
        over[least][:3],
        f"smallest of the five differences, points, to {LABELS[least]}; by chance 0",
        all(over[run][3] > 0 for run in FAMILY),
        (0, 0),
        form="{:+.1f}",
    )
    yield _row(
        "behaviour",
        "DPO keeps the accuracy of the base",
        "93.5% beside 93–94%",
        over["base"][:3],
        f"DPO minus base, points, to lie within ±{_LEAD}",
        over["base"][2] >= 0,
        form="{:+.1f}",
        margin=_LEAD,
    )
    lost = {run: _difference(tables, run, "base") for run in FAMILY}
    best = max(FAMILY, key=lambda run: lost[run][0])
    manner = tables["manner"].query("split == 'test'").set_index("run").accuracy
    yield _row(
        "behaviour",
        "The five are less accurate than their base",
        "87–88% beside 93–94%",
        lost[best][:3],
        f"smallest of the five losses, points, of {LABELS[best]}; by chance 0; the base made to open like the teacher changes by "
        f"{100 * (manner['forced base'] - manner['base']):+.1f} without any training",
        all(values[4] < 0 for values in lost.values()),
        (0, 0),
        form="{:+.1f}",
    )
    hard = tables["mcnemar"].query("split == 'hard'")
    rows = [_turned(_pair(hard, "dpo", run).iloc[0], "dpo") for run in FAMILY]
    smallest = min(rows, key=lambda values: values[0])
    yield _row(
        "behaviour",
        "DPO is ahead on the harder problems too",
        "30.0% beside 3.3–10.0% (AIME26)",
        smallest,
        "smallest of the five differences at one seed, points; by chance 0",
        smallest[0] > 0,
        (0, 0),
        form="{:+.1f}",
    )


def _rate(tables):
    matched, rates = tables["matched"], tables["rates"]
    sft, dpo, equal = (_of(matched, run) for run in ("sft", "dpo", "dpo-matched"))
    gap = _apart(equal, sft)
    yield _row(
        "the rate",
        "It is DPO's loss that keeps the accuracy",
        "open: one rate a method",
        gap,
        "DPO at SFT's rate minus SFT, points; by chance 0",
        gap[0] > 0,
        (0, 0),
        form="{:+.1f}",
    )
    change = _apart(equal, dpo)
    yield _row(
        "the rate",
        "DPO needs a small rate",
        "“higher diverges”",
        change,
        "DPO at SFT's rate minus DPO at a tenth of it, points; by chance 0",
        change[0] < 0,
        (0, 0),
        form="{:+.1f}",
    )
    yield _row(
        "the rate",
        "DPO is nearly orthogonal to SFT at any rate",
        "open",
        [
            equal.cosine_sft,
            equal.chance_low + equal.cosine_sft,
            equal.chance_high + equal.cosine_sft,
        ],
        f"cosine at SFT's rate, ± its chance band; RFT at the rate of DPO has {_of(matched, 'rft-low').cosine_sft:.3f}",
        abs(equal.cosine_sft) < 0.5 * _of(matched, "rft-low").cosine_sft,
    )
    norms = rates.set_index("run").norm
    ratio = norms["sft"] / norms["sft-low"]
    yield _row(
        "the rate",
        "Ten times the rate makes the update about three times longer",
        "× 3",
        [ratio, ratio, ratio],
        f"SFT, one seed, to be nearer to 3 than to 10, proportional growth; DPO grows {norms['dpo-matched'] / norms['dpo']:.1f} times",
        1 < ratio < np.sqrt(3 * 10),
        (10, 10),
        3,
        form="{:.1f}",
    )


def _direction(tables):
    pairs = [
        ("sft", "rft"),
        ("sft", "rift"),
        ("rft", "rift"),
        ("sft", "dft"),
        ("sft", "offline-grpo"),
        *((run, "dpo") for run in FAMILY),
    ]
    found = {pair: _at_seeds(tables, "cosine", *pair) for pair in pairs}
    lowest = np.min([found[pair] for pair in pairs[:3]], axis=0)
    middle = {run: found["sft", run] for run in ("dft", "offline-grpo")}
    with_dpo = np.max([np.abs(found[run, "dpo"]) for run in FAMILY], axis=0)
    nearest = max(FAMILY, key=lambda run: abs(found[run, "dpo"]).mean())
    own = replication.between_seeds(tables["replicas"], "cosine", "sft")
    for a, b in (("sft", "rft"), ("sft", "rift"), ("rft", "rift")):
        yield _row(
            "direction",
            f"{LABELS[a]} and {LABELS[b]} are nearly one direction",
            _decimals(COSINES[a, b]),
            replication.interval(found[a, b]),
            f"cosine; unrelated updates {_text(_band(tables, a, b))}; SFT with SFT of another seed {own.min():.3f} to {own.max():.3f}",
            (found[a, b] > np.max(list(middle.values()), axis=0)).all(),
            _band(tables, a, b),
            COSINES[a, b],
        )
    for run, claim, about in (
        ("offline-grpo", "Offline GRPO is near the cluster, but not in it", "about "),
        ("dft", "DFT is between the cluster and DPO too", ""),
    ):
        yield _row(
            "direction",
            claim,
            about + _decimals(COSINES["sft", run]),
            replication.interval(middle[run]),
            f"cosine with SFT; unrelated updates {_text(_band(tables, 'sft', run))}",
            ((with_dpo < middle[run]) & (middle[run] < lowest)).all(),
            _band(tables, "sft", run),
            COSINES["sft", run],
        )
    yield _row(
        "direction",
        "DPO is nearly orthogonal to all others",
        ".057–.065",
        replication.interval(found[nearest, "dpo"]),
        f"largest of the five cosines, with {LABELS[nearest]}; unrelated updates {_text(_band(tables, nearest, 'dpo'))}",
        (with_dpo < np.min(list(middle.values()), axis=0)).all(),
        _band(tables, nearest, "dpo"),
        0.065,
    )
    gap = middle["offline-grpo"] - middle["dft"]
    yield _row(
        "direction",
        "DFT is further from SFT than Offline GRPO is",
        ".572 beside about .74",
        replication.interval(gap),
        "difference of the two cosines; no difference 0",
        (gap > 0).all(),
        (0, 0),
        form="{:+.3f}",
    )
    cosine, low, high = replication.interval(middle["offline-grpo"])
    share = [np.sqrt(max(0, 1 - value**2)) for value in (cosine, high, low)]
    limit = np.sqrt(1 - max(np.abs(_band(tables, "sft", "offline-grpo"))) ** 2)
    yield _row(
        "direction",
        "Two thirds of Offline GRPO are orthogonal to SFT",
        ".67 of its norm",
        share,
        f"√(1 − cos²) of the cosine above, as energy {share[0] ** 2:.2f}; unrelated updates above {limit:.3f}",
        0 < share[0] < 1,
        None,
        0.67,
        by_construction=True,
    )
    late = _at_seeds(tables, "by norm, last", "sft", "offline-grpo") - _at_seeds(
        tables, "by norm, middle", "sft", "offline-grpo"
    )
    yield _row(
        "direction",
        "It is most orthogonal in the last layers",
        ".79–.86 there, .55 in the middle",
        replication.interval(late),
        "last seventh of the layers minus the middle third; by chance 0",
        (late > 0).all(),
        (0, 0),
        form="{:+.3f}",
    )


def _decimals(number):
    return f"{number:g}".removeprefix("0")


def _text(band):
    return f"{band[0]:+.3f} to {band[1]:+.3f}"


def _vectors(tables):
    """First singular vectors with SFT's."""
    left = {run: _at_seeds(tables, "first vector left", "sft", run) for run in (*FAMILY[1:], "dpo")}
    right = {
        run: _at_seeds(tables, "first vector right", "sft", run) for run in (*FAMILY[1:], "dpo")
    }
    own = {
        side: replication.between_seeds(tables["replicas"], f"first vector {side}", "sft")
        for side in ("left", "right")
    }
    for run, claim, paper, number, is_true in (
        (
            "rft",
            "RFT's first output direction is SFT's",
            ".97–.98",
            0.975,
            (
                left["rft"] > np.max([left[run] for run in ("dft", "offline-grpo", "dpo")], axis=0)
            ).all(),
        ),
        (
            "offline-grpo",
            "Offline GRPO's first output direction is near SFT's",
            ".78–.80",
            0.79,
            (left["offline-grpo"] > left["dft"]).all(),
        ),
        (
            "dft",
            "DFT's is further",
            ".64–.67",
            0.655,
            ((left["dpo"] < left["dft"]) & (left["dft"] < left["rft"])).all(),
        ),
        (
            "dpo",
            "DPO's is another",
            ".11",
            0.11,
            (left["dpo"] < np.min([left[run] for run in FAMILY[1:]], axis=0)).all(),
        ),
    ):
        band = _chance(tables, "first left vectors", "sft", run)
        yield _row(
            "vectors",
            claim,
            paper,
            replication.interval(left[run]),
            f"mean overlap over modules; unrelated updates {band[0]:.2f} to {band[1]:.2f}; SFT of another seed {own['left'].mean():.2f}",
            is_true,
            None if run == "dpo" else band,
            number,
            form="{:.2f}",
        )
    band = _chance(tables, "first right vectors", "sft", "rft")
    yield _row(
        "vectors",
        "The cluster shares its first input direction",
        ".99–1.00",
        replication.interval(right["rft"]),
        f"RFT with SFT; random within the shared row space {band[0]:.2f} to {band[1]:.2f}; SFT of another seed {own['right'].mean():.2f}",
        (right["rft"] > right["dpo"]).all(),
        band,
        0.995,
        by_construction=own["right"].mean() < 0.5 * right["rft"].mean(),
        form="{:.2f}",
    )


def _size(tables):
    norms = {run: _at_seeds(tables, "norm", run) for run in (*FAMILY, "dpo")}
    spread = np.max([norms[run] for run in FAMILY], axis=0) / np.min(
        [norms[run] for run in FAMILY], axis=0
    )
    yield _row(
        "size",
        "The five updates are equally long",
        "2.82–3.04, a factor of 1.08",
        replication.interval(spread),
        "longest over shortest; equal lengths 1",
        (spread < 1.25).all(),
        None,
        1.08,
        form="{:.2f}",
    )
    ratio = norms["sft"] / norms["dpo"]
    equal = _of(tables["matched"], "dpo-matched").norm
    yield _row(
        "size",
        "DPO's update is many times shorter",
        "13 times",
        replication.interval(ratio),
        f"SFT's norm over DPO's; equal norms 1; with DPO at SFT's rate {norms['sft'][0] / equal:.2f}",
        (ratio > 1).all(),
        (1, 1),
        13,
        form="{:.1f}",
    )
    yield _row(
        "size",
        "It is short because of its loss",
        "13 where the rate explains 3",
        [norms["sft"][0] / equal] * 3,
        "SFT's norm over DPO's at equal rates, one seed; equal norms 1",
        norms["sft"][0] / equal > 1,
        (1, 1),
        form="{:.2f}",
    )
    ranks = {run: _at_seeds(tables, "effective rank", run) for run in (*FAMILY, "dpo")}
    highest = np.max([ranks[run] for run in FAMILY], axis=0)
    yield _row(
        "size",
        "DPO's update has the highest effective rank",
        "24.5 beside 14.8–16, of 32",
        replication.interval(ranks["dpo"] - highest),
        f"DPO ({ranks['dpo'].mean():.1f}) minus the highest of the five ({highest.mean():.1f}); by chance 0",
        (ranks["dpo"] > highest).all(),
        (0, 0),
        form="{:+.2f}",
    )


def _angles(tables):
    order = ["rft", "rift", "offline-grpo", "dft", "dpo"]
    smallest = {run: _at_seeds(tables, "smallest angle left", "sft", run) for run in order}
    own = replication.between_seeds(tables["replicas"], "smallest angle left", "sft")
    middle = np.min([smallest[run] for run in order[2:]], axis=0)
    band = _chance(tables, "smallest left angle", "sft", "rft")
    yield _row(
        "angles",
        "RFT's leading output direction is one of SFT's",
        "6.7° smallest angle",
        replication.interval(smallest["rft"]),
        f"{_degrees(band)}; SFT of another seed {own.mean():.1f}°",
        (smallest["rft"] < middle).all(),
        band,
        6.7,
        form="{:.1f}",
    )
    band = _chance(tables, "smallest left angle", "sft", "dpo")
    yield _row(
        "angles",
        "The angle to SFT grows from RFT over RIFT, Offline GRPO and DFT to DPO",
        "6.7, 8.2, 18.5, 26.7, 54.6°",
        replication.interval(smallest["dpo"]),
        f"here {', '.join(f'{smallest[run].mean():.1f}' for run in order)}°; ours: the last; {_degrees(band)}",
        (np.diff([smallest[run] for run in order], axis=0) > 0).all(),
        band,
        54.6,
        form="{:.1f}",
    )
    largest = _at_seeds(tables, "largest angle left", "sft", "dpo")
    band = _chance(tables, "largest left angle", "sft", "dpo")
    yield _row(
        "angles",
        "In its worst direction DPO is orthogonal to SFT",
        "90° largest angle",
        replication.interval(largest),
        _degrees(band),
        (largest > 80).all(),
        band,
        90,
        form="{:.1f}",
    )


def _degrees(band):
    return f"median over modules; unrelated updates {band[0]:.1f} to {band[1]:.1f}°"


def _seeds(tables):
    replicas = tables["replicas"]
    own = replication.between_seeds(replicas, "cosine", "sft")
    seeds = tables["seeds"]
    at = {
        name: _pair(seeds, name, second).cosine.iloc[0]
        for name, second in (
            ("sft-low", "sft-low-second"),
            ("sft", "sft-43-43"),
            ("sft-high", "sft-high-second"),
        )
    }
    band = _band(tables, "sft", "rft")
    yield _row(
        "seeds",
        "Two seeds of one loss are far apart, less so at a high rate",
        ".07 to .36 as the rate grows 100 times",
        replication.interval(own),
        f"cosine of SFT with itself; from the lowest to the highest rate {', '.join(f'{value:.3f}' for value in at.values())}; with RFT at an equal seed "
        f"{_at_seeds(tables, 'cosine', 'sft', 'rft').mean():.3f}",
        list(at.values()) == sorted(at.values()),
        (-max(band), max(band)),
        form="{:.3f}",
    )
    for side, paper, number, word in (
        ("left", ".99", 0.99, "share"),
        ("right", ".07", 0.07, "do not share"),
    ):
        values = replication.between_seeds(replicas, f"first vector {side}", "sft")
        chance = _chance(tables, f"first {side} vectors", "sft", "rft")
        place = "output" if side == "left" else "input"
        is_true = values.min() > 0.5 if side == "left" else values.max() < 0.5
        yield _row(
            "seeds",
            f"Two seeds of SFT {word} their first {place} direction",
            paper,
            replication.interval(values),
            f"mean overlap over modules; within one initial adapter {_at_seeds(tables, f'first vector {side}', 'sft', 'rft').mean():.2f}",
            is_true,
            chance if side == "left" else None,
            number,
            form="{:.2f}",
        )


def _paths(tables):
    for a, b, paper in (
        ("sft", "offline-grpo", "2.06 to 4.93, monotone"),
        ("rift", "offline-grpo", "4.93 to 2.25, monotone"),
    ):
        rows, row = (
            _pair(tables["replicas_paths"], a, b),
            tables["barriers"]
            .query("run_a == @a and run_b == @b and metric == 'boxed answer'")
            .iloc[0],
        )
        curve = (
            tables["connectivity"]
            .query("run_a == @a and run_b == @b and metric == 'boxed answer' and 0 <= t <= 1")
            .sort_values("t")
            .value.to_numpy()
        )
        lies_between = (
            curve.max() <= max(curve[0], curve[-1]) + _TOLERANCE
            and curve.min() >= min(curve[0], curve[-1]) - _TOLERANCE
        )
        yield _row(
            "paths",
            f"No barrier between {LABELS[a]} and {LABELS[b]}",
            paper,
            (row.above_chord, row.low, row.high),
            f"height above the chord, nats; by chance up to {row.noise:.3f}; the loss is {curve[0]:.2f} and {curve[-1]:.2f} at the ends, "
            f"between {curve.min():.2f} and {curve.max():.2f} on the way; monotone at {(rows['shape'] == 'monotone').sum()} of {len(rows)} seeds",
            lies_between and (rows["shape"] != "above both ends").all(),
        )
    rows, base = (
        _pair(tables["replicas_paths"], "rift", "dpo"),
        _pair(tables["replicas_paths"], "rift", "base"),
    )
    row = (
        tables["barriers"]
        .query("run_a == 'rift' and run_b == 'dpo' and metric == 'boxed answer'")
        .iloc[0]
    )
    shrunk = (
        tables["barriers"]
        .query("run_a == 'rift' and run_b == 'base' and metric == 'boxed answer'")
        .iloc[0]
    )
    yield _row(
        "paths",
        "A barrier between RIFT and DPO",
        "3.82, 7.06, 8.64",
        (row.above_chord, row.low, row.high),
        f"height above the chord, nats; by chance up to {row.noise:.3f}; from RIFT to the base, which is shrinkage alone, {shrunk.above_chord:.3f} "
        f"({shrunk.low:.3f} to {shrunk.high:.3f}); above chance at {(rows.above_chord > rows.noise).sum()} of {len(rows)} seeds, to the base at "
        f"{(base.above_chord > base.noise).sum()}",
        row.above_chord > row.noise and (rows.above_chord > rows.noise).all(),
        (shrunk.low, shrunk.high),
    )


def _representations(tables):
    cka, again = tables["cka"], tables["replicas_cka"]
    early, last = sorted(again.layer.unique())

    def seeds_of(a, b, layer):
        rows = _pair(again[again.layer == layer], a, b)
        return rows[rows.seed_a == rows.seed_b].debiased.to_numpy()

    own = again[(again.layer == last) & (again.run_a == again.run_b)].debiased
    everywhere = cka[cka.layer == last]
    least = everywhere[(everywhere.run_a != "base") & (everywhere.run_b != "base")].debiased.min()
    same = seeds_of("sft", "rift", last)
    yield _row(
        "representations",
        "SFT and RIFT have the same representations",
        "CKA > .99",
        replication.interval(same),
        f"debiased CKA after the last layer; unrelated features 0; SFT of another seed {own.mean():.3f}; least alike of all pairs {least:.3f}",
        (same > least).all(),
        (0, 0),
        0.99,
    )
    partly = seeds_of("sft", "offline-grpo", last)
    yield _row(
        "representations",
        "Offline GRPO's last layer differs from SFT's",
        "CKA about .85",
        replication.interval(partly - same),
        f"debiased CKA ({partly.mean():.3f}) minus that of RIFT ({same.mean():.3f}); no difference 0",
        (partly < same).all(),
        (0, 0),
        form="{:+.3f}",
    )
    for run in ("offline-grpo", "dft"):
        change = seeds_of(run, "dpo", last) - seeds_of(run, "dpo", early)
        yield _row(
            "representations",
            f"{LABELS[run]} and DPO part in the last third of the layers",
            "CKA from .93 to about .45",
            replication.interval(change),
            f"debiased CKA after the last layer ({seeds_of(run, 'dpo', last).mean():.3f}) minus that at two thirds of the depth "
            f"({seeds_of(run, 'dpo', early).mean():.3f}); no change 0",
            (change < 0).all(),
            (0, 0),
            form="{:+.3f}",
        )
    depth = tables["depth"]
    furthest = depth.loc[depth.difference.abs().idxmax()]
    yield _row(
        "representations",
        "All methods decide at the same depth",
        "35.3–36.0 of 36 layers",
        furthest[["difference", "low", "high"]],
        f"largest difference to the base, layers, of {LABELS[furthest.run]}; smallest adjusted p {depth.p_holm.min():.2g}",
        (depth.p_holm >= 0.05).all(),
        form="{:+.3f}",
    )


def _online(tables):
    found, accuracy = tables["on_policy"], tables["accuracy"]
    row, base = _of(found, "grpo"), _of(accuracy[accuracy.split == "test"], "base")
    half = (row.chance_high - row.chance_low) / 2
    interval = [row.cosine_sft, row.cosine_sft - half, row.cosine_sft + half]
    yield _row(
        "on-policy",
        "Online GRPO is orthogonal to SFT",
        "cosine .025",
        interval,
        f"cosine, one seed; unrelated updates ±{half:.3f}",
        abs(row.cosine_sft) < 0.2,
        None,
        0.025,
    )
    parts = [
        np.sqrt(1 - min(1, value**2)) for value in (row.cosine_sft, max(map(abs, interval)), 0)
    ]
    yield _row(
        "on-policy",
        "Nearly all of online GRPO is orthogonal to SFT",
        ".998 of its norm",
        parts,
        "√(1 − cos²) of the line above",
        parts[0] > 0.9,
        None,
        0.998,
        by_construction=True,
    )
    ratio = _of(tables["matched"], "sft").norm / row.norm if row.norm else np.nan
    yield _row(
        "on-policy",
        "Online GRPO's update is ten times shorter",
        ".30 beside 2.84",
        [ratio] * 3,
        "SFT's norm over its norm, one seed; its rate is a tenth of SFT's; equal norms 1",
        ratio > 1,
        (1, 1),
        9.5,
        form="{:.1f}",
    )
    gap = _apart(row, base)
    yield _row(
        "on-policy",
        "Online GRPO keeps the accuracy of the base",
        "93–94% both",
        gap,
        f"minus the base, points, to lie within ±{_LEAD}",
        gap[2] >= 0,
        form="{:+.1f}",
        margin=_LEAD,
    )


def _second(tables):
    if tables.profile_name == PRETRAINED:
        return
    matrices = [
        _square(table.query("scope == 'global'"))
        for table in (tables["cosine"], store.read_table(PRETRAINED, "cosine"))
    ]
    value, low, high = statistics.mantel(*matrices)
    yield _row(
        "a second model",
        "Another model gives the same geometry",
        "Llama-3.2-3B beside Qwen3-4B",
        [value] * 3,
        f"rank correlation of the cosines of all pairs with those of {PRETRAINED}; methods exchanged at random {_text((low, high))}",
        value > 0,
        (low, high),
        form="{:+.2f}",
    )


def _square(pairs):
    """The cosines of all pairs of main runs as a symmetric matrix, methods in one order."""
    methods = (*FAMILY, "dpo")
    return np.array(
        [[1.0 if a == b else _pair(pairs, a, b).cosine.item() for b in methods] for a in methods]
    )


def _untested(tables):
    yield {
        "part": "untested",
        "claim": "On 30 problems SFT and DPO do not differ",
        "paper": "p = .07 (AIME26)",
        "value": np.nan,
        "low": np.nan,
        "high": np.nan,
        "control": "with 8 discordant problems no test can tell",
        "verdict": UNTESTED,
        "ours": "–",
        "paper_value": np.nan,
        "chance_low": np.nan,
        "chance_high": np.nan,
    }
