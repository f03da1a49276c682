"""Fine-tuned and merged models against planted differences, dense SVDs and the adapters that they
were merged from."""

import json
import warnings
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_updates import dense

from adapter_geometry import adapters, full_models, updates
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.sources import AdapterError

FILE = "model.safetensors"
Q_PROJ = "model.layers.1.self_attn.q_proj"


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's on saving, of no concern here
        yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder of a tiny random Llama."""
    return saved("llama", tmp_path_factory.mktemp("llama"), num_key_value_heads=4)


def saved(model_type, folder, **fields):
    """The folder of a tiny model with random weights."""
    import transformers

    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, **fields}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def copied(base, folder, changes, **config):
    """A model in a new folder: that of the base with tensors added, replaced, or removed (None)."""
    folder.mkdir()
    settings = json.loads((base / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    tensors = {**load_file(base / FILE), **changes}
    save_file({name: each for name, each in tensors.items() if each is not None}, folder / FILE)
    return folder


def trained(base, folder, **fields):
    """(adapter, merged): folders of a trained LoRA adapter and of the model it is merged into."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, **fields))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder / "merged")
    return folder / "adapter", folder / "merged"


def differences(base, folder, rank=None):
    return full_models.difference(BaseWeights(base), folder, rank)


def notes(base, folder):
    return full_models.unread(BaseWeights(base), folder)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", ["5GB", "20KB"], ids=["one file", "shards"])
def test_differences_are_those_of_the_files_and_errors_those_of_the_dense_svd(
    dtype, size, llama, tmp_path
):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama)
    torch.manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / FILE).exists() == (size == "5GB")
    after = {name: each.float() for name, each in model.state_dict().items() if each.ndim == 2}
    before = load_file(llama / FILE)

    update, errors = differences(llama, tmp_path, rank=6)
    assert {f"{module}.weight" for module in update} == set(after), "embedding and head among them"
    assert set(errors) == set(update), "noise has full rank"
    for module, factors in update.items():
        dW = (after[f"{module}.weight"] - before[f"{module}.weight"]).double().numpy()
        sigma = np.linalg.svd(dW, compute_uv=False)
        tail = np.linalg.norm(sigma[6:]) / np.linalg.norm(sigma)
        found = dense(factors).T if factors.is_transposed else dense(factors)
        assert factors.A.shape[0] == 6
        assert np.linalg.norm(found - dW) / np.linalg.norm(dW) == pytest.approx(tail, rel=1e-4)
        assert errors[module] == pytest.approx(tail, rel=1e-4), module


def test_a_merged_adapter_is_the_adapter(llama, tmp_path):
    adapter, merged = trained(llama, tmp_path, target_modules=["q_proj", "down_proj", "lm_head"])
    read = adapters.load(adapter, BaseWeights(llama)).update
    update, errors = differences(llama, merged)
    for module, factors in update.items():
        if module in read:
            inner = updates.inner(read[module], factors)
            norms = [updates.inner(each, each) ** 0.5 for each in (read[module], factors)]
            assert inner / np.prod(norms) == pytest.approx(1, abs=1e-6), module
            assert np.divide(*norms) == pytest.approx(1, abs=1e-5), module
            assert factors.A.shape[0] == 3, "no direction of rounding"
            # the file's float32 rounds W0 + dW to 2^-24 of W0
            assert errors.get(module, 0) < 1e-5, module
        else:
            assert not dense(factors).any(), "not trained: zeros"
    assert len(update) == 2 * 7 + 2, "all matrices, trained or not"


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("gpt2", {"target_modules": ["c_attn", "attn.c_proj", "wte"], "fan_in_fan_out": True}),
        ("gpt_oss", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ],
)
def test_transposed_matrices_lie_as_those_of_adapters(model_type, fields, tmp_path):
    """GPT-2's Conv1D, embeddings, and experts that are stored as (d_in, d_out)."""
    more = {"num_local_experts": 4, "num_key_value_heads": 4, "head_dim": 8}
    base = saved(model_type, tmp_path / "base", **(more if model_type == "gpt_oss" else {}))
    if "target_parameters" in fields:
        fields |= {"target_modules": ["q_proj"]}
    adapter, merged = trained(base, tmp_path, **fields)
    read = adapters.load(adapter, BaseWeights(base)).update
    update, _ = differences(base, merged)
    (read, update), left_out = aligned(read, update)
    assert not left_out, "all of the adapter's modules are among the model's"
    for module in read:
        assert read[module].is_transposed == update[module].is_transposed, module
        np.testing.assert_allclose(dense(update[module]), dense(read[module]), atol=1e-5)


