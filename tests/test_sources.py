"""What a user names leads to the folder that is meant: layouts on disk and on the hub, revisions,
and short names for adapters."""

import doctest
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapter_geometry import sources
from adapter_geometry.adapters import load
from adapter_geometry.sources import CONFIG, WEIGHTS, AdapterError, names_of, resolve


def test_the_examples_hold():
    assert doctest.testmod(sources).failed == 0


def touched(root, *names):
    """A folder with files of these names, empty but for weights and configurations."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file(
                {
                    "base_model.model.q.lora_A.weight": torch.ones(2, 4),
                    "base_model.model.q.lora_B.weight": torch.ones(4, 2),
                },
                path,
            )
        else:
            path.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return root


def adapter_in(*folders):
    return [f"{folder}{name}" for folder in folders for name in (CONFIG, WEIGHTS)]


# {what it is: (files, subfolder that is taken, kind)}
FOUND = {
    "PEFT": (adapter_in(""), "", "adapter"),
    "TRL's DPO: the policy at the root, the reference below": (
        adapter_in("", "ref/"),
        "",
        "adapter",
    ),
    "a Trainer's folder with the adapter and its checkpoints": (
        adapter_in("", "checkpoint-500/", "checkpoint-1000/"),
        "",
        "adapter",
    ),
    "a run with its one adapter": (["run.json", *adapter_in("adapter/")], "adapter", "adapter"),
    "one named adapter of a checkpoint": (
        adapter_in("checkpoint-500/default/"),
        "checkpoint-500/default",
        "adapter",
    ),
    "torchtune: adapter and merged model beside each other": (
        [
            "epoch_0/config.json",
            "epoch_0/model-00001-of-00001.safetensors",
            *adapter_in("epoch_0/"),
        ],
        "epoch_0",
        "adapter",
    ),
    "a full fine-tune": (["config.json", "model.safetensors"], "", "model"),
    "a full fine-tune with checkpoints": (
        ["config.json", "model-00001-of-00002.safetensors", "checkpoint-1/model.safetensors"],
        "",
        "model",
    ),
    "an adapter in parts": ([CONFIG, "adapter_model-00001-of-00002.safetensors"], "", "adapter"),
    "hidden folders": (adapter_in("a/", ".cache/b/"), "a", "adapter"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_folder_that_is_meant_is_found(case, tmp_path):
    files, inside, kind = FOUND[case]
    source = resolve(str(touched(tmp_path / "run", *files)))
    assert (source.folder, source.kind) == (tmp_path / "run" / inside, kind)
    assert (source.origin, source.revision) == (str(tmp_path / "run"), None)
    assert source.note == (f"read from its subfolder {inside}" if inside else None)


# {what it is: (files, error, what the message says)}
REFUSED = {
    "named adapters": (adapter_in("math/", "code/"), AdapterError, "/code, {root}/math"),
    "a Trainer's checkpoints": (
        adapter_in("checkpoint-500/", "checkpoint-1000/"),
        AdapterError,
        "2 adapters in its subfolders, none itself: name the one to read, "
        "{root}/checkpoint-500, {root}/checkpoint-1000",
    ),
    "checkpoints of a full fine-tune": (
        ["a/model.safetensors", "b/model.safetensors"],
        AdapterError,
        "{root}/a, {root}/b",
    ),
    "many adapters": (
        adapter_in(*(f"step-{step}/" for step in range(12))),
        AdapterError,
        "and 4 more",
    ),
    "diffusers": (["pytorch_lora_weights.safetensors"], AdapterError, "an adapter of diffusers"),
    "MLX without a configuration": (["adapters.safetensors"], AdapterError, "an MLX adapter"),
    "torchtune's own": (["adapter_0.pt"], AdapterError, "torchtune"),
    "weights alone": ([WEIGHTS], AdapterError, f"{CONFIG} is missing"),
    "a pickle alone": (["adapter_model.bin"], AdapterError, f"{CONFIG} is missing"),
    "llama.cpp": (["lora.gguf"], AdapterError, "GGUF"),
    "a model as a pickle": (["config.json", "pytorch_model.bin"], AdapterError, "a pickle"),
    "DeepSpeed": (["latest", "zero_to_fp32.py"], AdapterError, "zero_to_fp32.py"),
    "other safetensors": (["kohya.safetensors"], AdapterError, f"no {CONFIG}"),
    "nothing of the kind": (["notes.txt"], FileNotFoundError, "holds no adapter"),
    "an empty folder": ([], FileNotFoundError, "holds no adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_adapter_is_called_what_it_is(case, tmp_path):
    files, error, says = REFUSED[case]
    root = touched(tmp_path / "run", *files)
    root.mkdir(exist_ok=True)
    with pytest.raises(error) as refused:
        resolve(root)
    assert says.format(root=root) in str(refused.value)
    assert str(root) in str(refused.value)


def test_a_file_of_an_adapter_stands_for_its_folder(tmp_path):
    root = touched(tmp_path / "run", *adapter_in(""), "README.md")
    for name in (CONFIG, WEIGHTS):
        assert resolve(root / name).folder == root
    with pytest.raises(AdapterError, match="is not a folder: name the folder"):
        resolve(root / "README.md")


def test_a_path_that_is_not_there_is_named_as_it_was_given(tmp_path):
    for path in (tmp_path / "sweep" / "lr=3e-4", "../nowhere/adapter", "nowhere"):
        with pytest.raises(FileNotFoundError) as refused:
            resolve(path)
        assert f"no adapter at {path}" in str(refused.value)


# --- the hub --------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub: {repository: {revision: (commit, folder)}}; what is fetched is copied
    into a cache that is laid out as the hub's, and what was asked for is kept in `asked`."""
    hub = SimpleNamespace(repositories={}, asked=[])
    sources._snapshot.cache_clear()

    def snapshot_download(repository, revision=None, allow_patterns=None):
        hub.asked.append((repository, revision, tuple(allow_patterns)))
        if repository not in hub.repositories:
            raise LocalEntryNotFoundError("no network\nand a long explanation")
        commit, folder = hub.repositories[repository][revision or "main"]
        name = f"models--{repository.replace('/', '--')}"
        snapshot = tmp_path / "cache" / name / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        names = [
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        ]
        for each in huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / each, snapshot / each)
        return str(snapshot)

    def list_repo_files(self, repository, revision=None):
        if repository not in hub.repositories:
            raise OfflineModeIsEnabled("offline")
        folder = hub.repositories[repository][revision or "main"][1]
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    yield hub
    sources._snapshot.cache_clear()


