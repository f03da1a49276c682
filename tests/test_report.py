"""Adapters of one's own: what `adapter-geometry compare` refuses, what its report holds, and that a
browser shows it."""

import doctest
import html
import importlib
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import adapter_geometry
from adapter_geometry import sources
from adapter_geometry.adapters import AdapterError, load_update
from adapter_geometry.cli import main
from adapter_geometry.report import comparison, summary
from adapter_geometry.spectra import TOP
from helpers import store

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
SHAPES = {
    f"model.layers.{layer}.self_attn.{projection}": shape
    for layer in (0, 1)
    for projection, shape in (("q_proj", (16, 16)), ("v_proj", (8, 16)))
}
FIRST = PREFIX + "model.layers.0.self_attn.q_proj"
TINY = {
    f"model.layers.{layer}.self_attn.{projection}": (128, 128)
    for layer in (0, 3)
    for projection in ("q_proj", "o_proj")
}
UNKIND = '<script>alert(1)</script>&"'


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small matrices: several threads would wait for each other."""
    with threadpool_limits(1):
        yield


def written(folder, seed=0, shapes=SHAPES, rank=2, size=0.3, **config):
    """A PEFT folder written by hand, with random factors; further fields go into its
    configuration."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 4,
        "base_model_name_or_path": "some/base",
        "target_modules": sorted(shapes),
        **config,
    }
    (folder / CONFIG).write_text(json.dumps(config))
    weights = {}
    for module, (d_out, d_in) in shapes.items():
        weights[f"{PREFIX}{module}.lora_A.weight"] = (
            torch.randn(rank, d_in, generator=generator) * size
        )
        weights[f"{PREFIX}{module}.lora_B.weight"] = (
            torch.randn(d_out, rank, generator=generator) * size
        )
    save_file(weights, folder / WEIGHTS)
    return folder


def dense(folder):
    """{module: dW} of a folder that `written` returned."""
    weights = load_file(folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text())
    scale, updates = config["lora_alpha"] / config["r"], {}
    for module in {key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for key in weights}:
        B, A = (weights[f"{PREFIX}{module}.lora_{side}.weight"].double() for side in "BA")
        updates[module] = scale * (B @ A).numpy()
    return updates


