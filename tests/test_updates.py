"""Updates read from PEFT folders, combined and put into a model, against PEFT's own merged weights
and the dense computation."""

import json

import numpy as np
import pytest
import torch
from conftest import fill_adapter
from peft import LoraConfig, PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from adapter_geometry import adapters, geometry, updates
from adapter_geometry.adapters import AdapterError, common_modules, export_adapter, load_update
from adapter_geometry.updates import Factors


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def merged_minus_base(tiny_model, folder):
    """{weight name: dense update}, computed by PEFT itself."""
    base = tiny_model().state_dict()
    merged = PeftModel.from_pretrained(tiny_model(), folder).merge_and_unload().state_dict()
    return {name: (merged[name].double() - base[name].double()) for name in base}


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 3}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 7}},
    "both patterns, rslora": {
        "rank_pattern": {"layers.0.self_attn.q_proj": 3},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 9},
        "use_rslora": True,
    },
    "a pattern that is a regular expression": {
        "alpha_pattern": {r"model\.layers\.[1-9]\.self_attn\..*": 9}
    },
    "a pattern that is only the end of a name": {"alpha_pattern": {"proj": 9}},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_factors_multiply_to_what_peft_merges(case, tiny_model, with_adapter, tmp_path):
    folder = saved(with_adapter(tiny_model(), **OPTIONS[case]), tmp_path / "adapter")
    update, dense = load_update(folder), merged_minus_base(tiny_model, folder)
    changed = {
        name.removesuffix(".weight") for name, change in dense.items() if change.abs().max() > 0
    }
    assert set(update) == changed, "modules are named as in the base model, and none is missing"
    for module, factors in update.items():
        product = factors.scale * factors.B.double() @ factors.A.double()
        torch.testing.assert_close(
            product,
            dense[module + ".weight"],
            rtol=1e-5,
            atol=1e-6,
            msg=f"{case}: dW of {module} = scale B A",
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_factors_keep_the_precision_in_which_they_are_stored(
    dtype, tiny_model, with_adapter, tmp_path
):
    model = with_adapter(tiny_model()).to(dtype)
    update = load_update(saved(model, tmp_path / "adapter"))
    for module, factors in update.items():
        assert (factors.A.dtype, factors.B.dtype) == (dtype, dtype), (
            "144 modules in float64 would take twice the memory and say no more"
        )
        layer = model.base_model.model.get_submodule(module)
        assert torch.equal(factors.B, layer.lora_B["default"].weight), (
            f"B of {module} is read as it is"
        )


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": [1, 2]},
        {"lora_bias": True},
        {"alora_invocation_tokens": [1, 2]},
    ],
    ids=str,
)
def test_adapters_not_of_the_form_scale_b_a_are_refused(
    options, tiny_model, with_adapter, tmp_path
):
    folder = saved(with_adapter(tiny_model(), **options), tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter"):
        load_update(folder)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_adapters_whose_initialisation_changed_the_base_are_refused(
    start, tiny_model, with_adapter, tmp_path
):
    folder = saved(with_adapter(tiny_model(), init_lora_weights=start), tmp_path / "adapter")
    with pytest.raises(ValueError, match=f"init_lora_weights is '{start}'"):
        load_update(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    merged = merged_minus_base(tiny_model, folder)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": True}))
    for module, factors in load_update(folder).items():
        product = factors.scale * factors.B.double() @ factors.A.double()
        assert (product - merged[module + ".weight"]).norm() > 0.1 * product.norm(), (
            "the reason: scale B A is not what PEFT adds to W0"
        )


@pytest.mark.parametrize("start", ["gaussian", "orthogonal"])
def test_adapters_initialised_in_ways_that_leave_the_base_alone_are_read(
    start, tiny_model, with_adapter, tmp_path
):
    folder = saved(with_adapter(tiny_model(), init_lora_weights=start), tmp_path / "adapter")
    merged = merged_minus_base(tiny_model, folder)
    for module, factors in load_update(folder).items():
        torch.testing.assert_close(
            factors.scale * factors.B.double() @ factors.A.double(),
            merged[module + ".weight"],
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no adapter"):
        load_update(tmp_path)


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="peft_type is 'IA3'"):
        load_update(tmp_path)


SHAPES = {"q_proj": (12, 8), "k_proj": (6, 8), "o_proj": (8, 12)}


def random_update(seed, rank=3):
    generator = torch.Generator().manual_seed(seed)
    return {
        module: Factors(
            torch.randn(out, rank, generator=generator).double(),
            torch.randn(rank, into, generator=generator).double(),
            0.5 + seed,
        )
        for module, (out, into) in SHAPES.items()
    }


def dense(update):
    return np.concatenate(
        [(factors.scale * factors.B @ factors.A).numpy().ravel() for factors in update.values()]
    )


def as_matrices(update):
    return {
        module: (factors.scale * factors.B.double() @ factors.A.double()).numpy()
        for module, factors in update.items()
    }


def in_another_gauge(update, seed=5):
    """The same update as (B M, M^-1 A)."""
    generator, changed = torch.Generator().manual_seed(seed), {}
    for module, factors in update.items():
        M = torch.randn(3, 3, generator=generator).double() + 2 * torch.eye(3).double()
        B, A = factors.B @ M, torch.linalg.inv(M) @ factors.A
        changed[module] = Factors(B, A, factors.scale)
    return changed


def test_inner_product_and_norm_are_those_of_the_dense_updates():
    first, second = random_update(0), random_update(1, rank=2)
    for module in SHAPES:
        expected = (as_matrices(first)[module] * as_matrices(second)[module]).sum()
        assert updates.inner(first[module], second[module]) == pytest.approx(expected, rel=1e-12), (
            f"<dW1, dW2> of {module}"
        )
    assert updates.norm(first) == pytest.approx(np.linalg.norm(dense(first)), rel=1e-12), (
        "norm of all modules stacked"
    )


def test_inner_product_of_half_precision_factors_is_taken_in_float64():
    one = Factors(
        torch.full((300, 2), 1.0, dtype=torch.bfloat16),
        torch.full((2, 300), 1.0, dtype=torch.bfloat16),
        1.0,
    )
    assert updates.inner(one, one) == 4 * 300**2, "in bfloat16 a sum of 300 ones is not 300"


def test_norm_and_cosines_do_not_depend_on_the_gauge():
    first, second = random_update(0), random_update(1)
    assert updates.norm(in_another_gauge(first)) == pytest.approx(updates.norm(first), rel=1e-10), (
        "(B M, M^-1 A) is the same update"
    )
    cosines, _ = geometry.stacked_cosine(
        geometry.compare({"a": first, "t": in_another_gauge(first), "b": second})
    )
    assert cosines[1, 2] == pytest.approx(cosines[0, 2], rel=1e-9), (
        "its cosine with another is the same"
    )
    assert cosines[0, 1] == pytest.approx(1, abs=1e-12), (
        "an update is parallel to itself in another gauge"
    )


def test_cosine_sees_direction_only():
    update = random_update(0)
    scaled = {
        module: Factors(factors.B, factors.A, -3 * factors.scale)
        for module, factors in update.items()
    }
    cosines, _ = geometry.stacked_cosine(geometry.compare({"a": update, "b": scaled}))
    np.testing.assert_allclose(
        cosines, [[1, -1], [-1, 1]], rtol=1e-12, err_msg="cos(dW, -3 dW) = -1"
    )


def test_a_zero_update_has_no_norm_and_no_direction():
    zero = {
        module: Factors(0 * factors.B, factors.A, factors.scale)
        for module, factors in random_update(0).items()
    }
    assert updates.norm(zero) == 0
    cosines, _ = geometry.stacked_cosine(geometry.compare({"a": random_update(1), "zero": zero}))
    assert np.isnan(cosines[:, 1]).all(), "the cosine with a zero update is undefined"
    assert cosines[0, 0] == pytest.approx(1), "the others keep theirs"


# --- combining and putting ------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1, 0), (-1, 2), (0.3, 0.0)], ids=str)
def test_combining_is_the_weighted_sum_of_the_dense_updates(weights):
    first, second = random_update(0), random_update(1, rank=2)
    total = as_matrices(updates.combine([first, second], weights))
    for module in SHAPES:
        expected = (
            weights[0] * as_matrices(first)[module] + weights[1] * as_matrices(second)[module]
        )
        np.testing.assert_allclose(
            total[module], expected, rtol=1e-12, atol=1e-12, err_msg=f"w1 dW1 + w2 dW2 of {module}"
        )
    three = updates.combine([first, second, first], [1, 1, -1])
    np.testing.assert_allclose(
        dense(three),
        dense(second),
        atol=1e-12,
        err_msg="any number of updates; what cancels is gone",
    )


def test_combining_does_not_depend_on_the_gauge():
    first, second = random_update(0), random_update(1)
    plain, other = (
        updates.combine([update, second], [0.5, 0.5]) for update in (first, in_another_gauge(first))
    )
    np.testing.assert_allclose(
        dense(other),
        dense(plain),
        rtol=1e-9,
        atol=1e-10,
        err_msg="the middle of two updates is no matter of their factors",
    )


def two_adapters(tiny_model, with_adapter, tmp_path):
    """A PEFT model with adapters "default" and "second", and both as updates."""
    first = saved(with_adapter(tiny_model()), tmp_path / "first")
    torch.manual_seed(1)
    other = with_adapter(tiny_model(), lora_alpha=6)
    second = saved(fill_adapter(other, seed=9), tmp_path / "second")
    model = PeftModel.from_pretrained(tiny_model(), first)
    model.load_adapter(second, "second")
    return model, load_update(first), load_update(second)


def test_combining_is_what_peft_calls_cat_and_not_what_it_calls_linear(
    tiny_model, with_adapter, tmp_path
):
    model, first, second = two_adapters(tiny_model, with_adapter, tmp_path)
    half_the_sum = updates.combine([first, second], [0.5, 0.5])
    for kind in ("cat", "linear"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], kind, combination_type=kind)
    for module, factors in half_the_sum.items():
        layer = model.base_model.model.get_submodule(module)
        exact, linear = (
            layer.get_delta_weight("cat").double(),
            layer.get_delta_weight("linear").double(),
        )
        product = factors.scale * factors.B.double() @ factors.A.double()
        torch.testing.assert_close(
            product, exact, rtol=1e-5, atol=1e-6, msg=f"half the sum of both updates of {module}"
        )
        assert (linear - exact).norm() > 0.3 * exact.norm(), (
            "(B1 + B2)(A1 + A2) / 4 has products of B of one with A of the other"
        )


def test_a_model_with_an_update_put_in_is_the_one_peft_merges(tiny_model, with_adapter, tmp_path):
    folder = saved(
        with_adapter(tiny_model(), rank_pattern={"v_proj": 3}, use_rslora=True),
        tmp_path / "adapter",
    )
    update, model = load_update(folder), tiny_model()
    untouched = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights = updates.weights_of(model, update)
    updates.put(model, weights, update)
    merged = PeftModel.from_pretrained(tiny_model(), folder).merge_and_unload().state_dict()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(
            weight, merged[name], rtol=1e-6, atol=1e-6, msg=f"{name} is W0 + scale B A"
        )
    updates.put(model, weights, update)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(
            weight,
            merged[name],
            rtol=1e-6,
            atol=1e-6,
            msg="an update put in twice is put in once: W0 is that of `weights`",
        )
    updates.put(model, weights, updates.combine([update], [0.0]))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, untouched[name]), (
            "the update times 0 gives the base model back, to the last bit"
        )


