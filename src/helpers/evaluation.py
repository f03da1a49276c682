"""Evaluation: greedy answers to every held-out problem, and the divergence of a trained model from its base.

Comes after `training`, before `statistics`. Records are one row a problem, stored per run and reused while they fit.
"""

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from helpers import models, problems, rollouts, store, training

CONTROL_PROBLEMS = 600  # the first ones of the test split, for every control; all 1319 would cost as much as training it
RECIPE = 1  # raised whenever the numbers of evaluation change, as `training.RECIPE`


def answering(profile, run):
    """What answers problems as a run, or as one of the profile's models by name: `load_model_of`, or vLLM where it is the profile's engine."""
    if profile.compute.engine == "transformers":
        return load_model_of(profile, run)
    from helpers import engine  # needs vLLM, which few machines have

    return engine.Engine(profile, run) if isinstance(run, str) else engine.Engine(profile, run.base, training.train(profile, run) / "adapter")


def load_model_of(profile, run):
    """The model that a run produced, its adapter merged in float32 and else beside the weights; `run` may also be the name of one of the profile's models."""
    if isinstance(run, str):
        return models.load_model(profile, run)
    adapted = models.load_adapted(profile, run, training.train(profile, run) / "adapter")
    # In bfloat16 a merged update would be rounded to the weights' three digits, and a short one be lost.
    return adapted.merge_and_unload() if profile.compute.dtype == "float32" else models.causal_model(adapted)


def identity(profile, run, part):
    """Hash of all that determines a record of a run (or of a model by name), with the recipe's number in place of the code; part: its folder."""
    made = models.model_digest(profile.name, run) if isinstance(run, str) else training.identity(profile, run)
    compute = profile.compute.model_dump(include={"dtype", "engine"}, exclude_defaults=True)
    return store.digest({"model": made, **({"compute": compute} if compute else {}), "part": part, "evaluation": profile.evaluation.model_dump(),
                         "problems": profile.problems.model_dump(mode="json"), "control_problems": CONTROL_PROBLEMS, "recipe": RECIPE})


def _stored(profile, run, part, compute, settings=""):
    name = run if isinstance(run, str) else run.name
    is_ours = isinstance(run, str) or profile.runs.get(run.name) == run
    return store.record(profile.name, part, name, identity(profile, run, part + settings), store.code_digest("evaluation"), compute, is_ours)


def answer(profile, model, chosen, temperature=0.0, seed=0, name="", opening=""):
    """Completions of the given problems by `model`, graded: a DataFrame with one row a problem, in the order given.

    `opening` puts the first words into the model's mouth; the completion is what follows them.

    Columns: problem_id, split, steps, completion, answer, status, correct, correct_flexible (by the last number, boxed or
    not), tokens, truncated, prompt_ids, completion_ids.
    """
    torch.set_num_threads(profile.evaluation.threads)
    tokenizer = models.load_tokenizer(profile)
    begun = tokenizer(opening, add_special_tokens=False).input_ids if opening else []
    prompts = [models.prompt_ids(tokenizer, problem.question, profile.problems.instruction) + begun for problem in chosen]
    with tqdm(total=len(prompts), desc=f"answering {name}", unit="problem") as progress:
        completions = rollouts.sample(model, prompts, max_new_tokens=profile.evaluation.max_new_tokens, end_id=tokenizer.eos_token_id,
                                      batch_size=profile.evaluation.batch_size, temperature=temperature, seed=seed, progress=progress)
    rows = []
    for problem, prompt, ids in zip(chosen, prompts, completions, strict=True):
        text = tokenizer.decode(ids, skip_special_tokens=True)
        graded = problems.grade(text, problem.answer)
        rows.append({"problem_id": problem.problem_id, "split": problem.split, "steps": problem.steps, "completion": text, "answer": graded.answer,
                     "status": graded.status, "correct": graded.correct, "correct_flexible": problems.grade_by_last_number(text, problem.answer).correct,
                     "tokens": len(ids), "truncated": ids[-1:] != [tokenizer.eos_token_id], "prompt_ids": prompt, "completion_ids": ids})
    return pd.DataFrame(rows)


