"""What is read of an adapter's files, against what PEFT itself merges: convolutions, embeddings,
heads left out, frozen copies, orientation module by module, and files as they occur."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import fill_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from adapter_geometry import compare_adapters
from adapter_geometry.adapters import CONFIG, WEIGHTS, AdapterError, load, load_update
from adapter_geometry.base_weights import BaseWeights

PREFIX = "base_model.model."


def saved(model, folder, seed=0, **options):
    """The folder of a LoRA adapter of a model, whose factors are random."""
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "init_lora_weights": False, **options})
    torch.manual_seed(seed)
    fill_adapter(get_peft_model(model, config), seed).save_pretrained(folder)
    return folder


def merged_minus_base(make, folder):
    """{module: dW as the base stores it, as a matrix}, of all that PEFT's merge changes."""
    base = make().double().state_dict()
    merged = PeftModel.from_pretrained(make(), folder).double().merge_and_unload().state_dict()
    changes = {name: (merged[name] - base[name]).flatten(1) for name in base if base[name].ndim > 1}
    return {
        name.removesuffix(".weight"): change for name, change in changes.items() if change.any()
    }


def as_stored(factors):
    """dW as the base stores it."""
    product = factors.scale * factors.B.double() @ factors.A.double()
    return product.T if factors.is_transposed else product


def assert_is_what_peft_merges(update, make, folder):
    expected = merged_minus_base(make, folder)
    assert set(update) == set(expected), "no module is missing, and none too many"
    for module, factors in update.items():
        error = (as_stored(factors) - expected[module]).abs().max()
        assert error < 1e-8, f"dW of {module} is off by {error:.0e}"


# --- convolutions and embeddings ------------------------------------------------------------------


def vit():
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            image_size=16,
            patch_size=4,
        )
    )


def whisper():
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