def test_norms_of_weights_are_frobenius_norms(tiny_model):
    model, modules = tiny_model(), ["model.layers.0.self_attn.q_proj", "lm_head"]
    norms = updates.norms_of(updates.weights_of(model, modules))
    assert norms == {
        module: pytest.approx(np.linalg.norm(model.get_submodule(module).weight.numpy()), rel=1e-6)
        for module in modules
    }


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", (3, "q_proj")),
        ("transformer.h.11.attn.c_attn", (11, "c_attn")),
        ("lm_head", (None, "lm_head")),
    ],
)
def test_layer_and_projection_are_read_from_the_name(module, expected):
    assert updates.layer_and_projection(module) == expected


# --- real adapters: half precision, GPT-2, other modules ------------------------------------------


@pytest.fixture
def tiny_gpt():
    """Make a random GPT-2, whose Conv1D modules store their weights as (d_in, d_out); c_proj is
    square."""

    def make():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=40,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        return GPT2LMHeadModel(config).eval().requires_grad_(False)

    return make


GPT = {
    "target_modules": ["c_attn", "c_proj"],
    "fan_in_fan_out": True,
    "rank_pattern": {"c_attn": 3},
    "use_rslora": True,
}
PROMPT = torch.arange(30).reshape(2, 15)


def logits(model):
    with torch.no_grad():
        return model(PROMPT).logits


