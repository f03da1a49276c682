"""TODO docstring."""

import numpy as np
import pandas as pd
import torch

from adapter_geometry import language_models, storage
from helpers import store
from helpers.data import problems, rollouts
from helpers.evaluation import answering
from helpers.models import loading, logprobs


def validation(profile, run):
    """One row a validation problem, where hyper-parameters are chosen: `correct` (greedy), and of one rollout of the teacher `nats` and `tokens`.

    `nats` is minus the log-probability that the run gives to the teacher's rollout: what SFT minimises, on problems it never saw.
    """

    def compute():
        model, written = answering.load_model_of(profile, run), answering.teacher_rollouts(profile)
        scored = logprobs.score(model, list(written.prompt_ids), list(written.completion_ids))
        solved = answering.answer(
            profile, model, problems.problem_sets(profile.problems)["validation"]
        ).correct
        nats = [-float(values.sum()) for values in scored]
        return pd.DataFrame(
            {
                "problem_id": written.problem_id,
                "correct": solved,
                "nats": nats,
                "tokens": written.tokens,
            }
        )

    return answering.stored(profile, run, "validation", compute)


@torch.inference_mode()
def summed_divergence(sampler, other, records, batch_size=64):
    """Per completion, sum over its tokens of KL(sampler || other) of the next-token distributions, in nats."""
    found = np.zeros(len(records))
    order = np.argsort(
        [len(p) + len(c) for p, c in zip(records.prompt_ids, records.completion_ids, strict=True)]
    )
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        padded = language_models.pad(
            [records.prompt_ids.iloc[i] for i in rows],
            [records.completion_ids.iloc[i] for i in rows],
            0,
        )
        input_ids, mask = (part.to(sampler.device) for part in padded)
        is_predicted = mask[:, 1:].bool()
        hidden = [
            loading.causal_model(model)
            .model(input_ids=input_ids, use_cache=False)
            .last_hidden_state[:, :-1][is_predicted]
            for model in (sampler, other)
        ]
        values = torch.cat(
            [
                _divergence(sampler, other, *states)
                for states in language_models.in_parts(loading.causal_model(sampler), *hidden)
            ]
        )
        nats = torch.zeros(is_predicted.shape, device=values.device).masked_scatter(
            is_predicted, values
        )
        found[rows] = nats.sum(1).cpu().numpy()
    return found


def _divergence(sampler, other, own_states, other_states):
    """KL(sampler || other), nats, of the next-token distributions after each pair of hidden states."""
    own, theirs = (
        torch.log_softmax(model.lm_head(states).float(), -1)
        for model, states in ((sampler, own_states), (other, other_states))
    )
    return (own.exp() * (own - theirs)).sum(-1)


def samples(profile, name):
    """One sampled answer of a model to each validation problem of the divergence, stored: the same for every run that starts from it."""

    def compute():
        chosen = problems.problem_sets(profile.problems)["validation"][
            : profile.evaluation.kl_problems
        ]
        return answering.answer(
            profile, loading.load_model(profile, name), chosen, temperature=1.0, seed=1, name=name
        )

    return answering.stored(profile, name, "samples", compute)


def divergence(profile, run):
    """KL between a run's policy and its base, one row a (direction, validation problem): summed nats and tokens.

    "forward" is KL(base || policy) along completions sampled from the base, "reverse" KL(policy || base) along the policy's.
    At each position the divergence of the two next-token distributions is exact; only the positions are sampled.
    """

    def compute():
        chosen = problems.problem_sets(profile.problems)["validation"][
            : profile.evaluation.kl_problems
        ]
        base, policy = loading.load_model(profile, run.base), answering.load_model_of(profile, run)
        own = answering.answer(
            profile, policy, chosen, temperature=1.0, seed=1, name=f"KL of {run.name}"
        )
        parts = []
        for direction, sampler, other, records in (
            ("forward", base, policy, samples(profile, run.base)),
            ("reverse", policy, base, own),
        ):
            parts.append(
                pd.DataFrame(
                    {
                        "direction": direction,
                        "problem_id": records.problem_id,
                        "tokens": records.tokens,
                        "nats": summed_divergence(sampler, other, records),
                    }
                )
            )
        return pd.concat(parts)

    return answering.stored(profile, run, "divergence", compute)


def effect(profile, run, prompts=100):
    """Mean log-probability, nats a token, that the base and the trained model give to the first rollouts of the table.

    Rows: reward 0 and 1. Columns: "base", the run's name, and "change".
    """
    table = rollouts.load_table(profile).head(prompts * profile.rollouts.samples)
    tokens = table.groupby(table.reward.astype(int)).tokens.sum()
    found = {}
    for name, model in (
        ("base", loading.load_model(profile, run.base)),
        (run.name, answering.load_model_of(profile, run)),
    ):
        sums = pd.Series(
            [
                values.sum()
                for values in logprobs.score(
                    model, list(table.prompt_ids), list(table.completion_ids)
                )
            ],
            index=table.index,
        )
        found[name] = sums.groupby(table.reward.astype(int)).sum() / tokens
    return pd.DataFrame(found).assign(change=found[run.name] - found["base"])


def sweep_path(profile):
    """Where the committed sweep of the learning rate lies."""
    return store.ROOT / "data" / "sweeps" / f"{profile.name}.csv"


def sweep(profile):
    """Train SFT at each of the profile's learning rates, measure it on validation problems, and write the table; returns its path."""
    rows = []
    for rate in (None, *profile.learning_rates):
        run = (
            "base"
            if rate is None
            else profile.runs["sft"].model_copy(update={"learning_rate": rate})
        )
        measured = validation(profile, run)
        rows.append(
            {
                "learning_rate": rate or 0.0,
                "validation_loss": measured.nats.sum() / measured.tokens.sum(),
                "validation_accuracy": measured.correct.mean(),
                "n": len(measured),
            }
        )
    with storage.whole(sweep_path(profile)) as beside:
        pd.DataFrame(rows).to_csv(beside, index=False, float_format="%.6g")
    store.relist(sweep_path(profile))
    return sweep_path(profile)
