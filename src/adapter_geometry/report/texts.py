"""Losses and likeness of representations on the user's texts: what needs the base model to run.

Comes after `mode_connectivity` and `representations`, before `comparison`, which calls it where
texts are given. Reads the file of texts and the base model's folder, with transformers; the model
is in memory only, where updates are put into it.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adapter_geometry import mode_connectivity, representations, updates
from adapter_geometry.adapters import AdapterError
from adapter_geometry.representations import States
from adapter_geometry.updates import Adapters

_POINTS = 25  # of a path
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


def measure(
    adapters: Adapters, folder: Path, reference: str, lines: Sequence[Line]
) -> dict[str, pd.DataFrame]:
    """The tables `connectivity`, `barriers` and `cka`: losses along the paths from the reference to
    every other adapter and to the base model, their barriers, and CKA by layer with the base model
    and the reference.

    run_a and run_b name adapters, and one of them is missing where that end is the base model:
    `end_b` (of paths) or `end_a` (of CKA) says which of the two it is, "adapter" or "base model".
    So no name of an adapter has a meaning of its own.
    Raises AdapterError where transformers cannot load the model of the folder, where it is not
    built like Llama or Qwen, and where a text has no tokens.
    """
    tokenizer, model = _load_model(folder)
    prompts, completions = _tokens(tokenizer, folder, lines)
    weights = updates.weights_of(model, adapters[reference])
    of_base, states = representations.states(model, prompts, completions), {}
    for name, update in adapters.items():
        updates.put(model, weights, update)
        states[name] = representations.states(model, prompts, completions)
    # bare answers are not asked for here: the first token stands in for each
    answers = [completion[:1] for completion in completions]
    texts = mode_connectivity.Texts(prompts, completions, answers, model.device)
    paths = _paths(model, weights, texts, adapters, reference)
    return {**paths, "cka": _cka_table(of_base, states, reference)}


def _paths(
    model: Any,
    weights: updates.Weights,
    texts: mode_connectivity.Texts,
    adapters: Adapters,
    reference: str,
) -> dict[str, pd.DataFrame]:
    """The tables `connectivity` and `barriers`; afterwards the model holds the last update."""
    start = adapters[reference]
    goals: list[tuple[str | None, updates.Update]] = [
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


def _cka_table(of_base: States, states: Mapping[str, States], reference: str) -> pd.DataFrame:
    """The table `cka`: every adapter with the base model and with the reference, layer by layer, on
    one completion token per text."""
    tokens = representations.one_token_per_text(of_base)
    others = ((None, _BASE_MODEL, of_base), (reference, _ADAPTER, states[reference]))
    rows = []
    for (other, end, first), (name, second) in itertools.product(others, states.items()):
        if name == other:
            continue
        pairs = zip(first.hidden[:, tokens], second.hidden[:, tokens], strict=True)
        for layer, (X, Y) in enumerate(pairs):
            rows.append(
                {
                    "layer": layer,
                    "run_a": other,
                    "run_b": name,
                    "end_a": end,
                    "debiased": representations.cka(X, Y),
                    "biased": representations.cka(X, Y, debiased=False),
                    "n": len(tokens),
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
    import torch
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
