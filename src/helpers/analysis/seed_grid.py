"""The crossed design of initialisations and orders: its runs, their pairs, and what seeds explain.

Comes after `replication`; the page on seeds shows what is computed here. A run differs from its
method's main run in the initial adapter, in the order of the prompts, in both or in neither.
Nothing is stored here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from adapter_geometry import geometry, representations, updates
from adapter_geometry.chance import compare_by_chance
from adapter_geometry.updates import Factors, Update
from helpers.analysis import replication
from helpers.evaluation import statistics
from helpers.models import loading
from helpers.profiles import Profile
from helpers.training import trainer

# What two runs share of their seeds, and its label in a narrow figure.
SHARES = {"neither": "neither", "order": "order", "initialisation": "A", "both": "both"}
SIDES = ("left", "right")

Interval = tuple[float, float, float]  # value, low, high
Labelled = dict[str, Float[np.ndarray, " pairs"]]
Bands = dict[str, tuple[float, float]]

_MIDDLE = (0.025, 0.975)


def between(pairs: pd.DataFrame, first: str, second: str, *shares: str) -> pd.DataFrame:
    """The pairs of two methods that share this of their seeds."""
    is_of = (pairs.method_a == first) & (pairs.method_b == second)
    return pairs[is_of & pairs.shares.isin(shares)]


@dataclass(frozen=True)
class Grid:
    """Runs of several methods from crossed seeds, and all pairs of them.

    runs: one row per run with columns run, method, init and order, in the order of every matrix
    between runs. pairs: one row per pair with columns a and b (rows of `runs`), run_a, run_b,
    method_a, method_b and shares, one of `SHARES`; the page adds a column per statistic.
    """

    runs: pd.DataFrame
    pairs: pd.DataFrame

    def add(self, column: str, values: Float[np.ndarray, "runs runs"]) -> None:
        """A statistic between all runs as a column of `pairs`."""
        self.pairs[column] = values[self.pairs.a, self.pairs.b]

    def by_share(self, column: str, first: str, second: str) -> Labelled:
        """A column of `pairs` for two methods by what they share, where there are such pairs."""
        values = {
            label: between(self.pairs, first, second, share)[column].to_numpy()
            for share, label in SHARES.items()
        }
        return {label: some for label, some in values.items() if len(some)}

    def over_seeds(self, statistic: Callable[[pd.DataFrame], float]) -> Interval:
        """A statistic of pairs, given as their table, with its 95 % interval over the seeds."""

        def of_runs(rows: np.ndarray) -> float:
            is_left = self.pairs.a.isin(rows) & self.pairs.b.isin(rows)
            return statistic(self.pairs[is_left])

        return statistics.jackknife_levels(self.runs, ["init", "order"], of_runs)

    def mean(self, column: str, first: str, second: str, *shares: str) -> Interval:
        """Mean of a column over pairs of two methods, with its 95 % interval over the seeds."""
        return self.over_seeds(lambda pairs: between(pairs, first, second, *shares)[column].mean())

    def means(self, column: str, couples: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """`mean` of couples of methods, by what they share, as far as there are such pairs.

        Index: method_a, method_b, shares. Columns: pairs (their number), value, low, high and
        chance, half the width of the band of chance, from the column `<column>_chance`.
        """
        rows = []
        for couple in couples:
            for share in SHARES:
                chosen = between(self.pairs, *couple, share)
                if len(chosen):
                    chance = chosen[f"{column}_chance"].mean()
                    value = self.mean(column, *couple, share)
                    rows.append((*couple, share, len(chosen), *value, chance))
        keys = ["method_a", "method_b", "shares"]
        columns = [*keys, "pairs", "value", "low", "high", "chance"]
        return pd.DataFrame(rows, columns=columns).set_index(keys)

    def bands(self, by_chance: Float[np.ndarray, "draws pairs"], first: str, second: str) -> Bands:
        """The middle 95 % of what pairs of two methods have by chance, by what they share."""
        rows = {
            label: between(self.pairs, first, second, share).index
            for share, label in SHARES.items()
        }
        return {
            label: tuple(np.quantile(by_chance[:, chosen], _MIDDLE))
            for label, chosen in rows.items()
            if len(chosen)
        }

    def variance(
        self,
        cosines: Float[np.ndarray, "runs runs"],
        widths: Float[np.ndarray, "runs runs"],
        factors: Sequence[str],
        method: str | None = None,
    ) -> pd.DataFrame:
        """`statistics.crossed_parts` of the runs, of one method or of all.

        widths: standard deviations of the cosines by chance. Columns low and high are the 95 %
        interval of the share over the seeds, chance_low and chance_high the middle 95 % of the
        shares of unrelated runs.
        """
        chosen = self.runs.index if method is None else self.runs.index[self.runs.method == method]
        square = np.ix_(chosen, chosen)
        levels = self.runs.loc[chosen, list(factors)].reset_index(drop=True)

        def shares(rows: np.ndarray) -> Float[np.ndarray, " parts"]:
            gram = cosines[square][np.ix_(rows, rows)]
            return np.asarray(statistics.crossed_parts(gram, levels.iloc[rows]).share)

        table = statistics.crossed_parts(cosines[square], levels)
        _, low, high = statistics.jackknife_levels(levels, ["init", "order"], shares)
        chance_low, chance_high = _shares_by_chance(widths[square], levels)
        return table.assign(low=low, high=high, chance_low=chance_low, chance_high=chance_high)


def grid_of(profile: Profile, methods: Sequence[str]) -> Grid:
    """The grid of the methods' main runs, their groups `grid-<method>` and their replicas."""
    rows = []
    for method in methods:
        names = [
            method,
            *profile.controls[f"grid-{method}"].runs,
            *(run for run in profile.controls["seeds"].runs if run.startswith(f"{method}-")),
        ]
        of_method = [
            (name, method, profile.runs[name].init_seed, profile.runs[name].seed) for name in names
        ]
        rows += sorted(of_method, key=lambda row: row[2:])
    runs = pd.DataFrame(rows, columns=["run", "method", "init", "order"])
    a, b = np.triu_indices(len(runs), 1)
    first, second = (runs.loc[rows].reset_index(drop=True) for rows in (a, b))
    same_init, same_order = first.init == second.init, first.order == second.order
    shares = np.select(
        [same_init & same_order, same_init, same_order],
        ["both", "initialisation", "order"],
        "neither",
    )
    pairs = {
        "a": a,
        "b": b,
        "run_a": first.run,
        "run_b": second.run,
        "method_a": first.method,
        "method_b": second.method,
        "shares": shares,
    }
    return Grid(runs, pd.DataFrame(pairs))


