"""Models: loading a profile's base, strong base and teacher, attaching the adapter, and per-token log-probabilities.

Comes after `problems` in the flow of data. Nothing here trains.
"""

import functools
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from helpers import profiles, store

logging.disable_progress_bar()
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT still asks for the old name
_PARTS = ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")
_LENGTH_GROUPS = 4
_RANDOM = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
           "intermediate_size": 64, "max_position_embeddings": 512}


def source(profile, name):
    """Where the weights of the model `name` come from: a folder's path or "random"."""
    if name not in profile.models:
        raise ValueError(f"unknown model {name!r} in profile {profile.name!r}: choose one of {', '.join(profile.models)}")
    return profile.models[name]


@functools.cache
def model_digest(profile_name, name):
    """Hash of a model's weights and tokenizer, or of the recipe of a random one."""
    profile = profiles.load(profile_name)
    where = source(profile, name)
    if where == "random":
        return store.digest({"architecture": _RANDOM, "seed": name, "tokenizer": store.file_digest(_tokenizer_folder(profile, name) / "tokenizer.json")})
    _require(store.ROOT / where)
    return store.digest({part: store.file_digest(store.ROOT / where / part) for part in _PARTS})


def load_model(profile, name="base"):
    """The model `name` of a profile, in fp32, evaluation mode, without gradients, on the GPU where there is one."""
    where = source(profile, name)
    if where == "random":
        torch.manual_seed(sum(name.encode()))
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(load_tokenizer(profile, name)), tie_word_embeddings=True, **_RANDOM))
    else:
        _require(store.ROOT / where)
        model = AutoModelForCausalLM.from_pretrained(store.ROOT / where, dtype=torch.float32)
        model.name_or_path = where  # what an adapter says of its base, on any machine
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(profile, name="base"):
    """The tokenizer of the model `name`; a random model borrows the tiny profile's."""
    folder = _tokenizer_folder(profile, name)
    _require(folder)
    return AutoTokenizer.from_pretrained(folder)


def _tokenizer_folder(profile, name):
    where = source(profile, name)
    return store.ROOT / (source(profiles.load("tiny"), name) if where == "random" else where)


def _require(folder):
    if not (folder / "tokenizer.json").exists():
        raise FileNotFoundError(f"no model in {folder.relative_to(store.ROOT)}: restore it with git, or make it with `python -m helpers pretrain tiny`")


def prompt_ids(tokenizer, question, instruction=""):
    """Token ids of a question in the chat template, up to where the answer starts."""
    content = f"{question} {instruction}".strip()
    return tokenizer.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False)


def attach_adapter(model, profile, init_seed, zero="B"):
    """`model` with a fresh LoRA adapter: B = 0, A drawn by PEFT from `init_seed` alone, so that equal seeds share A exactly.

    `zero="A"` is the mirror image: A = 0, and B' drawn as PEFT would draw an A of its shape.
    """
    config = LoraConfig(r=profile.lora.rank, lora_alpha=profile.lora.alpha, lora_dropout=0.0, target_modules=list(profile.lora.modules), task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(init_seed)
        adapted = get_peft_model(model, config)
        if zero == "A":
            with torch.no_grad():
                for name, factor in adapted.named_parameters():
                    if "lora_A" in name:
                        factor.zero_()
                    elif "lora_B" in name:
                        factor.copy_(torch.nn.init.kaiming_uniform_(torch.empty_like(factor.T), a=5 ** 0.5).T)
        return adapted


def load_adapted(profile, run, folder):
    """The run's base model with the adapter stored in `folder`, in evaluation mode.

    Raises FileNotFoundError for a folder without adapter, ValueError for one whose shapes belong to another base.
    """
    if not (Path(folder) / "adapter_config.json").exists():
        raise FileNotFoundError(f"{folder} holds no adapter (adapter_config.json is missing): train the run {run.name!r} first")
    try:
        model = PeftModel.from_pretrained(load_model(profile, run.base), folder)
    except RuntimeError as error:
        raise ValueError(f"the adapter in {folder} was made for another base than {run.base!r} of profile {profile.name!r}: "
                         f"{str(error).splitlines()[-1].strip()}") from error
    return model.eval().requires_grad_(False)


def token_logprobs(model, input_ids, completion_mask):
    """log pi(y_t | x, y_<t) at each completion token, shape (rows, tokens - 1), 0 where `completion_mask[:, 1:]` is 0.

    Rows are padded on the right, where causal attention cannot see it, so no attention mask is needed. Rows of similar length
    run together, and the language-model head is applied to completion positions only: little is computed for padding.
    """
    body = model.get_base_model() if isinstance(model, PeftModel) else model
    wanted = completion_mask[:, 1:].bool()
    lengths = wanted.cumsum(1).argmax(1) + 2
    order = lengths.argsort()
    parts = []
    for rows in order.tensor_split(min(_LENGTH_GROUPS, len(order))):
        width = int(lengths[rows].max())
        hidden = body.model(input_ids=input_ids[rows, :width], use_cache=False).last_hidden_state[:, :-1]
        inside, ids = wanted[rows, :width - 1], input_ids[rows, 1:width]
        logits = body.lm_head(hidden[inside]).float()
        chosen = torch.log_softmax(logits, -1).gather(-1, ids[inside].unsqueeze(-1)).squeeze(-1)
        filled = torch.zeros(inside.shape, dtype=chosen.dtype, device=chosen.device).masked_scatter(inside, chosen)
        parts.append(torch.nn.functional.pad(filled, (0, wanted.shape[1] - width + 1)))
    return torch.cat(parts)[order.argsort()]


def pad(prompts, completions, pad_id):
    """Right-padded (input_ids, completion_mask), each (rows, tokens), from lists of token ids."""
    width = max(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True))
    input_ids = torch.full((len(prompts), width), pad_id)
    completion_mask = torch.zeros_like(input_ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        completion_mask[row, len(prompt):end] = 1
    return input_ids, completion_mask
