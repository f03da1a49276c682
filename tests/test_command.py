"""The command `adapter-geometry`: what it prints, refuses and returns, and that what it writes is
loaded by PEFT as what was asked for."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adapter_geometry import chance, cli, conversion, inspection, logit_lens
from adapter_geometry.adapters import load
from adapter_geometry.base_weights import BaseWeights
from adapter_geometry.updates import Factors, combine, norm

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
COMMANDS = ["compare", "inspect", "combine", "compress", "export"]


def causal():
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        tie_word_embeddings=False,
        initializer_range=0.5,
    )
    return Qwen3ForCausalLM(config)


def encoder():
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return BertModel(config)


def encoder_decoder():
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5ForConditionalGeneration(config)


def experts():
    config = Qwen3MoeConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
        moe_intermediate_size=12,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return Qwen3MoeForCausalLM(config)


class Convolution(nn.Module):
    """An image of 6 x 6 with two channels, to tokens."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 3)
        self.out = nn.Linear(8, 4)


def made(model, seed=0):
    """A model with the weights that this seed gives."""
    torch.manual_seed(seed)
    return model().eval().requires_grad_(False)


MODELS = {
    "causal": (causal, {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}),
    "encoder": (encoder, {"target_modules": ["query", "dense"], "task_type": "FEATURE_EXTRACTION"}),
    "encoder-decoder": (
        encoder_decoder,
        {"target_modules": ["q", "wo"], "task_type": "SEQ_2_SEQ_LM"},
    ),
    "embedding": (causal, {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "convolution": (Convolution, {"target_modules": ["patches", "out"]}),
    "experts": (
        experts,
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
}


def saved(folder, model, seed=0, **options):
    """The folder of a LoRA adapter with random factors, saved by PEFT."""
    torch.manual_seed(seed)
    options = {"r": 2 + seed, "lora_alpha": 3, "init_lora_weights": False, **options}
    adapter = get_peft_model(made(model), LoraConfig(**options))
    adapter.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged(model, folder):
    """{name: what the adapter of a folder changes of a weight}, by PEFT itself, in float64."""
    plain = made(model).double().state_dict()
    loaded = PeftModel.from_pretrained(made(model).double(), folder)
    return {
        name: weight - plain[name]
        for name, weight in loaded.merge_and_unload().state_dict().items()
    }


def assert_equal(found, expected, tolerance=1e-6):
    """Two changes of a model's weights agree, and something is changed."""
    size = max(float(change.norm()) for change in expected.values())
    assert size > 0.1, "the adapter does something"
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert float((found[name] - change).norm()) < tolerance * size, f"the update of {name}"


def run(*arguments):
    """The command in this process; returns its exit code."""
    try:
        cli.main(list(map(str, arguments)))
    except SystemExit as stopped:
        return stopped.code
    return 0


def refused(capsys, *arguments):
    """The one line with which the command refuses."""
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "", "nothing is printed of what failed"
    assert len(err.splitlines()) == 1, f"one line and no traceback: {err}"
    assert err.startswith("error: ")
    return err


def process(*arguments, **options):
    """The command as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "adapter_geometry", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


# --- what is written is what PEFT loads -----------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_an_exported_adapter_is_loaded_by_peft_as_the_one_that_was_read(kind, tmp_path, capsys):
    model, options = MODELS[kind]
    folder = saved(tmp_path / "adapter", model, **options)
    assert run("export", tmp_path / "plain", folder) == 0
    assert_equal(merged(model, tmp_path / "plain"), merged(model, folder))
    config = json.loads((tmp_path / "plain" / CONFIG).read_text())
    assert config["task_type"] == options.get("task_type"), "that of the adapter, or none"


@pytest.mark.parametrize("kind", MODELS)
def test_a_combined_adapter_is_loaded_by_peft_as_the_weighted_sum(kind, tmp_path, capsys):
    model, options = MODELS[kind]
    first, second = (saved(tmp_path / str(seed), model, seed, **options) for seed in (0, 1))
    weights = ("--weights", ".5", "-1.25")
    assert run("combine", tmp_path / "sum", first, second, *weights) == 0
    one, two = merged(model, first), merged(model, second)
    assert_equal(
        merged(model, tmp_path / "sum"), {name: 0.5 * one[name] - 1.25 * two[name] for name in one}
    )


@pytest.mark.parametrize("kind", ["causal", "encoder", "encoder-decoder", "experts"])
def test_a_compressed_adapter_is_the_best_approximation_and_the_loss_is_printed(
    kind, tmp_path, capsys
):
    model, options = MODELS[kind]
    folder = saved(tmp_path / "adapter", model, 2, **options)
    assert run("compress", tmp_path / "small", folder, "--rank", "1") == 0
    exact, dropped, total = merged(model, folder), 0.0, 0.0
    expected = {}
    for name, change in exact.items():
        expected[name] = change
        if change.ndim < 2 or not change.any():
            continue
        U, sigma, Vh = torch.linalg.svd(change, full_matrices=False)
        expected[name] = U[..., :1] * sigma[..., None, :1] @ Vh[..., :1, :]
        dropped += float((sigma[..., 1:] ** 2).sum())
        total += float((sigma**2).sum())
    assert_equal(merged(model, tmp_path / "small"), expected)
    lost = re.search(r"rank 1, (\S+) of the squared norm is lost", capsys.readouterr().out)
    assert float(lost.group(1)) == pytest.approx(dropped / total, rel=1e-2)


def test_a_sum_has_the_digits_of_float32_where_the_factors_have_those_of_bfloat16(tmp_path, capsys):
    folder = saved(tmp_path / "adapter", causal, target_modules=["q_proj"])
    stored = {name: factor.bfloat16() for name, factor in load_file(folder / WEIGHTS).items()}
    save_file(stored, folder / WEIGHTS)
    assert run("combine", tmp_path / "third", folder, "--weights", 1 / 3) == 0
    exact, third = load(folder).update, load(tmp_path / "third").update
    error = combine([third, _in_float64(exact)], [1.0, -1 / 3])
    assert norm(error) < 1e-6 * norm(third), "a third of B in bfloat16 is off by 1e-3"


def _in_float64(update):
    return {
        module: Factors(part.B.double(), part.A.double(), part.scale)
        for module, part in update.items()
    }


def test_modules_that_one_adapter_lacks_count_as_zero_and_are_named(tmp_path, capsys):
    first = saved(tmp_path / "q", causal, target_modules=["q_proj"])
    second = saved(tmp_path / "qv", causal, 1, target_modules=["q_proj", "v_proj"])
    assert run("combine", tmp_path / "sum", first, second, "--weights", "1", "1") == 0
    *notes, written = capsys.readouterr().out.splitlines()
    assert notes == ["q: 2 of 4 modules have no update here and count as zero"]
    assert written.startswith(f"{tmp_path / 'sum'}: 4 modules of rank 3 to 5")
    one, two = merged(causal, first), merged(causal, second)
    assert_equal(merged(causal, tmp_path / "sum"), {name: one[name] + two[name] for name in one})


def test_modules_that_savers_call_otherwise_are_added_as_the_same(tmp_path, capsys):
    first, second = (
        saved(tmp_path / str(seed), causal, seed, target_modules=["q_proj"]) for seed in (0, 1)
    )
    one, two = merged(causal, first), merged(causal, second)
    named = load_file(second / WEIGHTS)  # as of the model without its head
    save_file(
        {name.replace(".model.model.", ".model."): factor for name, factor in named.items()},
        second / WEIGHTS,
    )
    assert run("combine", tmp_path / "sum", first, second, "--weights", "1", "1") == 0
    assert "called otherwise than in 0 and taken for the same" in capsys.readouterr().out
    assert_equal(merged(causal, tmp_path / "sum"), {name: one[name] + two[name] for name in one})


def test_an_adapter_may_be_added_to_itself(tmp_path, capsys):
    folder = saved(tmp_path / "a", causal, target_modules=["q_proj"])
    assert run("combine", tmp_path / "sum", folder, folder, "--weights", "1", ".5") == 0
    once = merged(causal, folder)
    assert_equal(merged(causal, tmp_path / "sum"), {name: 1.5 * once[name] for name in once})


def test_an_export_loads_on_a_model_of_any_kind_where_no_task_is_named(tmp_path, capsys):
    folder = saved(tmp_path / "a", causal, target_modules=["q_proj"], task_type="CAUSAL_LM")
    other = saved(tmp_path / "b", causal, target_modules=["q_proj"])
    assert run("combine", tmp_path / "sum", folder, other, "--weights", "1", "1") == 0
    assert "differ in task_type (CAUSAL_LM, None): none is written" in capsys.readouterr().out
    config = json.loads((tmp_path / "sum" / CONFIG).read_text())
    assert config["task_type"] is None


def test_ranks_of_modules_whose_names_end_alike_are_told_apart(tmp_path, capsys):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 5)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.tower = nn.Linear(6, 5), Inner()

    options = {"target_modules": ["out"], "rank_pattern": {"tower.out": 4}}
    folder = saved(tmp_path / "adapter", Outer, **options)
    assert run("export", tmp_path / "plain", folder) == 0
    assert_equal(merged(Outer, tmp_path / "plain"), merged(Outer, folder))


def test_names_of_other_savers_are_written_as_peft_reads_them(tmp_path, capsys):
    folder = saved(tmp_path / "adapter", causal, target_modules=["q_proj"])
    expected = merged(causal, folder)
    compiled = {
        name.replace("base_model.model.", "base_model.model._orig_mod."): factor
        for name, factor in load_file(folder / WEIGHTS).items()
    }
    save_file(compiled, folder / WEIGHTS)
    assert run("export", tmp_path / "plain", folder) == 0
    assert "_orig_mod" in capsys.readouterr().out, "said"
    assert_equal(merged(causal, tmp_path / "plain"), expected)


def test_another_kind_is_written_as_plain_lora(tmp_path, capsys):
    made(causal).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["q_proj"], "use_dora": True, "task_type": "CAUSAL_LM"}
    folder = saved(tmp_path / "dora", causal, **options)
    assert run("export", tmp_path / "plain", folder, "--base", tmp_path / "base") == 0
    assert_equal(merged(causal, tmp_path / "plain"), merged(causal, folder), 1e-5)
    assert not json.loads((tmp_path / "plain" / CONFIG).read_text())["use_dora"]


def test_a_whole_model_becomes_an_adapter_and_what_it_loses_is_said(tmp_path, capsys):
    made(causal).save_pretrained(tmp_path / "base")
    tuned, rng = made(causal), torch.Generator().manual_seed(1)
    for weight in tuned.parameters():
        if weight.ndim == 2:
            weight.data += 0.1 * torch.randn(weight.shape, generator=rng)
    tuned.save_pretrained(tmp_path / "tuned")
    arguments = (tmp_path / "tuned", "--base", tmp_path / "base")
    assert run("export", tmp_path / "all", *arguments) == 0
    old, new = made(causal).state_dict(), tuned.state_dict()
    changes = {name: (new[name] - old[name]).double() for name in new}
    assert_equal(merged(causal, tmp_path / "all"), changes, 1e-5)
    capsys.readouterr()
    assert run("inspect", *arguments, "--rank", "2", "--cache", tmp_path / "cache") == 0
    errors = {
        name: float((torch.linalg.svdvals(change)[2:] ** 2).sum().sqrt() / change.norm())
        for name, change in changes.items()
        if change.ndim == 2
    }
    worst = max(errors, key=errors.get)
    said = (
        f"off by up to {errors[worst]:.2g} of the update's norm, in {worst.removesuffix('.weight')}"
    )
    assert said in capsys.readouterr().out, "an approximation is called one"
    energies = [
        torch.linalg.svdvals(change) ** 2 for change in changes.values() if change.ndim == 2
    ]
    lost = sum(float(each[2:].sum()) for each in energies) / sum(float(e.sum()) for e in energies)
    assert run("compress", tmp_path / "some", *arguments, "--rank", "2") == 0
    printed = re.search(r"rank 2, (\S+) of the squared norm is lost", capsys.readouterr().out)
    assert float(printed.group(1)) == pytest.approx(lost, rel=1e-2)


def test_a_loss_counts_what_the_factors_of_a_whole_model_had_lost_already():
    sigma = torch.tensor([4.0, 2.0, 1.0, 0.5])  # a matrix, read as its first three
    squares = sigma**2
    part = Factors(torch.diag(sigma)[:, :3], torch.eye(4)[:3], 1.0)
    error = float((squares[3] / squares.sum()).sqrt())
    loaded = conversion.Loaded({"m": part}, "full model", {}, [], [], {"m": error}, {}, "", None)
    lost_of_factors = float(squares[2] / squares[:3].sum())
    lost = conversion._with_residual(lost_of_factors, loaded)
    assert lost == pytest.approx(float(squares[2:].sum() / squares.sum()), rel=1e-6)


def test_modules_of_a_whole_model_are_named_as_peft_finds_them(tmp_path, capsys):
    def body():
        config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        return GPT2LMHeadModel(config)

    made(body).save_pretrained(tmp_path / "base")
    tuned = made(body)
    tuned.transformer.h[0].attn.c_attn.weight.data += 0.1
    tuned.transformer.wte.weight.data[3] += 1
    tuned.save_pretrained(tmp_path / "tuned")
    for folder in ("base", "tuned"):  # as on the hub, without `transformer.`
        path = tmp_path / folder / "model.safetensors"
        names = {name.removeprefix("transformer."): w for name, w in load_file(path).items()}
        save_file(names, path, metadata={"format": "pt"})
    arguments = (tmp_path / "tuned", "--base", tmp_path / "base")
    assert run("export", tmp_path / "plain", *arguments) == 0
    old, new = made(body).state_dict(), tuned.state_dict()
    changes = {name: (new[name] - old[name]).double() for name in new}
    found = merged(body, tmp_path / "plain")
    assert_equal(found, {name: changes[name] for name in found}, 1e-5)


def test_an_adapter_with_a_head_is_exported_without_it_on_request(tmp_path, capsys):
    def classifier():
        return BertForSequenceClassification(made(encoder).config)

    options = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    folder = saved(tmp_path / "adapter", classifier, **options)
    assert "--lora-only" in refused(capsys, "export", tmp_path / "plain", folder)
    assert run("export", tmp_path / "plain", folder, "--lora-only") == 0
    assert "classifier" in capsys.readouterr().out, "what is left out is named"
    expected = merged(classifier, folder)
    found = merged(classifier, tmp_path / "plain")
    assert_equal(
        {name: change for name, change in found.items() if "classifier" not in name},
        {name: change for name, change in expected.items() if "classifier" not in name},
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("combine", "out", "a", "b", "--weights", "1"), "2 adapters and 1 weights"),
        (("combine", "out", "a", "--weights", "nan"), "not all finite"),
        (("combine", "out", "a", "wide", "--weights", "1", "1"), "24 x 16 in wide"),
        (("combine", "a", "a", "b", "--weights", "1", "1"), "a is what is read"),
        (("combine", "out", "a", "b"), "required: --weights"),
        (("compress", "out", "a"), "required: --rank"),
        (("compress", "out", "a", "--rank", "0"), "'0' is no whole number from 1 on"),
        (("export", "full", "a"), "full holds more than an exported adapter"),
        (("export", "out", "nowhere"), "no adapter at nowhere"),
        (("inspect", "nowhere"), "no adapter at nowhere"),
        (("inspect", "a", "--out", "full"), "full holds more than an inspection"),
        (("inspect", "a", "--out", "."), ". is the folder that the command runs in"),
        (("inspect", "a", "--base", "nowhere"), "no base model in nowhere"),
        (("compare", "a"), "one adapter has nothing"),
        (("compare", "a", "b", "--fail-on", "cosines<1"), "no measure 'cosines'"),
        (("compere", "a", "b"), "invalid choice: 'compere'"),
        ((), "required: COMMAND"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_one_line(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 0), ("b", 1)):
        saved(Path(name), causal, seed, target_modules=["q_proj"])

    def wide():
        config = made(causal).config
        config.num_attention_heads = 3
        return Qwen3ForCausalLM(config)

    saved(Path("wide"), wide, target_modules=["q_proj"])
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("years of work")
    assert message in refused(capsys, *arguments)
    assert Path("full/thesis.txt").read_text() == "years of work"
    assert not Path("out").exists()
    assert load("a").update, "what was read is still there"


# --- one adapter alone ----------------------------------------------------------------------------


def planted(folder, model, change):
    """An adapter whose factors `change` was let loose on, module by module."""
    saved(folder, model, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM")
    weights = load_file(folder / WEIGHTS)
    for name in weights:
        layer = int(re.search(r"layers\.(\d+)", name).group(1))
        weights[name] = change(name, layer, weights[name])
    save_file(weights, folder / WEIGHTS)
    return folder


def deep():
    config = made(causal).config
    changes = {"num_hidden_layers": 12, "layer_types": None}
    return Qwen3ForCausalLM(Qwen3Config(**{**config.to_dict(), **changes}))


def test_dead_and_outlying_modules_are_found_within_their_kind(tmp_path, capsys):
    def change(name, layer, factor):
        if "o_proj.lora_B" in name:
            factor = 50 * factor  # another kind may be of another size
        if "q_proj.lora_B" in name:
            factor = factor * {2: 0, 5: 400}.get(layer, 1)
        return factor

    folder = planted(tmp_path / "adapter", deep, change)
    assert run("inspect", folder, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    q_proj = "model.layers.{}.self_attn.q_proj".format
    assert re.search(rf"dead: 1 of 24 modules .*: {re.escape(q_proj(2))}$", out, re.MULTILINE)
    assert re.search(rf"outlying .* 1 module: {re.escape(q_proj(5))} \([\d.e+]+ times", out)
    table = pd.read_parquet(tmp_path / "out" / "modules.parquet").set_index("module")
    assert table.finding.dropna().to_dict() == {q_proj(2): "dead", q_proj(5): "outlying"}
    update = load(folder).update
    for module, row in table.iterrows():
        part = update[module]
        sigma = np.linalg.svd(part.scale * (part.B.double() @ part.A.double()).numpy())[1]
        assert row.norm == pytest.approx(np.linalg.norm(sigma), rel=1e-9)
        energy = np.cumsum(sigma**2) / (sigma**2).sum() if sigma.any() else np.ones(1)
        used = int((energy < 0.9).sum()) + 1 if sigma.any() else 0
        assert row.rank_90 == used, f"singular values of {module} that hold 90 %"
    csv = pd.read_csv(tmp_path / "out" / "modules.csv")
    assert csv.norm.tolist() == pytest.approx(table.norm.tolist()), "as CSV beside Parquet"


@pytest.mark.parametrize("count", [3, 6, 36])
def test_one_kind_in_a_hundred_has_an_outlier_by_chance(count):
    rng, kinds = np.random.default_rng(1), 2000
    table = pd.DataFrame(
        {
            "stack": np.repeat(np.arange(kinds), count),
            "projection": "q_proj",
            "d_out": 8,
            "d_in": 8,
            "norm": np.exp(2 * rng.standard_normal(kinds * count)),
        }
    )
    found = inspection._unusual(table)["finding"] == "outlying"
    share = found.groupby(table["stack"]).any().mean()
    assert share == pytest.approx(0.01, abs=0.008)
    alike = table.assign(norm=table.norm**0.05)  # all within about a third
    assert inspection._unusual(alike)["finding"].isna().all(), "what is alike has no outliers"


def test_an_adapter_that_is_zero_is_the_first_thing_that_is_said(tmp_path, capsys):
    folder = planted(
        tmp_path / "adapter", causal, lambda name, _, factor: factor * ("lora_A" in name)
    )
    assert run("inspect", folder) == 0
    assert capsys.readouterr().out.startswith("the update is zero in every module")
    assert run("inspect", folder, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["norm"] == 0
    assert {module["finding"] for module in content["modules"]} == {"dead"}
    assert {module["effective_rank"] for module in content["modules"]} == {None}


def based(folder, tokenizer=True):
    """A base model of a folder, with a tokenizer whose token 7 is " seven"."""
    model = made(causal)
    model.model.norm.weight.data = torch.linspace(0.5, 2, 16)
    model.save_pretrained(folder)
    if tokenizer:
        vocabulary = {"[UNK]": 0} | {f"word{number}": number for number in range(1, 36)}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def test_the_logit_lens_names_the_token_that_a_direction_writes(tmp_path, capsys):
    base = based(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    # the direction whose logits, after the norm's gain, are largest for token 7 is the dual one
    gained = weights["lm_head.weight"] * weights["model.norm.weight"]
    centred = gained[:36] - gained[:36].mean(0)
    direction = torch.linalg.pinv(centred)[:, 7]

    def change(name, layer, factor):
        if layer == 1 and "o_proj.lora_B" in name:
            return torch.stack([direction / direction.norm(), 0 * direction], 1)
        return factor

    folder = planted(tmp_path / "adapter", causal, change)
    arguments = (folder, "--base", base, "--cache", tmp_path / "cache")
    assert run("inspect", *arguments, "--out", tmp_path / "out") == 0
    lens = pd.read_parquet(tmp_path / "out" / "lens.parquet")
    written = lens[lens.module == "model.layers.1.self_attn.o_proj"]
    assert set(written["index"]) == {1}, "an update of rank one has one direction"
    first = written.query("end == 'promoted' and place == 1").iloc[0]
    assert first.token == "word7"
    unit = direction / direction.norm()
    assert abs(first.logit) == pytest.approx(float((centred @ unit).abs().max()), rel=1e-4)
    assert set(lens.projection) == {"o_proj"}, "what q_proj writes is not read by the head"
    assert "logit lens:" in capsys.readouterr().out


def test_random_directions_stay_within_the_chance_of_the_lens_as_often_as_is_said(tmp_path):
    unembedding = logit_lens.read_unembedding(BaseWeights(based(tmp_path / "base")))
    rng, beyond, count = torch.Generator().manual_seed(5), 0, 0
    for seed in range(20):
        update = {
            f"model.layers.{layer}.self_attn.o_proj": Factors(
                torch.randn(16, 1, generator=rng), torch.randn(1, 8, generator=rng), 1.0
            )
            for layer in range(100)
        }
        table = logit_lens.lens_table(update, unembedding, seed)
        first = table.query("end == 'promoted' and place == 1")
        beyond, count = beyond + (first.logit.abs() > first.chance_high).sum(), count + len(first)
    assert beyond / count == pytest.approx(0.025, abs=0.012)


def test_without_a_tokenizer_the_lens_is_left_out_and_said(tmp_path, capsys):
    folder = saved(tmp_path / "adapter", causal, target_modules=["o_proj"])
    base = based(tmp_path / "base", tokenizer=False)
    assert run("inspect", folder, "--base", base, "--cache", tmp_path / "cache") == 0
    out = capsys.readouterr().out
    assert f"no logit lens: {base} has no tokenizer of its 40 tokens" in out
    assert "intruder dimensions:" in out


def test_gains_that_are_stored_less_one_are_taken_as_the_model_takes_them():
    kinds = ("gemma", "gemma2", "gemma3_text", "qwen3_next", "qwen3_5_text")
    for kind in kinds:
        package = kind.removesuffix("_text")
        source = Path(sys.modules["transformers"].__file__).parent / "models" / package
        text = (source / f"modeling_{package}.py").read_text()
        assert "1.0 + self.weight" in text, f"transformers' norm of {kind}"
        assert logit_lens._ONE_MORE.fullmatch(kind)
    for kind in ("qwen3", "llama", "gemma3n", "gemma3n_text", "olmo2"):
        assert not logit_lens._ONE_MORE.fullmatch(kind)


def test_intruders_stand_beside_those_of_a_turned_copy(tmp_path, capsys):
    base = based(tmp_path / "base")
    folder = planted(tmp_path / "adapter", causal, lambda name, _, factor: 3 * factor)
    arguments = (folder, "--base", base, "--cache", tmp_path / "cache", "--json")
    assert run("inspect", *arguments) == 0
    content = json.loads(capsys.readouterr().out)
    weights, update = load_file(base / "model.safetensors"), load(folder).update
    # module by module, as the table takes them
    turned = {
        module: chance.outputs_turned({module: part})[module] for module, part in update.items()
    }
    for row in content["modules"]:
        W0 = weights[row["module"] + ".weight"].double()
        for part, count in ((update, "intruders"), (turned, "count_by_chance")):
            factors = part[row["module"]]
            new = W0 + factors.scale * factors.B.double() @ factors.A.double()
            overlaps = (torch.linalg.svd(W0)[0].T @ torch.linalg.svd(new)[0][:, :10]).abs()
            assert row[count] == int((overlaps.amax(0) < 0.5).sum()), f"{count}, densely"
        assert row["relative_norm"] == pytest.approx(row["norm"] / float(W0.norm()), rel=1e-6)
    for module, part in update.items():
        own, other = (
            torch.linalg.svdvals(each.scale * each.B.double() @ each.A.double())
            for each in (part, turned[module])
        )
        torch.testing.assert_close(own, other, msg="a turned copy has the same spectrum")


def test_the_folder_of_an_inspection_is_replaced_as_a_whole(tmp_path, capsys):
    folder, out = saved(tmp_path / "a", causal, target_modules=["q_proj"]), tmp_path / "out"
    base = based(tmp_path / "base")
    assert run("inspect", folder, "--base", base, "--cache", tmp_path / "c", "--out", out) == 0
    with_base = {path.name for path in out.iterdir()}
    assert run("inspect", folder, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {
        "inspection.json",
        *(f"{table}.{ending}" for table in ("modules", "spectra") for ending in ("csv", "parquet")),
    }
    assert {"intruders.csv", "lens.parquet"} <= with_base, "and nothing of the first one is left"


# --- for programs and terminals -------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    return [
        saved(place / name, causal, seed, target_modules=["q_proj"])
        for name, seed in (("a", 0), ("b", 1))
    ]


def test_a_gate_has_an_exit_code_and_says_why_on_standard_error(pair, capsys):
    assert run("compare", *pair, "--fail-on", "cosine>0.9") == 0
    capsys.readouterr()
    assert run("compare", *pair, "--fail-on", "cosine>0.9", "--fail-on", "cosine<0.9") == 1
    out, err = capsys.readouterr()
    assert re.fullmatch(r"fail-on: b: cosine is \S+ \(cosine<0.9\)\n", err)
    assert "cosine of every pair" in out, "the comparison itself is printed all the same"


def test_json_is_all_that_is_printed_and_has_the_numbers(pair, tmp_path, capsys):
    assert run("compare", *pair, "--json", "--out", tmp_path / "report") == 0
    content = json.loads(capsys.readouterr().out)
    table = pd.read_parquet(tmp_path / "report" / "cosine.parquet").query("scope == 'global'")
    assert content["pairs"][0]["cosine"] == pytest.approx(table.cosine.item())
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["pairs"] == content["pairs"]


def test_help_names_the_commands_and_loads_nothing_heavy():
    shown = process("--help")
    assert shown.returncode == 0, shown.stderr
    assert re.findall(r"^ {4}(\w+) ", shown.stdout, re.MULTILINE) == COMMANDS
    heavy = (
        "import sys; from adapter_geometry import cli; cli._parser(); "
        "print({'torch', 'numpy', 'pandas', 'peft', 'safetensors'} & set(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
    assert loaded.stdout.strip() == "set()", loaded.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_are_understood(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "exit codes: 0 " in shown
    examples = re.findall(r"^ +adapter-geometry (.*(?:\\\n.*)?)$", shown, re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        words = re.sub(r">.*$|\\\n", "", example.replace("'cosine<0.9'", "cosine<0.9"))
        cli._parser().parse_args(words.split())  # exits where it is not understood


def test_the_version_is_that_of_the_distribution(capsys):
    assert run("--version") == 0
    expected = importlib.metadata.version("adapter-geometry")
    assert capsys.readouterr().out == f"adapter-geometry {expected}\n"


def test_an_interrupt_ends_the_command_without_a_word(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("adapter_geometry.inspection.inspect_adapter", interrupted)
    assert run("inspect", "adapter") == 130
    assert capsys.readouterr() == ("", "")


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(
    pair, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "peft", None)
    message = refused(capsys, "export", tmp_path / "out", pair[0])
    assert message == "error: this needs peft: pip install 'adapter-geometry[export]'\n"


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(pair):
    command = [sys.executable, "-m", "adapter_geometry", "inspect", str(pair[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        error = running.stderr.read()
    assert (running.returncode, error) == (141, b"")


@pytest.mark.slow
def test_each_command_does_its_work_as_a_process(pair, tmp_path):
    runs = {
        "compare": (*pair, "--out", tmp_path / "report"),
        "inspect": (pair[0], "--out", tmp_path / "inspected"),
        "combine": (tmp_path / "sum", *pair, "--weights", ".5", ".5", "--rank", "3"),
        "compress": (tmp_path / "small", pair[1], "--rank", "1"),
        "export": (tmp_path / "plain", pair[0]),
    }
    # an encoding that lacks letters, and an adapter that has them
    accented = tmp_path / "é"
    os.symlink(pair[0], accented)
    runs["inspect"] = (accented, "--out", tmp_path / "inspected")
    for command, arguments in runs.items():
        done = process(command, *arguments, env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout
    for written in ("report/report.html", "inspected/modules.csv", "sum", "small", "plain"):
        assert (tmp_path / written).exists()
    failed = process("compare", *pair, "--fail-on", "cosine<1")
    assert failed.returncode == 1
    wrong = process("inspect", tmp_path / "nowhere")
    assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (2, "", 1)