def _shares_by_chance(
    widths: Float[np.ndarray, "runs runs"], levels: pd.DataFrame, draws: int = 100
) -> Float[np.ndarray, "2 parts"]:
    """The middle 95 % of the shares of unrelated runs: inner products of mean 0, normal."""
    n, drawn = len(levels), []
    for noise in np.random.default_rng(0).standard_normal((draws, n, n)):
        upper = np.triu(noise * widths, 1)
        drawn.append(statistics.crossed_parts(np.eye(n) + upper + upper.T, levels).share)
    return np.asarray(np.quantile(drawn, _MIDDLE, axis=0))


def first_vectors_table(
    grid: Grid,
    by_chance: Mapping[str, Float[np.ndarray, "draws pairs"]],
    couples: Sequence[tuple[str, str]],
) -> pd.DataFrame:
    """First vectors of couples of methods with another and with the same A, as text.

    grid: its pairs have the columns left and right, overlaps, and left_angle and right_angle, in
    degrees. Columns: method_a, method_b, with, "first <side> vector" (chance in brackets),
    "smallest <side> angle".
    """
    rows = []
    for first, second in couples:
        for label, shares in (
            ("another A", ("order", "neither")),
            ("the same A", ("initialisation", "both")),
        ):
            chosen = between(grid.pairs, first, second, *shares)
            row = {"method_a": first, "method_b": second, "with": label}
            for side, drawn in by_chance.items():
                chance = drawn[:, chosen.index].mean()
                row[f"first {side} vector"] = f"{chosen[side].mean():.2f} ({chance:.2f})"
            for side in by_chance:
                row[f"smallest {side} angle"] = f"{chosen[f'{side}_angle'].mean():.0f}°"
            rows.append(row)
    return pd.DataFrame(rows)


# --- what is left of the start -----------------------------------------------------------------


def initial_factors(
    profile: Profile, modules: Iterable[str], seed: int, zero: str = "B"
) -> dict[str, Float64[Tensor, "rows columns"]]:
    """{module: the random factor at the start}: A of a run with B = 0, B of one with A = 0.

    zero: which of the two factors begins at zero.
    """
    model = loading.load_model(profile)
    adapted = loading.attach_adapter(model, profile.lora, seed, zero).get_base_model()
    side = "lora_A" if zero == "B" else "lora_B"
    return {
        module: getattr(adapted.get_submodule(module), side)["default"].weight.detach().double()
        for module in modules
    }


def share_inside(
    update: Update, initial: Mapping[str, Float64[Tensor, "rows columns"]], side: str
) -> Float[np.ndarray, " modules"]:
    """Share of |dW|^2 in the space that the initial factor spans, for each module.

    side: "left" for the outputs (the columns of B), "right" for the inputs (the rows of A).
    """
    shares = []
    for module, part in update.items():
        if side == "left":
            Q = torch.linalg.qr(initial[module]).Q
            inside = Factors(Q.T @ part.B.double(), part.A, part.scale)
        else:
            Q = torch.linalg.qr(initial[module].T).Q
            inside = Factors(part.B, part.A.double() @ Q, part.scale)
        shares.append(updates.inner(inside, inside) / updates.inner(part, part))
    return np.array(shares)


