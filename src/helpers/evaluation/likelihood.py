"""What models give to texts: log-probabilities of the teacher's rollouts, and the divergence of a
trained model from its base.

Comes after `answering`, before the analysis. Records have one row per problem, stored per run under
`results/<profile>/`; the sweep of learning rates is written to `data/sweeps/`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from adapter_geometry import language_models, storage
from helpers import store
from helpers.data import problems, rollouts
from helpers.data.problem import Problem
from helpers.evaluation import answering
from helpers.evaluation.answering import RunOrModel
from helpers.models import loading, logprobs
from helpers.models.loading import LanguageModel
from helpers.profiles import Profile, Run


def validation(profile: Profile, run: RunOrModel) -> pd.DataFrame:
    """One row per validation problem, where hyper-parameters are chosen; stored.

    Columns: problem_id, correct (the run's greedy answer), and of one rollout of the teacher nats
    and tokens. `nats` is minus the log-probability that the run gives to the teacher's rollout:
    what SFT minimises, on problems it never saw.
    """

    def compute() -> pd.DataFrame:
        model, written = answering.load_model_of(profile, run), answering.teacher_rollouts(profile)
        logp = logprobs.score(model, list(written.prompt_ids), list(written.completion_ids))
        chosen = problems.problem_sets(profile.problems)["validation"]
        return pd.DataFrame(
            {
                "problem_id": written.problem_id,
                "correct": answering.answer(profile, model, chosen).correct,
                "nats": [-float(values.sum()) for values in logp],
                "tokens": written.tokens,
            }
        )

    return answering.load_or_compute(profile, run, "validation", compute)


@torch.inference_mode()
def summed_divergence(
    sampler: LanguageModel, other: LanguageModel, records: pd.DataFrame, batch_size: int = 64
) -> Float64[np.ndarray, " completions"]:
    """Per completion, sum over its tokens of KL(sampler || other) of the next-token distributions,
    in nats.

    records: columns prompt_ids and completion_ids, the completions written by the sampler.
    """
    nats = np.zeros(len(records))
    rows = zip(records.prompt_ids, records.completion_ids, strict=True)
    # Similar lengths together, so that little is computed for padding.
    order = np.argsort([len(prompt) + len(completion) for prompt, completion in rows])
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        padded = language_models.pad(
            [records.prompt_ids.iloc[i] for i in batch],
            [records.completion_ids.iloc[i] for i in batch],
            0,
        )
        input_ids, mask = (part.to(sampler.device) for part in padded)  # (rows, tokens) each
        # (rows, tokens - 1): the state at a token predicts the next one.
        is_predicted = mask[:, 1:].bool()
        # (predicted, hidden) of both models: the states that predict completion tokens, row after
        # row; only to these is the head applied.
        states = [
            loading.hidden_states(model, input_ids=input_ids, use_cache=False)[:, :-1][is_predicted]
            for model in (sampler, other)
        ]
        # In parts, since each makes two tensors of (tokens, vocabulary).
        parts = language_models.in_parts(loading.causal_model(sampler), *states)
        values = torch.cat([_divergence(sampler, other, *part) for part in parts])  # (predicted,)
        # Back to (rows, tokens - 1), in the order in which they were taken, and summed by row.
        per_token = torch.zeros(is_predicted.shape, device=values.device)
        per_token = per_token.masked_scatter(is_predicted, values)
        nats[batch] = per_token.sum(1).cpu().numpy()
    return nats


def _divergence(
    sampler: LanguageModel,
    other: LanguageModel,
    sampler_states: Float[Tensor, "tokens hidden"],
    other_states: Float[Tensor, "tokens _"],
) -> Float32[Tensor, " tokens"]:
    """KL(sampler || other), nats, of the next-token distributions after each pair of hidden
    states."""
    # (tokens, vocabulary)
    sampler_logp = torch.log_softmax(sampler.lm_head(sampler_states).float(), -1)
    other_logp = torch.log_softmax(other.lm_head(other_states).float(), -1)
    return (sampler_logp.exp() * (sampler_logp - other_logp)).sum(-1)


def _divergence_problems(profile: Profile) -> Sequence[Problem]:
    """The validation problems to which the divergence samples answers."""
    validation_problems = problems.problem_sets(profile.problems)["validation"]
    return validation_problems[: profile.evaluation.kl_problems]


def samples(profile: Profile, name: str) -> pd.DataFrame:
    """One sampled answer of a model to each validation problem of the divergence, stored: the same
    for every run that starts from it. Columns as `answering.answer`'s."""

    def compute() -> pd.DataFrame:
        model, chosen = loading.load_model(profile, name), _divergence_problems(profile)
        return answering.answer(profile, model, chosen, temperature=1.0, seed=1, name=name)

    return answering.load_or_compute(profile, name, "samples", compute)


def divergence(profile: Profile, run: Run) -> pd.DataFrame:
    """KL between a run's policy and its base, one row per direction and validation problem; stored.

    Columns: direction, problem_id, tokens, nats (summed over the tokens). "forward" is
    KL(base || policy) along completions sampled from the base, "reverse" KL(policy || base) along
    the policy's. At each position the divergence of the two next-token distributions is exact; only
    the positions are sampled.
    """

    def compute() -> pd.DataFrame:
        chosen, name = _divergence_problems(profile), f"KL of {run.name}"
        base, policy = loading.load_model(profile, run.base), answering.load_model_of(profile, run)
        of_policy = answering.answer(profile, policy, chosen, temperature=1.0, seed=1, name=name)
        of_base = samples(profile, run.base)
        parts = []
        for direction, sampler, other, records in (
            ("forward", base, policy, of_base),
            ("reverse", policy, base, of_policy),
        ):
            part = {
                "direction": direction,
                "problem_id": records.problem_id,
                "tokens": records.tokens,
                "nats": summed_divergence(sampler, other, records),
            }
            parts.append(pd.DataFrame(part))
        return pd.concat(parts)

    return answering.load_or_compute(profile, run, "divergence", compute)


def effect(profile: Profile, run: Run, prompts: int = 100) -> pd.DataFrame:
    """Mean log-probability, nats per token, that the base and the trained model give to the
    rollouts of the table's first prompts.

    Rows: reward 0 and 1. Columns: "base", the run's name, and "change".
    """
    table = rollouts.load_table(profile).head(prompts * profile.rollouts.samples)
    reward = table.reward.astype(int)
    tokens = table.groupby(reward).tokens.sum()
    means = {}
    for name, model in (
        ("base", loading.load_model(profile, run.base)),
        (run.name, answering.load_model_of(profile, run)),
    ):
        logp = logprobs.score(model, list(table.prompt_ids), list(table.completion_ids))
        sums = pd.Series([values.sum() for values in logp], index=table.index)
        means[name] = sums.groupby(reward).sum() / tokens
    return pd.DataFrame(means).assign(change=means[run.name] - means["base"])


def sweep_path(profile: Profile) -> Path:
    """Where the committed sweep of the learning rate is."""
    return store.ROOT / "data" / "sweeps" / f"{profile.name}.csv"


def sweep(profile: Profile) -> Path:
    """Train SFT at each of the profile's learning rates, measure it on validation problems, and
    write the table; returns its path.

    Columns: learning_rate (0 for the base), validation_loss (nats per token), validation_accuracy,
    n (problems).
    """
    rows = []
    for rate in (None, *profile.learning_rates):
        sft = profile.runs["sft"]
        run = "base" if rate is None else sft.model_copy(update={"learning_rate": rate})
        measured = validation(profile, run)
        rows.append(
            {
                "learning_rate": rate or 0.0,
                "validation_loss": measured.nats.sum() / measured.tokens.sum(),
                "validation_accuracy": measured.correct.mean(),
                "n": len(measured),
            }
        )
    path = sweep_path(profile)
    with storage.whole(path) as temporary_path:
        pd.DataFrame(rows).to_csv(temporary_path, index=False, float_format="%.6g")
    store.update_checksums(path)
    return path
