"""Outcomes of the pages on controls: each quotes a line of the predictions."""

from helpers.analysis import outcomes, predictions

ONE = (0.5, 0.4, 0.6)


def test_every_prediction_has_one_outcome_under_its_own_words():
    every = [
        *outcomes.of_seeds(ONE, ONE, ONE, ONE, ONE, ONE, ONE, 0.5, "SFT"),
        *outcomes.of_matched_dpo(
            1.0, 0.0, 0.1, ONE, ONE, ONE, 0.5, {"dpo-one-pass": 0.1, "dpo": 0.2}, ONE, 0.1,
            {"IPO": 0.6, "KTO": 0.4},
        ),
        *outcomes.of_strong_base(ONE, 0.5, 0.9, {"strong-sft": 0.1, "strong-rft": 0.2}, ONE, ONE),
        *outcomes.of_gradient_plane(ONE, 0.5, ONE, ONE, 0.1, {1: 0.1, 9: 0.2}),
        *outcomes.of_variants(0.99, ONE, ONE, 0.5, 0.9),
        *outcomes.of_on_policy(0.4, "quartiles", 0.1, ONE, 0.0),
        *outcomes.of_interventions(ONE, ONE, ONE),
    ]  # fmt: skip
    numbers = [row["number"] for row in every]
    assert sorted(numbers) == sorted(predictions.load().number), (
        "the first column of book/predictions.md, word for word"
    )


def test_a_loss_within_the_interval_changes_no_mind():
    clear, unclear = (
        outcomes.of_variants(1.0, printed, ONE, 0.5, 0.9)[1]
        for printed in ((-0.08, -0.1, -0.06), (-0.01, -0.03, 0.01))
    )
    assert clear["is_expected"]
    assert not clear["changes_mind"]
    assert unclear["changes_mind"], "equal accuracy is an interval that holds zero"


def test_the_least_alike_preference_loss_is_the_one_that_counts():
    rows = outcomes.of_matched_dpo(
        1.0, 0.0, 0.1, ONE, ONE, ONE, 0.5, {"dpo-one-pass": 0.1, "dpo": 0.2}, ONE, 0.1,
        {"IPO": 0.6, "KTO": 0.1},
    )  # fmt: skip
    family = rows[-1]
    assert family["value"] == 0.1
    assert family["changes_mind"]
    assert "KTO" in family["outcome"]