def refused(capsys, *arguments):
    """The message with which the command line refuses: exit code 2 and one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2, "exit code of bad input"
    assert out == "", "nothing is printed of a comparison that failed"
    assert len(err.splitlines()) == 1, f"one line and no traceback: {err}"
    assert err.startswith("error: ")
    return err


# --- what is refused ------------------------------------------------------------------------------


def config(**fields):
    def damage(folder):
        (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | fields))

    return damage


def config_text(text):
    return lambda folder: (folder / CONFIG).write_bytes(text)


def weights(change):
    def damage(folder):
        stored = load_file(folder / WEIGHTS)
        change(stored)
        save_file(stored, folder / WEIGHTS)

    return damage


def put(key, value):
    return weights(lambda stored: stored.update({key: value}))


def poison(side, value):
    return weights(lambda stored: stored[f"{FIRST}.lora_{side}.weight"].__setitem__((1, 1), value))


def replaced(name, content):
    """Bytes, a folder (None) or a link (a path relative to the adapter) in the place of a file."""

    def damage(folder):
        stored = (folder / name).read_bytes()
        (folder / name).unlink()
        if content is None:
            (folder / name).mkdir()
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / content).parent.mkdir(exist_ok=True)
            (folder / content).write_bytes(stored)
            (folder / name).symlink_to(folder / content)

    return damage


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("no folder")


def rank_zero(folder):
    config(r=0)(folder)
    save_file(
        {
            f"{FIRST}.lora_A.weight": torch.zeros(0, 16),
            f"{FIRST}.lora_B.weight": torch.zeros(16, 0),
        },
        folder / WEIGHTS,
    )


BAD = {
    "a file": (a_file, "is not a folder"),
    "nothing there": (shutil.rmtree, "no adapter at"),
    "no configuration": (
        lambda folder: (folder / CONFIG).unlink(),
        "adapter_config.json is missing",
    ),
    "no weights": (
        lambda folder: (folder / WEIGHTS).unlink(),
        "adapter_model.safetensors is missing",
    ),
    "broken JSON": (config_text(b'{"peft_type": "LORA",'), "cannot be read as JSON"),
    "bytes that are no text": (config_text(b"\xff\xfe{}"), "cannot be read as JSON"),
    "JSON nested without end": (config_text(b"[" * 200000), "cannot be read as JSON"),
    "JSON that is no object": (config_text(b'["LORA"]'), "no peft_type"),
    "another kind": (config(peft_type="IA3"), "kind IA3"),
    "DoRA": (config(use_dora=True), "the difference that DoRA makes depends on"),
    "biases": (config(bias="lora_only"), "bias is 'lora_only'"),
    "trained whole modules": (config(modules_to_save=["lm_head"]), "modules_to_save"),
    "trained tokens": (config(trainable_token_indices=[3]), "trainable_token_indices"),
    "a bias in B": (config(lora_bias=True), "lora_bias"),
    "a start that changes W0": (config(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "an update of some tokens only": (
        config(alora_invocation_tokens=[1, 2]),
        "alora_invocation_tokens",
    ),
    "repeated layers": (config(layer_replication=[[0, 2]]), "layer_replication"),
    "an embedding": (
        put(PREFIX + "model.embed_tokens.lora_embedding_A", torch.ones(2, 40)),
        "embed_tokens has no lora_B",
    ),
    "a whole module": (put(PREFIX + "lm_head.weight", torch.ones(4, 4)), "lm_head.weight"),
    "no lora_B": (
        weights(lambda stored: stored.pop(f"{FIRST}.lora_B.weight")),
        "layers.0.self_attn.q_proj has no lora_B",
    ),
    "another rank than configured": (config(r=3), "the configuration says rank 3"),
    "another rank than in rank_pattern": (
        config(rank_pattern={"v_proj": 5}),
        "v_proj has B (8, 2) and A (2, 16), but the configuration says rank 5",
    ),
    "factors of two ranks": (
        put(f"{FIRST}.lora_A.weight", torch.ones(3, 16)),
        "B (16, 2) and A (3, 16)",
    ),
    "rank zero": (rank_zero, "rank 0"),
    "a rank_pattern that is a list": (config(rank_pattern=["q_proj"]), "rank_pattern"),
    "a pattern that is no regular expression": (config(alpha_pattern={"(": 3}), "alpha_pattern"),
    "a text for alpha": (config(lora_alpha="16"), "lora_alpha is '16'"),
    "an alpha that is no number": (config(lora_alpha=float("nan")), "lora_alpha is nan"),
    "a convolution": (
        put(f"{FIRST}.lora_A.weight", torch.ones(2, 16, 3, 3)),
        "shape (2, 16, 3, 3)",
    ),
    "NaN": (poison("A", float("nan")), "lora_A of model.layers.0.self_attn.q_proj holds NaN"),
    "infinity": (
        poison("B", float("inf")),
        "lora_B of model.layers.0.self_attn.q_proj holds NaN or infinity",
    ),
    "integers": (put(f"{FIRST}.lora_A.weight", torch.ones(2, 16, dtype=torch.int8)), "int8"),
    "truncated weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-40]),
        "truncated",
    ),
    "an empty file": (replaced(WEIGHTS, b""), "cannot be read"),
    "no tensors": (lambda folder: save_file({}, folder / WEIGHTS), "no factors"),
    "a folder for the weights": (replaced(WEIGHTS, None), "cannot be read"),
    "a folder for the configuration": (replaced(CONFIG, None), "adapter_config.json is missing"),
    "weights that are a link to elsewhere": (
        replaced(WEIGHTS, "../elsewhere/weights"),
        "leads out of its folder",
    ),
    "a configuration that is a link to elsewhere": (
        replaced(CONFIG, "../elsewhere/config"),
        "leads out of its folder",
    ),
    "a link to somebody's blobs": (
        replaced(WEIGHTS, "../blobs/weights"),
        "leads out of its folder",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_adapter_is_refused_in_one_line_that_names_it(case, tmp_path, capsys):
    damage, says = BAD[case]
    good, bad = written(tmp_path / "good"), written(tmp_path / "deep" / "bad", 1)
    damage(bad)
    for arguments in ((good, bad), (bad, good)):
        message = refused(capsys, *arguments)
        assert str(bad) in message, "the folder is named"
        assert says in message, "and what is wrong there"


def test_links_of_a_hub_cache_to_its_own_blobs_are_followed(tmp_path):
    cache = tmp_path / "models--owner--name"
    adapter = written(tmp_path / "adapter")
    snapshot = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate((CONFIG, WEIGHTS)):
        (adapter / name).rename(cache / "blobs" / str(number))
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    assert set(load_update(snapshot)) == set(SHAPES)
    elsewhere = tmp_path / "blobs"
    (cache / "blobs").rename(elsewhere)
    (snapshot / WEIGHTS).unlink()
    (snapshot / CONFIG).unlink()
    for number, name in enumerate((CONFIG, WEIGHTS)):
        (snapshot / name).symlink_to(tmp_path / "other" / "blobs" / str(number))
    (tmp_path / "other").mkdir()
    elsewhere.rename(tmp_path / "other" / "blobs")
    with pytest.raises(AdapterError, match="leads out of its folder"):
        load_update(snapshot)


def test_a_file_that_may_not_be_read_is_named(tmp_path, capsys, monkeypatch):
    good, bad = written(tmp_path / "good"), written(tmp_path / "bad", 1)
    read = Path.read_text

    def refusing(path, *args, **options):
        if path == bad / CONFIG:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refusing)
    message = refused(capsys, good, bad)
    assert str(bad / CONFIG) in message
    assert "Permission denied" in message


def test_a_pickled_adapter_is_refused_with_the_command_that_converts_it(
    tmp_path, capsys, monkeypatch
):
    good, old = written(tmp_path / "good"), written(tmp_path / "old", 1)
    expected = load_file(old / WEIGHTS)
    torch.save(expected, old / "adapter_model.bin")
    (old / WEIGHTS).unlink()
    message = refused(capsys, good, old)
    assert str(old) in message
    command = re.search(r'python -c "(.*)"$', message.strip()).group(1)
    monkeypatch.chdir(old)
    exec(command, {})
    stored = load_file(old / WEIGHTS)
    assert all(torch.equal(stored[key], value) for key, value in expected.items())
    comparison.compare_adapters([good, old])


def test_the_number_names_and_options_of_adapters_are_checked(tmp_path, capsys):
    one, two = written(tmp_path / "x" / "run"), written(tmp_path / "y" / "run", 1)
    assert "one adapter has nothing to be compared with" in refused(capsys, one)
    message = refused(capsys, f"run={one}", f"run={two}")
    assert "two adapters are called 'run'" in message
    assert str(one) in message
    assert str(two) in message
    message = refused(capsys, f"a={one}", f"b={two}", "--reference", "c")
    assert "no adapter is called 'c'" in message
    assert "a, b" in message, "with those there are"
    (tmp_path / "texts").write_text("{}")
    assert "--base" in refused(capsys, f"a={one}", f"b={two}", "--texts", tmp_path / "texts")
    assert "no adapter at b=" in refused(capsys, f"a={one}", "b=")


def test_adapters_of_different_models_are_refused_where_nothing_can_be_compared(tmp_path, capsys):
    one = written(tmp_path / "one")
    other = written(tmp_path / "other", shapes={"transformer.h.0.attn.c_attn": (48, 16)})
    message = refused(capsys, one, other)
    assert "no module is common" in message
    assert "one has model.layers.0.self_attn.q_proj" in message
    assert "other has transformer.h.0.attn.c_attn" in message
    wide = written(
        tmp_path / "wide", shapes={module: (d_out, 24) for module, (d_out, _) in SHAPES.items()}
    )
    message = refused(capsys, one, wide)
    assert re.search(r"16 x 24 in wide and 16 x 16 in one", message), (
        "the same names with other shapes"
    )


def test_a_hub_id_that_the_hub_does_not_give_is_named(tmp_path, capsys, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def unreachable(name, **options):
        asked.append((name, options))
        raise LocalEntryNotFoundError("no network\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert "somebody/something/checkpoint-3" in refused(
        capsys, written(tmp_path / "one"), "somebody/something/checkpoint-3"
    )
    assert asked == [
        (
            "somebody/something",
            {
                "revision": None,
                "allow_patterns": [f"checkpoint-3/{name}" for name in sources.ADAPTER_FILES],
            },
        )
    ], "nothing but the adapter is fetched"
    assert "no adapter at ../something" in refused(capsys, tmp_path / "one", "../something"), (
        "a path is no hub id"
    )
    assert len(asked) == 1


def base_folder(folder, shapes=SHAPES):
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    save_file(
        {
            f"{module}.weight": torch.randn(shape, generator=generator)
            for module, shape in shapes.items()
        },
        folder / "model.safetensors",
    )
    return folder


def index(text):
    def damage(folder):
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


NAME = "model.layers.0.self_attn.q_proj.weight"
BAD_BASES = {
    "nothing there": (shutil.rmtree, "no base model in"),
    "no safetensors": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "model.safetensors is missing",
    ),
    "truncated": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-9]
        ),
        "cannot be read",
    ),
    "a broken index": (index("{"), "index.json cannot be read"),
    "an index without a map": (index("[]"), "index.json cannot be read"),
    "an index that leads out": (
        index(json.dumps({"weight_map": {NAME: "../base2/model.safetensors"}})),
        "leads out of the folder",
    ),
    "an index that names no file": (
        index(json.dumps({"weight_map": {NAME: "part.safetensors"}})),
        "part.safetensors cannot be read",
    ),
}


@pytest.mark.parametrize("case", BAD_BASES)
def test_a_bad_base_model_is_refused_in_one_line_that_names_it(case, tmp_path, capsys, workplace):
    base = base_folder(tmp_path / "base")
    BAD_BASES[case][0](base)
    message = refused(
        capsys, written(tmp_path / "one"), written(tmp_path / "two", 1), "--base", base
    )
    assert str(base) in message
    assert BAD_BASES[case][1] in message


def test_a_base_model_that_the_adapters_do_not_fit_is_refused_naming_the_module(
    tmp_path, capsys, workplace
):
    adapters = written(tmp_path / "one"), written(tmp_path / "two", 1)
    module = "model.layers.1.self_attn.v_proj"
    lacking = base_folder(
        tmp_path / "lacking", {name: shape for name, shape in SHAPES.items() if name != module}
    )
    assert f"{lacking} has no module {module}" in refused(capsys, *adapters, "--base", lacking)
    larger = base_folder(tmp_path / "larger", {**SHAPES, module: (8, 20)})
    assert f"{module} is 8 x 20 in the base model in {larger}, but the update is 8 x 16" in refused(
        capsys, *adapters, "--base", larger
    )
    diverged = base_folder(tmp_path / "diverged")
    stored = load_file(diverged / "model.safetensors")
    stored[f"{module}.weight"][0, 0] = float("nan")
    save_file(stored, diverged / "model.safetensors")
    assert f"NaN or infinity in {module}" in refused(capsys, *adapters, "--base", diverged)


GOOD_LINE = json.dumps({"prompt": "1 + 1 =", "completion": " 2"})
BAD_TEXTS = {
    "nothing there": (None, "cannot be read"),
    "bytes that are no text": (b"\xff", "cannot be read"),
    "a line that is not JSON": (f"{GOOD_LINE}\n\n{{\n".encode(), "line 3 is not JSON"),
    "a line that is no object": (f"{GOOD_LINE}\n\n[]\n".encode(), "line 3: an object"),
    "an empty completion": (
        json.dumps({"prompt": "a", "completion": ""}).encode(),
        "line 1: an object",
    ),
    "too few": ("\n".join([GOOD_LINE] * 9).encode(), "holds 9 texts: ten or more"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts_are_refused_in_one_line_that_names_them(case, tmp_path, capsys, workplace):
    path, (content, says) = tmp_path / "texts.jsonl", BAD_TEXTS[case]
    if content is not None:
        path.write_bytes(content)
    base = base_folder(tmp_path / "base")
    message = refused(
        capsys,
        written(tmp_path / "one"),
        written(tmp_path / "two", 1),
        "--base",
        base,
        "--texts",
        path,
    )
    assert str(path) in message
    assert says in message


def test_a_base_model_that_transformers_does_not_load_or_of_another_build_gives_no_losses(
    tmp_path, capsys, workplace
):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join([GOOD_LINE] * 10))
    base = base_folder(tmp_path / "base")
    message = refused(
        capsys,
        written(tmp_path / "one"),
        written(tmp_path / "two", 1),
        "--base",
        base,
        "--texts",
        texts,
    )
    assert f"transformers cannot load the model or tokenizer in {base}" in message
    gpt = tmp_path / "gpt"
    vocabulary = json.loads((store.ROOT / "data/models/tiny/base/config.json").read_text())[
        "vocab_size"
    ]
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
        )
    ).save_pretrained(gpt)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(store.ROOT / "data/models/tiny/base" / name, gpt)
    shapes = {"transformer.h.0.attn.c_attn": (48, 16)}
    adapters = [
        written(tmp_path / name, seed, shapes, fan_in_fan_out=True)
        for seed, name in enumerate(("three", "four"))
    ]
    assert f"{gpt} holds a GPT2LMHeadModel" in refused(
        capsys, *adapters, "--base", gpt, "--texts", texts
    )


# --- what is compared and shown -------------------------------------------------------------------


def test_different_base_models_are_a_warning_and_no_more(tmp_path, capsys):
    one, two = (
        written(tmp_path / "one"),
        written(tmp_path / "two", 1, base_model_name_or_path="another/base"),
    )
    main(["compare", str(one), str(two)])
    out, err = capsys.readouterr()
    assert "warning: the adapters name different base models (another/base, some/base)" in out
    assert err == ""


def test_adapters_are_named_by_the_user_or_by_their_folders(tmp_path):
    adapters = [
        written(tmp_path / "a=b" / "adapter"),
        f"mine={written(tmp_path / 'x', 1)}",
        written(tmp_path / "y" / "checkpoint-10", 2),
    ]
    report = comparison.compare_adapters(adapters)
    assert report.compared.runs == ["a=b", "mine", "checkpoint-10"], (
        "a folder with = in its name is a folder"
    )
    assert report.reference == "a=b", "the first by default"
    two = {"p": adapters[0], "q": adapters[2]}
    assert comparison.compare_adapters(two, reference="q").reference == "q"


def test_adapters_of_different_modules_are_compared_on_the_intersection_and_the_rest_is_listed(
    tmp_path,
):
    only_q = {module: shape for module, shape in SHAPES.items() if module.endswith("q_proj")}
    more = {**only_q, "model.layers.0.mlp.up_proj": (32, 16)}
    report = comparison.compare_adapters(
        [written(tmp_path / "full"), written(tmp_path / "other", 1, more, rank=3)]
    )
    assert list(report.compared.modules.module) == sorted(only_q), "what both have"
    assert report.left_out == {
        "full": sorted(set(SHAPES) - set(only_q)),
        "other": ["model.layers.0.mlp.up_proj"],
    }
    page = report.write(tmp_path / "out").read_text()
    left_out = "modules that not all adapters have are left out, for example model.layers.0"
    for text in (report.summary(), page):
        assert f"full: 2 {left_out}.self_attn.v_proj" in text
        assert f"other: 1 {left_out}.mlp.up_proj" in text


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """(report, {name: folder}, folder of the report) of three adapters of different ranks."""
    parent = tmp_path_factory.mktemp("three")
    folders = {
        name: written(parent / name, seed, rank=rank)
        for seed, (name, rank) in enumerate((("near", 2), ("far", 4), ("middle", 3)))
    }
    report = comparison.compare_adapters(folders, reference="far")
    report.write(parent / "out")
    return report, folders, parent / "out"


def test_the_summary_holds_each_name_and_the_cosines_of_the_dense_updates(three):
    report, folders, _ = three
    summary = report.summary()
    assert "reference: far" in summary
    matrix = summary.split("cosine of every pair:\n")[1].splitlines()
    stacked = {
        name: np.concatenate([dense(folder)[module].ravel() for module in SHAPES])
        for name, folder in folders.items()
    }
    for row, name in enumerate(folders, start=1):
        first, *values = matrix[row].split()
        assert first == name
        norms = {other: np.linalg.norm(update) for other, update in stacked.items()}
        cosines = [stacked[name] @ stacked[other] / norms[name] / norms[other] for other in folders]
        assert values == [f"{cosine:+.3f}" for cosine in cosines], f"cosines of {name} with all"
        assert f"{np.linalg.norm(stacked[name]):.3g}" in summary, f"norm of {name}"


def test_the_tables_on_disk_are_those_of_the_report(three):
    report, _, out = three
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "report.json",
        *(f"{name}.{ending}" for name in report.tables for ending in ("parquet", "csv")),
    }, "and nothing half-written"
    assert {"cosine", "orthogonal", "angles", "updates"} <= set(report.tables)
    for name, table in report.tables.items():
        pd.testing.assert_frame_equal(
            pd.read_parquet(out / f"{name}.parquet"), table.reset_index(drop=True), obj=name
        )
        assert name in (out / "report.html").read_text(), "the page names the tables beside it"


class Page(HTMLParser):
    """The tags with their attributes, and the texts of the cells, of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.cells, self.open = [], [], None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("td", "th"):
            self.cells.append("")
        self.open = tag

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open in ("td", "th"):
            self.cells[-1] += data


