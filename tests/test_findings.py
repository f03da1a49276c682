"""What a comparison says in sentences, to programs, and on disk: planted adapters of known
directions, conditions, provenance, and a report's folder as one unit."""

import json
import re

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_updates import factors_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from adapter_geometry import chance, updates
from adapter_geometry.adapters import CONFIG, WEIGHTS, AdapterError, export_adapter
from adapter_geometry.cli import main
from adapter_geometry.report import findings as found
from adapter_geometry.report import output, programs, progress, summary, texts
from adapter_geometry.report.comparison import compare_adapters
from adapter_geometry.sources import is_one_model
from helpers import store

MODULES = [
    f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "o_proj")
]
SCHEMA = json.loads(
    (store.SOURCE / "adapter_geometry/report/schema.json").read_text(encoding="utf-8")
)


def drawn(seed, size=1.0, d=48, rank=4):
    """A random update."""
    rng = np.random.default_rng(seed)
    return {
        module: factors_of(
            rng.standard_normal((d, rank)).astype(np.float32),
            size * rng.standard_normal((rank, d)).astype(np.float32),
        )
        for module in MODULES
    }


def turned(update):
    """The update in the subspaces that it has, with cosine 0: its first two singular values change
    places with a sign."""
    changed = {}
    for module, part in update.items():
        U, S, Vh = torch.linalg.svd(part.B.double() @ part.A.double())
        V = Vh[[1, 0, 3, 2]] * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.double)
        changed[module] = factors_of((U[:, :4] * S[:4]).numpy(), V.numpy())
    return changed


def scaled(update, factor):
    return updates.combine([update], [factor])


def near(update, other, cosine):
    """An update of about the same norm whose cosine with `update` is about `cosine`, the other
    being unrelated."""
    size = np.sqrt(1 - cosine**2) * updates.norm(update) / updates.norm(other)
    return updates.combine([update, other], [cosine, size])


def planted(tmp_path, **adapters):
    return {name: export_adapter(update, tmp_path / name) for name, update in adapters.items()}


def sentences(tmp_path, **adapters):
    return summary.findings(compare_adapters(planted(tmp_path, **adapters)))


# --- sentences ------------------------------------------------------------------------------------


def test_planted_directions_are_called_by_what_they_are(tmp_path):
    a = drawn(0)
    others = {
        "equal": a,
        "near": near(a, drawn(1), 0.94),
        "half": near(a, drawn(2), 0.6),
        "weak": near(a, drawn(7), 0.3),
        "opposite": scaled(near(a, drawn(3), 0.95), -1),
        "mirror": scaled(a, -1),
        "unrelated": drawn(4),
        "threefold": scaled(a, 3),
        "swapped": turned(a),
    }
    first, sizes, third = sentences(tmp_path, a=a, **others)
    parts = {part.split()[0]: part for part in first.rstrip(".").split("; ")}
    expected = {
        "equal": r"is the same as a: cosine 1\.00",
        "near": r"is nearly a: cosine \.9[345]",
        "half": r"is close to a: cosine \.(5|6)\d",
        "weak": r"is partly along a: cosine \.(2|3)\d",
        "opposite": r"is nearly the opposite of a: cosine -\.9[456]",
        "mirror": r"is the opposite of a: cosine -1\.00",
        "unrelated": r"is unrelated to a: cosine -?\.0\d",
        "threefold": r"is a times 3\.00: cosine 1\.00",
        "swapped": r"is unrelated to a in direction but is not in subspaces: cosine -?\.0\d",
    }
    for name, words in expected.items():
        assert re.match(f"{name} {words}, chance up to \\.\\d\\d", parts[name]), parts[name]
    assert first.endswith("(over 9 comparisons).")
    assert f"to {3 * updates.norm(a):.3g} (threefold), 3.0" in sizes
    assert "nearest" in third


