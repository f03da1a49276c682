"""A LoRA update as factors: dW = scale B A for each module, read from a PEFT folder; never formed densely.

Comes after `training`, before `geometry`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file


@dataclass(frozen=True)
class Factors:
    """One module's update, dW = scale B A, with B (d_out, r) and A (r, d_in), in float64."""

    B: torch.Tensor
    A: torch.Tensor
    scale: float


def load_update(adapter):
    """{module: Factors} of a PEFT LoRA folder, modules named as in the base model.

    Raises FileNotFoundError for a folder without an adapter and ValueError for one that is not of the form scale B A.
    """
    adapter = Path(adapter)
    if not (adapter / "adapter_config.json").exists():
        raise FileNotFoundError(f"{adapter} holds no adapter (adapter_config.json is missing): name a PEFT folder, such as results/tiny/runs/sft/adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    others = ("use_dora", "modules_to_save", "lora_bias")
    if config["peft_type"] != "LORA" or config.get("bias", "none") != "none" or any(config.get(other) for other in others):
        raise ValueError(f"{adapter} is not a plain LoRA adapter (DoRA, bias and saved modules are not of the form scale B A)")
    weights = load_file(adapter / "adapter_model.safetensors")
    found = {}
    if foreign := [key for key in weights if not key.endswith(("lora_A.weight", "lora_B.weight"))]:
        raise ValueError(f"{adapter} holds more than LoRA factors of linear modules, for example {foreign[0]}; only dW = scale B A is covered")
    for key, A in weights.items():
        if key.endswith("lora_B.weight"):
            continue
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        rank = A.shape[0]
        alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
        scale = alpha / (rank ** 0.5 if config.get("use_rslora") else rank)
        found[module] = Factors(weights[key.replace("lora_A", "lora_B")].double(), A.double(), scale)
    return found


def _by_pattern(pattern, module, default):
    """A module's value in PEFT's `alpha_pattern`, whose keys are regular expressions for the end of the name."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)