def test_texts_of_an_adapter_are_shown_and_never_run(tmp_path):
    folders = {
        UNKIND: written(tmp_path / "<b>x", base_model_name_or_path=UNKIND, lora_alpha=4),
        "$two$_{": written(tmp_path / "&amp;", 1),
        "_hidden": written(tmp_path / "z", 2),
    }
    report = comparison.compare_adapters(folders)
    path = report.write(tmp_path / "out")
    page = Page(path)
    tags = [tag for tag, _ in page.tags]
    assert "b" not in tags, "no tag of theirs"
    assert tags.count("script") == 2, "the page's data and its script"
    for text in (*folders, str(folders[UNKIND]), str(folders["$two$_{"])):
        assert text in page.cells, f"{text} is shown as it is"
    assert page.cells.count(UNKIND) == 3, (
        "the name in the overview, the name and the base model in the settings"
    )
    assert UNKIND not in path.read_text()
    assert UNKIND in report.summary()


@pytest.mark.parametrize(
    "zeros",
    [(False, True, False), (True, False, False), (True, True, True)],
    ids=["one", "the reference", "all"],
)
def test_updates_of_zero_are_reported_without_a_warning_or_a_number(zeros, tmp_path):
    folders = [written(tmp_path / f"run{number}", number, rank=2 + number) for number in range(3)]
    for folder, is_zero in zip(folders, zeros, strict=True):
        if is_zero:
            weights(lambda stored: [stored[key].zero_() for key in stored if "lora_B" in key])(
                folder
            )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = comparison.compare_adapters(folders)
        report.write(tmp_path / "out")
        summary = report.summary()
    assert report.warnings == [
        f"run{number}: all 4 modules are zero" for number in range(3) if zeros[number]
    ]
    rows = report.tables["updates"].query("scope == 'global'").set_index("run")
    matrix = summary.split("cosine of every pair:\n")[1].splitlines()[1:]
    for number, is_zero in enumerate(zeros):
        assert (rows.norm[f"run{number}"] == 0) == is_zero
        assert np.isnan(rows.effective_rank[f"run{number}"]) == is_zero, "nothing has no rank"
        assert [value == "NaN" for value in matrix[number].split()[1:]] == [
            is_zero or other for other in zeros
        ], "and no direction"