def test_several_alike_are_said_together_and_one_more_time_by_their_number(tmp_path):
    a = drawn(0)
    many = {f"x{number}": drawn(number) for number in range(1, 8)}
    first, _, third = sentences(tmp_path, a=a, **many)
    assert first.startswith("x1, x2, x3 and 4 others are unrelated to a: cosine ")
    assert third.startswith("No two of the others are nearer than chance")
    first, *_ = sentences(tmp_path / "two", a=a, b=drawn(1), c=drawn(2))
    assert first.startswith("b and c are unrelated to a: cosine ")


def test_unrelated_updates_are_called_related_as_seldom_as_stated():
    """Of seven comparisons together, in 5 % of draws or fewer one is outside its band."""
    rng, outside = np.random.default_rng(0), 0
    for _ in range(300):
        table = pd.DataFrame({"cosine": rng.standard_normal(7), "chance": 1.96})
        wider = summary._wider(7)
        outside += (table.cosine.abs() > table.chance * wider).any()
    assert outside <= 300 * 0.05 + 3 * np.sqrt(300 * 0.05 * 0.95), "within three standard errors"


def test_an_adapter_of_zero_comes_first_and_a_reference_of_zero_is_said(tmp_path):
    nothing = scaled(drawn(1), 0)
    folders = planted(tmp_path, a=drawn(0), b=nothing, c=drawn(2))
    report = compare_adapters(folders)
    assert report.summary().startswith("b is zero in all modules: nothing was trained, or")
    assert report.warnings == ["b: all 4 modules are zero"]
    report = compare_adapters(folders, reference="b")
    first, second, *_ = summary.findings(report)
    assert first.startswith("b is zero")
    assert second.startswith("The reference b is zero")
    everything = compare_adapters(planted(tmp_path / "all", a=nothing, b=nothing))
    assert summary.findings(everything)[0].startswith("a and b are zero in all modules")


def test_means_of_ranks_are_over_the_modules_that_are_not_zero_and_their_number_is_said(tmp_path):
    a = drawn(0)
    dead = {**drawn(1), MODULES[0]: factors_of(np.zeros((48, 4)), np.zeros((4, 48)))}
    report = compare_adapters(planted(tmp_path, a=a, b=dead))
    table = report.tables["updates"].set_index("run")
    rows = table[(table.scope == "module") & (table.norm > 0)].loc["b"]
    assert len(rows) == 3
    total = table[table.scope == "global"].loc["b"]
    for column in ("effective_rank", "stable_rank", "participation_ratio"):
        assert total[column] == pytest.approx(rows[column].mean()), column
    (warning,) = report.warnings
    assert warning.startswith(f"b: 1 of 4 modules are zero, for example {MODULES[0]}")
    overview = summary.overview(report).set_index("adapter")
    assert overview["zero modules"].to_dict() == {"a": 0, "b": 1}


def test_with_two_adapters_the_third_sentence_is_of_the_layers(tmp_path):
    a = drawn(0)
    b = {**near(a, drawn(1), 0.5), **{module: a[module] for module in MODULES[:2]}}
    _, _, third = sentences(tmp_path, a=a, b=b)
    assert re.fullmatch(
        r"By layer, the cosine of b with a runs from \.\d\d \(layer 1\) to 1\.00 \(layer 0\)\.",
        third,
    ), third


def test_layers_are_said_with_their_stack_where_there_are_several(tmp_path):
    a, rest = drawn(0), drawn(1)
    stacks = {
        module: module.replace("model", "encoder" if "0" in module else "decoder", 1)
        for module in MODULES
    }
    mixed = {**near(a, rest, 0.5), **{module: a[module] for module in MODULES[:2]}}
    first, second = (
        {stacks[module]: part for module, part in update.items()} for update in (a, mixed)
    )
    *_, third = sentences(tmp_path, a=first, b=second)
    assert "(decoder.layers, layer 1) to 1.00 (encoder.layers, layer 0)." in third


# --- names ----------------------------------------------------------------------------------------


