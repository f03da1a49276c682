"""Names of tensors as other savers write them, and patterns for ranks and scales, against PEFT's
own matching."""

import doctest
import itertools
import json
import re
import time

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from adapter_geometry import adapters, keys
from adapter_geometry.adapters import CONFIG, WEIGHTS, AdapterError, load, load_update
from adapter_geometry.updates import Factors

PREFIX = "base_model.model."


def test_the_examples_hold():
    assert doctest.testmod(keys).failed == 0


WAYS = {
    "as PEFT writes them": (lambda name: name, None),
    "with the adapter's name": (
        lambda name: name.replace(".weight", ".default.weight"),
        "keep the adapter's name, default",
    ),
    "compiled, outside": (lambda name: f"_orig_mod.{name}", "_orig_mod."),
    "compiled, inside": (lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."), "_orig_mod."),
    "without the prefix": (lambda name: name.removeprefix(PREFIX), "base_model.model. is missing"),
    "DDP": (lambda name: f"module.{name}", "module."),
    "DDP inside": (lambda name: name.replace(PREFIX, f"{PREFIX}module."), "module."),
    "FSDP": (
        lambda name: name.replace(".self_attn", "._fsdp_wrapped_module.self_attn"),
        "_fsdp_wrapped_module.",
    ),
    "a checkpoint wrapper": (
        lambda name: name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
        "_checkpoint_wrapped_module.",
    ),
    "the prefix twice": (lambda name: PREFIX + name, PREFIX),
    "all at once": (
        lambda name: (
            "module._orig_mod." + name.replace(".self_attn", "._fsdp_wrapped_module.self_attn")
        ).replace(".weight", ".policy.weight"),
        "policy",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_factors_under_the_names_of_other_savers_are_those_of_peft(
    way, tiny_model, with_adapter, tmp_path
):
    rename, says = WAYS[way]
    for name in ("plain", "other"):
        with_adapter(tiny_model(), rank_pattern={"v_proj": 3}).save_pretrained(tmp_path / name)
    weights = load_file(tmp_path / "plain" / WEIGHTS)
    save_file(
        {rename(name): tensor for name, tensor in weights.items()}, tmp_path / "other" / WEIGHTS
    )
    plain, other = (load(tmp_path / name) for name in ("plain", "other"))
    assert list(other.update) == list(plain.update), "modules are called as in the base model"
    for module, factors in plain.update.items():
        assert torch.equal(other.update[module].A, factors.A)
        assert torch.equal(other.update[module].B, factors.B)
        assert other.update[module].scale == factors.scale
    assert plain.notes == []
    if says:
        assert says in " ".join(other.notes), "what was taken out of the names is said"
        with pytest.raises(AdapterError, match=r"adapters\.load"):
            load_update(tmp_path / "other")


def test_two_factors_of_one_name_are_refused_and_not_chosen_from(
    tiny_model, with_adapter, tmp_path
):
    with_adapter(tiny_model()).save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / WEIGHTS)
    twice = {
        name.replace(".weight", f".{adapter}.weight"): tensor.clone()
        for name, tensor in weights.items()
        for adapter in ("policy", "reference")
    }
    save_file(twice, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(AdapterError, match=r"policy.*and.*reference.*both lora_A"):
        load(tmp_path / "adapter")
    kept = {
        name: tensor
        for name, tensor in twice.items()
        if ("policy" if "q_proj" in name else "reference") in name
    }
    save_file(kept, tmp_path / "adapter" / WEIGHTS)
    with pytest.raises(AdapterError, match=r"several adapters \(policy, reference\)"):
        load(tmp_path / "adapter")


def test_what_is_no_factor_keeps_its_name_in_the_base_model():
    found = keys.read(
        [
            f"{PREFIX}q.lora_A.weight",
            f"{PREFIX}score.modules_to_save.default.weight",
            f"{PREFIX}score.original_module.weight",
            f"{PREFIX}lm_head.base_layer.weight",
            f"{PREFIX}q.lora_B.bias",
            f"{PREFIX}q.lora_magnitude_vector",
        ],
        "file",
    )
    assert found.factors == {"q": {"A": f"{PREFIX}q.lora_A.weight"}}
    assert list(found.others.values()) == [
        "score.weight",
        "score.weight",
        "lm_head.weight",
        "q.lora_B.bias",
        "q.lora_magnitude_vector",
    ]
    assert found.copies == {
        f"{PREFIX}score.original_module.weight",
        f"{PREFIX}lm_head.base_layer.weight",
    }


# --- patterns -------------------------------------------------------------------------------------

PATTERNS = [
    {"q_proj": 3},
    {"proj": 3, "q_proj": 4},
    {"layers.1.self_attn.q_proj": 3, "q_proj": 4},
    {"q_proj": 4, "layers.1.self_attn.q_proj": 3},
    {r"model\.layers\.1\.self_attn\.q_proj": 3},
    {"^model.layers.1.self_attn.q_proj": 3},
    {"^layers.1.self_attn.q_proj": 3},
    {"q_proj$": 3},
    {".*[02].*q_proj": 3, r"layers\.\d+\.self_attn\.q_proj": 5},
    {"q_proj|v_proj": 3},
    {"layers.1.self.attn.q.proj": 3},
    {"self_attn_q_proj": 3},
    {"model.layers.1.self_attn.q_proj": 2, ".*": 7, "v_proj": 9},
    {},
]
NAMES = [
    f"{start}layers.{layer}.self_attn.{projection}"
    for start in ("model.", "", "vision.")
    for layer in (0, 1, 11)
    for projection in ("q_proj", "v_proj")
] + ["lm_head", "model.self_attn_q_proj", "seq_proj"]


@pytest.mark.parametrize(("pattern", "module"), list(itertools.product(PATTERNS, NAMES)), ids=str)
def test_a_pattern_gives_a_module_what_peft_gives_it(pattern, module):
    expected = pattern.get(get_pattern_key(pattern.keys(), module), "default")
    assert keys.by_pattern(pattern, "default")(module) == expected


def test_patterns_that_are_none_are_told():
    for pattern, error in ((["q_proj"], AttributeError), ({"(": 3}, re.error)):
        with pytest.raises(error):
            keys.by_pattern(pattern, 8)


def test_two_thousand_modules_with_a_pattern_each_are_read_in_a_second_or_so(tmp_path):
    modules = [
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}"
        for layer in range(40)
        for expert in range(25)
        for projection in ("up_proj", "down_proj")
    ]
    pattern = {re.escape(module): 1 + number % 3 for number, module in enumerate(modules)}
    weights = {}
    for number, module in enumerate(modules):
        weights[f"{PREFIX}{module}.lora_A.weight"] = torch.ones(1 + number % 3, 4)
        weights[f"{PREFIX}{module}.lora_B.weight"] = torch.ones(4, 1 + number % 3)
    save_file(weights, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": 8,
                "lora_alpha": 8,
                "rank_pattern": pattern,
                "alpha_pattern": {f"^{key}": 2 * rank for key, rank in pattern.items()},
            }
        )
    )
    start = time.process_time()
    update = load(tmp_path).update
    assert time.process_time() - start < 5, (
        "typically .3 s, and 1 s where types are checked; minutes where each pattern is tried"
    )
    assert {factors.scale for factors in update.values()} == {2.0}


