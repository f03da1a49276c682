"""Making a profile's own models: Qwen3 models from random weights with a tokenizer of single
digits, or adapters of a pretrained model.

Beside the main flow of data: its output is shipped under `data/models/` and read by
`models.loading`. Everything is a function of the profile's seeds, and an interrupted run goes on
from its last checkpoint.
"""

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from adapter_geometry import language_models, storage
from helpers import store
from helpers.data import problems, templates
from helpers.data.problem import Chain
from helpers.models import loading, logprobs
from helpers.models.loading import LanguageModel
from helpers.profiles import PretrainedModel, PretrainingSettings, ProblemSettings, Profile

_BATCHES_PER_DRAW = 64  # texts are drawn for so many batches at once, and sorted by length
_DRILL = "Practise."
_CHECKPOINTS = 10  # while a model is made, evenly spaced
_WARMUP_STEPS = 100
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def draw_text(
    rng: np.random.Generator, profile: Profile, model: PretrainedModel, held_out: Collection[Chain]
) -> tuple[str, str]:
    """One training example (question, worked solution) that is in no split of the study; some are
    drills in arithmetic alone. held_out: the chains of the study's problems."""
    pretraining, templated = _settings_of(profile)
    style = rng.choice(list(model.styles), p=list(model.styles.values()))
    if rng.random() < pretraining.drill_share:
        return _DRILL, templates.drill(style, rng)
    steps = templated.hard_steps if rng.random() < pretraining.long_share else templated.steps
    while (problem := templates.draw_problem(rng, int(rng.choice(steps)))).chain in held_out:
        pass
    return problem.question, templates.worked_solution(problem, style, rng, model.error_rate)


def _settings_of(profile: Profile) -> tuple[PretrainingSettings, ProblemSettings]:
    """How the profile's models are made, and its templated problems, whose texts they read."""
    assert profile.pretraining is not None, f"{profile.name} makes no model"
    assert isinstance(profile.problems, ProblemSettings), f"{profile.name} has no templates"
    return profile.pretraining, profile.problems