def test_no_name_is_special(tmp_path):
    names = ["base", "a=b", "{verb}", "适配器", "global", "nan", "x" * 60, "y" * 59 + "z"]
    folders = {
        name: export_adapter(drawn(seed), tmp_path / str(seed)) for seed, name in enumerate(names)
    }
    report = compare_adapters(folders, reference="{verb}")
    assert report.compared.runs == names
    text = report.summary()
    for name in names[:6]:
        assert name in text
    assert "are unrelated to {verb}:" in text
    jsonschema.validate(report.as_json(), SCHEMA)
    assert [adapter["name"] for adapter in report.as_json()["adapters"]] == names
    report.write(tmp_path / "out")
    stored = pd.read_csv(tmp_path / "out" / "cosine.csv", keep_default_na=False)
    assert set(stored.run_a) | set(stored.run_b) == set(names)


def test_equal_names_of_folders_get_what_tells_them_apart(tmp_path):
    paths = [
        export_adapter(drawn(seed), tmp_path / run / "checkpoint-500")
        for seed, run in enumerate(("low", "high"))
    ]
    names = compare_adapters([*paths, f"mine={paths[0]}"]).compared.runs
    assert names == ["low/checkpoint-500", "high/checkpoint-500", "mine"]
    with pytest.raises(AdapterError, match=r"two adapters are called 'a' .*: name them, as in"):
        compare_adapters([f"a={paths[0]}", f"a={paths[1]}"])


def test_modules_without_a_layer_are_part_of_the_whole_and_no_layer_of_their_own(tmp_path):
    extra = {"lm_head": drawn(8)[MODULES[0]], "visual.merger.mlp.0": drawn(9)[MODULES[0]]}
    report = compare_adapters(planted(tmp_path, a={**drawn(0), **extra}, b={**drawn(1), **extra}))
    text = report.summary()
    assert "6 common modules in 2 layers" in text
    assert "dtype" not in text
    overview = summary.overview(report)
    assert list(overview.adapter) == ["a", "b"]
    for row, update in zip(overview.itertuples(), (drawn(0), drawn(1)), strict=True):
        assert row.norm == pytest.approx(updates.norm({**update, **extra}), rel=1e-6)


# --- what the terminal shows ----------------------------------------------------------------------


def test_28_adapters_fit_into_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    groups = [drawn(100), drawn(200)]
    adapters = {
        f"run-{number:02d}-with-a-name-of-forty-characters-{number:02d}": near(
            groups[number % 2], drawn(number), 0.8
        )
        for number in range(28)
    }
    report = compare_adapters(planted(tmp_path, **adapters))
    text = report.summary()
    tables = text.split("reference: ", 1)[1].split("\n\n", 1)[1]
    assert max(map(len, tables.splitlines())) <= 90
    assert "cosine of every pair" not in text
    assert tables.count("run-03-with-a-n…y-characters-03") >= 2, "cut in the middle"
    order = report.as_json()["order"]
    assert [name in order[:14] for name in sorted(order)] in (
        [True, False] * 14,
        [False, True] * 14,
    ), "similar ones stand side by side"
    table = summary.nearest(report).set_index("adapter")
    for name, row in table.iterrows():
        assert int(name[4:6]) % 2 == int(row.nearest[4:6]) % 2, "of the same group"
        pair = report.tables["cosine"].query(
            "scope == 'global' and run_a in [@name, @row.nearest] "
            "and run_b in [@name, @row.nearest]"
        )
        assert row.cosine == pair.cosine.item()


def test_more_adapters_than_fit_are_counted(monkeypatch):
    monkeypatch.setattr(summary, "_MOST_ROWS", 3)
    table = pd.DataFrame({"adapter": list("abcde"), "norm": 1.0})
    shown = summary._rows_shown(table, "e")
    assert list(shown.adapter) == ["e", "a", "b"]
    names = {name: name for name in "abcde"}
    *_, last = summary._fitting(shown, names, 80)
    assert last == "... and 2 more: in the tables that --out writes"