def with_dense(model, update):
    """The model with dW, formed densely in float64, added to its weights."""
    for module, factors in update.items():
        product = factors.scale * factors.B.double() @ factors.A.double()
        weight = model.get_submodule(module).weight
        weight.data = (weight.double() + (product.T if factors.is_transposed else product)).float()
    return model


def test_an_update_of_weights_stored_transposed_is_the_one_peft_merges(
    tiny_gpt, with_adapter, tmp_path
):
    folder = saved(with_adapter(tiny_gpt(), **GPT), tmp_path / "adapter")
    update, model = load_update(folder), tiny_gpt()
    base, merged = (
        model.state_dict(),
        PeftModel.from_pretrained(tiny_gpt(), folder).merge_and_unload().state_dict(),
    )
    assert len(update) == 6, (
        "attention's c_attn and c_proj and the c_proj of the block behind it, in two layers"
    )
    for module, factors in update.items():
        assert (factors.B.shape[0], factors.A.shape[1]) == tuple(
            base[module + ".weight"].shape[::-1]
        ), "dW is (d_out, d_in) all the same"
        product = factors.scale * factors.B.double() @ factors.A.double()
        expected = (merged[module + ".weight"].double() - base[module + ".weight"].double()).T
        torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-6, msg=f"dW of {module}")
    weights = updates.weights_of(model, update)
    forms = {
        "the update": update,
        "half of it twice": updates.combine([update, update], [0.5, 0.5]),
        "compressed": updates.compress(update, 3)[0],
    }
    for name, changed in forms.items():
        updates.put(model, weights, changed)
        for key, weight in model.state_dict().items():
            torch.testing.assert_close(
                weight, merged[key], rtol=1e-5, atol=1e-6, msg=f"{name}, put in: {key}"
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_factors_multiply_to_what_peft_merges(
    dtype, tiny_model, with_adapter, tmp_path
):
    model = with_adapter(tiny_model(), rank_pattern={"v_proj": 3})
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(dtype)
    folder = saved(model, tmp_path / "adapter")
    update, merged = load_update(folder), merged_minus_base(tiny_model, folder)
    for module, factors in update.items():
        assert factors.A.dtype == factors.B.dtype == dtype, "as stored"
        product = factors.scale * factors.B.double() @ factors.A.double()
        torch.testing.assert_close(
            product,
            merged[module + ".weight"],
            rtol=1e-5,
            atol=1e-6,
            msg=f"dW of {module}, exact in any wider type",
        )


def test_adapters_of_different_modules_have_those_of_both_in_common(
    tiny_model, with_adapter, tmp_path
):
    loaded = {
        "attention": load_update(saved(with_adapter(tiny_model()), tmp_path / "a")),
        "more": load_update(
            saved(with_adapter(tiny_model(), target_modules=["q_proj", "up_proj"]), tmp_path / "b")
        ),
    }
    common, left_out = common_modules(loaded)
    queries = {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}
    assert set(common["attention"]) == set(common["more"]) == queries
    assert left_out == {
        "attention": [f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)],
        "more": [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)],
    }
    assert common["more"][min(queries)] is loaded["more"][min(queries)], (
        "their factors are as they were"
    )
    random_head = {"lm_head": random_update(0)["q_proj"]}
    with pytest.raises(
        AdapterError, match=r"no module is common .* attention has .*q_proj, none has lm_head"
    ):
        common_modules({"attention": loaded["attention"], "none": random_head})


