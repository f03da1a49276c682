"""Making a profile's own models: Qwen3 models from random weights with a tokenizer of single digits, or adapters of a pretrained model.

Beside the main flow of data: its output is shipped under `data/models/` and read by `models`. Everything is a function of
the profile's seeds, and an interrupted run goes on from its last checkpoint.
"""

import json
import time

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from adapter_geometry import language_models, storage
from helpers import store
from helpers.data import problems, templates
from helpers.models import loading, logprobs

_POOL = 64
_DRILL = "Practise."
_CHECKPOINTS = 10  # while a model is made, evenly spaced
_WARMUP_STEPS = 100
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def draw_text(rng, settings, model, held_out):
    """One training example (question, worked solution) that is in no split of the study; some are drills in arithmetic alone."""
    manner = rng.choice(list(model.manners), p=list(model.manners.values()))
    if rng.random() < settings.pretraining.drill_share:
        return _DRILL, templates.drill(manner, rng)
    steps = (
        settings.problems.hard_steps
        if rng.random() < settings.pretraining.long_share
        else settings.problems.steps
    )
    while (problem := templates.draw_problem(rng, int(rng.choice(steps)))).chain in held_out:
        pass
    return problem.question, templates.worked_solution(problem, manner, rng, model.slip_rate)


def make_tokenizer(profile):
    """A byte-level BPE with single digits and a chat template, learnt from texts of every manner; any text survives a round trip."""
    rng = np.random.default_rng([profile.problems.seed, 1])
    drawn = (
        templates.draw_problem(rng, int(rng.choice(profile.problems.steps))) for _ in range(3000)
    )
    texts = [
        f"{_DRILL}\nuser\n{p.question}\nassistant\n{templates.worked_solution(p, manner, rng)}"
        for p in drawn
        for manner in templates.MANNERS
    ]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=profile.pretraining.vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _batches(profile, model, tokenizer):
    """Endless batches of token ids and completion masks (`models.pad`), similar lengths together, each a function of (seed, number) alone."""
    held_out = problems.held_out_chains(profile.problems)
    size = profile.pretraining.batch_size
    number = 0
    while True:
        rng = np.random.default_rng([model.seed, number])
        questions, solutions = zip(
            *(draw_text(rng, profile, model, held_out) for _ in range(_POOL * size)), strict=True
        )
        chats = tokenizer.apply_chat_template(
            [[{"role": "user", "content": question}] for question in questions],
            add_generation_prompt=True,
            tokenize=False,
        )
        ends = tokenizer([solution + tokenizer.eos_token for solution in solutions]).input_ids
        examples = list(zip(tokenizer(chats).input_ids, ends, strict=True))
        examples.sort(key=lambda example: len(example[0]) + len(example[1]))
        for first in rng.permutation(_POOL) * size:
            yield language_models.pad(
                *zip(*examples[first : first + size], strict=True), tokenizer.pad_token_id
            )
        number += 1


def _schedule(step, settings):
    """Share of the peak learning rate: a short rise, flat, then linearly to 0 over the last 60 %."""
    rise = min(1.0, (step + 1) / min(_WARMUP_STEPS, settings.steps // 10 + 1))
    return rise * min(1.0, (1 - step / settings.steps) / 0.6)


def pretrain(profile, name):
    """Make the profile's model `name` from its settings, in its folder; returns the folder.

    Goes on from the last checkpoint of an interrupted run with the same settings, along the same trajectory.
    Raises ValueError for a model that the profile does not describe.
    """
    if profile.pretraining is None or name not in profile.pretraining.models:
        raise ValueError(f"profile {profile.name!r} does not say how to make a model {name!r}")
    settings = profile.pretraining.models[name]
    folder = store.ROOT / profile.models[name]
    model, tokenizer = _start(profile, settings)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    shared = profile.pretraining.model_dump(exclude={"models"})
    fingerprint = storage.digest(
        {
            "shared": shared,
            "settings": settings.model_dump(),
            "problems": profile.problems.model_dump(mode="json"),
            "code": store.code_digest("helpers.data.templates"),
        }
    )
    checkpoint = store.results(profile.name) / "pretraining" / f"{name}-{fingerprint[:8]}"
    done, minutes = _restore(checkpoint, model, optimizer)
    batches = _batches(profile, settings, tokenizer)
    started, recent = time.monotonic() - 60 * minutes, []
    with tqdm(
        total=settings.steps, initial=done, desc=f"pretraining {name}", unit="step"
    ) as progress:
        for step, (ids, mask) in zip(range(settings.steps), batches, strict=False):
            if step < done:
                continue
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step, settings)
            recent.append(_step(model, optimizer, parameters, ids, mask))
            progress.update()
            progress.set_postfix(loss=f"{np.mean(recent[-100:]):.4f}", refresh=False)
            if (step + 1) % max(1, settings.steps // _CHECKPOINTS) == 0:
                _keep(checkpoint, model, optimizer, step + 1, (time.monotonic() - started) / 60)
    with storage.whole(folder) as beside:
        if profile.pretraining.start is None:
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
        else:
            loading.save_adapter(model, beside, profile.pretraining.lora)
        (beside / "made.json").write_text(
            store.as_json(
                {
                    "settings": settings.model_dump(),
                    "loss": round(float(np.mean(recent[-200:])), 4),
                    "minutes": round((time.monotonic() - started) / 60, 1),
                    "place": store.provenance(),
                }
            )
        )
    store.relist(folder)
    return folder


def _start(profile, settings):
    """The model to train and its tokenizer: random weights, or a pretrained model with a fresh adapter."""
    how = profile.pretraining
    if how.start is not None:
        return loading.attach_adapter(
            loading.load_model(profile, how.start), how.lora, settings.seed
        ), loading.load_tokenizer(profile, how.start)
    tokenizer = make_tokenizer(profile)
    torch.manual_seed(settings.seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **how.architecture,
    )
    return Qwen3ForCausalLM(config), tokenizer


def _step(model, optimizer, parameters, ids, mask):
    loss = -logprobs.token_logprobs(model, ids, mask).sum() / mask[:, 1:].sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _keep(checkpoint, model, optimizer, step, minutes):
    with storage.whole(checkpoint) as beside:
        beside.mkdir()
        state = optimizer.state_dict()["state"]
        save_file(
            {
                f"{index}.{key}": value
                for index, entry in state.items()
                for key, value in entry.items()
            },
            beside / "optimizer.safetensors",
        )
        save_file(
            {
                name: value.contiguous()
                for name, value in model.named_parameters()
                if value.requires_grad
            },
            beside / "model.safetensors",
        )
        (beside / "step.json").write_text(json.dumps({"step": step, "minutes": minutes}))
        store.list_sums(beside)


def _restore(checkpoint, model, optimizer):
    """Load a checkpoint if there is one; returns the number of finished steps and the minutes they took."""
    if not (checkpoint / "step.json").exists():
        return 0, 0.0
    store.intact(checkpoint)
    model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
    state = {}
    for key, value in load_file(checkpoint / "optimizer.safetensors").items():
        index, field = key.split(".")
        state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    progress = json.loads((checkpoint / "step.json").read_text())
    return progress["step"], progress["minutes"]