def test_a_hub_id_leads_to_its_adapter_and_nothing_else_is_fetched(hub, tmp_path):
    files = (*adapter_in(""), "training_args.bin", "run.py", "optimizer.pt")
    hub.repositories["owner/name"] = {"main": ("0a1b", touched(tmp_path / "repository", *files))}
    source = resolve("owner/name")
    assert {path.name for path in source.folder.iterdir()} == {CONFIG, WEIGHTS}
    assert (source.kind, source.origin, source.revision) == ("adapter", "owner/name", "0a1b")
    loaded = load("owner/name")
    assert set(loaded.update) == {"q"}
    assert (loaded.origin, loaded.revision) == ("owner/name", "0a1b")
    assert len(hub.asked) == 1, "asked for once"


@pytest.mark.parametrize("revision", ["v1", "1f3e5d7c9b", "refs/pr/3"])
@pytest.mark.parametrize("inside", ["", "seeds/one"])
def test_a_revision_and_a_folder_may_be_named(revision, inside, hub, tmp_path):
    for number, branch in enumerate(("main", revision)):
        folder = tmp_path / str(number)
        touched(folder, *adapter_in(f"{inside}/" if inside else ""))
        (folder / inside / CONFIG).write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2 + 2 * number})
        )
        hub.repositories.setdefault("owner/name", {})[branch] = (f"commit-{number}", folder)
    end = f"/{inside}" if inside else ""
    old, new = load(f"owner/name@{revision}{end}"), load(f"owner/name{end}")
    assert (old.update["q"].scale, new.update["q"].scale) == (2.0, 1.0)
    assert (old.revision, new.revision) == ("commit-1", "commit-0")
    assert [asked[:2] for asked in hub.asked] == [("owner/name", revision), ("owner/name", None)]


