"""Divergence from the base: never negative, zero for the base itself, and the base's own samples drawn once for all runs."""

import numpy as np
import pytest
import torch

from helpers.evaluation import answering, likelihood
from helpers.models import loading


@pytest.fixture
def study(smoke, workplace, table):
    return smoke


def test_divergence_is_none_from_itself_and_positive_from_another(study):
    written = likelihood.samples(study, "base")
    base, other = (loading.load_model(study, name) for name in ("base", "teacher"))
    own = likelihood.summed_divergence(base, base, written)
    np.testing.assert_allclose(own, 0, atol=1e-6, err_msg="KL(p || p) = 0")
    assert (likelihood.summed_divergence(base, other, written) > 0).all(), (
        "different models differ (Gibbs' inequality)"
    )


def test_divergence_at_one_position_is_that_of_the_two_distributions(study):
    written = likelihood.samples(study, "base").head(1).copy()
    written["completion_ids"] = [written.completion_ids.iloc[0][:1]]
    base, other = (loading.load_model(study, name) for name in ("base", "teacher"))
    with torch.inference_mode():
        p, q = (
            torch.softmax(
                model(torch.tensor(written.prompt_ids.iloc[0])[None]).logits[0, -1].double(), -1
            )
            for model in (base, other)
        )
    expected = float((p * (p / q).log()).sum())
    assert likelihood.summed_divergence(base, other, written)[0] == pytest.approx(
        expected, rel=1e-4
    ), "sum_v p log (p / q)"


def test_the_base_is_sampled_once_for_all_runs(study, monkeypatch):
    asked = []
    answer = answering.answer
    monkeypatch.setattr(
        answering,
        "answer",
        lambda *arguments, **options: (
            asked.append(options.get("name")) or answer(*arguments, **options)
        ),
    )
    found = [likelihood.divergence(study, study.runs[name]) for name in ("sft", "rft")]
    assert asked.count("base") == 1, "its texts do not depend on the run"
    for table in found:
        assert (table.nats >= -1e-6).all(), "a divergence is not negative"
        assert set(table.direction) == {"forward", "reverse"}
        assert len(table) == 2 * study.evaluation.kl_problems