# --- names of several adapters --------------------------------------------------------------------

SPELLINGS = {
    "old and new names of a vision-language model": (
        "language_model.model.layers.{}.q_proj",
        "model.language_model.layers.{}.q_proj",
    ),
    "a text model and a vision-language model": (
        "model.layers.{}.q_proj",
        "model.language_model.layers.{}.q_proj",
    ),
    "with and without a head": ("layers.{}.q_proj", "model.layers.{}.q_proj"),
    "BERT with and without a head": ("encoder.layer.{}.dense", "bert.encoder.layer.{}.dense"),
    "and the other way round": ("vit.encoder.layer.{}.dense", "encoder.layer.{}.dense"),
    "GPT-2": ("h.{}.c_attn", "transformer.h.{}.c_attn"),
}


def update_of(names, shape=(4, 4)):
    return {name: Factors(torch.ones(shape[0], 1), torch.ones(1, shape[1]), 1.0) for name in names}


@pytest.mark.parametrize("case", SPELLINGS)
def test_two_spellings_of_one_module_are_taken_for_one_and_said(case):
    first, second = (
        update_of([spelling.format(layer) for layer in range(3)]) for spelling in SPELLINGS[case]
    )
    renamed, notes = adapters.aligned({"a": first, "b": second, "c": first})
    assert list(renamed["b"]) == list(first), "called as in the first"
    assert "3 modules called otherwise than in a" in notes["b"][0]
    assert notes["a"] == notes["c"] == []
    common, left_out = adapters.common_modules(renamed)
    assert not any(left_out.values())
    assert set(common["b"]) == set(first)


def test_modules_of_two_stacks_are_not_taken_for_one():
    text = [f"model.language_model.layers.{layer}.q_proj" for layer in range(2)]
    vision = [f"model.vision_tower.encoder.layers.{layer}.q_proj" for layer in range(2)]
    renamed, notes = adapters.aligned({"text": update_of(text), "vision": update_of(vision)})
    assert list(renamed["vision"]) == vision
    assert notes["vision"] == []
    encoder, decoder = ([f"{stack}.block.0.q"] for stack in ("encoder", "decoder"))
    renamed, _ = adapters.aligned({"e": update_of(encoder), "d": update_of(decoder)})
    assert list(renamed["d"]) == decoder


def test_modules_of_other_shapes_are_not_taken_for_one():
    first, second = update_of(["layers.0.q"]), update_of(["model.layers.0.q"], (6, 4))
    assert list(adapters.aligned({"a": first, "b": second})[0]["b"]) == ["model.layers.0.q"]


def test_common_names_stay_as_they_are_where_others_differ():
    first = update_of(["model.layers.0.q", "model.layers.1.q"])
    second = update_of(["model.layers.0.q", "layers.1.q", "layers.0.v"])
    renamed, notes = adapters.aligned({"a": first, "b": second})
    assert list(renamed["b"]) == ["model.layers.0.q", "model.layers.1.q", "layers.0.v"]
    assert "1 module called otherwise" in notes["b"][0]