# --- compressing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_compressing_gives_the_best_approximation_and_says_what_is_lost(rank):
    """The theorem of Eckart & Young (1936)."""
    update = updates.combine([random_update(0), random_update(1, rank=2)], [1.0, -0.5])
    compressed, lost = updates.compress(update, rank)
    dropped, total = 0.0, 0.0
    for module, matrix in as_matrices(update).items():
        U, sigma, Vh = np.linalg.svd(matrix, full_matrices=False)
        np.testing.assert_allclose(
            as_matrices(compressed)[module],
            U[:, :rank] * sigma[:rank] @ Vh[:rank],
            rtol=1e-9,
            atol=1e-10,
            err_msg=f"{module}: the truncated SVD, which no matrix of rank {rank} is nearer than",
        )
        assert compressed[module].B.shape[1] == compressed[module].A.shape[0] == rank
        dropped, total = dropped + (sigma[rank:] ** 2).sum(), total + (sigma**2).sum()
    assert lost == pytest.approx(dropped / total, rel=1e-9), (
        "share of the squared norm, all modules stacked"
    )


def test_compressing_to_the_full_rank_loses_nothing():
    update = updates.combine([random_update(0), random_update(1, rank=2)], [1.0, -0.5])
    for rank in (5, 30):
        compressed, lost = updates.compress(update, rank)
        assert lost == 0, "not a rounding error above or below"
        np.testing.assert_allclose(dense(compressed), dense(update), rtol=1e-9, atol=1e-10)
        assert max(factors.A.shape[0] for factors in compressed.values()) == 5, (
            "nor is the rank more than there was"
        )
    twice, lost = updates.compress(
        updates.combine([random_update(0), random_update(0)], [1.0, 1.0]), 3
    )
    assert lost == pytest.approx(0, abs=1e-25), "a sum of rank 6 in name is of rank 3"
    np.testing.assert_allclose(dense(twice), 2 * dense(random_update(0)), rtol=1e-9, atol=1e-10)