def aligned(first, second):
    """Both updates with the modules of the first, by the names that adapters are matched by."""
    renamed, _ = adapters.aligned({"first": first, "second": second})
    missing = sorted(set(first) - set(renamed["second"]))
    return (renamed["first"], renamed["second"]), missing


def test_experts_in_files_of_their_own(tmp_path):
    """Qwen's mixtures are saved with one matrix per expert, whatever they are in memory."""
    fields = {"num_experts": 3, "moe_intermediate_size": 8, "num_key_value_heads": 4}
    base = saved("qwen3_moe", tmp_path / "base", **fields)
    name = "model.layers.0.mlp.experts.2.down_proj"
    W0 = load_file(base / FILE)[f"{name}.weight"]
    u, v = torch.randn(W0.shape[0], 1), torch.randn(1, W0.shape[1])
    model = copied(base, tmp_path / "model", {f"{name}.weight": W0 + 0.1 * u @ v})
    update, _ = differences(base, model)
    changed = [module for module, factors in update.items() if dense(factors).any()]
    assert changed == [name]
    np.testing.assert_allclose(dense(update[name]), (0.1 * u @ v).numpy(), atol=1e-6)


def test_one_pair_of_matrices_is_in_memory_at_a_time(llama, tmp_path, monkeypatch):
    model = copied(llama, tmp_path / "model", {})
    read = BaseWeights.weight
    living, most = weakref.WeakSet(), []

    class Handle:
        """Stands for a tensor in the set: tensors themselves compare by element."""

    def watched(self, module):
        weight, handle = read(self, module), Handle()
        weight.handle = handle
        living.add(handle)
        most.append(len(living))
        return weight

    monkeypatch.setattr(BaseWeights, "weight", watched)
    differences(llama, model)
    assert len(most) == 2 * 16
    assert max(most) == 2


# --- what is left out -----------------------------------------------------------------------------


def test_a_folder_equal_to_the_base_differs_by_nothing(llama, tmp_path):
    model = copied(llama, tmp_path / "model", {})
    update, errors = differences(llama, model)
    assert updates.norm(update) == 0
    assert not errors
    assert notes(llama, model) == (
        ["5 vectors (norms, biases) are left out; they are those of the base"],
        [],
    )


def test_the_change_of_vectors_is_told(llama, tmp_path):
    before = load_file(llama / FILE)["model.norm.weight"]
    model = copied(llama, tmp_path / "model", {"model.norm.weight": before + 0.01})
    vectors = [each for each in load_file(llama / FILE).values() if each.ndim == 1]
    share = np.sqrt(len(before) * 0.01**2 / sum(float(each.square().sum()) for each in vectors))
    change = f"they change by {share:.2g} of their norm together"
    assert notes(llama, model)[0][0] == f"5 vectors (norms, biases) are left out; {change}"


