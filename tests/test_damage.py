"""Damaged files: whatever happens to a stored file, it is named with the way out, or made again,
and never served."""

import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from adapter_geometry import storage
from helpers import profiles, store
from helpers.data import rollouts, servers
from helpers.evaluation import answering
from helpers.models import loading
from helpers.training import trainer

SMOKE = profiles.load("smoke")
SIX_STEPS = SMOKE.runs["sft"].model_copy(update={"steps": 6})
HARMS = {
    "emptied": lambda content, rng: b"",
    "truncated": lambda content, rng: content[: len(content) // 2],
    "lengthened": lambda content, rng: content + b" ",
    **{
        f"a bit flipped ({number})": lambda content, rng: flipped(
            content, int(rng.integers(len(content))), int(rng.integers(8))
        )
        for number in range(4)
    },
}


def flipped(content, position, bit):
    changed = bytearray(content)
    changed[position] ^= 1 << bit
    return bytes(changed)


class MadeAgain(Exception):
    """In place of the computation, when the damaged file is not served."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository root with the smoke table, one run, one evaluation, and its own copy of the tiny
    base."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        data, model = store.ROOT / "data", "models/tiny/base"
        shutil.copytree(data / model, root / "data" / model)
        for other in ("models/tiny/strong-base", "models/tiny/teacher", store.CHECKSUMS):
            (root / "data" / other).symlink_to(data / other)
        patch.setattr(store, "ROOT", root)
        rollouts.make_table(SMOKE)
        trainer.train(SMOKE, SMOKE.runs["sft"])
        answering.evaluate(SMOKE, "base")
    return root


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """That root, copied to be damaged; making anything again there is refused with `MadeAgain`."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    monkeypatch.setattr(store, "ROOT", tmp_path / "copy")

    def refuse(*_, **__):
        raise MadeAgain

    monkeypatch.setattr(trainer.ObjectiveTrainer, "train", refuse)
    monkeypatch.setattr(answering, "answer", refuse, raising=True)
    loading.model_digest.cache_clear()
    yield tmp_path / "copy"
    loading.model_digest.cache_clear()


def the_table():
    return rollouts.load_table(SMOKE)


def the_run():
    folder = trainer.train(SMOKE, SMOKE.runs["sft"])
    return store.file_digest(folder / "adapter"), pd.read_parquet(folder / "history.parquet")


def the_answers():
    return answering.evaluate(SMOKE, "base")


def the_model():
    tiny = profiles.load("tiny")
    weights = loading.load_model(tiny).state_dict()
    return {
        name: float(weight.double().sum()) for name, weight in weights.items()
    }, loading.load_tokenizer(tiny).get_vocab()


STORED = {
    "the table of rollouts": ("results/smoke/rollouts.parquet", the_table),
    "an adapter": ("results/smoke/runs/sft/adapter/adapter_model.safetensors", the_run),
    "an adapter's configuration": ("results/smoke/runs/sft/adapter/adapter_config.json", the_run),
    "a history": ("results/smoke/runs/sft/history.parquet", the_run),
    "a record": ("results/smoke/runs/sft/run.json", the_run),
    "a list of checksums": ("results/smoke/runs/sft/SHA256SUMS", the_run),
    "answers": ("results/smoke/evaluation/base.parquet", the_answers),
    "weights": ("data/models/tiny/base/model.safetensors", the_model),
    "a tokenizer": ("data/models/tiny/base/tokenizer.json", the_model),
    "a model's configuration": ("data/models/tiny/base/config.json", the_model),
    "a chat template": ("data/models/tiny/base/chat_template.jinja", the_model),
}


def same(loaded, wanted):
    if isinstance(wanted, tuple):
        return all(same(*pair) for pair in zip(loaded, wanted, strict=True))
    return loaded.equals(wanted) if isinstance(wanted, pd.DataFrame) else loaded == wanted


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("what", STORED)
def test_a_damaged_file_is_named_or_made_again_and_never_served(what, harm, copy):
    file, read = STORED[what]
    wanted = read()
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(
        HARMS[harm](content, np.random.default_rng([len(what), list(HARMS).index(harm)]))
    )
    loading.model_digest.cache_clear()
    try:
        loaded = read()
    except ValueError as error:
        message = str(error)
        assert file in message or "SHA256SUMS" in file, (
            f"{harm}: the message must name {file}: {message}"
        )
        assert "put the right one back" in message.lower(), (
            f"{harm}: the message must say the way out: {message}"
        )
        assert len(message.splitlines()) == 1 or "can't be read" in message, "one line"
    except MadeAgain:
        pass
    else:
        assert same(loaded, wanted), f"{what}, {harm}: served with other content"


def test_no_flipped_bit_of_a_table_changes_what_is_read(tmp_path):
    table = pd.DataFrame(
        {
            "run": ["sft", "dpo", "rft"] * 20,
            "cosine": np.linspace(-1, 1, 60),
            "correct": [True, False] * 30,
            "tokens": [[1, 2, 3], [4], []] * 20,
        }
    )
    path = tmp_path / "table.parquet"
    storage.write_frame(path, table, {"fingerprint": "a"})
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(1000):
        path.write_bytes(flipped(content, int(rng.integers(len(content))), int(rng.integers(8))))
        try:
            loaded = store.read_frame(path)
        except ValueError as error:
            refused += "table.parquet" in str(error)
        else:
            pd.testing.assert_frame_equal(loaded, table)
    assert refused > 500, "most bits of a file matter, and the message names the file"


def test_a_model_made_again_is_taken_when_it_is_entered_in_the_list(copy):
    file = copy / "data" / "models" / "tiny" / "base" / "chat_template.jinja"
    before = loading.model_digest("tiny", "base")
    (copy / "data" / store.CHECKSUMS).unlink()
    listed = (store.SOURCE.parent / "data" / store.CHECKSUMS).read_text()
    (copy / "data" / store.CHECKSUMS).write_text(listed)
    file.write_text(file.read_text() + " ")
    loading.model_digest.cache_clear()
    with pytest.raises(
        ValueError, match=r"base/chat_template\.jinja is missing, damaged or changed"
    ):
        loading.model_digest("tiny", "base")
    store.update_checksums(file.parent)
    assert loading.model_digest("tiny", "base") != before, (
        "another model, and so another fingerprint of all that is made with it"
    )
    others = [line for line in listed.splitlines() if "tiny/base/" not in line]
    assert set(others) < set((copy / "data" / store.CHECKSUMS).read_text().splitlines()), (
        "other entries stay"
    )


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A repository root with the checkpoints of a run that was killed after its fifth of six steps,
    and the digest of the adapter that the run makes when it is not."""
    root = tmp_path_factory.mktemp("interrupted")
    (root / "data").symlink_to(store.ROOT / "data")
    on_step_end = trainer._Recorder.on_step_end

    def kill(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "ROOT", root)
        rollouts.make_table(SMOKE)
        folder = trainer.train(SMOKE, SIX_STEPS)
        adapter = store.file_digest(folder / "adapter")
        storage.remove(folder)
        patch.setattr(trainer._Recorder, "on_step_end", kill)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(SMOKE, SIX_STEPS)
    return root, adapter


@pytest.mark.parametrize("part", ["model", "optimizer", "state"])
@pytest.mark.parametrize("harm", ["emptied", "a bit flipped (0)"])
def test_a_damaged_checkpoint_is_not_taken_up(part, harm, interrupted, tmp_path, monkeypatch):
    root, adapter = interrupted
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    monkeypatch.setattr(store, "ROOT", tmp_path / "copy")
    file_name = {
        "model": "adapter_model.safetensors",
        "optimizer": "optimizer.pt",
        "state": "trainer_state.json",
    }[part]
    [file] = (store.ROOT / "results" / "smoke" / "checkpoints").rglob(f"checkpoint-4/{file_name}")
    file.write_bytes(HARMS[harm](file.read_bytes(), np.random.default_rng(0)))
    with pytest.warns(
        UserWarning,
        match=rf"checkpoint-4/{file_name} is missing, damaged or changed"
        ".*Training goes on without it",
    ):
        folder = trainer.train(SMOKE, SIX_STEPS)
    assert store.file_digest(folder / "adapter") == adapter, "it begins anew, to the same adapter"


@pytest.mark.parametrize("content", ["runs: [", "", "\tbase: x", "- a\n- b\n"])
def test_a_profile_that_is_no_yaml_is_named(content, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(content)
    monkeypatch.setattr(profiles, "_FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"mine\.yaml (can't be read as YAML|holds no fields)"):
        profiles.load("mine")


def test_a_damaged_answer_of_a_server_is_named(workplace):
    settings = yaml.safe_load("{url: 'http://127.0.0.1:9/v1', model: m}")
    endpoint = profiles.EndpointSettings(**settings)
    folder = workplace / "results" / "answers"
    folder.mkdir(parents=True)
    asked = {
        **endpoint.identity,
        "messages": [{"role": "user", "content": "1 + 1?"}],
        "temperature": 1.0,
        "max_tokens": 5,
        "seed": 0,
    }
    file = folder / f"{storage.digest(asked)}.json"
    file.write_text('{"completions": [')
    with pytest.raises(ValueError, match=rf"results/answers/{file.name} is damaged"):
        servers.complete(
            endpoint, ["1 + 1?"], samples=1, temperature=1.0, max_tokens=5, seed=0, folder=folder
        )
