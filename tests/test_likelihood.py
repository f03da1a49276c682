"""Divergence from the base: never negative, zero for the base itself, and the base's samples drawn
once for all runs."""

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
    nats = likelihood.summed_divergence(base, base, written)
    np.testing.assert_allclose(nats, 0, atol=1e-6, err_msg="KL(p || p) = 0")
    assert (likelihood.summed_divergence(base, other, written) > 0).all(), (
        "different models differ (Gibbs' inequality)"
    )


def test_divergence_at_one_position_is_that_of_the_two_distributions(study):
    written = likelihood.samples(study, "base").head(1).copy()
    written["completion_ids"] = [written.completion_ids.iloc[0][:1]]
    base, other = (loading.load_model(study, name) for name in ("base", "teacher"))
    prompt = torch.tensor(written.prompt_ids.iloc[0])[None]
    with torch.inference_mode():
        logits = [model(prompt).logits[0, -1].double() for model in (base, other)]
    p, q = (torch.softmax(one, -1) for one in logits)
    expected = float((p * (p / q).log()).sum())
    (nats,) = likelihood.summed_divergence(base, other, written)
    assert nats == pytest.approx(expected, rel=1e-4), "sum_v p log (p / q)"


def test_the_base_is_sampled_once_for_all_runs(study, monkeypatch):
    names = []
    answer = answering.answer

    def listen(*arguments, **options):
        names.append(options.get("name"))
        return answer(*arguments, **options)

    monkeypatch.setattr(answering, "answer", listen)
    tables = [likelihood.divergence(study, study.runs[name]) for name in ("sft", "rft")]
    assert names.count("base") == 1, "its texts do not depend on the run"
    for table in tables:
        assert (table.nats >= -1e-6).all(), "a divergence is not negative"
        assert set(table.direction) == {"forward", "reverse"}
        assert len(table) == 2 * study.evaluation.kl_problems