def evaluate(profile, run):
    """Greedy records of a run (or of a model by name) on all sets that are not trained on, of a control on `CONTROL_PROBLEMS` test problems; stored."""
    is_control = not isinstance(run, str) and run.name not in profile.main_runs

    def compute():
        sets = problems.problem_sets(profile.problems)
        held_out = [problem for split, drawn in sets.items() if split not in problems.TRAINED_ON for problem in drawn]
        chosen = sets["test"][:CONTROL_PROBLEMS] if is_control else held_out
        name = run if isinstance(run, str) else run.name
        return answer(profile, answering(profile, run), chosen, name=name).drop(columns=["prompt_ids", "completion_ids"])
    return _stored(profile, run, "evaluation", compute)


def sampled(profile, run):
    """Records of a run (or of a model by name) on the problems that the profile answers many times; stored. Columns as `answer`'s and `sample_id`."""
    how = profile.sampled

    def compute():
        chosen, writer = problems.problem_sets(profile.problems)[how.split], answering(profile, run)
        parts = [answer(profile, writer, chosen, how.temperature, number, f"sample {number}").assign(sample_id=number) for number in range(how.samples)]
        return pd.concat(parts).drop(columns=["prompt_ids", "completion_ids"])
    return _stored(profile, run, "sampled", compute, how.model_dump_json())


def records(profile, runs):
    """The greedy records of several runs (or models by name) below one another, with a column `run`."""
    return pd.concat([evaluate(profile, run).assign(run=run if isinstance(run, str) else run.name) for run in runs])


def answers_side_by_side(profile, answered):
    """The first problem of the records and what each model wrote to it, as text."""
    problem_id = answered.problem_id.iloc[0]
    question = next(p.question for drawn in problems.problem_sets(profile.problems).values() for p in drawn if p.problem_id == problem_id)
    rows = answered[answered.problem_id == problem_id]
    return "\n\n".join([question, *(f"[{run}] {text}" for run, text in zip(rows.run, rows.completion, strict=True))])


def teacher_rollouts(profile):
    """One rollout of the teacher to each validation problem, on which no run trains; stored.

    Columns: problem_id, answer (the problem's), correct, tokens, prompt_ids, completion_ids.
    """
    def compute():
        chosen = problems.problem_sets(profile.problems)["validation"]
        if profile.rollouts.source == "solutions" or profile.is_elsewhere("teacher"):
            written = rollouts.sample_rollouts(profile, chosen).drop_duplicates("problem_id").assign(correct=lambda table: table.reward > 0)
        else:
            written = answer(profile, models.load_model(profile, "teacher"), chosen, temperature=1.0, seed=2, name="teacher")
        gold = {problem.problem_id: problem.answer for problem in chosen}  # a server may have left some problems out
        return written.assign(answer=written.problem_id.map(gold))[["problem_id", "answer", "correct", "tokens", "prompt_ids", "completion_ids"]]
    return _stored(profile, "teacher", "held-out", compute)


def held_out(profile, n):
    """The first n correct rollouts among `teacher_rollouts`."""
    written = teacher_rollouts(profile)
    return written[written.correct].head(n).reset_index(drop=True)


def validation(profile, run):
    """One row a validation problem, where hyper-parameters are chosen: `correct` (greedy), and of one rollout of the teacher `nats` and `tokens`.

    `nats` is minus the log-probability that the run gives to the teacher's rollout: what SFT minimises, on problems it never saw.
    """
    def compute():
        model, written = load_model_of(profile, run), teacher_rollouts(profile)
        scored = rollouts.score(model, list(written.prompt_ids), list(written.completion_ids))
        solved = answer(profile, model, problems.problem_sets(profile.problems)["validation"]).correct
        nats = [-float(values.sum()) for values in scored]
        return pd.DataFrame({"problem_id": written.problem_id, "correct": solved, "nats": nats, "tokens": written.tokens})
    return _stored(profile, run, "validation", compute)