def test_new_tokens_leave_the_vocabulary_out(llama, tmp_path):
    wide = {name: torch.ones(50, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    model = copied(llama, tmp_path / "model", wide, vocab_size=50)
    update, _ = differences(llama, model)
    assert not {"model.embed_tokens", "lm_head"} & set(update)
    assert len(update) == 14
    sentences, left_out = notes(llama, model)
    assert left_out == ["lm_head", "model.embed_tokens"]
    assert any("another number of tokens" in sentence for sentence in sentences)


def test_a_head_of_its_own_is_left_out_and_a_missing_matrix_told(llama, tmp_path):
    changes = {"score.weight": torch.ones(2, 32), "lm_head.weight": None}
    model = copied(llama, tmp_path / "model", changes)
    update, _ = differences(llama, model)
    sentences, left_out = notes(llama, model)
    assert left_out == ["score"]
    assert "score is not in the base and is left out" in sentences
    assert "lm_head is in the base alone and is left out" in sentences
    assert len(update) == 15


def test_tied_heads_are_compared_once(llama, tmp_path):
    tensors = load_file(llama / FILE)
    head = {"lm_head.weight": None}
    base = copied(llama, tmp_path / "base", head, tie_word_embeddings=True)
    twice = {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    model = copied(llama, tmp_path / "model", twice, tie_word_embeddings=True)
    assert "lm_head" not in differences(base, model)[0]
    assert notes(base, model)[1] == ["lm_head"]
    # a head that was untied is compared with the embedding that it began as
    untied = copied(llama, tmp_path / "untied", twice, tie_word_embeddings=False)
    update, _ = differences(base, untied)
    assert not update["lm_head"].is_transposed
    np.testing.assert_allclose(dense(update["lm_head"]), 1, atol=1e-5)
    assert not dense(update["model.embed_tokens"]).any()


def test_rounding_to_float32_has_no_directions(llama, tmp_path):
    """A difference of rank 1 that is small beside W0, so that its rounding is not beside it."""
    W0 = load_file(llama / FILE)[f"{Q_PROJ}.weight"]
    change = 1e-3 * torch.randn(32, 1) @ torch.randn(1, 32) / 32
    model = copied(llama, tmp_path / "model", {f"{Q_PROJ}.weight": W0 + change})
    update, errors = differences(llama, model)
    assert update[Q_PROJ].B.shape[1] == 1
    rounding = float((W0 + change - W0 - change).norm() / change.norm())
    assert errors[Q_PROJ] == pytest.approx(rounding, rel=0.1)


def test_scales_of_storage_are_no_vectors(llama, tmp_path):
    """A model in 8 bits: its matrix is what it computes with, and its scales are not compared."""
    tensors = load_file(llama / FILE)
    W0 = tensors[f"{Q_PROJ}.weight"]
    largest = W0.abs().amax(1)
    stored = (W0 / largest[:, None] * 127).round().to(torch.int8)
    parts = {f"{Q_PROJ}.weight": stored, f"{Q_PROJ}.SCB": largest}
    settings = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    base = copied(llama, tmp_path / "base", parts, **settings)
    model = copied(llama, tmp_path / "model", parts | {f"{Q_PROJ}.SCB": 2 * largest}, **settings)
    update, _ = differences(base, model)
    W0 = stored.double().numpy() * largest.double().numpy()[:, None] / 127
    np.testing.assert_allclose(dense(update[Q_PROJ]), W0, atol=1e-6)
    told, _ = notes(base, model)
    assert told[-1] == "5 vectors (norms, biases) are left out; they are those of the base"
    assert "1 module of the model stored as LLM.int8" in told[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_size_of_rounding_is_told(dtype, llama, tmp_path):
    W0 = load_file(llama / FILE)[f"{Q_PROJ}.weight"]
    model = copied(llama, tmp_path / "model", {f"{Q_PROJ}.weight": W0.to(dtype)})
    update, _ = differences(llama, model)
    rounding = updates.norm({Q_PROJ: update[Q_PROJ]}) / float(W0.norm())
    name = {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert full_models._ROUNDING[name] == pytest.approx(rounding, rel=0.1)
    assert any(f"stored as {name}" in sentence for sentence in notes(llama, model)[0])


# --- refused --------------------------------------------------------------------------------------


def test_another_model_is_refused_with_the_name_of_the_tensor(llama, tmp_path):
    model = copied(llama, tmp_path / "model", {f"{Q_PROJ}.weight": torch.ones(16, 32)})
    with pytest.raises(AdapterError, match=rf"{Q_PROJ} is 16 x 32 .* 32 x 32 in the base"):
        differences(llama, model)
    save_file({"encoder.weight": torch.ones(3, 4)}, model / FILE)
    with pytest.raises(AdapterError, match="no weight matrix in common"):
        differences(llama, model)


def test_a_broken_model_is_named(llama, tmp_path):
    model = copied(llama, tmp_path / "model", {f"{Q_PROJ}.weight": torch.full((32, 32), torch.nan)})
    with pytest.raises(AdapterError, match=f"NaN or infinity in {Q_PROJ}"):
        differences(llama, model)


def test_a_model_is_loaded_beside_adapters(llama, tmp_path):
    _, merged = trained(llama, tmp_path, target_modules=["q_proj"])
    loaded = adapters.load(merged, BaseWeights(llama))
    assert (loaded.kind, loaded.config, list(loaded.files)) == ("full model", {}, [FILE])
    assert "5 vectors (norms, biases) are left out; they are those of the base" in loaded.notes
    with pytest.raises(AdapterError, match="--base"):
        adapters.load(merged)
