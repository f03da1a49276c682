"""Tables of CKA for chosen pairs of runs: at two depths, and at other seeds.

Comes after `replication`; the page on representations shows them. Nothing is stored here.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from jaxtyping import Int

from adapter_geometry import representations
from adapter_geometry.representations import States
from helpers.analysis import replication
from helpers.evaluation import answering
from helpers.profiles import Profile

Pair = tuple[str, str]


def of_pairs(table: pd.DataFrame, pairs: Sequence[Pair]) -> pd.DataFrame:
    """One row per pair of runs from a `cka` table, which has each pair in this order.

    Columns: "ours, last layer" with its interval low to high, the debiased CKA at two thirds of the
    depth ("ours, layer <number>"), and "plain, last layer".
    """
    keyed = table.set_index(["run_a", "run_b", "layer"])
    last = table.layer.max()
    third = round(last * 2 / 3)
    return pd.DataFrame(
        [
            {
                "ours, last layer": keyed.debiased[(*pair, last)],
                "low": keyed.low[(*pair, last)],
                "high": keyed.high[(*pair, last)],
                f"ours, layer {third}": keyed.debiased[(*pair, third)],
                "plain, last layer": keyed.biased[(*pair, last)],
            }
            for pair in pairs
        ]
    )


def over_seeds(
    profile: Profile,
    states: Mapping[str, States],
    rows: Int[np.ndarray, " rows"],
    pairs: Sequence[Pair],
    layers: Sequence[int],
) -> pd.DataFrame:
    """Debiased CKA of pairs of methods at each seed, and of SFT with itself between seeds.

    states: of the main runs, by method; those of other seeds are computed here from the same
    texts. rows: the tokens that are compared. Columns: layer, run_a, run_b (methods), seed_a,
    seed_b, debiased.
    """
    texts = answering.held_out(profile, profile.representations.texts)
    prompts, completions = list(texts.prompt_ids), list(texts.completion_ids)

    def states_of(run: str) -> States:
        model = answering.load_model_of(profile, profile.runs[run])
        return representations.states(model, prompts, completions)

    methods = {method for pair in pairs for method in pair}
    by_seed = {
        (method, seed): states[method] if run == method else states_of(run)
        for seed, group in replication.replicas(profile).items()
        for method, run in group.items()
        if method in methods
    }
    seeds = sorted({seed for _, seed in by_seed})
    compared = [((a, seed), (b, seed)) for a, b in pairs for seed in seeds]
    compared += [(("sft", seeds[0]), ("sft", seed)) for seed in seeds[1:]]
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "run_a": first[0],
                "run_b": second[0],
                "seed_a": first[1],
                "seed_b": second[1],
                "debiased": representations.cka(
                    by_seed[first].hidden[layer][rows], by_seed[second].hidden[layer][rows]
                ),
            }
            for layer, (first, second) in product(layers, compared)
        ]
    )