# --- with a base model and texts ------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(report, {name: folder}, base, texts) of three adapters of the tiny base model, one of them
    zero."""
    parent, base = tmp_path_factory.mktemp("tiny"), store.ROOT / "data/models/tiny/base"
    folders = {
        "first": written(parent / "first", 0, TINY, size=0.1),
        "zero": written(parent / "zero", 1, TINY),
        "other": written(parent / "other", 2, TINY, rank=3, size=0.1),
    }
    weights(lambda stored: [stored[key].zero_() for key in stored if "lora_B" in key])(
        folders["zero"]
    )
    texts = parent / "texts.jsonl"
    lines = [
        {
            "prompt": f"Tom has {number} apples and buys {number + 3}. How many?",
            "completion": f" He has {2 * number + 3}.",
        }
        for number in range(12)
    ]
    texts.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapter_geometry.report.texts._POINTS", 3)
        report = comparison.compare_adapters(folders, base, texts=texts, cache=parent / "cache")
    return report, folders, base, texts


def test_with_the_base_norms_are_shares_of_its_norms_and_spectra_changes_of_its_spectra(tiny):
    report, folders, base, _ = tiny
    stored = load_file(base / "model.safetensors")
    table = report.tables["updates"]
    for name, folder in folders.items():
        squares = {"dW": 0.0, "W0": 0.0}
        for module, update in dense(folder).items():
            weight = stored[f"{module}.weight"].double().numpy()
            row = table.query("run == @name and module == @module").iloc[0]
            assert row.relative_norm == pytest.approx(
                np.linalg.norm(update) / np.linalg.norm(weight), rel=1e-6, abs=1e-12
            )
            old, new = (
                np.linalg.svd(matrix, full_matrices=False) for matrix in (weight, weight + update)
            )
            row = report.tables["intruders"].query("run == @name and module == @module").iloc[0]
            assert row["count"] == (np.abs(old.U.T @ new.U[:, :TOP]).max(0) < 0.5).sum(), (
                f"{name} {module}: intruder dimensions"
            )
            assert (
                abs(row.spectral_shift - np.linalg.norm(new.S - old.S) / np.linalg.norm(old.S))
                <= row.shift_error + 1e-6
            )
            squares = {
                "dW": squares["dW"] + (update**2).sum(),
                "W0": squares["W0"] + (weight**2).sum(),
            }
        total = table.query("run == @name and scope == 'global'").relative_norm.item()
        assert total == pytest.approx(np.sqrt(squares["dW"] / squares["W0"]), rel=1e-6), (
            "all modules stacked"
        )


def named(frame):
    """The rows of a table of names, with None where one is missing."""
    return [tuple(None if pd.isna(name) else name for name in row) for row in frame.to_numpy()]


def test_with_texts_the_ends_of_a_path_have_the_losses_of_the_models_that_peft_makes(tiny):
    report, folders, base, texts = tiny
    tokenizer = AutoTokenizer.from_pretrained(base)

    def loss(model):
        nats, tokens = 0.0, 0
        for line in map(json.loads, texts.read_text().splitlines()):
            prompt, completion = (
                tokenizer(line["prompt"]).input_ids,
                tokenizer(line["completion"], add_special_tokens=False).input_ids,
            )
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            nats += float(
                torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
            )
            tokens += len(completion)
        return nats / tokens

    expected = {"base": loss(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))}
    for name in ("first", "other"):
        expected[name] = loss(
            PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folders[name]
            )
        )
    curves = report.tables["connectivity"]
    assert named(curves[["run_a", "run_b", "end_b"]].drop_duplicates()) == [
        ("first", "zero", "adapter"),
        ("first", "other", "adapter"),
        ("first", None, "base model"),
    ]
    to_zero, to_other = (curves[curves.run_b == name] for name in ("zero", "other"))
    to_base = curves[curves.end_b == "base model"]
    for other, path in (("other", to_other), ("base", to_base)):
        ends = path.set_index("t").value
        assert ends[0.0] == pytest.approx(expected["first"], rel=1e-4), "t = 0 is the reference"
        assert ends[1.0] == pytest.approx(expected[other], rel=1e-4), f"t = 1 is {other}"
    np.testing.assert_allclose(
        to_zero.value, to_base.value, rtol=1e-5, err_msg="an update of zero is the base model"
    )
    assert (report.tables["barriers"].above_chord >= 0).all()


def test_with_texts_representations_are_compared_with_base_and_reference(tiny):
    report = tiny[0]
    cka = report.tables["cka"]
    pairs = {
        (None, "first", "base model"),
        (None, "zero", "base model"),
        (None, "other", "base model"),
        ("first", "zero", "adapter"),
        ("first", "other", "adapter"),
    }
    assert set(named(cka[["run_a", "run_b", "end_a"]])) == pairs
    layers = json.loads((tiny[2] / "config.json").read_text())["num_hidden_layers"]
    assert sorted(cka.layer.unique()) == list(range(layers + 1)), (
        "before the first layer and after each"
    )
    np.testing.assert_allclose(
        cka.query("run_b == 'zero' and end_a == 'base model'").debiased,
        1,
        rtol=1e-6,
        err_msg="an update of zero changes no state",
    )
    np.testing.assert_allclose(
        cka.query("layer == 0").debiased,
        1,
        rtol=1e-6,
        err_msg="nor does any update before the first layer",
    )
    assert (cka.query("run_b == 'other' and layer == @layers").debiased < 1 - 1e-6).all(), (
        "another one does"
    )
    assert (cka.n == 12).all(), "one token per text"


@pytest.mark.parametrize("reference", ["other", "base"])
def test_an_adapter_called_base_is_not_taken_for_the_base_model(
    reference, tiny, tmp_path, monkeypatch
):
    of_three, folders, base, texts = tiny
    monkeypatch.setattr("adapter_geometry.report.texts._POINTS", 3)
    report = comparison.compare_adapters(
        {"base": folders["zero"], "other": folders["other"]},
        base,
        reference=reference,
        texts=texts,
        cache=tmp_path,
    )
    (second,) = {"base", "other"} - {reference}
    curves, barriers, cka = (report.tables[key] for key in ("connectivity", "barriers", "cka"))
    for table in (curves, barriers):
        assert named(table[["run_a", "run_b", "end_b"]].drop_duplicates()) == [
            (reference, second, "adapter"),
            (reference, None, "base model"),
        ], "each end is named once, as what it is"
    to_base = curves[curves.end_b == "base model"].value.to_numpy()
    from_reference = curves[curves.end_b == "adapter"].value.to_numpy()
    if reference == "base":
        np.testing.assert_allclose(to_base, to_base[0], rtol=1e-5, err_msg="zero is where it is")
        assert np.ptp(from_reference) > 1e-4, "and the other adapter is elsewhere"
    else:
        np.testing.assert_allclose(to_base, from_reference, rtol=1e-5, err_msg="zero is the base")
    assert named(cka[["run_a", "run_b", "end_a"]].drop_duplicates()) == [
        (None, "base", "base model"),
        (None, "other", "base model"),
        (reference, second, "adapter"),
    ]
    of_other = of_three.tables["cka"].query("run_b == 'other' and end_a == 'base model'").debiased
    for rows in (cka[(cka.run_b == "other") & cka.run_a.isna()], cka[cka.end_a == "adapter"]):
        np.testing.assert_allclose(
            rows.debiased, of_other, rtol=1e-6, err_msg="the likeness of the other with the base"
        )
    row = summary.overview(report).set_index("adapter").loc[second]
    assert row.barrier == barriers[barriers.run_b == second].above_chord.item()
    of_pair = cka[cka.end_a == "adapter"].debiased
    assert row["CKA"] == of_pair.iloc[-1]
    text = report.write(tmp_path / "out").read_text(encoding="utf-8")
    figure = text.split("<h3>Loss along straight paths</h3>")[1].split("</figure>")[0]
    assert re.findall('data-name="(.*?)"', figure) == [second, "base model"], (
        "two lines of the figure, each with its own name"
    )
    for name, table in report.tables.items():
        again = pd.read_parquet(tmp_path / "out" / f"{name}.parquet")
        pd.testing.assert_frame_equal(again, table, obj=f"{name}, with what is missing in it,")


@pytest.mark.slow
def test_with_base_and_texts_the_summary_and_the_page_show_what_they_add(tiny, tmp_path):
    page, summary = tiny[0].write(tmp_path).read_text(), tiny[0].summary()
    for column in ("relative norm", "intruders per module", "spectral shift", "barrier", "CKA"):
        assert column in summary
        assert column in page
    assert "Loss along straight paths" in page


# --- in a browser ---------------------------------------------------------------------------------

CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which,
            ("/usr/lib/chromium/chromium", "chromium", "chromium-browser", "google-chrome"),
        ),
    ),
    None,
)
PROBE = """<script>addEventListener("load", () => {
  const all = selector => [...document.querySelectorAll(selector)];
  const size = element => {
    const box = element.getBoundingClientRect();
    return Math.min(box.width, box.height);
  };
  const shown = {
    headings: all("h1, h2").map(heading => [heading.textContent, size(heading)]),
    figures: all("figure svg.chart").map(size),
    captions: all("figcaption").map(size),
    tables: all("table").map(size),
    scripts: document.scripts.length,
    wide: document.documentElement.scrollWidth - innerWidth,
  };
  const element = document.createElement("pre");
  element.id = "shown";
  element.textContent = JSON.stringify(shown);
  document.body.append(element);
});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_every_heading_table_and_figure(tmp_path):
    folders = {
        UNKIND: written(tmp_path / "one", base_model_name_or_path=UNKIND),
        "two": written(tmp_path / "two", 1),
    }
    page = comparison.compare_adapters(folders).write(tmp_path / "out")
    probed = tmp_path / "probed.html"
    probed.write_text(
        page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    for width in (1200, 500):
        dump = subprocess.run(
            [
                CHROMIUM,
                "--no-sandbox",
                "--headless=new",
                "--disable-gpu",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={width},900",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                "--dump-dom",
                probed.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        probe = re.search(r'<pre id="shown">(.*?)</pre>', dump, re.DOTALL).group(1)
        shown = json.loads(html.unescape(probe))
        headings = [text for text, _ in shown["headings"]]
        assert headings == [
            "Comparison of adapters",
            "Overview",
            "Explore a pair",
            "Directions",
            "Module by module",
            "Size and spectrum",
            "Where the numbers come from",
        ]
        assert min(size for _, size in shown["headings"]) > 10
        assert len(shown["captions"]) == 13, "the explorer's map, and twelve figures"
        assert len(shown["figures"]) == 14, "one of which has two panels"
        assert min(shown["figures"]) > 60
        assert min(shown["captions"] + shown["tables"]) > 10
        assert shown["scripts"] == 3, "the page's data, its script and the test's own"
        assert shown["wide"] <= 0, f"at a width of {width} the page itself does not scroll sideways"


# --- for programs ---------------------------------------------------------------------------------


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def test_every_public_name_is_there():
    for name in adapter_geometry.__all__:
        assert getattr(adapter_geometry, name).__doc__, f"adapter_geometry.{name} is documented"
    with pytest.raises(AttributeError, match="no attribute 'compere'"):
        adapter_geometry.compere  # noqa: B018


def test_importing_the_package_or_asking_for_help_does_not_wait_for_torch():
    heavy = python(
        "-c",
        "import sys, adapter_geometry; "
        "print(sorted({'torch', 'pandas', 'transformers', 'numpy'} & set(sys.modules)))",
    )
    assert heavy.stdout.strip() == "[]", heavy.stderr
    started = time.perf_counter()
    shown = python("-m", "adapter_geometry", "compare", "--help")
    assert shown.returncode == 0, shown.stderr
    for option in ("ADAPTER", "--base", "--reference", "--texts", "--out"):
        assert option in shown.stdout
    assert time.perf_counter() - started < 3, "seconds until help is shown"


@pytest.mark.slow
def test_the_command_line_writes_a_report(tmp_path):
    shown = python(
        "-m",
        "adapter_geometry",
        "compare",
        str(written(tmp_path / "one")),
        str(written(tmp_path / "two", 1)),
        "--out",
        str(tmp_path / "out"),
    )
    assert shown.returncode == 0, shown.stderr
    assert f"report: {tmp_path / 'out' / 'report.html'}" in shown.stdout
    assert (tmp_path / "out" / "cosine.parquet").exists()
    broken = python(
        "-m", "adapter_geometry", "compare", str(tmp_path / "one"), str(tmp_path / "three")
    )
    assert broken.returncode == 2
    assert (
        broken.stderr == f"error: no adapter at {tmp_path / 'three'}: "
        f"name a PEFT folder: one that holds {CONFIG}\n"
    )


@pytest.mark.parametrize(
    ("module", "least"), [("updates", 1), ("geometry", 1), ("spectra", 1), ("report.summary", 1)]
)
def test_examples_in_docstrings_are_true(module, least):
    examples = doctest.testmod(importlib.import_module(f"adapter_geometry.{module}"))
    assert examples.failed == 0
    assert examples.attempted >= least, f"adapter_geometry.{module} shows how it is used"


def test_names_in_foreign_files_cannot_steer_the_terminal():
    assert summary.printable("a\x1b[2Jb\nc é β") == "a?[2Jb?c é β", (
        "escape codes and line ends are shown, not obeyed"
    )
