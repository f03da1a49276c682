"""The plan's formulas against what torch, PEFT and the backward pass themselves count, and against
arithmetic done by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from helpers import profiles, store
from helpers.cluster import planning
from helpers.models import loading
from helpers.profiles import ComputeSettings, EndpointSettings, LoraSettings

SIZES = {
    "vocab_size": 90,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS = {
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": Qwen3Config(**SIZES, tie_word_embeddings=False),
}
ATTENTION = LoraSettings(rank=4, alpha=8, modules=("q_proj", "k_proj", "v_proj", "o_proj"))
EVERYWHERE = LoraSettings(
    rank=4, alpha=8, modules=(*ATTENTION.modules, "gate_proj", "up_proj", "down_proj")
)
QWEN = "hub:Qwen/Qwen3-4B-Instruct-2507"
LARGE = LoraSettings(rank=32, alpha=64, modules=ATTENTION.modules)
ROWS, TOKENS = 3, 24


@pytest.fixture(autouse=True)
def _results_of_its_own(tmp_path, monkeypatch):
    # A plan looks for tables and leaves no folders behind.
    monkeypatch.setattr(store, "results", lambda name: tmp_path / name)


@pytest.fixture
def large():
    """The paper's recipe, as a profile that has no table of rollouts yet."""
    tiny = profiles.load("tiny")
    sampling = {"source": "endpoint", "max_new_tokens": 2048, "table": None}
    answering = {"max_new_tokens": 2048, "batch_size": 64}
    spec = {"steps": 1500, "batch_size": 32, "accumulation": 8}
    endpoint = EndpointSettings(
        url="http://localhost/v1", model="teacher", price_input=1, price_output=2
    )
    compute = ComputeSettings(
        dtype="bfloat16", engine="vllm", checkpoints_layers=True, logits_tokens=2048
    )
    return tiny.model_copy(
        update={
            "name": "no-such-study",
            "models": {"base": QWEN, "strong-base": QWEN, "teacher": QWEN},
            "lora": LARGE,
            "rollouts": tiny.rollouts.model_copy(update=sampling),
            "endpoint": endpoint,
            "compute": compute,
            "evaluation": tiny.evaluation.model_copy(update=answering),
            "runs": {name: tiny.runs[name].model_copy(update=spec) for name in tiny.main_runs},
        }
    )


def with_compute(profile, **settings):
    return profile.model_copy(update={"compute": profile.compute.model_copy(update=settings)})


