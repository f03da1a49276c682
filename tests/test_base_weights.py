"""W0 of a base model's folder: names on disk against names in memory, and weights stored in 8 or 4
bits, against transformers and against the formats' definitions entry by entry."""

import json
import math
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_geometry import spectra
from adapter_geometry.adapters import AdapterError
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.updates import Factors

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def base(tmp_path):
    """Writes a model's folder from its tensors and config.json."""

    def written(tensors, **config):
        folder = tmp_path / f"base-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return BaseWeights(folder)

    return written


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def factors(rows, columns, is_transposed=False):
    return Factors(random(rows, 2), random(2, columns), 1.0, is_transposed)


# --- names on disk and in memory ------------------------------------------------------------------


def qwen_vl():
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, **SMALL}
    sight = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4}
    sight |= {"out_hidden_size": 32, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sight)
    return Qwen2_5_VLForConditionalGeneration(config)


def gemma():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    sight = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
    sight |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config={**SMALL, "head_dim": 8}, vision_config=sight)
    return Gemma3ForConditionalGeneration(config)


def whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")}
    sizes |= {"vocab_size": 64, "d_model": 32, "pad_token_id": 0, "decoder_start_token_id": 1}
    return WhisperForConditionalGeneration(WhisperConfig(**sizes))


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, num_heads=4))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))


def bert():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertForMaskedLM(BertConfig(vocab_size=64, hidden_size=32, **sizes))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True))


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = [qwen_vl, gemma, whisper, t5, gpt2, bert, llama]