class Convolutions(torch.nn.Module):
    """One convolution of each kind: in one, two and three dimensions, with kernels of one and more
    points."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Conv1d(4, 6, 3, padding=1)
        self.plane = torch.nn.Conv2d(4, 6, (3, 2), stride=2)
        self.point = torch.nn.Conv2d(4, 6, 1)
        self.space = torch.nn.Conv3d(4, 6, 2)
        self.grouped = torch.nn.Conv2d(4, 6, 3, groups=2)
        self.linear = torch.nn.Linear(4, 6)


@pytest.mark.parametrize(
    ("make", "targets"),
    [
        (vit, ["q_proj", "projection"]),
        (whisper, ["conv1", "conv2", "q_proj"]),
        (Convolutions, ["line", "plane", "point", "space", "linear"]),
    ],
    ids=["ViT", "Whisper", "all kinds"],
)
def test_kernels_are_read_as_matrices_from_what_they_see_to_their_channels(make, targets, tmp_path):
    folder = saved(make(), tmp_path / "adapter", target_modules=targets, use_rslora=True)
    assert_is_what_peft_merges(load(folder).update, make, folder)


def test_a_convolution_in_groups_is_refused_by_its_name(tmp_path):
    folder = saved(Convolutions(), tmp_path / "adapter", target_modules=["grouped", "linear"])
    with pytest.raises(AdapterError, match="grouped is a convolution in groups"):
        load(folder)


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], ["q_proj", "lm_head"]], ids=str)
def test_embeddings_and_heads_are_read_and_the_frozen_copies_beside_them_dropped(
    targets, tiny_model, tmp_path
):
    folder = saved(tiny_model(), tmp_path / "adapter", target_modules=targets)
    copy = next(name for name in load_file(folder / WEIGHTS) if "base_layer" in name)
    tiny_model().save_pretrained(tmp_path / "base")
    base = BaseWeights(tmp_path / "base")
    for loaded in (load(folder), load(folder, base)):
        assert_is_what_peft_merges(loaded.update, tiny_model, folder)
        assert f"1 frozen weight of the base dropped, for example {copy}" in loaded.notes[0]
        assert loaded.left_out == []
    base.check_shapes(loaded.update)
    with pytest.raises(AdapterError, match=r"adapters\.load"):
        load_update(folder)


def test_a_copy_that_differs_from_the_base_is_no_copy(tiny_model, tmp_path):
    folder = saved(tiny_model(), tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    tiny_model(seed=1).save_pretrained(tmp_path / "base")
    base = BaseWeights(tmp_path / "base")
    with pytest.raises(AdapterError, match=r"lm_head\.base_layer\.weight.*--lora-only"):
        load(folder, base)
    assert load(folder, base, lora_only=True).left_out == ["lm_head"]


# --- parts beside the factors ---------------------------------------------------------------------


def reward_model():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_labels=1,
            pad_token_id=0,
        )
    )


BESIDE = {
    "a head": ({"modules_to_save": ["lm_head"]}, ["lm_head"]),
    "an embedding with its head": (
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        ["lm_head", "model.embed_tokens"],
    ),
    "biases of B": (
        {"lora_bias": True},
        [f"model.layers.{layer}.self_attn.q_proj.lora_B.bias" for layer in (0, 1)],
    ),
    "tokens": (
        {"trainable_token_indices": [1, 2]},
        ["model.embed_tokens.token_adapter.trainable_tokens_delta"],
    ),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_trained_beside_the_factors_is_refused_or_left_out_and_said(
    case, tiny_model, tmp_path
):
    options, left_out = BESIDE[case]
    folder = saved(tiny_model(), tmp_path / "adapter", target_modules=["q_proj"], **options)
    with pytest.raises(AdapterError, match=r"holds more than LoRA factors.*--lora-only"):
        load(folder)
    loaded = load(folder, lora_only=True)
    assert loaded.left_out == left_out
    assert all(name in loaded.notes[0] for name in left_out)
    plain = saved(tiny_model(), tmp_path / "plain", target_modules=["q_proj"])
    changed = merged_minus_base(tiny_model, plain)
    assert set(loaded.update) == set(changed)
    expected = PeftModel.from_pretrained(tiny_model(), folder)
    for module, factors in loaded.update.items():
        delta = expected.base_model.model.get_submodule(module).get_delta_weight("default")
        torch.testing.assert_close(as_stored(factors).float(), delta)


def test_the_head_that_peft_adds_for_classifiers_is_left_out_by_request(tmp_path):
    folder = saved(reward_model(), tmp_path / "a", target_modules=["q_proj"], task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match=r"modules_to_save is \['classifier', 'score'\]"):
        load(folder)
    loaded = load(folder, lora_only=True)
    assert loaded.left_out == ["score"]
    for module, factors in loaded.update.items():
        expected = merged_minus_base(reward_model, folder)[module]
        assert (as_stored(factors) - expected).abs().max() < 1e-8


def test_new_tokens_beside_the_factors_are_named_and_an_unchanged_embedding_is_dropped(
    tiny_model, tmp_path
):
    folder = saved(tiny_model(), tmp_path / "adapter", target_modules=["q_proj"])
    tiny_model().save_pretrained(tmp_path / "base")
    base = BaseWeights(tmp_path / "base")
    weights = load_file(folder / WEIGHTS)
    name = PREFIX + "model.embed_tokens.weight"
    own = tiny_model().state_dict()["model.embed_tokens.weight"]
    save_file(weights | {name: own.bfloat16()}, folder / WEIGHTS)
    assert load(folder, base).left_out == [], "equal to the base, in the precision of the copy"
    with pytest.raises(AdapterError, match=r"model\.embed_tokens\.weight.*--lora-only"):
        load(folder)
    save_file(weights | {name: torch.cat([own, own[:2]])}, folder / WEIGHTS)
    with pytest.raises(AdapterError, match=r"an embedding with new tokens.*--lora-only"):
        load(folder, base)
    assert load(folder, base, lora_only=True).left_out == ["model.embed_tokens"]


def test_a_part_of_another_kind_of_adapter_is_not_left_out(tiny_model, tmp_path):
    folder = saved(tiny_model(), tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"use_dora": False}))
    with pytest.raises(AdapterError, match="lora_magnitude_vector, which a plain LoRA adapter"):
        load(folder, lora_only=True)


# --- orientation, scale ---------------------------------------------------------------------------


def gpt():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


@pytest.mark.parametrize(
    "targets", [["c_attn", "c_proj"], ["c_attn", "c_proj", "lm_head"], ["c_attn", "c_proj", "wte"]]
)
@pytest.mark.parametrize("flag", [True, False])
def test_each_module_is_oriented_as_the_base_stores_it_whatever_the_one_flag_says(
    targets, flag, tmp_path
):
    folder = saved(gpt(), tmp_path / "adapter", target_modules=targets)
    config = json.loads((folder / CONFIG).read_text()) | {"fan_in_fan_out": flag}
    (folder / CONFIG).write_text(json.dumps(config))
    gpt().save_pretrained(tmp_path / "base")
    base = BaseWeights(tmp_path / "base")
    update = load(folder, base).update
    assert_is_what_peft_merges(update, gpt, folder)
    base.check_shapes(update)


def test_mica_leaves_the_base_alone_and_is_read(tiny_model, tmp_path):
    model = get_peft_model(
        tiny_model(),
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="mica"),
    )
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data = torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    assert_is_what_peft_merges(load(tmp_path / "adapter").update, tiny_model, tmp_path / "adapter")


# --- files as they occur --------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_model, tmp_path):
    return saved(tiny_model(), tmp_path / "adapter", target_modules=["q_proj", "v_proj"])


def same(first, second):
    return list(first) == list(second) and all(
        torch.equal(as_stored(first[module]), as_stored(second[module])) for module in first
    )


def test_a_configuration_with_a_byte_order_mark_is_read(adapter):
    expected = load(adapter).update
    (adapter / CONFIG).write_bytes(b"\xef\xbb\xbf" + (adapter / CONFIG).read_bytes())
    assert same(load(adapter).update, expected)


def test_an_adapter_in_parts_is_read_and_a_missing_part_named(adapter):
    expected, weights = load(adapter).update, load_file(adapter / WEIGHTS)
    (adapter / WEIGHTS).unlink()
    parts = [f"adapter_model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    for number, part in enumerate(parts):
        chosen = sorted(weights)[number::3]
        save_file({name: weights[name] for name in chosen}, adapter / part)
    loaded = load(adapter)
    assert same(loaded.update, expected)
    assert list(loaded.files) == [CONFIG, *parts]
    (adapter / parts[1]).unlink()
    with pytest.raises(AdapterError, match=rf"2 of the 3 parts.*{parts[1]} is missing"):
        load(adapter)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_pointer_of_git_lfs_is_called_by_its_name(name, adapter):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (adapter / name).write_text(pointer)
    with pytest.raises(AdapterError, match=rf"{re.escape(name)} is a pointer of git-lfs.*lfs pull"):
        load(adapter)


@pytest.mark.parametrize("shape", [(0,), (8,), (0, 16)], ids=str)
def test_what_zero_3_leaves_of_a_divided_model_is_called_by_its_name(shape, adapter):
    weights = load_file(adapter / WEIGHTS)
    name = PREFIX + "model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(weights | {name: torch.ones(shape)}, adapter / WEIGHTS)
    with pytest.raises(AdapterError, match=r"lora_A of .*q_proj has shape .*ZeRO-3.*zero_to_fp32"):
        load(adapter)


def test_the_files_that_were_read_are_recorded_by_their_hashes(adapter):
    loaded = load(str(adapter))
    assert loaded.files == {
        name: hashlib.sha256((adapter / name).read_bytes()).hexdigest()
        for name in (CONFIG, WEIGHTS)
    }
    assert (loaded.origin, loaded.revision, loaded.kind) == (str(adapter), None, "LoRA")
    assert loaded.config == json.loads((adapter / CONFIG).read_text())
    assert loaded.errors == {}


def test_an_adapter_of_mlx_is_read_as_mlx_fuses_it(adapter, tmp_path):
    expected, folder = load(adapter).update, tmp_path / "mlx"
    folder.mkdir()
    weights = {}
    for module, factors in expected.items():
        weights[f"{module}.lora_a"] = factors.A.T.contiguous()
        weights[f"{module}.lora_b"] = factors.B.T.contiguous()
    save_file(weights, folder / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 20.0}}
    (folder / CONFIG).write_text(json.dumps(config))
    loaded = load(folder)
    assert "MLX" in loaded.notes[0]
    for module, factors in loaded.update.items():
        # fuse: W + (scale lora_b') lora_a', in mlx_lm.tuner.lora
        a, b = (weights[f"{module}.lora_{side}"].double() for side in "ab")
        torch.testing.assert_close(as_stored(factors), 20.0 * b.T @ a.T)
    (folder / CONFIG).write_text(json.dumps(config | {"fine_tune_type": "dora"}))
    with pytest.raises(AdapterError, match=r"fine_tune_type 'dora'.*mlx_lm\.fuse"):
        load(folder)
    (folder / CONFIG).write_text(json.dumps({"fine_tune_type": "lora"}))
    with pytest.raises(AdapterError, match="scale is None"):
        load(folder)


def test_a_whole_model_needs_its_base(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    with pytest.raises(AdapterError, match=r"is a whole model.*--base"):
        load(tmp_path / "model")


def test_the_subfolder_that_was_taken_is_said(adapter, tmp_path):
    shutil.move(adapter, tmp_path / "run" / "checkpoint-500")
    loaded = load(tmp_path / "run")
    assert loaded.notes == ["read from its subfolder checkpoint-500"]


def test_a_mistyped_folder_with_an_equals_sign_is_named_whole(adapter, tmp_path):
    (tmp_path / "sweep").mkdir()
    for name in ("lr=3e-4", "lr=3e-4/checkpoint-5"):
        path = tmp_path / "sweep" / name
        with pytest.raises(FileNotFoundError, match=f"no adapter at {path}"):
            compare_adapters([adapter, path])


def test_two_spellings_of_one_model_are_compared_and_the_report_says_so(adapter, tmp_path):
    weights = load_file(adapter / WEIGHTS)
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    bare = {name.replace(f"{PREFIX}model.", PREFIX): weight for name, weight in weights.items()}
    save_file(bare, other / WEIGHTS)
    report = compare_adapters([adapter, other])
    assert report.tables["cosine"].query("scope == 'global'").cosine.to_list() == pytest.approx([1])
    assert any("4 modules called otherwise than in" in warning for warning in report.warnings)