def test_of_very_many_adapters_modules_are_compared_with_the_reference_only(tmp_path, monkeypatch):
    folders = planted(tmp_path, **{name: drawn(seed) for seed, name in enumerate("abcd")})
    every = compare_adapters(folders, reference="c")
    assert "Of so many adapters" not in every.summary()
    monkeypatch.setattr("adapter_geometry.report.comparison._MOST_ROWS", 10)
    report = compare_adapters(folders, reference="c")
    assert "Of so many adapters, numbers by module are of the pairs with c" in report.summary()
    for name in ("cosine", "angles"):
        full, table = (each.tables[name] for each in (every, report))
        holds = (full.run_a == "c") | (full.run_b == "c")
        kept = full[holds | (full.scope == "global") if name == "cosine" else holds]
        keys = [
            *full.columns[: list(full.columns).index("degrees" if name == "angles" else "cosine")]
        ]
        left, right = (
            each.sort_values(keys, ignore_index=True).drop(columns=["layer"])
            for each in (kept, table)
        )
        pd.testing.assert_frame_equal(left, right, obj=name)
    assert summary.findings(report) == summary.findings(every)
    jsonschema.validate(report.as_json(), SCHEMA)
    assert len(report.as_json()["pairs"]) == 6
    report.write(tmp_path / "out")


def test_the_tree_joins_the_nearest_first_and_zero_lies_at_the_distance_of_unrelated(tmp_path):
    a, b = drawn(0), drawn(1)
    report = compare_adapters(
        planted(tmp_path, a=a, b=b, a2=near(a, drawn(2), 0.9), zero=scaled(a, 0))
    )
    tree = report.tables["tree"]
    assert set(tree.loc[0, ["first", "second"]]) == {0, 2}
    assert tree.distance[0] == pytest.approx(0.1, abs=0.05)
    assert tree.distance.iloc[-1] == pytest.approx(1, abs=0.05)
    assert list(tree["count"])[-1] == 4


# --- for programs ---------------------------------------------------------------------------------


def test_the_json_follows_its_schema_and_holds_the_numbers_of_the_tables(tmp_path):
    report = compare_adapters(planted(tmp_path, a=drawn(0), b=drawn(1), zero=scaled(drawn(2), 0)))
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    jsonschema.validate(content, SCHEMA)
    a, b, zero = content["adapters"]
    row = report.tables["cosine"].query("scope == 'global'").iloc[0]
    assert b["cosine"] == row.cosine == content["pairs"][0]["cosine"]
    assert b["cosine_chance"] == max(row.chance_high, row.gaussian_high), "the harder null"
    assert a["cosine"] is None, "the reference has none with itself"
    assert zero["cosine"] is None, "and zero with none"
    assert zero["zero_modules"] == 4
    assert isinstance(zero["zero_modules"], int)
    assert b["norm_ratio"] == pytest.approx(b["norm"] / a["norm"])
    assert content["findings"] == summary.findings(report)
    assert set(content["tables"]) == set(report.tables)


