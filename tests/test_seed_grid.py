"""The crossed design of seeds, at smoke size and on updates made by hand."""

import numpy as np
import pytest
import torch

from adapter_geometry.updates import Factors
from helpers.analysis import seed_grid


def test_grid_has_every_pair_of_seeds_once(smoke):
    grid = seed_grid.grid_of(smoke, ["sft", "dpo"])
    assert len(grid.runs) == 8
    assert not grid.runs.duplicated(["method", "init", "order"]).any()
    assert len(grid.pairs) == 8 * 7 // 2
    of_sft = grid.pairs[(grid.pairs.method_a == "sft") & (grid.pairs.method_b == "sft")]
    assert of_sft.shares.value_counts().to_dict() == {
        "initialisation": 2,
        "order": 2,
        "neither": 2,
    }
    across = seed_grid.between(grid.pairs, "sft", "dpo", "both")
    assert len(across) == 4, "each run of SFT with the run of DPO from its seeds"


def test_means_are_those_of_the_chosen_pairs(smoke):
    grid = seed_grid.grid_of(smoke, ["sft"])
    values = np.arange(16.0).reshape(4, 4)
    grid.add("cosine", values)
    grid.add("cosine_chance", np.full((4, 4), 0.1))
    means = grid.means("cosine", [("sft", "sft")])
    chosen = seed_grid.between(grid.pairs, "sft", "sft", "order")
    assert means.value["sft", "sft", "order"] == chosen.cosine.mean()
    assert means.chance["sft", "sft", "order"] == pytest.approx(0.1)
    assert "both" not in means.index.get_level_values("shares")


def test_share_inside_is_that_of_the_projection():
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(6, 2, generator=generator), torch.randn(2, 5, generator=generator)
    initial = torch.randn(6, 2, generator=generator).double()
    update = {"q_proj": Factors(B, A, 2.0)}
    dense = 2.0 * B.double() @ A.double()
    Q = torch.linalg.qr(initial).Q
    expected = float((Q.T @ dense).norm() ** 2 / dense.norm() ** 2)
    assert seed_grid.share_inside(update, {"q_proj": initial}, "left") == pytest.approx([expected])
    assert seed_grid.share_inside(update, {"q_proj": A.double()}, "right") == pytest.approx([1.0])