def by_rate(
    profile: Profile,
    seconds: Mapping[str, str],
    moments: Mapping[str, Tensor],
    starts: Mapping[int, Mapping[str, Tensor]],
) -> pd.DataFrame:
    """Two seeds of one loss at several rates: one row per rate; runs that are missing are trained.

    seconds: {run: the same run from another seed}. moments: of the inputs, by module
    (`representations.input_moments`). starts: {initial seed: `initial_factors`}. Columns: run_a,
    run_b, learning_rate, cosine, cosine_chance, functional, left, right (overlaps of the first
    vectors), norm (of run_a), "in the initial rows" (share of the squares).
    """
    adapters = {name: trainer.update_of(profile, name) for pair in seconds.items() for name in pair}
    compared = geometry.compare(adapters)
    cosine, sd = geometry.stacked_cosine(compared)
    functional, _ = representations.functional_cosine(adapters, moments)
    rows = []
    for first, second in seconds.items():
        pair = compared.runs.index(first), compared.runs.index(second)
        inside = [
            share_inside(adapters[name], starts[profile.runs[name].init_seed], "right").mean()
            for name in (first, second)
        ]
        rows.append(
            {
                "run_a": first,
                "run_b": second,
                "learning_rate": profile.runs[first].learning_rate,
                "cosine": cosine[pair],
                "cosine_chance": 1.96 * sd[pair],
                "functional": functional[pair],
                **{side: np.nanmean(compared.first[side][:, *pair]) for side in SIDES},
                "norm": updates.norm(adapters[first]),
                "in the initial rows": np.mean(inside),
            }
        )
    return pd.DataFrame(rows)


def first_overlaps(
    adapters: Mapping[str, Update],
    pairs: Mapping[str, tuple[int, int]],
    start: Literal["plain", "mirrored"],
    draws: int = 8,
) -> tuple[dict[str, Labelled], dict[str, Bands]]:
    """({"<side>, <start>": overlaps of the first vectors in each module}, their bands) of pairs.

    pairs: {label: numbers of two updates}. A band is the middle 95 % of the matched null, which
    keeps the factor that was random at the start: A, or B of mirrored runs, whose updates are
    transposed for it.
    """
    is_mirrored = start == "mirrored"
    compared = geometry.compare(dict(adapters))
    source = {
        name: {
            module: Factors(part.A.T, part.B.T, part.scale) if is_mirrored else part
            for module, part in update.items()
        }
        for name, update in adapters.items()
    }
    nulls = compare_by_chance(source, draws)
    overlaps, bands = {}, {}
    for side, side_of_null in zip(SIDES, SIDES[::-1] if is_mirrored else SIDES, strict=True):
        drawn = np.concatenate([null.first[side_of_null] for null in nulls])
        panel = f"{side}, {start}"
        overlaps[panel] = {label: compared.first[side][:, *pair] for label, pair in pairs.items()}
        bands[panel] = {
            label: tuple(np.nanquantile(drawn[:, *pair], _MIDDLE)) for label, pair in pairs.items()
        }
    return overlaps, bands


# --- pairs of methods over seeds ---------------------------------------------------------------


def cosines_by_seed(profile: Profile) -> pd.DataFrame:
    """The `seeds_pairs` table: cosines of all pairs of methods at each seed.

    Columns: run_a, run_b (methods), seed, cosine, chance_low, chance_high. Runs that are missing
    are trained.
    """
    tables = []
    for seed, names in replication.replicas(profile).items():
        adapters = {method: trainer.update_of(profile, name) for method, name in names.items()}
        cosines = geometry.cosine_table(geometry.compare(adapters))
        tables.append(cosines[cosines.scope == "global"].assign(seed=seed))
    return pd.concat(tables)[["run_a", "run_b", "seed", "cosine", "chance_low", "chance_high"]]


def mean_cosines(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Of a table of `cosines_by_seed`, one row per pair of methods over the seeds.

    Columns: run_a, run_b, sd, chance_low, chance_high (means), value with its interval low to high.
    """
    grouped = by_seed.groupby(["run_a", "run_b"], sort=False)
    summary = grouped.agg(
        sd=("cosine", "std"), chance_low=("chance_low", "mean"), chance_high=("chance_high", "mean")
    ).reset_index()
    summary[["value", "low", "high"]] = [
        replication.interval(cosines) for _, cosines in grouped.cosine
    ]
    return summary