@torch.inference_mode()
def summed_divergence(sampler, other, records, batch_size=64):
    """Per completion, sum over its tokens of KL(sampler || other) of the next-token distributions, in nats."""
    found = np.zeros(len(records))
    order = np.argsort([len(p) + len(c) for p, c in zip(records.prompt_ids, records.completion_ids, strict=True)])
    for first in range(0, len(order), batch_size):
        rows = order[first:first + batch_size]
        padded = models.pad([records.prompt_ids.iloc[i] for i in rows], [records.completion_ids.iloc[i] for i in rows], 0)
        input_ids, mask = (part.to(sampler.device) for part in padded)
        is_predicted = mask[:, 1:].bool()
        hidden = [models.causal_model(model).model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1][is_predicted] for model in (sampler, other)]
        values = torch.cat([_divergence(sampler, other, *states) for states in models.in_parts(models.causal_model(sampler), *hidden)])
        nats = torch.zeros(is_predicted.shape, device=values.device).masked_scatter(is_predicted, values)
        found[rows] = nats.sum(1).cpu().numpy()
    return found


def _divergence(sampler, other, own_states, other_states):
    """KL(sampler || other), nats, of the next-token distributions after each pair of hidden states."""
    own, theirs = (torch.log_softmax(model.lm_head(states).float(), -1) for model, states in ((sampler, own_states), (other, other_states)))
    return (own.exp() * (own - theirs)).sum(-1)


def samples(profile, name):
    """One sampled answer of a model to each validation problem of the divergence, stored: the same for every run that starts from it."""
    def compute():
        chosen = problems.problem_sets(profile.problems)["validation"][:profile.evaluation.kl_problems]
        return answer(profile, models.load_model(profile, name), chosen, temperature=1.0, seed=1, name=name)
    return _stored(profile, name, "samples", compute)


def divergence(profile, run):
    """KL between a run's policy and its base, one row a (direction, validation problem): summed nats and tokens.

    "forward" is KL(base || policy) along completions sampled from the base, "reverse" KL(policy || base) along the policy's.
    At each position the divergence of the two next-token distributions is exact; only the positions are sampled.
    """
    def compute():
        chosen = problems.problem_sets(profile.problems)["validation"][:profile.evaluation.kl_problems]
        base, policy = models.load_model(profile, run.base), load_model_of(profile, run)
        own = answer(profile, policy, chosen, temperature=1.0, seed=1, name=f"KL of {run.name}")
        parts = []
        for direction, sampler, other, records in (("forward", base, policy, samples(profile, run.base)), ("reverse", policy, base, own)):
            parts.append(pd.DataFrame({"direction": direction, "problem_id": records.problem_id, "tokens": records.tokens,
                                       "nats": summed_divergence(sampler, other, records)}))
        return pd.concat(parts)
    return _stored(profile, run, "divergence", compute)


def effect(profile, run, prompts=100):
    """Mean log-probability, nats a token, that the base and the trained model give to the first rollouts of the table.

    Rows: reward 0 and 1. Columns: "base", the run's name, and "change".
    """
    table = rollouts.load_table(profile).head(prompts * profile.rollouts.samples)
    tokens = table.groupby(table.reward.astype(int)).tokens.sum()
    found = {}
    for name, model in (("base", models.load_model(profile, run.base)), (run.name, load_model_of(profile, run))):
        sums = pd.Series([values.sum() for values in rollouts.score(model, list(table.prompt_ids), list(table.completion_ids))], index=table.index)
        found[name] = sums.groupby(table.reward.astype(int)).sum() / tokens
    return pd.DataFrame(found).assign(change=found[run.name] - found["base"])


def sweep_path(profile):
    """Where the committed sweep of the learning rate lies."""
    return store.ROOT / "data" / "sweeps" / f"{profile.name}.csv"


def sweep(profile):
    """Train SFT at each of the profile's learning rates, measure it on validation problems, and write the table; returns its path."""
    rows = []
    for rate in (None, *profile.learning_rates):
        run = "base" if rate is None else profile.runs["sft"].model_copy(update={"learning_rate": rate})
        measured = validation(profile, run)
        rows.append({"learning_rate": rate or 0.0, "validation_loss": measured.nats.sum() / measured.tokens.sum(),
                     "validation_accuracy": measured.correct.mean(), "n": len(measured)})
    with store.whole(sweep_path(profile)) as beside:
        pd.DataFrame(rows).to_csv(beside, index=False, float_format="%.6g")
    store.relist(sweep_path(profile))
    return sweep_path(profile)
