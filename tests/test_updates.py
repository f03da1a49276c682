"""Updates read from PEFT folders against PEFT's own merged weights, and their geometry against the dense computation."""

import json

import numpy as np
import pytest
import torch

from helpers import geometry, updates


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def merged_minus_base(tiny_model, folder):
    """{weight name: dense update}, made by PEFT itself."""
    from peft import PeftModel
    base = tiny_model().state_dict()
    merged = PeftModel.from_pretrained(tiny_model(), folder).merge_and_unload().state_dict()
    return {name: (merged[name].double() - base[name].double()) for name in base}


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 3}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 7}},
    "both patterns, rslora": {"rank_pattern": {"layers.0.self_attn.q_proj": 3}, "alpha_pattern": {"layers.1.self_attn.v_proj": 9}, "use_rslora": True},
    "a pattern that is a regular expression": {"alpha_pattern": {r"model\.layers\.[1-9]\.self_attn\..*": 9}},
    "a pattern that is only the end of a name": {"alpha_pattern": {"proj": 9}},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_factors_multiply_to_what_peft_merges(case, tiny_model, with_adapter, tmp_path):
    folder = saved(with_adapter(tiny_model(), **OPTIONS[case]), tmp_path / "adapter")
    found, dense = updates.load_update(folder), merged_minus_base(tiny_model, folder)
    changed = {name.removesuffix(".weight") for name, update in dense.items() if update.abs().max() > 0}
    assert set(found) == changed, "modules are named as in the base model, and none is missing"
    for module, factors in found.items():
        product = factors.scale * factors.B @ factors.A
        torch.testing.assert_close(product, dense[module + ".weight"], rtol=1e-5, atol=1e-6, msg=f"{case}: dW of {module} = scale B A")


def test_factors_are_float64(tiny_model, with_adapter, tmp_path):
    factors = next(iter(updates.load_update(saved(with_adapter(tiny_model()), tmp_path / "adapter")).values()))
    assert (factors.A.dtype, factors.B.dtype) == (torch.float64, torch.float64), "Gram matrices square the condition number: float64"


@pytest.mark.parametrize("options", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["q_proj", "embed_tokens"]},
                                     {"trainable_token_indices": [1, 2]}, {"lora_bias": True}], ids=str)
def test_adapters_not_of_the_form_scale_b_a_are_refused(options, tiny_model, with_adapter, tmp_path):
    folder = saved(with_adapter(tiny_model(), **options), tmp_path / "adapter")
    with pytest.raises(ValueError, match="adapter"):
        updates.load_update(folder)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no adapter"):
        updates.load_update(tmp_path)


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="not a plain LoRA adapter"):
        updates.load_update(tmp_path)


SHAPES = {"q_proj": (12, 8), "k_proj": (6, 8), "o_proj": (8, 12)}


def random_update(seed, rank=3):
    generator = torch.Generator().manual_seed(seed)
    return {module: updates.Factors(torch.randn(out, rank, generator=generator).double(), torch.randn(rank, into, generator=generator).double(), 0.5 + seed)
            for module, (out, into) in SHAPES.items()}


def dense(update):
    return np.concatenate([(factors.scale * factors.B @ factors.A).numpy().ravel() for factors in update.values()])


def test_inner_product_and_cosines_are_those_of_the_dense_updates():
    chosen = {"a": random_update(0), "b": random_update(1, rank=2), "c": random_update(2)}
    stacked = np.array([dense(update) for update in chosen.values()])
    unit = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    np.testing.assert_allclose(geometry.cosine_matrix(chosen), unit @ unit.T, rtol=1e-10, atol=1e-12, err_msg="cosine of all modules stacked")
    for module in SHAPES:
        one, two = (chosen[name][module] for name in "ab")
        expected = ((one.scale * one.B @ one.A) * (two.scale * two.B @ two.A)).sum().item()
        assert geometry.inner(one, two) == pytest.approx(expected, rel=1e-12), f"<dW1, dW2> of {module}"


def test_cosines_do_not_depend_on_the_gauge():
    torch.manual_seed(5)
    first, second = random_update(0), random_update(1)
    turned = {}
    for module, factors in first.items():
        change = torch.randn(3, 3).double() + 2 * torch.eye(3).double()
        turned[module] = updates.Factors(factors.B @ change, torch.linalg.inv(change) @ factors.A, factors.scale)
    plain, other = geometry.cosine_matrix({"a": first, "b": second}), geometry.cosine_matrix({"a": turned, "b": second})
    np.testing.assert_allclose(other, plain, rtol=1e-9, err_msg="(B M, M^-1 A) is the same update")
    assert geometry.cosine_matrix({"a": first, "t": turned})[0, 1] == pytest.approx(1, abs=1e-12), "an update is parallel to itself in another gauge"


def test_cosine_sees_direction_only():
    update = random_update(0)
    scaled = {module: updates.Factors(factors.B, factors.A, -3 * factors.scale) for module, factors in update.items()}
    np.testing.assert_allclose(geometry.cosine_matrix({"a": update, "b": scaled}), [[1, -1], [-1, 1]], rtol=1e-12, err_msg="cos(dW, -3 dW) = -1")


def test_a_zero_update_has_no_direction():
    zero = {module: updates.Factors(0 * factors.B, factors.A, factors.scale) for module, factors in random_update(0).items()}
    cosines = geometry.cosine_matrix({"a": random_update(1), "zero": zero})
    assert np.isnan(cosines[:, 1]).all(), "the cosine with a zero update is undefined"
    assert np.isnan(cosines[1]).all(), "the cosine of a zero update is undefined"
    assert cosines[0, 0] == pytest.approx(1), "the others keep theirs"


def test_updates_of_different_modules_are_refused_naming_one():
    short = {module: factors for module, factors in random_update(1).items() if module != "k_proj"}
    with pytest.raises(ValueError, match="b and a have different modules, for example k_proj"):
        geometry.cosine_matrix({"a": random_update(0), "b": short})
