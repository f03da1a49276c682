"""Adapters that are no plain LoRA against PEFT's `merge_and_unload` of the whole model, and factors
of low rank against dense SVDs."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_updates import dense

from adapter_geometry import adapters, exact
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.sources import AdapterError

# By label: PEFT's configuration, its fields beside target_modules, and whether it needs W0.
LINEAR = {
    "AdaLoRA": ("AdaLoraConfig", {"init_r": 6, "target_r": 3, "lora_alpha": 12}, False),
    "LoHa": ("LoHaConfig", {"r": 3, "alpha": 5}, False),
    "LoKr": ("LoKrConfig", {"r": 3, "alpha": 5, "decompose_both": True}, False),
    "LoKr, whole": ("LoKrConfig", {"r": 64, "alpha": 64}, False),
    "DoRA": ("LoraConfig", {"r": 4, "use_dora": True, "use_rslora": True}, True),
    "DoRA, patterns": (
        "LoraConfig",
        {"use_dora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"0.mlp.up_proj": 3}},
        True,
    ),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4}, True),
    "OFT, shared block": ("OFTConfig", {"r": 0, "oft_block_size": 8, "block_share": True}, True),
    "BOFT": ("BOFTConfig", {"boft_block_size": 4, "boft_n_butterfly_factor": 2}, True),
    "C3A": ("C3AConfig", {"block_size": 16}, True),
    "DeLoRA": ("DeloraConfig", {"r": 4}, True),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 30}, True),
    "GraLoRA": ("GraloraConfig", {"r": 4}, True),
    "HiRA": ("HiraConfig", {"r": 4}, True),
    "HRA": ("HRAConfig", {"r": 4}, True),
    "MiSS": ("MissConfig", {"r": 4}, True),
    "RandLoRA": ("RandLoraConfig", {"r": 4}, True),
    "SHiRA": ("ShiraConfig", {"r": 2}, True),
    "VB-LoRA": ("VBLoRAConfig", {"r": 2, "vector_length": 16, "num_vectors": 8}, True),
    "VeRA": ("VeraConfig", {"r": 8}, True),
    "VeRA, drawn again": ("VeraConfig", {"r": 8, "save_projection": False}, True),
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's on saving, of no concern here
        yield


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder of a tiny random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=48,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return saved(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


def saved(model, folder):
    """The folder of a model whose weights are random and its own."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def trained(base, folder, config, auto="AutoModelForCausalLM", **fields):
    """The folder of an adapter that is away from where it began."""
    import peft
    import transformers

    model = getattr(transformers, auto).from_pretrained(base)
    model = peft.get_peft_model(model, getattr(peft, config)(**fields))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def changes(base, adapter, auto="AutoModelForCausalLM"):
    """{parameter: dW} of PEFT's own merge of the whole model, in float64."""
    import transformers
    from peft import PeftModel

    model = getattr(transformers, auto).from_pretrained(base).double()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    merged = PeftModel.from_pretrained(model, adapter).double().merge_and_unload()
    after = {name: each.detach() - before[name] for name, each in merged.named_parameters()}
    return {name: change.numpy() for name, change in after.items() if change.any()}


def read(adapter, base=None, rank=64):
    config = json.loads((adapter / "adapter_config.json").read_text())
    update, errors, left_out = exact.read(
        adapter, config, BaseWeights(base) if base else None, rank
    )
    assert not left_out, "no file here has more than an adapter"
    return update, errors


def as_stored(factors):
    return dense(factors).T if factors.is_transposed else dense(factors)