CONDITIONS = {
    "cosine<0.9": ["b"],
    "cosine >= .9": ["c"],
    "norm>0": ["a", "b", "c"],
    "zero_modules > 0": [],
    "angle<=90": ["b", "c"],
    "norm_ratio>1.5": ["c"],
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_name_the_adapters_for_which_they_hold(condition, tmp_path):
    a = drawn(0)
    report = compare_adapters(planted(tmp_path, a=a, b=drawn(1), c=scaled(a, 2)))
    told = report.check(condition)
    assert [sentence.split(":")[0] for sentence in told] == CONDITIONS[condition]
    assert all(f"({condition})" in sentence for sentence in told)


def test_nothing_passes_a_gate_that_could_not_be_measured(tmp_path):
    report = compare_adapters(planted(tmp_path, a=drawn(0), zero=scaled(drawn(1), 0)))
    for condition in ("cosine<0.9", "cosine>0.9"):
        assert report.check(condition) == [f"zero: cosine is not defined ({condition})"]


BAD_CONDITIONS = {
    "cosine": "is no condition",
    "cosine=0.9": "is no condition",
    "cosine<0.9<1": "is no condition",
    "cosin<0.9": "there is no measure 'cosin', but norm",
    "cosine<much": "'much' is no number",
    "cosine<nan": "'nan' is no number",
    "intruders>1": "intruders was not measured; add --base",
    "kl>1": "kl was not measured; add --base and --texts",
}


@pytest.mark.parametrize("condition", BAD_CONDITIONS)
def test_bad_conditions_are_refused_by_name(condition, tmp_path):
    report = compare_adapters(planted(tmp_path, a=drawn(0), b=drawn(1)))
    with pytest.raises(AdapterError, match=re.escape(BAD_CONDITIONS[condition])):
        report.check(condition)


def test_the_measures_of_conditions_are_those_that_are_measured(tmp_path, of_texts):
    assert set(programs._NEEDS) == set(found.measures(of_texts[0])), "with base and texts, all"
    without = compare_adapters(planted(tmp_path, a=drawn(0), b=drawn(1)))
    needed = {name for name, needs in programs._NEEDS.items() if needs}
    assert set(found.measures(without)) == set(programs._NEEDS) - needed


# --- the folder of a report -----------------------------------------------------------------------


def test_a_report_is_replaced_as_a_whole_and_nothing_else_is(tmp_path):
    two = compare_adapters(planted(tmp_path, a=drawn(0), b=drawn(1)))
    out = tmp_path / "out"
    two.write(out)
    names = {path.name for path in out.iterdir()}
    tables = {f"{name}.{ending}" for name in two.tables for ending in ("parquet", "csv")}
    assert names == {"report.html", "report.json", *tables}
    jsonschema.validate(json.loads((out / "report.json").read_text(encoding="utf-8")), SCHEMA)
    # a report with a table more, such as one with --base, is replaced by one without it
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    content["tables"]["intruders"] = {"columns": [], "rows": 0}
    (out / "report.json").write_text(json.dumps(content), encoding="utf-8")
    (out / "intruders.parquet").write_bytes(b"old")
    two.write(out)
    assert {path.name for path in out.iterdir()} == names, "nothing of the old one is left"
    (out / "notes.txt").write_text("mine")
    with pytest.raises(AdapterError, match=r"out holds more than a report, for example notes.txt"):
        two.write(out)
    assert (out / "notes.txt").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing half"


def test_what_would_be_refused_at_the_end_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for options, says in (
        (["--out", str(tmp_path / "mine")], "holds more than a report"),
        (["--fail-on", "cosin<1"], "there is no measure 'cosin'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["compare", "nowhere/a", "nowhere/b", *options])
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err
    mine = str(tmp_path / "mine")
    for arguments, says in (
        (["inspect", "nowhere/a", "--out", mine], "holds more than an inspection"),
        (["export", mine, "nowhere/a"], "holds more than an exported adapter"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert says in capsys.readouterr().err


def test_what_is_no_place_for_a_report_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cosine.parquet").write_text("somebody's")
    (tmp_path / "here").mkdir()
    for name, says in (("file", "is a file"), ("data", "for example cosine.parquet")):
        with pytest.raises(AdapterError, match=says):
            output.require_own(tmp_path / name)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(AdapterError, match="the folder that the command runs in"):
        output.require_own(".")
    assert output.require_own(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    output.require_own(tmp_path / "empty")


def test_a_table_that_is_too_long_for_csv_is_parquet_alone(tmp_path, monkeypatch):
    report = compare_adapters(planted(tmp_path, a=drawn(0), b=drawn(1)))
    monkeypatch.setattr(output, "_CSV_ROWS", len(report.tables["updates"]))
    report.write(tmp_path / "out")
    assert (tmp_path / "out" / "updates.csv").exists()
    assert (tmp_path / "out" / "angles.parquet").exists()
    assert not (tmp_path / "out" / "angles.csv").exists()


def test_a_csv_holds_the_numbers_of_the_parquet(tmp_path):
    report = compare_adapters(planted(tmp_path, a=drawn(0), b=drawn(1)))
    report.write(tmp_path / "out")
    for name in ("cosine", "angles", "updates"):
        read = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        for column in report.tables[name].select_dtypes(float):
            np.testing.assert_array_equal(read[column], report.tables[name][column])


# --- where the numbers come from ------------------------------------------------------------------


def test_the_report_records_command_versions_and_files(tmp_path):
    folders = planted(tmp_path, a=drawn(0), b=drawn(1))
    about = compare_adapters([f"one={folders['a']}", folders["b"]], reference="b").provenance
    assert about["command"] == (
        f"adapter-geometry compare one={folders['a']} b={folders['b']} --reference b"
    )
    assert {"torch", "python"} <= set(about["versions"])
    assert about["base"] is None
    import hashlib

    digest = hashlib.sha256((folders["a"] / WEIGHTS).read_bytes()).hexdigest()
    assert about["adapters"]["one"]["files"][WEIGHTS] == digest
    assert about["adapters"]["one"]["origin"] == str(folders["a"])


def configured(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))
    return folder


def base_folder(folder, name="model.safetensors"):
    folder.mkdir()
    generator = torch.Generator().manual_seed(7)
    weights = {f"{module}.weight": torch.randn(48, 48, generator=generator) for module in MODULES}
    save_file(weights, folder / name)
    return folder


def test_a_base_that_no_adapter_names_and_other_revisions_are_warned_of(tmp_path):
    folders = planted(tmp_path, a=drawn(0), b=drawn(1))
    for name, revision in (("a", "step-1000"), ("b", "step-143000")):
        configured(folders[name], base_model_name_or_path="owner/model-base", revision=revision)
    instruct = base_folder(tmp_path / "model-instruct")
    report = compare_adapters(folders, instruct, cache=tmp_path / "cache")
    revisions, base = report.warnings
    assert revisions == (
        "the adapters name different revisions of their base model (a step-1000, b step-143000)"
    )
    assert base.startswith(
        f"the base model is {instruct}, but a names owner/model-base, b names owner/model-base"
    )
    assert report.provenance["base"]["origin"] == str(instruct)
    assert report.provenance["adapters"]["a"]["base_revision"] == "step-1000"
    for text in (report.summary(), json.dumps(report.as_json())):
        assert "step-143000" in text
        assert str(instruct) in text
    right = base_folder(tmp_path / "model-base")
    report = compare_adapters(folders, right, cache=tmp_path / "cache")
    assert report.warnings == [revisions], "a local copy of the model that they name"
    for name in ("a", "b"):
        configured(folders[name], revision=None)
    assert compare_adapters(folders, right, cache=tmp_path / "cache").warnings == []


SAME = [
    ("owner/Model-4B", "owner/model-4b", True),
    ("Qwen/Qwen3-4B", "unsloth/Qwen3-4B-unsloth-bnb-4bit", True),
    ("Qwen/Qwen3-4B", "/data/models/Qwen3-4B/", True),
    ("Qwen/Qwen3-4B", "/hub/models--Qwen--Qwen3-4B/snapshots/0123abc", True),
    ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B@v1", True),
    ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Base", False),
    ("Qwen/Qwen3-4B", "somebody/Qwen3-4B", False),
    ("Qwen/Qwen3-4B", "/hub/models--other--Qwen3-4B/snapshots/0123abc", False),
    ("some/base", "another/base", False),
]


@pytest.mark.parametrize(("first", "second", "is_one"), SAME)
def test_two_names_of_one_model_are_known(first, second, is_one):
    assert is_one_model(first, second) == is_one
    assert is_one_model(second, first) == is_one


def test_what_is_long_is_announced_with_time_and_disk(tmp_path, capsys):
    progress.announce("nothing", 29)
    progress.announce_on_disk("nothing", 29, 9e8, tmp_path)
    assert capsys.readouterr().err == ""
    progress.announce("paths", 600)
    progress.announce_on_disk("decompositions", 7 * 3600, 39e9, tmp_path / "not" / "there")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "paths: about 10 minutes"
    assert second.startswith("decompositions: up to 7 hours and 39.0 GB in ")
    progress.announce_on_disk("decompositions", 1, 1e18, tmp_path)
    assert "GB are free" in capsys.readouterr().err


def test_the_disk_that_is_announced_is_the_disk_that_is_taken(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "announce_on_disk", lambda *told: said.append(told))
    folders = planted(tmp_path, a=drawn(0), b=drawn(1))
    compare_adapters(folders, base_folder(tmp_path / "base"), cache=tmp_path / "cache")
    ((_, _, size, folder),) = said
    files = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(files) == len(MODULES)
    assert folder == tmp_path / "cache"
    assert size == pytest.approx(sum(path.stat().st_size for path in files), rel=0.05)


# --- behaviour on texts ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory):
    """(report, {name: folder}, base, file of texts) of three adapters of the tiny base, one of them
    zero."""
    parent, base = tmp_path_factory.mktemp("texts"), store.ROOT / "data/models/tiny/base"
    stored = load_file(base / "model.safetensors")
    modules = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 3)]

    def update(seed, size):
        rng = np.random.default_rng(seed)
        return {
            module: factors_of(
                rng.standard_normal((stored[f"{module}.weight"].shape[0], 3)).astype("f4") * size,
                rng.standard_normal((3, stored[f"{module}.weight"].shape[1])).astype("f4") * size,
            )
            for module in modules
        }

    folders = {
        "small": export_adapter(update(0, 0.1), parent / "small"),
        "large": export_adapter(update(1, 0.5), parent / "large"),
        "zero": export_adapter(update(2, 0.0), parent / "zero"),
    }
    lines = [
        {"prompt": f"Tom has {n} apples and buys {n + 3}.", "completion": f" He has {2 * n + 3}."}
        for n in range(12)
    ]
    path = parent / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_POINTS", 3), ("_NULLS", 2), ("_NEW_TOKENS", 4), ("_TOGETHER", 5)):
            patch.setattr(texts, name, value)
        report = compare_adapters(folders, base, texts=path, cache=parent / "cache")
    return report, folders, base, path


def test_divergence_and_loss_are_those_of_the_models_that_peft_makes(of_texts):
    from peft import PeftModel

    report, folders, base, path = of_texts
    tokenizer = AutoTokenizer.from_pretrained(base)

    def log_probabilities(model):
        rows, chosen = [], []
        for line in map(json.loads, path.read_text().splitlines()):
            prompt = tokenizer(line["prompt"]).input_ids
            completion = tokenizer(line["completion"], add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            rows.append(logits.double().log_softmax(-1))
            chosen.extend(completion)
        return torch.cat(rows), torch.tensor(chosen)

    def loaded():
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    log_p, chosen = log_probabilities(loaded())
    table = report.tables["behaviour"]
    of_base = table[table.end == "base model"].iloc[0]
    assert of_base.kl == pytest.approx(0, abs=1e-9)
    assert of_base.loss == pytest.approx(float(-log_p[range(len(chosen)), chosen].mean()), rel=1e-5)
    for name in ("small", "large"):
        log_q, _ = log_probabilities(PeftModel.from_pretrained(loaded(), folders[name]))
        row = table[table.run == name].iloc[0]
        divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        assert row.kl == pytest.approx(divergence, rel=1e-3, abs=1e-6)
        assert row.loss == pytest.approx(float(-log_q[range(len(chosen)), chosen].mean()), rel=1e-5)
        assert row.kl_low <= row.kl <= row.kl_high
        assert 0 < row.kl_null_low <= row.kl_null_high
        assert row.nulls == 2
    zero = table[table.run == "zero"].iloc[0]
    assert zero.kl == pytest.approx(0, abs=1e-9)
    assert zero.loss == pytest.approx(of_base.loss, rel=1e-6)
    assert zero.kl_null_high == pytest.approx(0, abs=1e-9), "and so are null adapters of its norm"


def test_null_adapters_have_the_norm_the_spectrum_and_the_right_vectors_of_the_update():
    update = drawn(0)
    (first, second) = (chance.outputs_turned(update, seed) for seed in range(2))
    for module, part in update.items():
        dW, null, other = (
            (each.B.double() @ each.A.double()).numpy()
            for each in (part, first[module], second[module])
        )
        np.testing.assert_allclose(null.T @ null, dW.T @ dW, rtol=1e-6, atol=1e-6)
        for one, two in ((dW, null), (null, other)):
            cosine = (one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)
            assert abs(cosine) < 0.5, "and left vectors of their own"


def test_generations_are_those_of_the_multiples_of_each_update(of_texts):
    report, _, base, _ = of_texts
    table = report.tables["generations"]
    assert sorted(table.t.unique()) == [0, 0.5, 1, 1.5, 2]
    assert (table.t == 0).sum() == 3, "the base model's, once for all"
    assert table[table.t == 0].run.isna().all()
    assert set(table[table.t > 0].groupby("run").size()) == {12}
    of_base = table[table.t == 0].set_index("text").completion
    zero = table[table.run == "zero"]
    assert (zero.completion == zero.text.map(of_base)).all(), "no update, no other words"
    tokenizer, model = (
        AutoTokenizer.from_pretrained(base),
        AutoModelForCausalLM.from_pretrained(base),
    )
    ids = tokenizer("Tom has 0 apples and buys 3.", return_tensors="pt").input_ids
    said = []
    for _ in range(4):
        said.append(
            int(model(torch.cat([ids, torch.tensor([said], dtype=int)], 1)).logits[0, -1].argmax())
        )
    assert of_base[0] == tokenizer.decode(said, skip_special_tokens=True)


def test_with_texts_the_json_and_the_summary_have_what_they_add(of_texts):
    report = of_texts[0]
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    jsonschema.validate(content, SCHEMA)
    large = content["adapters"][1]
    row = report.tables["behaviour"].query("run == 'large'").iloc[0]
    assert (large["kl"], large["loss"]) == (row.kl, row.loss)
    assert large["barrier"] >= 0
    assert report.check("kl>1e6") == []
    *_, third = summary.findings(report)
    assert re.fullmatch(
        r"Next-token distributions .*: large [\d.]+ \([\d.]+\), small [\d.]+ \([\d.]+\), zero .*",
        third,
    ), third


def test_a_head_that_is_tied_is_updated_alone_as_in_peft():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    update = {"lm_head": factors_of(np.ones((20, 1), "f4"), np.ones((1, 8), "f4"))}
    before = model.model.embed_tokens.weight.clone()
    texts._prepare(model, store.ROOT, update)
    updates.put(model, updates.weights_of(model, update), update)
    assert torch.equal(model.model.embed_tokens.weight, before), "the embedding stays"
    torch.testing.assert_close(model.lm_head.weight, before + 1)
    with pytest.raises(AdapterError, match=r"has no module model\.nothing"):
        texts._prepare(model, store.ROOT, {"model.nothing": update["lm_head"]})


def test_a_model_that_changes_its_logits_after_the_head_is_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        final_logit_softcapping=0.01,
    )
    model = Gemma2ForCausalLM(config).eval()
    with pytest.raises(AdapterError, match="changes its logits after the head"):
        texts._require_plain_head(model, store.ROOT, [1, 2, 3])