def test_a_small_loss_keeps_its_digits_and_a_zero_update_loses_nothing():
    rng = np.random.default_rng(0)
    (U, _), (V, _) = (np.linalg.qr(rng.standard_normal((12, 2))) for _ in range(2))
    planted = {"q_proj": Factors(torch.tensor(U * [1.0, 1e-7]), torch.tensor(V.T), 3.0)}
    assert updates.compress(planted, 1)[1] == pytest.approx(1e-14, rel=1e-6, abs=0), (
        "1e-14 of the squared norm, not 1 - 0.99999999999999"
    )
    nothing, lost = updates.compress(
        {"q_proj": Factors(torch.zeros(12, 2), torch.ones(2, 8), 1.0)}, 1
    )
    assert lost == 0
    assert (nothing["q_proj"].B @ nothing["q_proj"].A == 0).all()


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compressed", [False, True], ids=["as it is", "compressed to its full rank"]
)
def test_an_exported_sum_gives_the_logits_of_the_dense_sum_and_what_peft_calls_linear_does_not(
    compressed, tiny_model, with_adapter, tmp_path
):
    model, first, second = two_adapters(tiny_model, with_adapter, tmp_path)
    total = updates.combine([first, second], [0.7, 0.3])
    expected, base = logits(with_dense(tiny_model(), total)), logits(tiny_model())
    change = (expected - base).norm()
    if compressed:
        total, lost = updates.compress(total, 4)
        assert lost == pytest.approx(0, abs=1e-12)
    loaded = PeftModel.from_pretrained(
        tiny_model(), export_adapter(total, tmp_path / "sum", base="a/base")
    )
    assert (logits(loaded) - expected).norm() < 1e-5 * change, "loaded by PEFT it is the sum"
    model.add_weighted_adapter(
        ["default", "second"], [0.7, 0.3], "linear", combination_type="linear"
    )
    model.set_adapter("linear")
    assert (logits(model) - expected).norm() > 0.2 * change, (
        "adding A and B separately misses more than a fifth of what the sum changes"
    )
    assert (
        json.loads((tmp_path / "sum" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        == "a/base"
    )


def test_an_exported_update_is_read_again_as_it_was(tiny_model, with_adapter, tmp_path):
    options = {
        "rank_pattern": {"layers.0.self_attn.q_proj": 3, "v_proj": 1},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 9},
        "use_rslora": True,
    }
    update = load_update(saved(with_adapter(tiny_model(), **options), tmp_path / "adapter"))
    again = load_update(export_adapter(update, tmp_path / "again"))
    assert {module: factors.A.shape[0] for module, factors in again.items()} == {
        module: factors.A.shape[0] for module, factors in update.items()
    }
    assert len({factors.A.shape[0] for factors in again.values()}) == 3, (
        "ranks that differ between modules stay as they are"
    )
    for module, matrix in as_matrices(update).items():
        np.testing.assert_allclose(
            as_matrices(again)[module], matrix, rtol=1e-6, atol=1e-7, err_msg=f"dW of {module}"
        )
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "again")
    torch.testing.assert_close(
        logits(loaded),
        logits(with_dense(tiny_model(), update)),
        rtol=1e-4,
        atol=1e-4,
        msg="and PEFT reads the same ranks",
    )


