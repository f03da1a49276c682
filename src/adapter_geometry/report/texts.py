"""Losses, behaviour and likeness of representations on the user's texts: what needs the base model
to run.

Comes after `mode_connectivity` and `representations`, before `comparison`, which calls it where
texts are given. Reads the file of texts and the base model's folder, with transformers; the model
is in memory only, where updates are put into it.
"""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from tqdm.auto import tqdm

from adapter_geometry import chance, mode_connectivity, representations, updates
from adapter_geometry.adapters import AdapterError
from adapter_geometry.report import progress
from adapter_geometry.updates import Adapters, Update, Weights

_POINTS = 25  # of a path
_NULLS = 5  # null adapters beside each adapter
_TOGETHER = 32  # texts whose states are in memory at once
_LOGITS = 2**24  # of them in memory at once
_PROMPTS, _NEW_TOKENS = 3, 48  # of the generations
_MULTIPLES = (0.5, 1.0, 1.5, 2.0)  # of an update, for generations; 0 is the base model
_DRAWS = 2000  # of the bootstrap over texts
_ADAPTER, _BASE_MODEL = "adapter", "base model"  # what an end of a path or of a pair is
_FEWEST = 10  # texts that an interval needs
Line = Mapping[str, Any]  # a text with `prompt` and `completion`, and whatever else its line holds


