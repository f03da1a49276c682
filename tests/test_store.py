"""The store: whole files, fingerprints of code, entries that step aside and return; profiles and
their messages."""

import functools
import json
import os
import subprocess
import sys
import threading

import pandas as pd
import pytest
import yaml

from adapter_geometry import storage
from helpers import profiles, store
from helpers.__main__ import main


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "numbers.json"
    path.write_text(store.as_json(1))

    def fail():
        with storage.whole(path) as temporary_path:
            temporary_path.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert json.loads(path.read_text()) == 1, "the old file survives a failed write"
    assert os.listdir(tmp_path) == ["numbers.json"], "no half-written file stays behind"


def test_a_failed_folder_leaves_nothing_and_keeps_the_old_folder(tmp_path):
    def write(content, fails):
        with storage.whole(tmp_path / "run") as temporary_path:
            (temporary_path / "deep").mkdir(parents=True)
            (temporary_path / "deep" / content).write_text(content)
            if fails:
                raise RuntimeError("killed")

    write("old", fails=False)
    with pytest.raises(RuntimeError, match="killed"):
        write("new", fails=True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["old"], (
        "the old folder is whole and nothing else exists"
    )
    write("new", fails=False)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["new"], (
        "a folder is replaced as a whole"
    )


def test_a_file_is_not_visible_before_it_is_complete(tmp_path):
    with storage.whole(tmp_path / "deep" / "file") as temporary_path:
        temporary_path.write_text("all")
        assert not (tmp_path / "deep" / "file").exists(), (
            "the name appears only when the content is complete"
        )
    assert (tmp_path / "deep" / "file").read_text() == "all"


def finish(path, fingerprint):
    with storage.whole(path) as temporary_path:
        temporary_path.mkdir()
        (temporary_path / "run.json").write_text(json.dumps({"fingerprint": fingerprint}))


def test_an_entry_of_other_settings_steps_aside_and_comes_back(tmp_path):
    first = store.entry(tmp_path, "sft", "a" * 16)
    assert first == tmp_path / "sft"
    finish(first, "a" * 16)
    second = store.entry(tmp_path, "sft", "b" * 16)
    assert second == tmp_path / "sft", "the book's name always belongs to today's settings"
    assert not second.exists(), "an entry that no longer fits is not served"
    assert store.is_finished(tmp_path / "sft-aaaaaaaa", "a" * 16), (
        "it waits under its own fingerprint"
    )
    finish(second, "b" * 16)
    assert store.is_finished(store.entry(tmp_path, "sft", "a" * 16), "a" * 16), (
        "it comes back with its settings"
    )
    assert store.is_finished(tmp_path / "sft-bbbbbbbb", "b" * 16), "the other one now waits"


def test_a_spec_that_no_profile_names_leaves_the_book_alone(tmp_path):
    finish(store.entry(tmp_path, "sft", "a" * 16), "a" * 16)
    mine = store.entry(tmp_path, "sft", "c" * 16, in_profile=False)
    assert mine == tmp_path / "sft-cccccccc"
    assert store.is_finished(tmp_path / "sft", "a" * 16), "asking for an edited spec moves nothing"


def test_an_entry_steps_aside_even_where_its_place_is_taken(tmp_path):
    finish(store.entry(tmp_path, "sft", "a" * 16), "a" * 16)
    finish(store.entry(tmp_path, "sft", "a" * 16, in_profile=False), "a" * 16)
    assert not store.entry(tmp_path, "sft", "b" * 16).exists(), (
        "the same run made once as the book's and once as a reader's is no obstacle"
    )


def test_an_unreadable_entry_is_never_served_however_often(tmp_path):
    for _ in range(2):
        (tmp_path / "sft").mkdir()
        (tmp_path / "sft" / "run.json").write_text("half a fil")
        assert not store.entry(tmp_path, "sft", "a" * 16).exists(), "a broken entry steps aside"


def test_frames_are_computed_once_for_each_fingerprint(tmp_path):
    computed = []

    def compute(value):
        computed.append(value)
        return pd.DataFrame({"value": [value]})

    frames = [
        store.load_or_compute(tmp_path, "base", mark * 16, functools.partial(compute, value))
        for mark, value in (("a", 1), ("a", 2), ("b", 3), ("a", 4))
    ]
    assert [frame.value[0] for frame in frames] == [1, 1, 3, 1], (
        "a frame is served for its own fingerprint only, and returns with it"
    )
    assert computed == [1, 3], "nothing is computed twice"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of four modules, where first imports second, second imports the package third,
    third imports fourth."""
    monkeypatch.setattr(store, "SOURCE", tmp_path)
    tmp_path = tmp_path / "helpers"
    tmp_path.mkdir()
    store.imported_modules.cache_clear()
    store.code_digest.cache_clear()
    (tmp_path / "third").mkdir()
    (tmp_path / "first.py").write_text(
        "from helpers import second\n\n\ndef f(x):\n    return second.g(x)\n"
    )
    (tmp_path / "second.py").write_text(
        "def g(x):\n    import helpers.third\n    return helpers.third.h(x)\n"
    )
    (tmp_path / "third" / "__init__.py").write_text(
        "from helpers.fourth import k\n\n\ndef h(x):\n    return k(x)\n"
    )
    (tmp_path / "fourth.py").write_text("import math\n\n\ndef k(x):\n    return x + 1\n")
    (tmp_path / "other.py").write_text("from helpers import first\n")
    yield tmp_path
    store.imported_modules.cache_clear()
    store.code_digest.cache_clear()


def digest_of_first():
    store.imported_modules.cache_clear()
    store.code_digest.cache_clear()
    return store.code_digest("helpers.first")


def test_imports_are_followed_directly_through_others_and_into_packages(package):
    modules = store.imported_modules(package / "first.py")
    assert set(modules) == {
        package / "second.py",
        package / "third" / "__init__.py",
        package / "fourth.py",
    }, "imports inside functions and packages count too"
    assert store.imported_modules(package / "fourth.py") == (), "libraries are not helper modules"


def test_the_code_fingerprint_ignores_comments_layout_and_docstrings(package):
    before = digest_of_first()
    described = (
        '"""About this module."""\nimport math  # unused\n\n\n'
        'def k(x):\n    """Add one."""\n    # one\n    return (x\n            + 1)\n'
    )
    (package / "fourth.py").write_text(described)
    assert digest_of_first() == before, "what changes no number must not make results stale"


@pytest.mark.parametrize("module", ["first.py", "second.py", "third/__init__.py", "fourth.py"])
def test_the_code_fingerprint_changes_with_any_module_it_depends_on(package, module):
    before = digest_of_first()
    (package / module).write_text((package / module).read_text() + "\nCONSTANT = 2\n")
    assert digest_of_first() != before, f"{module} takes part in the numbers"


def test_the_code_fingerprint_does_not_depend_on_modules_it_does_not_import(package):
    before = digest_of_first()
    (package / "other.py").write_text("CONSTANT = 2\n")
    assert digest_of_first() == before, "arrows go one way"


@pytest.mark.parametrize("valueless", ["store.py", "profiles/__init__.py"])
def test_the_code_fingerprint_leaves_out_what_determines_no_value_but_not_what_that_imports(
    package, valueless
):
    (package / "profiles").mkdir()
    for module in ("store.py", "profiles/__init__.py"):
        (package / module).write_text("from helpers import fifth\n")
    (package / "fifth.py").write_text("CONSTANT = 1\n")
    (package / "first.py").write_text("from helpers import profiles, second, store\n")
    before = digest_of_first()
    (package / valueless).write_text("from helpers import fifth\n\nCONSTANT = 2\n")
    assert digest_of_first() == before, (
        f"{valueless} says where results lie and how settings are read; "
        "the settings are hashed themselves"
    )
    (package / "fifth.py").write_text("CONSTANT = 2\n")
    assert digest_of_first() != before, "any other module counts, whoever imports it"


def test_the_real_training_module_depends_on_profiles_and_rollouts():
    names = {
        path.parent.name if path.name == "__init__.py" else path.stem
        for path in store.imported_modules(store.SOURCE / "helpers" / "training" / "trainer.py")
    }
    assert {
        "loading",
        "objectives",
        "rollouts",
        "store",
        "profiles",
        "problems",
        "updates",
    } <= names, "direct imports and those of models and rollouts"


def test_digest_is_independent_of_the_order_of_keys_and_sees_every_value():
    assert storage.digest({"a": 1, "b": [1, 2]}) == storage.digest({"b": [1, 2], "a": 1})
    assert storage.digest({"a": 1, "b": [1, 2]}) != storage.digest({"a": 1, "b": [2, 1]})


def test_file_digest_sees_content_and_names_and_says_what_is_missing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("1")
    before = store.file_digest(tmp_path / "folder")
    (tmp_path / "folder" / "a").rename(tmp_path / "folder" / "b")
    renamed = store.file_digest(tmp_path / "folder")
    (tmp_path / "folder" / "b").write_text("2")
    assert len({before, renamed, store.file_digest(tmp_path / "folder")}) == 3, (
        "a renamed or edited file changes the hash of its folder"
    )
    with pytest.raises(FileNotFoundError, match="nothing does not exist or is empty"):
        store.file_digest(tmp_path / "nothing")


def test_a_missing_table_says_how_to_make_it(workplace):
    with pytest.raises(
        FileNotFoundError, match=r"no table results/smoke/tables/accuracy\.parquet yet: `make book`"
    ):
        store.read_table("smoke", "accuracy")
    frame = pd.DataFrame({"run": ["base"], "accuracy": [0.5]})
    store.write_table("smoke", "accuracy", frame)
    pd.testing.assert_frame_equal(store.read_table("smoke", "accuracy"), frame)


# --- profiles ------------------------------------------------------------------------------------


@pytest.fixture
def edit(tmp_path, monkeypatch):
    """Load a copy of smoke.yaml with one field set, given by its path."""
    fields = yaml.safe_load((profiles._FOLDER / "smoke.yaml").read_text())
    monkeypatch.setattr(profiles, "_FOLDER", tmp_path)

    def load(path, value):
        *parents, last = path.split(".")
        section = fields
        for parent in parents:
            section = section[parent]
        section[last] = value
        (tmp_path / "edited.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
        return profiles.load("edited")

    return load


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_loads_and_its_main_runs_exist(name):
    profile = profiles.load(name)
    assert set(profile.main_runs) <= set(profile.runs), "main_runs name runs of the profile"
    assert {run.base for run in profile.runs.values()} <= set(profile.models), (
        "runs start from models of the profile"
    )
    assert all(key == run.name for key, run in profile.runs.items()), "a run knows its name"


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("problems.trian", 8, "problems.trian"),
        ("lora.rank", 0, "lora.rank"),
        ("rollouts.temperature", -1, "rollouts.temperature"),
        ("rollouts.source", "internet", "rollouts.source"),
        ("problems.train", {"path": "x"}, "problems.train.split"),
        ("run_defaults.warmup", 2, "runs.sft.warmup"),
        ("runs.sft.objektive", "sft", "runs.sft.objektive"),
        ("evaluation.max_new_tokens", "many", "evaluation.max_new_tokens"),
    ],
)
def test_a_bad_field_gives_one_message_with_file_and_field(edit, path, value, field):
    with pytest.raises(ValueError, match=f"edited.yaml: {field}: ") as caught:
        edit(path, value)
    assert repr(value) in str(caught.value), "the message shows the value found"
    assert "\n" not in str(caught.value), "one line, not a validation report"


def test_run_defaults_are_overridden_by_a_run(edit):
    profile = edit("runs.sft.learning_rate", 0.5)
    assert (profile.runs["sft"].learning_rate, profile.runs["rft"].learning_rate) == (0.5, 1e-3), (
        "a run's own value wins over the default"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run_defaults.accumulation", 3),
        ("main_runs", ["sft", "nothing"]),
        ("runs.sft.base", "nothing"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(edit, path, value):
    with pytest.raises(ValueError, match=r"edited\.yaml"):
        edit(path, value)


def test_a_run_with_the_name_of_a_model_is_refused(smoke, edit):
    sft = smoke.runs["sft"].model_dump(exclude={"name"})
    with pytest.raises(
        ValueError,
        match=r"edited\.yaml: .*run 'teacher' has the name of one of the models base, .*",
    ):
        edit("runs.teacher", sft)
    assert "teacher" in smoke.models, "which is a model of this profile"


def test_unknown_profile_and_run_are_refused_naming_those_that_exist(smoke):
    with pytest.raises(
        ValueError, match=r"unknown profile 'huge': choose one of .*smoke.*, or add huge.yaml"
    ):
        profiles.load("huge")
    with pytest.raises(
        ValueError, match="unknown run 'ppo' in profile 'smoke': choose one of sft, rft"
    ):
        profiles.run(smoke, "ppo")


def test_an_empty_folder_is_no_entry(tmp_path):
    (tmp_path / "sft").mkdir()
    assert store.entry(tmp_path, "sft", "0123456789abcdef") == tmp_path / "sft"
    assert list(tmp_path.iterdir()) == [], (
        "a folder that Snakemake made in advance must not be kept as a broken run"
    )


def test_the_command_for_fault_reports_names_versions_and_no_path_of_the_machine(capsys):
    main(["env"])
    output = capsys.readouterr().out
    for name, version in store.versions().items():
        assert f"{name}: {version}" in output, f"the version of {name}"
    assert "cores" in output
    assert str(store.ROOT) not in output, "a report can be pasted anywhere"


def test_one_process_at_a_time_writes_an_entry_and_the_lock_of_a_killed_one_is_free(workplace):
    code = (
        "import sys, time; from pathlib import Path; from helpers import store\n"
        "store.ROOT = Path(sys.argv[1])\n"
        "with store.lock('a run'): print('mine', flush=True); time.sleep(60)"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(workplace)], stdout=subprocess.PIPE, text=True
    )
    assert held.stdout.readline() == "mine\n"
    got = threading.Event()

    def wait():
        with store.lock("a run"):
            got.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not got.wait(1), "the second one waits"
    held.kill()
    held.wait()
    assert got.wait(10), "and goes on when the first one is gone, however it ended"


def test_a_command_waits_for_the_one_before_it_and_a_killed_one_leaves_no_lock(workplace):
    command = [
        sys.executable,
        "-m",
        "helpers.locks",
        sys.executable,
        "-c",
        "import time; print(1, flush=True); time.sleep(60)",
    ]

    def start():
        return subprocess.Popen(
            command, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    first = start()
    assert first.stdout.readline() == "1\n"
    second = start()
    assert "is at work in this folder" in second.stderr.readline(), "it says what it waits for"
    first.kill()
    assert second.stdout.readline() == "1\n", (
        "and starts when the first one is gone, however it ended"
    )
    second.kill()