def test_an_exported_update_of_gpt_2_gives_its_logits(tiny_gpt, with_adapter, tmp_path):
    update = load_update(saved(with_adapter(tiny_gpt(), **GPT), tmp_path / "adapter"))
    total = updates.combine([update, update], [1.0, -0.4])
    loaded = PeftModel.from_pretrained(tiny_gpt(), export_adapter(total, tmp_path / "sum"))
    torch.testing.assert_close(
        logits(loaded), logits(with_dense(tiny_gpt(), total)), rtol=1e-4, atol=1e-4
    )


def test_an_export_that_is_cut_short_leaves_the_adapter_that_was_there(tmp_path, monkeypatch):
    before, after = (
        {f"model.layers.0.{module}": factors for module, factors in random_update(seed).items()}
        for seed in (0, 1)
    )
    folder = export_adapter(before, tmp_path / "adapter")

    def killed(*args, **options):
        raise KeyboardInterrupt

    for owner, name in ((adapters, "save_file"), (LoraConfig, "save_pretrained")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(KeyboardInterrupt):
                export_adapter(after, folder)
        np.testing.assert_allclose(
            dense(load_update(folder)),
            dense(dict(sorted(before.items()))),
            rtol=1e-5,
            err_msg=f"cut short in {name}",
        )
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "and nothing half-written"
    export_adapter(after, folder)
    np.testing.assert_allclose(
        dense(load_update(folder)),
        dense(dict(sorted(after.items()))),
        rtol=1e-5,
        err_msg="an export that ends replaces it",
    )


def test_an_export_into_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        AdapterError, match=r"results holds more than an exported adapter, for example thesis\.txt"
    ):
        export_adapter(random_update(0), tmp_path / "results")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["thesis.txt"]