def read_texts(path: Path) -> list[Line]:
    """The lines of a JSON-lines file with `prompt` and `completion`.

    Raises AdapterError for a file that cannot be read or holds fewer than ten, and for the first
    line that is no such object.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path} cannot be read ({error}): "
            "one JSON object per line, with prompt and completion, is expected"
        ) from error
    lines = [
        _line(path, number, line)
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]
    if len(lines) < _FEWEST:
        raise AdapterError(
            f"{path} holds {len(lines)} texts: ten or more are needed for an interval"
        )
    return lines


def _line(path: Path, number: int, text: str) -> Line:
    try:
        line: Line = json.loads(text)
    except ValueError as error:
        raise AdapterError(
            f"{path}, line {number} is not JSON ({error}): "
            "an object with prompt and completion is expected"
        ) from error
    if not (isinstance(line, dict) and _is_text(line, "prompt") and _is_text(line, "completion")):
        raise AdapterError(
            f"{path}, line {number}: an object with the texts prompt and completion is expected"
        )
    return line


def _is_text(line: dict[str, Any], part: str) -> bool:
    return isinstance(line.get(part), str) and bool(line[part])


class _Pass(NamedTuple):
    """What is kept of the states of one model on all texts."""

    chosen: Float32[np.ndarray, "layers_and_one text d"]  # of one completion token per text
    last: Float32[Tensor, "target d"]  # after the final norm, before each token of a completion


class _Behaviour(NamedTuple):
    """Sums over the tokens of each completion, in nats."""

    divergence: Float64[np.ndarray, " text"]  # KL(base || model) of next-token distributions
    loss: Float64[np.ndarray, " text"]


def measure(
    adapters: Adapters, folder: Path, reference: str, lines: Sequence[Line]
) -> dict[str, pd.DataFrame]:
    """The tables `connectivity`, `barriers`, `cka`, `behaviour` and `generations`: losses along the
    paths from the reference to every other adapter and to the base model, their barriers; CKA by
    layer with the base model and the reference; KL from the base and loss of every adapter beside
    null adapters; and what the model says at multiples of each update.

    run_a, run_b and run name adapters, and one is missing where it is the base model: `end_b` (of
    paths), `end_a` (of CKA) or `end` says which of the two it is, "adapter" or "base model". So no
    name of an adapter has a meaning of its own.
    Cost: for each adapter 25 passes over the texts for its path, 6 for behaviour, and 12 short
    generations; if that is long it is announced on standard error.
    Raises AdapterError where transformers cannot load the model of the folder, where it is not
    built like Llama or Qwen, and where a text has no tokens.
    """
    tokenizer, model = _load_model(folder)
    prompts, completions = _tokens(tokenizer, folder, lines)
    _require_plain_head(model, folder, prompts[0])
    _prepare(model, folder, adapters[reference])
    weights = updates.weights_of(model, adapters[reference])
    begin = time.perf_counter()
    of_base = _pass(model, prompts, completions)
    after_pass = time.perf_counter()
    generations = [_generated(tokenizer, model, prompts).assign(t=0.0, run=None)]
    of_pass, of_generations = after_pass - begin, time.perf_counter() - after_pass
    progress.announce(
        f"{len(lines)} texts under {len(adapters)} adapters, their paths and null adapters",
        len(adapters) * ((_POINTS + 1 + _NULLS) * of_pass + len(_MULTIPLES) * of_generations),
    )
    head = weights.get("lm_head", model.lm_head.weight)
    targets = torch.tensor(list(itertools.chain(*completions)))
    lengths = np.array([len(completion) for completion in completions])

    def behaviour(passed: _Pass) -> _Behaviour:
        return _behaviour(model, head, of_base.last, passed.last, targets, lengths)

    chosen: dict[str, Float32[np.ndarray, "layers_and_one text d"]] = {}
    rows = [{"run": None, "end": _BASE_MODEL, **_summed(behaviour(of_base), [], lengths)}]
    for name, update in tqdm(adapters.items(), "behaviour", unit="adapter", disable=None):
        updates.put(model, weights, update)
        passed = _pass(model, prompts, completions)
        chosen[name], own = passed.chosen, behaviour(passed)
        nulls = []
        for seed in range(_NULLS):
            updates.put(model, weights, chance.outputs_turned(update, seed))
            nulls.append(behaviour(_pass(model, prompts, completions)))
        rows.append({"run": name, "end": _ADAPTER, **_summed(own, nulls, lengths)})
        for t in _MULTIPLES:
            updates.put(model, weights, updates.combine([update], [t]))
            generations.append(_generated(tokenizer, model, prompts).assign(t=t, run=name))
    # bare answers are not asked for here: the first token stands in for each
    answers = [completion[:1] for completion in completions]
    texts = mode_connectivity.Texts(prompts, completions, answers, model.device)
    said = pd.concat(generations, ignore_index=True)
    return {
        **_paths(model, weights, texts, adapters, reference),
        "cka": _cka_table(of_base.chosen, chosen, reference),
        "behaviour": pd.DataFrame(rows).infer_objects(),
        "generations": said[["run", "t", "text", "prompt", "completion"]].infer_objects(),
    }


# --- behaviour ------------------------------------------------------------------------------------


def _pass(model: Any, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> _Pass:
    """Run a model over all texts, a few at a time."""
    chosen, last = [], []
    for begin in range(0, len(prompts), _TOGETHER):
        part = slice(begin, begin + _TOGETHER)
        states = representations.states(model, prompts[part], completions[part])
        chosen.append(states.hidden[:, representations.one_token_per_text(states)])
        is_before = (states.text[1:] == states.text[:-1]) & states.is_completion[1:]
        last.append(torch.from_numpy(states.hidden[-1, :-1][is_before]))
    return _Pass(np.concatenate(chosen, 1), torch.cat(last))


@torch.inference_mode()
def _behaviour(
    model: Any,
    head: Float32[Tensor, "vocabulary d"],
    of_base: Float32[Tensor, "target d"],
    of_model: Float32[Tensor, "target d"],
    targets: Int64[Tensor, " target"],
    lengths: Int64[np.ndarray, " text"],
) -> _Behaviour:
    """KL from the base and loss of the model, which has its update in it, on all completions; head:
    that of the base, which the update may have changed in the model."""
    divergence, loss = [], []
    size = max(1, _LOGITS // len(head))
    parts = (torch.split(each, size) for each in (of_base, of_model, targets))
    for base, own, token in zip(*parts, strict=True):
        log_p = torch.log_softmax(base.to(head.device) @ head.T, -1)  # (part, vocabulary)
        log_q = torch.log_softmax(model.lm_head(own.to(head.device)).float(), -1)
        divergence.append((log_p.exp() * (log_p - log_q)).sum(-1).double().cpu())
        picked = log_q.gather(-1, token[:, None].to(head.device)).squeeze(-1)
        loss.append(-picked.double().cpu())
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return _Behaviour(
        *(np.add.reduceat(torch.cat(sums).numpy(), starts) for sums in (divergence, loss))
    )


def _summed(
    own: _Behaviour, nulls: Sequence[_Behaviour], lengths: Int64[np.ndarray, " text"]
) -> dict[str, Any]:
    """A row of the table `behaviour`, less whose it is: kl and loss in nats per token, with 95 %
    bootstrap intervals over texts, and the smallest and largest of the null adapters."""
    share = np.full(len(lengths), 1 / len(lengths))
    counts = np.random.default_rng(0).multinomial(len(lengths), share, size=_DRAWS)
    row: dict[str, Any] = {}
    for name, sums, of_nulls in (
        ("kl", own.divergence, [null.divergence for null in nulls]),
        ("loss", own.loss, [null.loss for null in nulls]),
    ):
        low, high = np.quantile((counts @ sums) / (counts @ lengths), [0.025, 0.975])
        drawn = [sums.sum() / lengths.sum() for sums in of_nulls]
        row |= {
            name: sums.sum() / lengths.sum(),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_null_low": min(drawn, default=np.nan),
            f"{name}_null_high": max(drawn, default=np.nan),
        }
    return row | {"nulls": len(nulls)}


@torch.inference_mode()
def _generated(tokenizer: Any, model: Any, prompts: Sequence[list[int]]) -> pd.DataFrame:
    """What the model says, by its most probable tokens, to the first prompts: columns text (its
    number), prompt, completion."""
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id
    first_end = ends[0] if isinstance(ends, list) else ends
    make: Any = GenerationConfig  # which has no types
    settings = make(
        max_new_tokens=_NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=first_end
    )
    rows = []
    for number, prompt in enumerate(prompts[:_PROMPTS]):
        ids = torch.tensor([prompt], device=model.device)
        said = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )[0, len(prompt) :]
        texts = (tokenizer.decode(part, skip_special_tokens=True) for part in (prompt, said))
        rows.append((number, *texts))
    return pd.DataFrame(rows, columns=["text", "prompt", "completion"])


@torch.inference_mode()
def _require_plain_head(model: Any, folder: Path, prompt: list[int]) -> None:
    """Raise AdapterError for a model whose logits are not just its head on the last states: some
    cap or scale them after it."""
    ids = torch.tensor([prompt], device=model.device)
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(model.lm_head(states), logits, rtol=1e-3, atol=1e-3):
        raise AdapterError(
            f"{folder} holds a {type(model).__name__}, which changes its logits after the head: "
            "losses would be wrong; leave out the texts"
        )


def _prepare(model: Any, folder: Path, update: Update) -> None:
    """Make a model ready to hold an update: a head that is tied to the embedding gets weights of
    its own where one of the two is updated, as in PEFT, which changes that one alone.

    Raises AdapterError for a module that the model in memory does not have.
    """
    embedding = model.get_input_embeddings().weight
    names = {name for name, parameter in model.named_parameters() if parameter is embedding}
    if model.lm_head.weight is embedding and (
        "lm_head" in update or any(name.removesuffix(".weight") in update for name in names)
    ):
        model.lm_head.weight = torch.nn.Parameter(embedding.detach().clone(), requires_grad=False)
    parameters = dict(model.named_parameters())
    for module in update:
        if f"{module}.weight" not in parameters:
            raise AdapterError(
                f"the model in {folder} has no module {module} when it is loaded: leave out the "
                "texts"
            )


# --- paths and representations --------------------------------------------------------------------


def _paths(
    model: Any,
    weights: Weights,
    texts: mode_connectivity.Texts,
    adapters: Adapters,
    reference: str,
) -> dict[str, pd.DataFrame]:
    """The tables `connectivity` and `barriers`; afterwards the model holds the last update."""
    start = adapters[reference]
    goals: list[tuple[str | None, Update]] = [
        (name, update) for name, update in adapters.items() if name != reference
    ]
    goals.append((None, updates.combine([start], [0.0])))  # the base model: no update
    curves, barriers = [], []
    for name, goal in goals:
        end = _BASE_MODEL if name is None else _ADAPTER
        label = f"{reference} to {end if name is None else name}"
        points = np.linspace(0, 1, _POINTS)
        losses = mode_connectivity.losses_along(model, weights, texts, start, goal, points, label)
        losses = losses[losses.metric == "rollout"]
        ends = {"run_a": reference, "run_b": name, "end_b": end}
        curves.append(mode_connectivity.curve(losses).assign(**ends))
        barriers.append(mode_connectivity.barrier(losses).assign(**ends))
    return {
        "connectivity": pd.concat(curves, ignore_index=True).infer_objects(),
        "barriers": pd.concat(barriers, ignore_index=True).infer_objects(),
    }


def _cka_table(
    of_base: Float32[np.ndarray, "layers_and_one text d"],
    states: Mapping[str, Float32[np.ndarray, "layers_and_one text d"]],
    reference: str,
) -> pd.DataFrame:
    """The table `cka`: every adapter with the base model and with the reference, layer by layer, on
    one completion token per text."""
    others = ((None, _BASE_MODEL, of_base), (reference, _ADAPTER, states[reference]))
    rows = []
    for (other, end, first), (name, second) in itertools.product(others, states.items()):
        if name == other:
            continue
        for layer, (X, Y) in enumerate(zip(first, second, strict=True)):
            rows.append(
                {
                    "layer": layer,
                    "run_a": other,
                    "run_b": name,
                    "end_a": end,
                    "debiased": representations.cka(X, Y),
                    "biased": representations.cka(X, Y, debiased=False),
                    "n": len(X),
                }
            )
    return pd.DataFrame(rows)


def _tokens(
    tokenizer: Any, folder: Path, lines: Sequence[Line]
) -> tuple[list[list[int]], list[list[int]]]:
    """(prompts, completions) as token ids; what a tokenizer adds at the start comes before the
    prompt alone."""
    prompts, completions = (
        [tokenizer(line[part], add_special_tokens=part == "prompt").input_ids for line in lines]
        for part in ("prompt", "completion")
    )
    for line, *ids in zip(lines, prompts, completions, strict=True):
        if not all(ids):
            raise AdapterError(
                f"the tokenizer in {folder} makes no tokens of the prompt or completion of the "
                f"text that starts {line['prompt'][:40]!r}"
            )
    return prompts, completions


def _load_model(folder: Path) -> tuple[Any, Any]:
    """(tokenizer, model) of a base model's folder, in float32; no code of the folder is run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise AdapterError(
            f"transformers cannot load the model or tokenizer in {folder} ({reason}): "
            "losses and CKA need both"
        ) from error
    if not hasattr(getattr(model, "model", None), "norm"):
        raise AdapterError(
            "losses and CKA need a model with the parts of Llama or Qwen, and "
            f"{folder} holds a {type(model).__name__}: leave out the texts"
        )
    return tokenizer, model.eval().requires_grad_(False)