def test_a_subfolder_of_a_repository_is_found_or_named(hub, tmp_path):
    one = touched(tmp_path / "one", *adapter_in("checkpoint-5/"), "README.md")
    two = touched(tmp_path / "two", *adapter_in("math/", "code/"))
    hub.repositories = {"owner/one": {"main": ("0", one)}, "owner/two": {"main": ("0", two)}}
    source = resolve("owner/one")
    assert source.note == "read from its subfolder checkpoint-5"
    assert (source.folder / WEIGHTS).exists()
    with pytest.raises(AdapterError, match="owner/two/code, owner/two/math"):
        resolve("owner/two")
    assert resolve("owner/two/math").note is None


def test_a_model_on_the_hub_is_fetched_without_what_is_no_weight(hub, tmp_path):
    files = ("config.json", "model.safetensors", "original/consolidated.pth", "tokenizer.json")
    hub.repositories["owner/model"] = {"main": ("0", touched(tmp_path / "model", *files))}
    source = resolve("owner/model")
    assert source.kind == "model"
    assert {path.name for path in source.folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_pickle_gets_the_same_advice_on_the_hub_as_on_the_disk(hub, tmp_path):
    folder = touched(tmp_path / "old", CONFIG, "adapter_model.bin")
    hub.repositories["owner/old"] = {"main": ("0", folder)}
    messages = []
    for name in ("owner/old", folder):
        with pytest.raises(AdapterError) as refused:
            load(name)
        messages.append(str(refused.value))
    remote, local = messages
    command = local.partition("python -c ")[2]
    assert remote.endswith(command)
    assert "owner/old holds adapter_model.bin, a pickle, which can run code" in remote
    assert "hf download owner/old --local-dir FOLDER" in remote


def test_what_the_hub_does_not_give_is_named(hub):
    with pytest.raises(
        FileNotFoundError, match="somebody/something/checkpoint-3 is no folder here"
    ):
        resolve("somebody/something/checkpoint-3")
    assert hub.asked[0][2] == tuple(f"checkpoint-3/{name}" for name in sources.ADAPTER_FILES)


# --- names ----------------------------------------------------------------------------------------

NAMES = [
    (["run-a/adapter", "run-b/adapter"], ["run-a", "run-b"]),
    (
        ["run-a/checkpoint-500", "run-b/checkpoint-500"],
        ["run-a/checkpoint-500", "run-b/checkpoint-500"],
    ),
    (["sweep/lr=1e-4/last", "sweep/lr=1e-5/last"], ["lr=1e-4/last", "lr=1e-5/last"]),
    (["a/seed/checkpoint-5", "b/seed/checkpoint-5"], ["a/checkpoint-5", "b/checkpoint-5"]),
    (["a/x/end", "a/y/end", "b/x/end"], ["a/x/end", "y/end", "b/x/end"]),
    (["run/checkpoint-5", "run/checkpoint-6"], ["checkpoint-5", "checkpoint-6"]),
    (["x", "x"], ["x", "x (2)"]),
    (["owner/name@v1", "owner/name@v2", "other/name"], ["name@v1", "name@v2", "name"]),
    (["owner/name", "other/name"], ["owner/name", "other/name"]),
    (["owner/name/one", "owner/name/two"], ["one", "two"]),
    (["end", "a/end"], ["end", "a/end"]),
    (["ёлка/适配器", "b"], ["适配器", "b"]),
]


@pytest.mark.parametrize(("paths", "expected"), NAMES, ids=str)
def test_names_are_short_and_tell_adapters_apart(paths, expected):
    assert names_of(paths) == expected


def test_a_link_is_called_as_it_was_given_and_a_dot_by_its_folder(tmp_path, monkeypatch):
    root = touched(tmp_path / "output", *adapter_in("checkpoint-1000/", "checkpoint-500/"))
    (root / "best").symlink_to(root / "checkpoint-1000")
    assert names_of([root / "best", f"{root}/checkpoint-500/"]) == ["best", "checkpoint-500"]
    assert sources.name_of(root / "best" / WEIGHTS) == "best"
    monkeypatch.chdir(root / "checkpoint-500")
    assert names_of([".", "../best"]) == ["checkpoint-500", "best"]


PARTS = st.sampled_from(["a", "b", "adapter", "checkpoint-5"])


@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=6))
def test_no_two_names_are_equal_and_each_ends_its_path(paths):
    names = names_of(paths)
    assert len(set(names)) == len(paths)
    for name, path in zip(names, paths, strict=True):
        last = name.partition(" (")[0].rpartition("/")[2]
        assert last in Path(path).parts[-2:]