def matrices(model):
    """{module: weight} of all linear modules in memory."""
    import transformers

    kinds = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    return {
        name: module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{model: (model, folder)} with distinct random weights, each saved once."""
    folders = {}

    def of(build):
        if build not in folders:
            torch.manual_seed(0)
            model, folder = build(), tmp_path_factory.mktemp("base") / build.__name__
            model.save_pretrained(folder)
            folders[build] = model, folder
        return folders[build]

    return of


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("transformers_helps", [False, True], ids=["alone", "with transformers"])
def test_every_linear_module_in_memory_is_found_in_the_files(
    build, transformers_helps, saved, monkeypatch
):
    model, folder = saved(build)
    base = BaseWeights(folder)
    if not transformers_helps:
        monkeypatch.setattr(BaseWeights, "_names_in_memory", lambda self: {})
    for module, weight in matrices(model).items():
        assert torch.equal(base.weight(module), weight), f"{module}, found as {base.find(module)}"


def test_names_by_transformers_are_those_of_its_own_loading(saved):
    for build in MODELS:
        model, folder = saved(build)
        names = BaseWeights(folder)._names_in_memory()
        weights = load_file(folder / "model.safetensors")
        missing = matrices(model).keys() - names.keys()
        assert not missing, f"{build.__name__}: {missing}"
        for module, weight in matrices(model).items():
            assert torch.equal(weights[f"{names[module]}.weight"], weight), module


@pytest.mark.parametrize(
    ("build", "dropped"), [(gpt2, "transformer."), (bert, "bert."), (llama, "model.")]
)
def test_a_body_without_its_head_serves_adapters_of_the_whole_and_the_other_way_round(
    build, dropped, saved, base
):
    model, folder = saved(build)
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    body = base({name.removeprefix(dropped): part for name, part in stored.items()}, **config)
    whole = BaseWeights(folder)
    for module, weight in matrices(model).items():
        assert torch.equal(body.weight(module), weight), f"{module} of the whole, from its body"
        inner = module.removeprefix(dropped)
        assert torch.equal(whole.weight(inner), weight), f"{inner} of the body, from the whole"
    renamed = next(note for note in body.notes if "other name" in note)
    assert dropped in renamed, "the report says that names differ"


def test_a_head_that_is_not_stored_is_the_embedding_unless_the_configuration_denies_it(base):
    tensors = {"model.embed_tokens.weight": random(10, 4)}
    for config in ({"tie_word_embeddings": True}, {}, {"text_config": {"tie_word_embeddings": 1}}):
        weight = base(tensors, **config).weight("lm_head")
        assert torch.equal(weight, tensors["model.embed_tokens.weight"]), config
    with pytest.raises(AdapterError, match="has no module lm_head"):
        base(tensors, tie_word_embeddings=False).weight("lm_head")
    untied = base({**tensors, "lm_head.weight": random(10, 4, seed=1)})
    assert torch.equal(untied.weight("model.unembed_tokens"), random(10, 4, seed=1)), (
        "the layer that writes logits under the name that Tinker gives it"
    )


def test_a_name_never_leads_into_another_part_of_the_model(base):
    text = base({"model.layers.0.self_attn.q_proj.weight": random(6, 6)})
    for module in (
        "model.vision_tower.encoder.layers.0.self_attn.q_proj",
        "model.decoder.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "layers.0.cross_attn.q_proj",
    ):
        assert text.find(module) is None, module
    two = base({f"{name}.layers.0.q_proj.weight": random(6, 6) for name in ("first", "second")})
    assert two.find("layers.0.q_proj") is None, "two modules end in this name"
    with pytest.raises(AdapterError) as error:
        two.weight("layers.0.q_proj")
    assert "first.layers.0.q_proj, second.layers.0.q_proj" in str(error.value), (
        "what there is with this end"
    )
    assert "belong to another model" not in str(error.value), "the adapter is not accused"


def test_the_orientation_is_that_of_each_module_and_not_of_a_flag(saved):
    _, folder = saved(gpt2)
    base = BaseWeights(folder)
    attention, head = "transformer.h.0.attn.c_attn", "lm_head"
    square = "transformer.h.0.attn.c_proj"
    for flag in (False, True):
        update = {
            attention: factors(96, 32, flag),
            square: factors(32, 32, flag),
            head: factors(64, 32, flag),
        }
        base.check_shapes(update)
        oriented = base.oriented(update)
        assert oriented[attention].is_transposed, "Conv1D stores W0'"
        assert oriented[square].is_transposed, "a square Conv1D as well"
        assert not oriented[head].is_transposed, "lm_head is nn.Linear"


def test_intruders_of_a_square_conv1d_do_not_depend_on_the_flag(saved, cache):
    _, folder = saved(gpt2)
    square = "transformer.h.0.attn.c_proj"
    tables = [
        spectra.intruders_table({"a": {square: factors(32, 32, flag)}}, BaseWeights(folder))
        for flag in (False, True)
    ]
    assert tables[0].equals(tables[1])


def mixture(kind):
    import transformers

    sizes = SMALL | {"num_experts_per_tok": 2, "head_dim": 8}
    if kind == "Mixtral":
        sizes |= {"num_local_experts": 3}
    else:
        sizes |= {"num_experts": 3, "moe_intermediate_size": 20}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


@pytest.mark.parametrize("kind", ["Qwen3Moe", "Mixtral"])
def test_experts_that_are_fused_in_memory_are_put_together_from_the_files(kind, tmp_path):
    model = mixture(kind)
    model.save_pretrained(tmp_path)
    base = BaseWeights(tmp_path)
    for name, fused in model.named_parameters():
        if fused.ndim == 3:
            for number, expert in enumerate(fused.detach()):
                module = f"{name}.{number}"
                assert torch.equal(base.weight(module), expert), base.find(module)
                base.check_shapes({module: factors(*expert.shape)})
            assert base.find(f"{name}.3") is None, "there are three"


def test_experts_that_are_fused_in_the_files_are_read_one_by_one(base):
    fused = random(3, 5, 4)
    weights = base({"model.layers.0.mlp.experts.gate_up_proj": fused})
    module = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    assert torch.equal(weights.weight(f"{module}.2"), fused[2])
    weights.check_shapes({f"{module}.0": factors(5, 4), f"{module}.1": factors(4, 5, True)})
    assert weights.find(f"{module}.3") is None


def test_kernels_of_convolutions_are_matrices(base):
    kernel = random(6, 3, 2, 2)
    weights = base({"conv.weight": kernel})
    assert torch.equal(weights.weight("conv"), kernel.reshape(6, 12))
    weights.check_shapes({"conv": factors(6, 12)})


def test_two_thousand_modules_are_looked_up_in_a_second_from_files_opened_once(base, monkeypatch):
    names = [f"model.layers.{layer}.{part}" for layer in range(250) for part in "abcdefgh"]
    weights = base({f"{name}.weight": torch.zeros(2, 3) for name in names})
    opened = []
    monkeypatch.setattr(
        "adapter_geometry.base_weights.safe_open", lambda *args: opened.append(args)
    )
    update = {name.replace("model.", "model.language_model."): factors(2, 3) for name in names}
    start = time.process_time()
    weights.check_shapes(update)
    assert time.process_time() - start < 5, "typically .1 s"
    assert not opened, "its header was read already"
    assert len(weights.modules()) == 2000
    assert len(weights.notes) == 1, "one sentence for all"
    assert weights.notes[0].startswith("2000 modules have other names")


# --- which model ----------------------------------------------------------------------------------


def test_a_model_says_its_name_and_revision_where_they_are_known(base, tmp_path):
    assert (base({"a.weight": random(2, 2)}).name, base({}).revision) == (None, None)
    named = base({"a.weight": random(2, 2)}, _name_or_path="owner/model")
    assert (named.name, named.revision) == ("owner/model", None)
    snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    save_file({"a.weight": random(2, 2)}, snapshot / "model.safetensors")
    cached = BaseWeights(snapshot)
    assert (cached.name, cached.revision) == ("owner/model", "0123abc")


def test_the_digest_tells_models_apart(base):
    one, same, other, configured = (
        base({"a.weight": random(2, 2, seed=seed)}, **config).digest()
        for seed, config in ((0, {}), (0, {}), (1, {}), (0, {"hidden_act": "silu"}))
    )
    assert one == same
    assert len({one, other, configured}) == 3, "other weights, another configuration"


def test_a_folder_without_weights_is_named_for_what_it_is(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/model"}')
    with pytest.raises(FileNotFoundError, match=r"holds an adapter; .* \(owner/model\)"):
        BaseWeights(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="is a pickle"):
        BaseWeights(tmp_path)


# --- 8 and 4 bits ---------------------------------------------------------------------------------


def fp8(scale_name="weight_scale_inv", **settings):
    """(tensors, W0, quantization_config): codes 200 x 300 in blocks of 128 x 128, ragged edges."""
    codes, scale = (random(200, 300) * 9).to(torch.float8_e4m3fn), random(2, 3, seed=1)
    # entry by entry, as the releases of DeepSeek-V3 and Qwen3 define it
    W0 = torch.stack(
        [
            torch.stack([codes[i, j].float() * scale[i // 128, j // 128] for j in range(300)])
            for i in range(200)
        ]
    )
    return {"weight": codes, scale_name: scale}, W0, settings


def llm_int8():
    codes, largest = torch.randint(-127, 128, (12, 20), dtype=torch.int8), random(12).abs()
    parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return parts, codes.double() * largest.double()[:, None] / 127, {"quant_method": "bitsandbytes"}


def bits_and_bytes(kind, nested):
    """33 x 27, blocks of 64 that cross rows, an odd number of entries; entry by entry from the
    definition: code, looked up, times the largest entry of its block."""
    rows, columns, blocksize = 33, 27, 64
    count, blocks = rows * columns, math.ceil(rows * columns / 64)
    codes, table = torch.randint(0, 16, (count,)), random(16).sort().values
    state = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
    parts = {"weight.quant_map": table}
    if nested:
        eighth, inner, outer = torch.randint(0, 256, (blocks,)), random(256), random(1).abs()
        largest = [float(inner[code] * outer[0]) + 0.25 for code in eighth]
        parts |= {
            "weight.absmax": eighth.to(torch.uint8),
            "weight.nested_absmax": outer,
            "weight.nested_quant_map": inner,
        }
        state |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
    else:
        parts["weight.absmax"] = random(blocks, seed=3).abs()
        largest = parts["weight.absmax"].tolist()
    W0 = torch.tensor(
        [float(table[code]) * largest[place // blocksize] for place, code in enumerate(codes)]
    )
    padded = torch.cat([codes, codes.new_zeros(count % 2)])
    parts["weight"] = (padded[0::2] * 16 + padded[1::2]).to(torch.uint8)[:, None]
    packed = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = packed
    return parts, W0.reshape(rows, columns), {"quant_method": "bitsandbytes"}


def compressed(kind, **scheme):
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
    }


def int_quantized(strategy, zero=False):
    codes = torch.randint(-128, 128, (12, 20), dtype=torch.int8)
    shape = {"tensor": [1], "channel": [12, 1], "group": [12, 5], "block": [3, 3]}[strategy]
    scale, zeros = random(*shape), torch.randint(-9, 9, shape, dtype=torch.int8)
    height, width = {"tensor": (12, 20), "channel": (1, 20), "group": (1, 4), "block": (5, 8)}[
        strategy
    ]
    grid = scale.reshape(-1, 1) if strategy == "tensor" else scale
    offsets = zeros.reshape(grid.shape) * zero
    W0 = torch.tensor(
        [
            [
                (float(codes[i, j]) - float(offsets[i // height, j // width]))
                * float(grid[i // height, j // width])
                for j in range(20)
            ]
            for i in range(12)
        ]
    )
    parts = {"weight": codes, "weight_scale": scale}
    if zero:
        parts["weight_zero_point"] = zeros
    sizes = {"group": {"group_size": 4}, "block": {"block_structure": [5, 8]}}.get(strategy, {})
    return parts, W0, compressed("int-quantized", num_bits=8, strategy=strategy, **sizes)


def words(codes, bits):
    """Codes (rows, n) packed into int32 words by Python's own integers, lowest bits first."""
    per_word, packed = 32 // bits, []
    for row in codes.tolist():
        row += [0] * (-len(row) % per_word)
        numbers = [
            sum(code << (bits * place) for place, code in enumerate(row[start : start + per_word]))
            for start in range(0, len(row), per_word)
        ]
        packed.append([number - 2**32 if number >= 2**31 else number for number in numbers])
    return torch.tensor(packed, dtype=torch.int32)


def pack_quantized(bits, zero):
    codes = torch.randint(0, 2**bits, (10, 20))  # 20 is no multiple of the codes in a word
    scale, zeros = random(10, 5), torch.randint(0, 2**bits, (10, 5)) * zero
    half = 2 ** (bits - 1)
    offsets = zeros if zero else torch.full((10, 5), half)
    W0 = torch.tensor(
        [
            [float(codes[i, j] - offsets[i, j // 4]) * float(scale[i, j // 4]) for j in range(20)]
            for i in range(10)
        ]
    )
    parts = {
        "weight_packed": words(codes, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor([10, 20]),
    }
    if zero:
        parts["weight_zero_point"] = words(zeros.T, bits).T  # along the rows
    scheme = {"num_bits": bits, "strategy": "group", "group_size": 4}
    return parts, W0, compressed("pack-quantized", **scheme)


def fp8_row():
    codes, scale = (random(12, 20) * 9).to(torch.float8_e4m3fn), random(12, 1)
    W0 = codes.double() * scale.double()
    return {"weight": codes, "weight_scale": scale}, W0, {"quant_method": "fbgemm_fp8"}


QUANTISED = {
    "FP8, blocks": lambda: fp8(quant_method="fp8", weight_block_size=[128, 128]),
    "FP8, blocks that config.json does not name": fp8,
    "FP8, compressed-tensors": lambda: fp8(
        "weight_scale", **compressed("float-quantized", block_structure=[128, 128])
    ),
    "FP8, rows": fp8_row,
    "LLM.int8": llm_int8,
    "NF4": lambda: bits_and_bytes("nf4", False),
    "FP4": lambda: bits_and_bytes("fp4", False),
    "NF4, nested": lambda: bits_and_bytes("nf4", True),
    "W8A8, tensor": lambda: int_quantized("tensor"),
    "W8A8, rows": lambda: int_quantized("channel"),
    "W8A8, rows with zero points": lambda: int_quantized("channel", zero=True),
    "W8A8, groups": lambda: int_quantized("group"),
    "W8A8, blocks": lambda: int_quantized("block"),
    "W4A16": lambda: pack_quantized(4, False),
    "W4A16 with zero points": lambda: pack_quantized(4, True),
    "W8A16": lambda: pack_quantized(8, False),
}


def module_of(parts):
    return {f"{Q_PROJ}.{part}": tensor for part, tensor in parts.items()}


@pytest.mark.parametrize("build", QUANTISED.values(), ids=QUANTISED)
def test_weights_in_8_and_4_bits_are_what_the_model_computes_with(build, base):
    torch.manual_seed(0)
    parts, W0, settings = build()
    weights = base(module_of(parts), quantization_config=settings)
    rows, columns = W0.shape
    weights.check_shapes({Q_PROJ: factors(rows, columns)})
    torch.testing.assert_close(weights.weight(Q_PROJ), W0.float(), rtol=1e-6, atol=1e-7)
    assert weights.norms([Q_PROJ])[Q_PROJ] == pytest.approx(float(W0.double().norm()), rel=1e-6)
    assert Q_PROJ in weights.modules()
    assert "dequantised" in weights.notes[0], "the report says so"


def test_four_bits_kept_in_a_float_dtype_are_no_weights(base):
    parts, W0, settings = bits_and_bytes("nf4", False)
    packed = parts["weight"].flatten()
    packed = torch.cat([packed, packed.new_zeros(len(packed) % 2)])
    parts["weight"] = packed.view(torch.bfloat16)[:, None]  # bnb_4bit_quant_storage, for FSDP
    weight = base(module_of(parts), quantization_config=settings).weight(Q_PROJ)
    torch.testing.assert_close(weight, W0, rtol=1e-6, atol=1e-7)


def test_nf4_as_the_library_writes_it(base):
    table = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036]
    table += [0.0, 0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617]
    table += [0.72295684, 1.0]
    parts = {
        "weight": torch.tensor([[7], [255], [0x3C]], dtype=torch.uint8),
        "weight.absmax": torch.tensor([2.0]),
        "weight.quant_map": torch.tensor(table),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(b'{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [2, 3]}'),
            dtype=torch.uint8,
        ),
    }
    weight = base(module_of(parts)).weight(Q_PROJ)
    expected = [[-2.0, 0.0, 2.0], [2.0, -0.789835, 0.88141966]]
    torch.testing.assert_close(weight, torch.tensor(expected))


INT32, INT8 = torch.int32, torch.int8
GPTQ = {
    "qweight": torch.ones(4, 32, dtype=INT32),
    "qzeros": torch.ones(4, 4, dtype=INT32),
    "scales": torch.ones(4, 4),
}
REFUSED = {
    "GPTQ": ({**GPTQ, "g_idx": torch.ones(32, dtype=INT32)}, {"quant_method": "gptq", "bits": 4}),
    "GPTQ ": ({**GPTQ, "g_idx": torch.ones(32, dtype=INT32)}, {}),
    "AWQ 4-bit": (GPTQ, {"quant_method": "awq", "bits": 4}),
    "AWQ": (GPTQ, {}),
    "a format that is not known here": ({"weight": torch.ones(4, 4, dtype=INT8)}, {}),
    # packed FP4 has these names and dtypes as well
    "w8a8": (
        {"weight": torch.ones(4, 4, dtype=INT8), "weight_scale": torch.ones(4, 1)},
        {"quant_method": "w8a8"},
    ),
    "fp8": ({"weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}, {"quant_method": "fp8"}),
    "fit no block size": (
        {
            "weight": torch.ones(40, 40).to(torch.float8_e4m3fn),
            "weight_scale_inv": torch.ones(3, 3),
        },
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
    ),
    "nvfp4-pack-quantized": (
        {
            "weight_packed": torch.ones(4, 4, dtype=torch.uint8),
            "weight_scale": torch.ones(4, 1).to(torch.float8_e4m3fn),
            "weight_global_scale": torch.ones(1),
        },
        compressed("nvfp4-pack-quantized", num_bits=4, group_size=16),
    ),
    "MXFP4": (
        {"blocks": torch.ones(4, 4, dtype=torch.uint8), "scales": torch.ones(4, 1)},
        {"quant_method": "mxfp4"},
    ),
    "quanto": (
        {"weight._data": torch.ones(4, 4, dtype=INT8), "weight._scale": torch.ones(4, 1)},
        {"quant_method": "quanto"},
    ),
    "a rotated model": (
        {"weight": torch.ones(4, 4, dtype=INT8), "weight_scale": torch.ones(4, 1)},
        compressed("a rotated model") | {"transform_config": {"config_groups": {"R1": {}}}},
    ),
    "bfloat16 with scales": (
        {"weight": torch.ones(4, 4).bfloat16(), "weight_scale": torch.ones(4, 1)},
        {"quant_method": "bfloat16 with scales"},
    ),
}


@pytest.mark.parametrize(("parts", "settings"), REFUSED.values(), ids=REFUSED)
def test_every_other_format_is_refused_by_its_name_with_the_model_that_would_do(
    parts, settings, base, request
):
    name = request.node.callspec.id.strip()
    weights = base(module_of(parts), quantization_config=settings, _name_or_path="owner/plain")
    with pytest.raises(AdapterError) as error:
        weights.weight(Q_PROJ)
    assert name in str(error.value)
    assert Q_PROJ in str(error.value)
    assert str(error.value).endswith("that it was made from (its files name owner/plain)")


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("weight.quant_state.bitsandbytes__nf4", torch.zeros(9, dtype=torch.uint8)),
        ("weight.absmax", torch.ones(2)),
        ("weight.quant_map", torch.ones(3)),
    ],
)
def test_damaged_parts_are_an_error_that_names_the_module(part, tensor, base):
    parts, _, settings = bits_and_bytes("nf4", False)
    weights = base(module_of(parts | {part: tensor}), quantization_config=settings)
    with pytest.raises(AdapterError, match=f"stores {Q_PROJ} in parts that do not fit together"):
        weights.weight(Q_PROJ)


def test_a_module_that_is_left_unquantised_is_read_as_it_is(base):
    parts, _, settings = llm_int8()
    head = random(7, 5).bfloat16()
    weights = base({**module_of(parts), "lm_head.weight": head}, quantization_config=settings)
    assert torch.equal(weights.weight("lm_head"), head)
    assert weights.weight("lm_head").dtype == torch.bfloat16, "as stored"
    assert not weights.notes


def test_the_model_card_names_the_model_where_config_json_does_not(base):
    weights = base(module_of(GPTQ))
    (weights.folder / "README.md").write_text(
        "---\nlicense: mit\nbase_model:\n- owner/plain\nbase_model_relation: quantized\n---\n"
    )
    with pytest.raises(AdapterError, match="its files name owner/plain"):
        weights.weight(Q_PROJ)