def adapted(config, lora=ATTENTION, dtype=torch.float32, attention="sdpa"):
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention
    ).requires_grad_(False)
    return loading.attach_adapter(model, lora, 0)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_model(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    assert planning.parameters(CONFIGS[name]) == sum(
        weight.numel() for weight in model.parameters()
    )


@pytest.mark.parametrize("lora", [ATTENTION, EVERYWHERE])
def test_lora_parameters_are_those_of_peft(lora):
    trained = [
        weight.numel()
        for weight in adapted(CONFIGS["qwen3"], lora).parameters()
        if weight.requires_grad
    ]
    assert planning.lora_parameters(CONFIGS["qwen3"], lora) == sum(trained)


def test_qwen3_4b_by_hand(large):
    config = planning.architecture(large)
    # q, k and v, o, MLP, norms, norms of q and k
    layer = 2560 * 4096 + 2 * 2560 * 1024 + 4096 * 2560 + 3 * 2560 * 9728 + 2 * 2560 + 2 * 128
    assert layer == 100_930_816
    assert planning.parameters(config) == 151936 * 2560 + 36 * layer + 2560 == 4_022_468_096, (
        "4.0 billion, 8.0 GB in bfloat16"
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert planning.parameters(config) == sum(weight.numel() for weight in model.parameters())
    of_layer = 32 * ((2560 + 4096) + 2 * (2560 + 1024) + (4096 + 2560))
    assert planning.lora_parameters(config, LARGE) == 36 * of_layer == 23_592_960, (
        "144 modules; 16 bytes each are 0.38 GB"
    )
    assert planning.cache_bytes(config, large.compute) == 2 * 36 * 8 * 128 * 2 == 147_456
    norms, inputs = 8 * 2561 + 4 * (4096 + 1024 + 40), 4 * (3 * 2560 + 4096 + 4 * 32)
    attention, inner = 2 * (2 * 4096 + 2 * 1024) + 4 * 32, 2 * 3 * 9728
    assert norms + inputs + attention + inner == 167_720
    assert planning.layer_bytes(config, LARGE, large.compute) == 167_720
    per_token = planning.activation_bytes(config, LARGE, large.compute)
    assert per_token == 36 * 2 * 2560 + 167_720 + 4 * 2560 == 362_280, "0.36 MB per token"
    everything = large.compute.model_copy(update={"checkpoints_layers": False})
    per_token = planning.activation_bytes(config, LARGE, everything)
    assert per_token == 36 * 167_720 + 4 * 2560 == 6_048_160, "6.0 MB per token"


def test_llama_3b_has_its_published_parameters():
    tiny = profiles.load("tiny")
    models = {**tiny.models, "base": "hub:meta-llama/Llama-3.2-3B-Instruct"}
    config = planning.architecture(tiny.model_copy(update={"models": models}))
    layer = 2 * 3072 * 3072 + 2 * 3072 * 1024 + 3 * 3072 * 8192 + 2 * 3072
    by_hand = 128256 * 3072 + 28 * layer + 3072
    assert planning.parameters(config) == by_hand == 3_212_749_824


def test_sizes_of_existing_profiles_are_known_without_weights(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("weights were read")

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", refuse)
    assert planning.architecture(profiles.load("tiny")).hidden_size == 128
    assert planning.architecture(profiles.load("smoke")).num_hidden_layers == 2
    config = planning.architecture(profiles.load("smollm2-135m"))
    assert planning.parameters(config) == 134_515_008, (
        "an adapter is as large as what it was made for: 135 M"
    )


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("wheel:package/other.gguf", ValueError, "add them to planning.KNOWN"),
        ("data/models/none", FileNotFoundError, "config.json is missing"),
    ],
)
def test_a_source_without_sizes_says_what_to_do(source, error, message):
    tiny = profiles.load("tiny")
    profile = tiny.model_copy(update={"models": {**tiny.models, "base": source}})
    with pytest.raises(error, match=message):
        planning.architecture(profile)


def test_lengths_come_from_the_table_where_there_is_one(large):
    assert planning.lengths(large) == (150, 1024, 2198, 1600 * 4, False)
    lengths = planning.lengths(profiles.load("tiny"))
    assert lengths.measured
    assert lengths.rows == 1600 * 4
    assert lengths.mean < lengths.longest


# --- memory ---------------------------------------------------------------------------------------


def kept_bytes(model, masked):
    """Bytes of the storages that the backward pass keeps, parameters apart."""
    seen, alive = {}, []
    of_parameters = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in of_parameters:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # an address that is freed could be given to the next one
        return tensor

    causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    mask = causal.expand(ROWS, 1, TOKENS, TOKENS).contiguous() if masked else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loading.causal_model(model).model(
            input_ids=torch.arange(TOKENS).repeat(ROWS, 1),
            position_ids=torch.arange(TOKENS).repeat(ROWS, 1),
            attention_mask=mask,
            use_cache=False,
        )
    return sum(seen.values())


@pytest.mark.parametrize("lora", [ATTENTION, EVERYWHERE], ids=["attention", "everywhere"])
@pytest.mark.parametrize("mask", [TOKENS, 0], ids=["masked", "causal"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_activations_are_what_the_backward_pass_keeps(name, dtype, mask, lora):
    config, compute = CONFIGS[name], ComputeSettings(dtype=dtype)
    model = adapted(config, lora, getattr(torch, dtype))
    # Without a mask, the CPU's kernel keeps what flash attention keeps.
    measured = kept_bytes(model, masked=bool(mask)) / (ROWS * TOKENS)
    size = getattr(torch, dtype).itemsize
    # The first norm has no gradient to pass on and keeps nothing; the last one keeps 1 / RMS;
    # cosines and sines are kept once for all layers.
    left_out = -4 * (config.hidden_size + 1) + 4 + 2 * config.head_dim * size
    assert measured == planning.activation_bytes(config, lora, compute, mask) + left_out


def test_checkpoints_keep_a_hidden_state_per_layer_and_one_layers_inside():
    config = CONFIGS["qwen3"]
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        model = adapted(config, dtype=getattr(torch, dtype)).train()
        loading.causal_model(model).gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        measured = kept_bytes(model, masked=True) / (ROWS * TOKENS)
        assert measured == 3 * size * 48 + 4 * (48 + 1), (
            "the inputs of three layers, and the last norm's input and 1 / RMS"
        )
        compute = ComputeSettings(dtype=dtype, checkpoints_layers=True)
        inside = planning.layer_bytes(config, ATTENTION, compute, TOKENS)
        planned = planning.activation_bytes(config, ATTENTION, compute, TOKENS)
        assert planned == measured - 4 + inside, "while one layer is computed again"


def test_logits_as_the_log_softmax_makes_them():
    def bytes_of(**settings):
        return planning.logits_bytes(CONFIGS["qwen3"], ComputeSettings(**settings), 100)

    assert bytes_of(dtype="bfloat16") == 100 * 90 * (2 + 4 + 4)
    assert bytes_of() == 100 * 90 * (4 + 4)
    assert bytes_of(logits_tokens=30) == 30 * 90 * (4 + 4)
    assert bytes_of(logits_tokens=300) == 100 * 90 * (4 + 4), "no more than there are"


def memory_of(profile, **changes):
    run = profile.runs["sft"].model_copy(update=changes)
    return planning.training_memory(
        planning.architecture(profile), profile.lora, profile.compute, run, 2198
    )


def test_each_setting_changes_its_own_term(large):
    without = with_compute(large, logits_tokens=None)
    few, all_ = memory_of(large), memory_of(without)
    assert {term for term in few if few[term] != all_[term]} == {"logits", "allowance"}
    assert all_["logits"] / few["logits"] == pytest.approx(4 * 2198 / 2048)
    double = memory_of(without, batch_size=64)
    assert double["activations"] == 2 * all_["activations"]
    assert (double["weights"], double["adapter"]) == (all_["weights"], all_["adapter"])
    assert memory_of(without, batch_size=64, accumulation=16) == all_, (
        "what counts is the micro-batch"
    )
    assert memory_of(with_compute(without, processes=2), batch_size=64) == all_, (
        "shared by two GPUs"
    )
    assert memory_of(without, objective="dpo") == memory_of(without, batch_size=64), (
        "a pair is two sequences"
    )


def test_rows_that_share_a_prompt_keep_a_mask_and_repeated_keys(large):
    config = planning.architecture(large)
    everything = with_compute(large, checkpoints_layers=False).compute
    single, pair = (
        planning.training_memory(
            config, LARGE, everything, large.runs["sft"].model_copy(update=changes), 1000
        )["activations"]
        for changes in ({"batch_size": 64}, {"objective": "dpo"})
    )
    assert pair - single == 8 * 1000 * 36 * 2 * (2 * 4096 - 2 * 1024 + 2000), (
        "tokens x layers x bytes x (keys and values of 32 heads, not 8; a mask's row)"
    )


def test_rows_of_a_prompt_run_as_one_sequence_with_sdpa_only(large):
    sft, dpo = large.runs["sft"], large.runs["dpo"]
    short = [
        planning.packed_rows(large.compute, run, 4, 500)
        for run in (sft, dpo, sft.model_copy(update={"accumulation": 16}))
    ]
    assert short == [4, 2, 2], "a group, a pair, what a micro-batch holds"
    assert planning.packed_rows(large.compute, sft, 4, 600) == 1, (
        "four rows of 600 tokens are longer together than rows that share may be"
    )
    flash = with_compute(large, attention="flash_attention_2")
    assert planning.packed_rows(flash.compute, sft, 4, 500) == 1
    alone, together = (
        planning.attention_flops(planning.architecture(large), 500, packed) for packed in (1, 4)
    )
    assert together == 8 * alone, "a mask skips nothing"


def test_rows_that_cannot_be_shared_out_and_online_runs_are_refused(large):
    with pytest.raises(
        ValueError, match="accumulation 8 x processes 8 does not divide batch_size 32"
    ):
        memory_of(with_compute(large, processes=8))
    with pytest.raises(ValueError, match=r"run 'sft' samples while it trains \(grpo\)"):
        memory_of(large, objective="grpo")


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_are_those_that_torch_counts(name):
    config, compute = CONFIGS[name], ComputeSettings()
    model, ids = adapted(config, attention="eager"), torch.arange(TOKENS).repeat(ROWS, 1)
    # The counted kernel computes all scores, twice what a causal one does.
    count, skipped = ROWS * TOKENS, planning.attention_flops(config, TOKENS)
    with FlopCounterMode(display=False) as forward, model.disable_adapter():
        model(input_ids=ids)
    assert forward.get_total_flops() == pytest.approx(
        count * (planning.forward_flops(config, TOKENS) + skipped), rel=0.001
    )
    with FlopCounterMode(display=False) as both:
        model(input_ids=ids).logits.sum().backward()
    # Nor does it compute scores again, half a forward pass of attention; the first layer's q, k and
    # v pass no gradient to the embedding.
    first = 2 * sum(
        (inputs + ATTENTION.rank) * outputs
        for inputs, outputs in list(planning.projections(config).values())[:3]
    )
    trained = planning.training_flops(config, ATTENTION, compute, TOKENS)
    predicted = trained + 3.5 * skipped - skipped
    assert both.get_total_flops() == pytest.approx(count * predicted, rel=0.05)
    assert both.get_total_flops() == pytest.approx(count * (predicted - first), rel=0.01)


def test_what_is_computed_again_costs_a_forward_pass():
    config, lora = CONFIGS["qwen3"], ATTENTION
    once, layers, head = (
        planning.training_flops(config, lora, ComputeSettings(**settings), 24)
        for settings in ({}, {"checkpoints_layers": True}, {"logits_tokens": 8})
    )
    of_head, of_adapters = 2 * 90 * 48, 2 * planning.lora_parameters(config, lora)
    assert head - once == of_head
    assert layers - once == planning.forward_flops(config, 24) - of_head + of_adapters


def test_decoding_by_hand(large):
    config, gpu = planning.architecture(large), planning.GPUS["H100 SXM"]
    low, typical, high = planning.decoding_hours(
        config, large.compute, gpu, completions=640, batch=64, prompt=150, answer=1000
    )
    step = (8_044_936_192 + 64 * 650 * 147_456) / (3.35e12 * 0.5)
    assert typical == pytest.approx(640 * 1000 / 64 * step / 3600), "ten thousand steps of 8.5 ms"
    assert low == pytest.approx(typical * 0.5 / 0.7)
    assert high == pytest.approx(typical * 0.5 / 0.3)
    slower = large.compute.model_copy(update={"engine": "transformers"})
    _, waiting, _ = planning.decoding_hours(config, slower, gpu, 640, 64, 150, 1000)
    assert waiting == pytest.approx(typical + 10_000 * 36e-3 / 3600)


# --- the plan -------------------------------------------------------------------------------------


def test_the_plan_of_a_run_by_hand(large):
    table = planning.plan(large, large.runs["sft"])
    assert list(table.item.unique()) == ["train sft", "evaluate sft"]
    row = table[(table.item == "train sft") & (table.gpu == "H100 SXM")].iloc[0]
    assert row.weights_gb == pytest.approx(8.045, abs=0.001)
    assert row.adapter_gb == pytest.approx(0.377, abs=0.001)
    assert row.activations_gb == pytest.approx(4 * 2198 * 362_280 / 1e9), "four rows of the longest"
    assert row.logits_gb == pytest.approx(2048 * 151936 * 10 / 1e9)
    terms = row.weights_gb + row.adapter_gb + row.activations_gb + row.logits_gb
    assert row.total_gb == pytest.approx(2 + 1.05 * terms)
    assert row.fits
    assert row.tokens == 1500 * 32 * 1174
    matrices, head = 2 * 36 * 100_925_440, 2 * 151936 * 2560
    attention, adapters = 4 * 36 * 4096 * 1174 / 2, 2 * 23_592_960
    flops = 3 * matrices + 3 * head + 4.5 * attention + 4 * adapters
    assert row.hours == pytest.approx(row.tokens * flops / (989e12 * 0.35) / 3600)
    assert row.hours_low < row.hours < row.hours_high


def test_a_whole_profile_has_its_stages_and_a_servers_price(large):
    table = planning.plan(large)
    assert list(table.item.unique())[:3] == ["rollouts", "base log-probabilities", "train sft"]
    written = table[table.item == "rollouts"].iloc[0]
    assert written.gpu == "none"
    assert written.dollars == pytest.approx(6400 * (150 * 1 + 1024 * 2) / 1e6)
    assert "14 dollars" in planning.plan_text(large)
    tokens = table.drop_duplicates("item").set_index("item").tokens
    assert tokens["train dpo"] == 2 * tokens["train sft"]


def test_the_hint_names_the_fewest_changes_that_fit(large):
    loose = with_compute(large, checkpoints_layers=False, logits_tokens=None)
    run = loose.runs["sft"].model_copy(update={"accumulation": 1})
    last = [
        line
        for line in planning.plan_text(loose, run).splitlines()
        if line.startswith("train sft does not fit on H100 SXM")
    ]
    assert last == ["train sft does not fit on H100 SXM: it does with accumulation 16"]
    assert planning.smallest_change(loose, run, 141e9) == "accumulation 8"
    assert planning.smallest_change(loose, run, 24e9) == "checkpoints_layers True, accumulation 16"
    assert planning.smallest_change(loose, run, 8e9) is None
    text = planning.plan_text(large, large.runs["sft"])
    assert "train sft does not fit" not in text.replace("RTX 4090", "")


@pytest.mark.parametrize("name", ["tiny", "smoke", "smollm2-135m"])
def test_existing_profiles_have_a_plan(name):
    profile = profiles.load(name)
    table = planning.plan(profile)
    assert {f"train {run}" for run in profile.main_runs} < set(table.item)
    assert table[table.item != "base log-probabilities"].fits.all(), "made for two CPU cores"
    assert "geometry" in planning.plan_text(profile)