def make_tokenizer(profile: Profile) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits and a chat template, learnt from texts in every style;
    any text survives a round trip."""
    pretraining, templated = _settings_of(profile)
    assert pretraining.vocabulary is not None, f"{profile.name} adapts a model with its tokenizer"
    rng = np.random.default_rng([templated.seed, 1])
    drawn = (templates.draw_problem(rng, int(rng.choice(templated.steps))) for _ in range(3000))
    texts = [
        f"{_DRILL}\nuser\n{problem.question}\nassistant\n"
        f"{templates.worked_solution(problem, style, rng)}"
        for problem in drawn
        for style in templates.STYLES
    ]
    tokenizer = Tokenizer(BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pretraining.vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _batches(
    profile: Profile, model: PretrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]]:
    """Endless batches of token ids and completion masks (`language_models.pad`), similar lengths
    together, each a function of (seed, number) alone."""
    pretraining, templated = _settings_of(profile)
    held_out = problems.held_out_chains(templated)
    size = pretraining.batch_size
    number = 0  # of the draw
    while True:
        rng = np.random.default_rng([model.seed, number])
        texts = [draw_text(rng, profile, model, held_out) for _ in range(_BATCHES_PER_DRAW * size)]
        chats = tokenizer.apply_chat_template(
            [[{"role": "user", "content": question}] for question, _ in texts],
            add_generation_prompt=True,
            tokenize=False,
        )
        completions = tokenizer([solution + tokenizer.eos_token for _, solution in texts]).input_ids
        examples = list(zip(tokenizer(chats).input_ids, completions, strict=True))
        examples.sort(key=lambda example: len(example[0]) + len(example[1]))
        for first in rng.permutation(_BATCHES_PER_DRAW) * size:
            prompts, batch_completions = zip(*examples[first : first + size], strict=True)
            yield language_models.pad(prompts, batch_completions, tokenizer.pad_token_id)
        number += 1


def _rate_share(step: int, model: PretrainedModel) -> float:
    """Share of the peak learning rate: a short rise, flat, then linearly to 0 over the last
    60 %."""
    rise = min(1.0, (step + 1) / min(_WARMUP_STEPS, model.steps // 10 + 1))
    return rise * min(1.0, (1 - step / model.steps) / 0.6)


def pretrain(profile: Profile, name: str) -> Path:
    """Make the profile's model `name` from its settings, in its folder; returns the folder.

    Goes on from the last checkpoint of an interrupted run with the same settings, along the same
    trajectory. Raises ValueError for a model that the profile does not describe.
    """
    if profile.pretraining is None or name not in profile.pretraining.models:
        raise ValueError(f"profile {profile.name!r} does not say how to make a model {name!r}")
    settings = profile.pretraining.models[name]
    folder = store.ROOT / profile.models[name]
    model, tokenizer = _initial_model(profile, settings)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    fingerprint = storage.digest(
        {
            "shared": profile.pretraining.model_dump(exclude={"models"}),
            "settings": settings.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "code": store.code_digest("helpers.data.templates"),
        }
    )
    checkpoint = store.results(profile.name) / "pretraining" / f"{name}-{fingerprint[:8]}"
    done, minutes = _restore(checkpoint, model, optimizer)
    batches = _batches(profile, settings, tokenizer)
    start = time.monotonic() - 60 * minutes
    losses: list[float] = []
    with tqdm(
        total=settings.steps, initial=done, desc=f"pretraining {name}", unit="step"
    ) as progress:
        for step, (input_ids, mask) in zip(range(settings.steps), batches, strict=False):
            if step < done:  # a batch that was read before the interruption
                continue
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _rate_share(step, settings)
            losses.append(_step(model, optimizer, parameters, input_ids, mask))
            progress.update()
            progress.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)
            if (step + 1) % max(1, settings.steps // _CHECKPOINTS) == 0:
                minutes = (time.monotonic() - start) / 60
                _write_checkpoint(checkpoint, model, optimizer, step + 1, minutes)
    with storage.whole(folder) as temporary_folder:
        if profile.pretraining.lora is None:
            model.save_pretrained(temporary_folder)
            tokenizer.save_pretrained(temporary_folder)
        else:
            loading.save_adapter(model, temporary_folder, profile.pretraining.lora)
        record = {
            "settings": settings.model_dump(),
            "loss": round(float(np.mean(losses[-200:])), 4),
            "minutes": round((time.monotonic() - start) / 60, 1),
            "place": store.provenance(),
        }
        (temporary_folder / "made.json").write_text(store.as_json(record))
    store.update_checksums(folder)
    return folder


def _initial_model(
    profile: Profile, settings: PretrainedModel
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model to train and its tokenizer: random weights, or a pretrained model with a fresh
    adapter. A profile gives an architecture, or a start and the adapter's settings."""
    pretraining, _ = _settings_of(profile)
    if pretraining.start is not None and pretraining.lora is not None:
        base = loading.load_model(profile, pretraining.start)
        adapted = loading.attach_adapter(base, pretraining.lora, settings.seed)
        return adapted, loading.load_tokenizer(profile, pretraining.start)
    tokenizer = make_tokenizer(profile)
    torch.manual_seed(settings.seed)
    architecture: dict[str, Any] = pretraining.architecture or {}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **architecture,
    )
    return Qwen3ForCausalLM(config), tokenizer


def _step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    parameters: list[torch.nn.Parameter],
    input_ids: Int[Tensor, "rows tokens"],
    mask: Int[Tensor, "rows tokens"],
) -> float:
    """One step of the optimiser; returns the loss, nats per completion token."""
    loss = -logprobs.token_logprobs(model, input_ids, mask).sum() / mask[:, 1:].sum()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _write_checkpoint(
    checkpoint: Path,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    minutes: float,
) -> None:
    """Write what `_restore` reads: the trained weights, the optimiser's state, and the progress."""
    state = optimizer.state_dict()["state"]  # {index of a parameter: {field: tensor}}
    fields = {
        f"{index}.{field}": value
        for index, entry in state.items()
        for field, value in entry.items()
    }
    weights = {
        name: value.contiguous() for name, value in model.named_parameters() if value.requires_grad
    }
    with storage.whole(checkpoint) as temporary_folder:
        temporary_folder.mkdir()
        save_file(fields, temporary_folder / "optimizer.safetensors")
        save_file(weights, temporary_folder / "model.safetensors")
        progress = json.dumps({"step": step, "minutes": minutes})
        (temporary_folder / "step.json").write_text(progress)
        store.write_checksums(temporary_folder)


def _restore(
    checkpoint: Path, model: LanguageModel, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load a checkpoint if there is one; returns the number of finished steps and the minutes they
    took."""
    if not (checkpoint / "step.json").exists():
        return 0, 0.0
    store.verify_checksums(checkpoint)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(checkpoint / "optimizer.safetensors").items():
        index, field = key.split(".")
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    progress = json.loads((checkpoint / "step.json").read_text())
    return progress["step"], progress["minutes"]
