"""Adapters that others trained: taken as the runs of a study, refused by name where they are not
there, and shown by the geometry pages."""

import json
import shutil
from pathlib import Path

import jupytext
import matplotlib
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from adapter_geometry.adapters import WEIGHTS, AdapterError
from helpers import profiles, store
from helpers.book import pipeline
from helpers.models import loading
from helpers.training import published, trainer

PAGES = ("10_norms", "11_angles", "12_decomposition")


def publish(folder, study, seed):
    """A PEFT folder with random factors for the study's base, written by PEFT itself and laid out
    as on the hub."""
    model = loading.attach_adapter(loading.load_model(study), study.lora, 42)
    model.save_pretrained(folder)
    path = folder / WEIGHTS
    generator = torch.Generator().manual_seed(seed)
    save_file(
        {
            name: weight
            if "lora_A" in name
            else torch.randn(weight.shape, generator=generator) * 0.1
            for name, weight in load_file(path).items()
        },
        path,
    )


@pytest.fixture
def study(tmp_path_factory, workplace, monkeypatch):
    """A profile that trains nothing, its adapters in a folder outside the repository: one is called
    otherwise there."""
    source = tmp_path_factory.mktemp("copies") / "adapters"
    folder = tmp_path_factory.mktemp("profiles")
    for path in profiles._FOLDER.glob("*.yaml"):
        shutil.copy(path, folder)
    monkeypatch.setattr(profiles, "_FOLDER", folder)
    seeds = {"sft-43-43": {"objective": "sft", "init_seed": 43, "seed": 43}}
    fields = {
        "like": "smoke",
        "published": {"source": str(source), "folders": {"dpo": "dpo-5e-7"}},
        "controls": {"seeds": {"answers": False, "runs": seeds}},
    }
    (folder / "others.yaml").write_text(yaml.safe_dump(fields))
    study = profiles.load("others")
    for seed, name in enumerate([*study.main_runs, "sft-43-43"]):
        publish(source / study.published.folders.get(name, name), study, seed)
    return study


def test_a_published_adapter_stands_for_a_run_and_nothing_is_trained(study, monkeypatch):
    monkeypatch.setattr(trainer.ObjectiveTrainer, "train", None)
    folder = trainer.train(study, study.runs["dpo"])
    theirs = load_file(f"{study.published.source}/dpo-5e-7/adapter_model.safetensors")
    ours = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items()), (
        "the adapter itself, from the folder that the profile names"
    )
    assert json.loads((folder / "run.json").read_text())["published"] == "dpo-5e-7"
    assert "published by others" in store.origin("others", [study.runs["dpo"]]), (
        "no page claims to have trained it"
    )
    assert trainer.train(study, study.runs["dpo"]) == folder, "and it is taken once"


def test_another_adapter_in_the_same_place_is_taken_anew(study):
    first = load_file(
        trainer.train(study, study.runs["rft"]) / "adapter" / "adapter_model.safetensors"
    )
    publish(Path(study.published.source) / "rft", study, 99)
    second = load_file(
        trainer.train(study, study.runs["rft"]) / "adapter" / "adapter_model.safetensors"
    )
    assert any(not torch.equal(first[name], second[name]) for name in first), (
        "what was copied before is not served for it"
    )


def test_a_missing_adapter_is_refused_with_the_names_of_those_that_are_there(study):
    shutil.rmtree(f"{study.published.source}/rift")
    with pytest.raises(
        FileNotFoundError,
        match="no adapter 'rift' for the run 'rift', "
        "but dft, dpo-5e-7, offline-grpo, rft, sft, sft-43-43: put",
    ):
        trainer.train(study, study.runs["rift"])


def test_a_damaged_one_is_refused(study):
    path = Path(study.published.source) / "sft" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AdapterError, match="cannot be read"):
        trainer.train(study, study.runs["sft"])


def test_the_rates_of_a_schedule_are_those_that_training_takes(table, smoke):
    run = smoke.runs["sft"].model_copy(update={"steps": 5, "schedule": 8, "warmup": 0.3})
    rates = pd.read_parquet(trainer.train(smoke, run) / "history.parquet").learning_rate
    assert published.planned_rates(run) == pytest.approx(list(rates)), (
        "so that norms can be read against what the rate alone would do"
    )


def test_the_profile_of_the_published_adapters_asks_for_geometry_alone():
    authors = profiles.load("published-adapters")
    assert pipeline.notebooks(authors) == [
        "10_norms",
        "11_angles",
        "12_decomposition",
        "23_verdict",
    ], "no rollouts, no evaluation, no paths"
    assert (authors.lora.rank, authors.models["base"]) == (32, "hub:Qwen/Qwen3-4B-Instruct-2507"), (
        "the paper's"
    )
    assert pipeline.artefacts(authors, "10_norms")[0].startswith("results/published-adapters/runs/")


@pytest.mark.slow
def test_the_geometry_pages_run_on_published_adapters(study, monkeypatch):
    matplotlib.use("Agg")
    prerun = store.SOURCE.parent / "results" / "prerun"
    # Where the pages find the pretrained model that they compare it with.
    monkeypatch.setattr(store, "shipped", lambda name: prerun / name)
    for page in PAGES:
        notebook = jupytext.read(store.SOURCE.parent / "notebooks" / f"{page}.py")
        scope = {"__name__": page}
        for cell in (cell.source for cell in notebook.cells if cell.cell_type == "code"):
            exec(cell.replace('profile = "tiny"', 'profile = "others"'), scope)
    written = {path.stem for path in (store.results("others") / "tables").glob("*.parquet")}
    assert {"updates", "cosine", "replicas", "angles", "orthogonal"} <= written, (
        "the tables of the verdict's geometry"
    )
    cosine = store.read_table("others", "cosine").query("scope == 'global'")
    assert (cosine.cosine.abs() < 4 * cosine.chance_high).all(), "random factors are unrelated"