def far(found, expected):
    """Relative distance of two matrices."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# --- kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", LINEAR)
def test_each_kind_is_what_peft_merges(label, llama, tmp_path):
    kind, fields, needs_base = LINEAR[label]
    more = {"total_step": 10} if label == "AdaLoRA" else {}
    targets = ["q_proj", "up_proj", "down_proj"]
    if label == "SHiRA":
        targets = ["q_proj"]  # PEFT's default mask is drawn for one shape
    trained(llama, tmp_path, kind, target_modules=targets, **fields, **more)
    state = torch.random.get_rng_state()
    update, errors = read(tmp_path, llama)
    assert torch.equal(torch.random.get_rng_state(), state), "reading draws nothing of the caller's"
    expected = changes(llama, tmp_path)
    assert {f"{module}.weight" for module in update} == set(expected)
    for module, factors in update.items():
        dW = expected[f"{module}.weight"]
        assert far(dense(factors), dW) < 1e-6, f"{module}: all of it is in the factors"
        assert not errors.get(module, 0) > 1e-6
    if not needs_base:
        without, _ = read(tmp_path)
        for module, factors in without.items():
            assert far(dense(factors), expected[f"{module}.weight"]) < 1e-6, "no base is needed"
    else:
        with pytest.raises(AdapterError, match="--base"):
            read(tmp_path)


@pytest.mark.parametrize("label", ["OFT", "LoKr, whole", "DoRA"])
def test_the_error_of_a_cut_is_that_of_the_dense_svd(label, llama, tmp_path):
    kind, fields, _ = LINEAR[label]
    trained(llama, tmp_path, kind, target_modules=["q_proj", "up_proj"], **fields)
    update, errors = read(tmp_path, llama, rank=5)
    expected = changes(llama, tmp_path)
    assert set(errors) == set(update), "all are cut, and say so"
    for module, factors in update.items():
        sigma = np.linalg.svd(expected[f"{module}.weight"], compute_uv=False)
        tail = np.linalg.norm(sigma[5:]) / np.linalg.norm(sigma)
        assert factors.B.shape[1] == 5
        assert errors[module] == pytest.approx(tail, rel=1e-6)
        assert far(dense(factors), expected[f"{module}.weight"]) == pytest.approx(tail, rel=1e-5)


def test_pruned_adalora_is_what_peft_merges(llama, tmp_path):
    """A budget has left each matrix another rank; the file holds what is left, and the scale is
    still that of the first rank."""
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.AdaLoraConfig(
        init_r=6, target_r=2, lora_alpha=12, total_step=10, target_modules=["q_proj", "v_proj"]
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config)
    torch.manual_seed(1)
    pattern = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
        if "lora_E" in name:
            kept = 2 + len(pattern)
            pattern[name.removeprefix("base_model.model.").removesuffix(".default")] = [
                place < kept for place in range(6)
            ]
            parameter.data[kept:] = 0
    model.peft_config["default"].rank_pattern = pattern
    model.save_pretrained(tmp_path)
    update, errors = read(tmp_path)
    expected = changes(llama, tmp_path)
    assert sorted(factors.A.shape[0] for factors in update.values()) == [2, 3, 4, 5], "pruned"
    assert not errors
    for module, factors in update.items():
        assert far(dense(factors), expected[f"{module}.weight"]) < 1e-6, module


def test_dora_on_gpt2_embeddings_and_convolutions(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=24, n_layer=2, n_head=2)
    base = saved(GPT2LMHeadModel(config), tmp_path / "base")
    targets = ["c_attn", "attn.c_proj", "wte"]  # c_proj is square: its shape tells nothing
    fields = {"use_dora": True, "fan_in_fan_out": True, "r": 3, "target_modules": targets}
    trained(base, tmp_path / "adapter", "LoraConfig", **fields)
    update, _ = read(tmp_path / "adapter", base)
    expected = changes(base, tmp_path / "adapter")
    assert len(update) == 5
    for module, factors in update.items():
        assert factors.is_transposed
        assert far(as_stored(factors), expected[f"{module}.weight"]) < 1e-6, module


def test_dora_on_a_convolution(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
    )
    base = saved(ViTModel(config), tmp_path / "base")
    fields = {"use_dora": True, "target_modules": ["projection"], "r": 3}
    trained(base, tmp_path / "adapter", "LoraConfig", "AutoModel", **fields)
    ((module, factors),) = read(tmp_path / "adapter", base)[0].items()
    (expected,) = changes(base, tmp_path / "adapter", "AutoModel").values()
    assert module.endswith("projection")
    assert far(dense(factors), expected.reshape(32, -1)) < 1e-6


@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("names", [["gate_up_proj", "down_proj"], ["down_proj"]])
def test_experts_are_what_peft_merges(model_type, names, tmp_path):
    """One module per expert, whichever of the nested parameters is outermost."""
    base = experts_model(model_type, tmp_path / "base")
    fields = {
        "target_parameters": [f"mlp.experts.{name}" for name in names],
        "target_modules": ["q_proj"],
        "r": 2,
        "lora_alpha": 3,
        "rank_pattern": {"1.mlp.experts.down_proj": 3},
    }
    trained(base, tmp_path / "adapter", "LoraConfig", **fields)
    update, errors = read(tmp_path / "adapter", base)
    expected = changes(base, tmp_path / "adapter")
    assert not errors, "the factors are exact"
    assert len(update) == 2 + 2 * 4 * len(names), "2 layers, 4 experts"
    for module, factors in update.items():
        name, _, expert = module.rpartition(".")
        dW = expected[name][int(expert)] if expert.isdigit() else expected[f"{module}.weight"]
        assert far(as_stored(factors), dW) < 1e-6, module


def test_experts_are_told_apart_whichever_is_outermost(tmp_path):
    """A model that registers down_proj before gate_up_proj nests them the other way round."""
    base = experts_model("qwen3_moe", tmp_path / "base")
    fields = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    trained(base, tmp_path / "adapter", "LoraConfig", target_modules=[], **fields)
    expected, _ = read(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    turned = {
        key.replace(".base_layer.", ".")
        if ".base_layer." in key
        else key.replace("experts.", "experts.base_layer."): tensor
        for key, tensor in load_file(path).items()
    }
    save_file(turned, path)
    update, _ = read(tmp_path / "adapter")
    assert {name: far(dense(update[name]), dense(expected[name])) for name in expected} == (
        dict.fromkeys(update, 0.0)
    )


def experts_model(model_type, folder):
    """Folder of a tiny mixture of 4 experts in 2 layers."""
    import transformers

    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return saved(transformers.AutoModelForCausalLM.from_config(config), folder)


def test_wrappers_and_adapter_names_in_keys(llama, tmp_path):
    trained(llama, tmp_path, "LoHaConfig", target_modules=["q_proj"])
    expected, _ = read(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    renamed = {
        key.replace("base_model.model.", "base_model.model._orig_mod.") + ".default": tensor
        for key, tensor in load_file(path).items()
    }
    save_file(renamed, path)
    update, _ = read(tmp_path)
    assert {module: far(dense(update[module]), dense(expected[module])) for module in expected} == (
        dict.fromkeys(update, 0.0)
    )


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING .*merge_and_unload"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'.*merge_and_unload"),
        ({"use_qalora": True}, "use_qalora is True.*merge_and_unload"),
        ({"r": 5}, "cannot be put together.*size mismatch"),
    ],
)
def test_what_is_no_difference_of_matrices_is_refused(fields, words, llama, tmp_path):
    trained(llama, tmp_path, "LoraConfig", target_modules=["q_proj"], use_dora=True)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(AdapterError, match=words):
        read(tmp_path, llama)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("AdaLoraConfig", {"init_r": None}, "AdaLoRA adapter cannot be put together"),
        ("LoHaConfig", {"rank_pattern": 3}, "LoHa adapter cannot be put together"),
        ("LoHaConfig", {"alpha": "x"}, "LoHa adapter cannot be put together"),
        ("LoKrConfig", {"decompose_factor": 2}, "size mismatch"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(kind, fields, words, llama, tmp_path):
    more = {"total_step": 10} if kind == "AdaLoraConfig" else {}
    trained(llama, tmp_path, kind, target_modules=["q_proj"], **more)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(AdapterError, match=words) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("part", ["hada_w1_a", "hada_w2_b"])
def test_a_part_that_is_missing_or_broken_is_named(part, llama, tmp_path):
    trained(llama, tmp_path, "LoHaConfig", target_modules=["q_proj"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = f"base_model.model.model.layers.1.self_attn.q_proj.{part}"
    save_file({**tensors, key: torch.full_like(tensors[key], torch.nan)}, path)
    with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.q_proj holds NaN"):
        read(tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, path)
    with pytest.raises(AdapterError, match=part):
        read(tmp_path)


def test_a_head_is_refused_or_left_out(llama, tmp_path):
    """As PEFT saves DoRA for a classifier: its untrained head cannot be left as it was."""
    fields = {"use_dora": True, "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}
    auto = "AutoModelForSequenceClassification"
    trained(llama, tmp_path, "LoraConfig", auto, **fields)
    with pytest.raises(AdapterError, match=r"modules_to_save.*--lora-only"):
        adapters.load(tmp_path, BaseWeights(llama))
    loaded = adapters.load(tmp_path, BaseWeights(llama), lora_only=True)
    assert (loaded.kind, loaded.left_out) == ("DoRA", ["score"])
    assert any("score" in note for note in loaded.notes)
    expected = changes(llama, tmp_path, auto)
    for module, factors in loaded.update.items():
        assert far(dense(factors), expected[f"{module}.weight"]) < 1e-6, module


@pytest.mark.parametrize("label", ["LoHa", "DoRA"])
def test_trained_biases_are_refused_or_left_out(label, llama, tmp_path):
    kind, fields, _ = LINEAR[label]
    trained(llama, tmp_path, kind, target_modules=["q_proj"], **fields)
    expected, _ = read(tmp_path, llama)
    path = tmp_path / "adapter_model.safetensors"
    q_proj = "base_model.model.model.layers.0.self_attn.q_proj"
    biases = {f"{q_proj}.lora_B.bias": torch.ones(64), f"{q_proj}.bias": torch.ones(64)}
    save_file({**load_file(path), **biases}, path)
    with pytest.raises(AdapterError, match=r"bias.*--lora-only"):
        adapters.load(tmp_path, BaseWeights(llama))
    loaded = adapters.load(tmp_path, BaseWeights(llama), lora_only=True)
    assert len(loaded.left_out) == 2
    assert {
        module: far(dense(loaded.update[module]), dense(expected[module])) for module in expected
    } == (dict.fromkeys(loaded.update, 0.0))


def test_experts_of_unknown_order_are_refused(tmp_path):
    base = experts_model("qwen3_moe", tmp_path / "base")
    fields = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    trained(base, tmp_path / "adapter", "LoraConfig", target_modules=[], **fields)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace("gate_up_proj", "w1").replace("down_proj", "w2"))
    with pytest.raises(AdapterError, match="only the model knows"):
        read(tmp_path / "adapter")


# --- low rank -------------------------------------------------------------------------------------


def matrix_of(sigma, shape, seed=0):
    """A random matrix with the given singular values."""
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((d, len(sigma))))[0] for d in shape)
    return torch.as_tensor(U * sigma @ V.T)


@pytest.mark.parametrize("shape", [(500, 400), (400, 500), (90, 60)])
@pytest.mark.parametrize(
    "sigma",
    [0.9 ** np.arange(60), 1 / np.sqrt(np.arange(1, 61)), np.ones(60)],
    ids=["fast", "slow", "flat"],
)
def test_low_rank_is_the_dense_svd(shape, sigma, monkeypatch):
    monkeypatch.setattr(exact, "_OVERSAMPLING", 10)
    matrix = matrix_of(sigma, shape)
    factors, error = exact.low_rank(matrix.clone(), 12)
    tail = np.linalg.norm(sigma[12:]) / np.linalg.norm(sigma)
    assert tail <= error <= 1.001 * tail
    assert far(dense(factors), matrix.numpy()) == pytest.approx(error, rel=1e-9), "measured"
    found = np.linalg.svd(dense(factors), compute_uv=False)[:12]
    np.testing.assert_allclose(found[:6], sigma[:6], rtol=1e-2)


def test_what_has_low_rank_is_exact_and_no_larger():
    matrix = matrix_of([3.0, 2.0, 1.0], (900, 700))
    factors, error = exact.low_rank(matrix.clone(), 64)
    assert factors.B.shape == (900, 3)
    assert error < 1e-12
    assert far(dense(factors), matrix.numpy()) < 1e-12


def test_zeros_have_factors_of_zeros():
    factors, error = exact.low_rank(torch.zeros(5, 3), 2)
    assert (factors.B.shape, factors.A.shape, error) == ((5, 1), (1, 3), 0.0)
    assert not dense(factors).any()
