"""Packed texts against separate passes, curves of known height, and PEFT's models on a path."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fill_adapter
from peft import PeftModel

from adapter_geometry import mode_connectivity, updates
from adapter_geometry.adapters import load_update
from adapter_geometry.mode_connectivity import METRICS, Texts

CURVES = {  # over t in [0, 1]: loss, barrier above the chord, barrier above the mean of the ends
    "a straight line has no barrier": (lambda t: 2 + 3 * t, 0, 1.5),
    "a constant has none of either": (lambda t: 2 + 0 * t, 0, 0),
    "a parabola is above both by its height": (lambda t: 1 + 4 * t * (1 - t), 1, 1),
    "a parabola on a slope": (lambda t: 3 * t + 8 * t * (1 - t), 2, 121 / 32 - 1.5),
    "a valley has none: the chord touches it at its ends": (lambda t: 1 - 4 * t * (1 - t), 0, 0),
    "a curve that rises ever more slowly lies above its chord without a hump": (
        lambda t: np.sqrt(t),
        0.25,
        0.5,
    ),
    "one that rises ever faster lies below it": (lambda t: t**2, 0, 0.5),
    "a hump past an end": (lambda t: np.where(t == 0.25, 5.0, 1 + t), 3.75, 3.5),
}
T = np.linspace(0, 1, 129)


# --- heights and intervals ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CURVES)
def test_heights_of_curves_known_in_closed_form(name):
    loss, above_chord, above_mean = CURVES[name]
    assert mode_connectivity.barrier_heights(T, loss(T)) == pytest.approx(
        (above_chord, above_mean), abs=1e-3
    ), name
    both = mode_connectivity.barrier_heights(T, np.stack([loss(T), 2 * loss(T)]))
    np.testing.assert_allclose(
        both,
        [[above_chord, 2 * above_chord], [above_mean, 2 * above_mean]],
        atol=2e-3,
        err_msg="many curves at once",
    )


def test_heights_do_not_depend_on_a_common_slope_above_the_chord_and_see_it_above_the_mean():
    loss = CURVES["a parabola is above both by its height"][0](T)
    chord, mean = mode_connectivity.barrier_heights(T, loss + 10 * T)
    assert chord == pytest.approx(1, abs=1e-3), "the chord goes along with the slope"
    assert mean == pytest.approx(5), (
        "monotone curves look like barriers above the mean of their ends"
    )


def measured(loss, texts, noise=0.0, seed=0, t=T[::16]):
    """Rows as `losses_along` gives them, of a path whose token-mean loss is `loss`.

    Texts have 5 to 14 tokens. noise: standard deviation of a text's own height.
    """
    rng = np.random.default_rng(seed)
    tokens = np.arange(texts) % 10 + 5
    shift = noise * rng.standard_normal(texts)
    shift -= (shift @ tokens) / tokens.sum()  # the token mean stays the planted one
    hump = 1 + noise * rng.standard_normal(texts)
    hump += 1 - (hump @ tokens) / tokens.sum()
    rows = [
        {
            "t": point,
            "metric": metric,
            "text": text,
            "nats": tokens[text] * (size * loss(point) * hump[text] + shift[text]),
            "tokens": tokens[text],
        }
        for size, metric in zip((1, 2), METRICS, strict=True)
        for text in range(texts)
        for point in t
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def parabola(t):
    return 4 * t * (1 - t)


def test_the_curve_is_nats_per_token_of_all_texts_together():
    curve = mode_connectivity.curve(measured(parabola, 12, noise=0.3))
    for size, metric in zip((1, 2), METRICS, strict=True):
        rows = curve[curve.metric == metric]
        np.testing.assert_allclose(rows.t, T[::16], err_msg="in the order of t")
        np.testing.assert_allclose(
            rows.value,
            size * parabola(T[::16]),
            atol=1e-12,
            err_msg="sum of nats over sum of tokens: long texts count more",
        )
        assert ((rows.low <= rows.value) & (rows.value <= rows.high)).all(), (
            "the interval holds the value"
        )


def test_intervals_of_curve_and_barrier_shrink_with_the_root_of_the_number_of_texts():
    few, many = (measured(parabola, texts, noise=0.3) for texts in (30, 480))
    widths = [(rows.high - rows.low).mean() for rows in map(mode_connectivity.curve, (few, many))]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35), (
        "sixteen times the texts, a quarter of the width"
    )
    barriers = [
        mode_connectivity.barrier(rows).set_index("metric").loc["rollout"] for rows in (few, many)
    ]
    assert (barriers[0].high - barriers[0].low) / (
        barriers[1].high - barriers[1].low
    ) == pytest.approx(4, rel=0.5)
    assert all(row.low < 1 < row.high for row in barriers), "the planted height of 1 lies inside"


@pytest.mark.parametrize(
    "above",
    [(), (-1.0, -0.5)],
    ids=["a path between runs", "a path to the base goes on beyond its start"],
)
def test_a_planted_barrier_is_found_with_its_position(above):
    rows = measured(lambda t: parabola(t) + t if t >= 0 else 99.0, 20, t=[*above, *T[::16]])
    barriers = mode_connectivity.barrier(rows).set_index("metric")
    for size, metric in zip((1, 2), METRICS, strict=True):
        row = barriers.loc[metric]
        assert row.above_chord == pytest.approx(size), (
            "height above the chord; what lies beyond the ends is no part of the path"
        )
        assert row["at"] == 0.5, "where it is highest above its chord"
        assert row.above_mean == pytest.approx(size * (max(parabola(T[::16]) + T[::16]) - 0.5)), (
            "height above the mean of the ends"
        )
        assert (row.low, row.high) == pytest.approx((size, size)), (
            "without differences between texts there is nothing to be unsure of"
        )


def test_the_bootstrap_takes_the_same_texts_at_every_point():
    rows = measured(lambda t: 0.0, 30, noise=2.0)
    barrier = mode_connectivity.barrier(rows).iloc[0]
    assert barrier.above_chord == pytest.approx(0, abs=1e-9)
    assert barrier.high == pytest.approx(0, abs=1e-9), (
        "texts that differ by the same amount everywhere make no barrier: the comparison is paired"
    )
    wide = mode_connectivity.curve(rows).iloc[0]
    assert wide.high - wide.low > 0.5, "although the curve itself is unsure"


def test_the_interval_of_the_barrier_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        heights = 1 + 0.5 * rng.standard_normal(40)
        rows = pd.DataFrame(
            [
                {
                    "t": t,
                    "metric": "rollout",
                    "text": text,
                    "nats": 10 * parabola(t) * heights[text],
                    "tokens": 10,
                }
                for text in range(40)
                for t in (0.0, 0.5, 1.0)
            ]
        )
        row = mode_connectivity.barrier(rows).iloc[0]
        covered += row.low < 1 < row.high
    assert covered >= 52, "95 % of 60, less three standard deviations"


# --- texts ----------------------------------------------------------------------------------------


@pytest.fixture
def written():
    """Prompts, completions and boxed answers of different lengths, one token at the least."""
    rng = np.random.default_rng(0)
    return tuple(
        [rng.integers(1, 40, rng.integers(1, size)).tolist() for _ in range(9)]
        for size in (12, 20, 6)
    )


def nats_by_itself(model, prompt, continuation):
    """Cross-entropy of a continuation right after its prompt, from one plain forward pass."""
    logp = torch.log_softmax(
        model(input_ids=torch.tensor([prompt + continuation])).logits[0].double(), -1
    )
    return -sum(
        float(logp[len(prompt) + index - 1, token]) for index, token in enumerate(continuation)
    )


def test_one_packed_pass_gives_what_two_separate_passes_give(written, tiny_model):
    prompts, completions, answers = written
    model, texts = tiny_model(), Texts(*written)
    packed = texts.nats(model)
    for metric, continuations in (("rollout", completions), ("boxed answer", answers)):
        expected = [
            nats_by_itself(model, prompt, ids)
            for prompt, ids in zip(prompts, continuations, strict=True)
        ]
        np.testing.assert_allclose(
            packed[metric],
            expected,
            rtol=1e-4,
            err_msg=f"{metric}: by the prompt and its own tokens, at their own positions",
        )
        assert texts.tokens[metric].tolist() == [len(ids) for ids in continuations], (
            "tokens over which the mean is taken"
        )


def test_answers_and_completions_do_not_see_each_other(written, tiny_model):
    prompts, completions, answers = written
    model = tiny_model()
    plain = Texts(*written).nats(model)
    other_answers = Texts(prompts, completions, [[7, 8, 9]] * 9).nats(model)
    np.testing.assert_allclose(
        other_answers["rollout"],
        plain["rollout"],
        rtol=1e-5,
        err_msg="the rollout knows nothing of the answer behind it",
    )
    other_completions = Texts(prompts, [[3, 2, 1, 5]] * 9, answers).nats(model)
    np.testing.assert_allclose(
        other_completions["boxed answer"],
        plain["boxed answer"],
        rtol=1e-5,
        err_msg="the answer follows the prompt, not the rollout",
    )


def test_a_text_does_not_depend_on_the_texts_beside_it(written, tiny_model):
    model, together = tiny_model(), Texts(*written).nats(tiny_model())
    for i in (0, 4):
        alone = Texts(*([part[i]] for part in written)).nats(model)
        for metric in METRICS:
            np.testing.assert_allclose(
                alone[metric],
                together[metric][[i]],
                rtol=1e-5,
                err_msg=f"{metric} of text {i} by itself",
            )


# --- paths ----------------------------------------------------------------------------------------


def logits(model):
    return model(input_ids=torch.arange(20)[None]).logits[0]


def test_a_path_goes_from_one_adapter_to_the_other_through_the_mean_of_the_weights(
    tiny_model, with_adapter, tmp_path
):
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        fill_adapter(
            with_adapter(tiny_model(), lora_alpha=2 + seed), seed, size=1.0
        ).save_pretrained(tmp_path / name)
    start, goal = (load_update(tmp_path / name) for name in ("first", "second"))
    merged = [
        PeftModel.from_pretrained(tiny_model(), tmp_path / name).merge_and_unload()
        for name in ("first", "second")
    ]
    middle = tiny_model()
    middle.load_state_dict(
        {
            name: (weight + merged[1].state_dict()[name]) / 2
            for name, weight in merged[0].state_dict().items()
        }
    )
    assert (logits(merged[0]) - logits(merged[1])).abs().max() > 0.1, (
        "the two adapters must say different things"
    )
    model = tiny_model()
    weights = updates.weights_of(model, start)
    for t, expected in ((0, merged[0]), (0.5, middle), (1, merged[1]), (0, merged[0])):
        updates.put(model, weights, updates.combine([start, goal], [1 - t, t]))
        torch.testing.assert_close(
            logits(model), logits(expected), rtol=1e-4, atol=1e-4, msg=f"the model at t = {t}"
        )
