"""What the Snakefile asks of the package: what each step reads, and the parts of the book made from executed notebooks.

Outside the flow of data: it knows which artefacts each notebook reads, and no artefact depends on it.
"""

import json
import sys

from helpers import store

READS = {
    "01_problems": ("models",), "02_rollouts": (), "03_sft": ("sft",), "04_rft": ("rft", "sft"), "05_dft": ("dft",), "06_rift": ("rift",),
    "07_offline_grpo": ("offline-grpo",), "08_dpo": ("dpo",), "09_evaluation": ("models", "main"),
}


def modules(source):
    """A Python file's helper modules, itself included if it is one, relative to the repository."""
    source = store.ROOT / source
    own = [source] if source.parent == store.PACKAGE else []
    return [str(path.relative_to(store.ROOT)) for path in [*own, *store.imported_modules(source)]]


def settings(study, *parts):
    """Hash of the named parts of a profile; without names, of all but its runs."""
    kept = study.model_dump(mode="json", include=set(parts)) if parts else study.model_dump(mode="json", exclude={"runs", "pretraining"})
    return store.digest(kept)


def spec(study, run):
    """Hash of one run's spec and of the adapter's settings."""
    return store.digest({"run": study.runs[run].model_dump(), "lora": study.lora.model_dump()})


def artefacts(study, notebook):
    """Files under the results folder that a notebook reads: runs with their evaluations, and evaluated models."""
    found = []
    for need in READS[notebook]:
        if need == "models":
            found += [f"evaluation/{model}.parquet" for model in study.models]
        else:
            for run in study.main_runs if need == "main" else (need,):
                found += [f"runs/{run}/run.json", f"evaluation/{run}.parquet", f"divergence/{run}.parquet"]
            found.append("evaluation/base.parquet")
    return sorted(set(found))


def prepare_book(profile_name):
    """Lay a profile's executed notebooks into the book and write the page of timings from them."""
    target = store.ROOT / "book" / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.ipynb"):
        old.unlink()
    lines = []
    for executed in sorted((store.results(profile_name) / "notebooks").glob("*.ipynb")):
        notebook = json.loads(executed.read_text())
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("tags", [])
            if "injected-parameters" in tags:
                tags.append("remove-cell")
        (target / executed.name).write_text(json.dumps(notebook))
        duration = notebook["metadata"]["papermill"]["duration"]
        lines.append(f"| [](notebooks/{executed.name}) | {duration:.0f} |")
    runs = []
    for record in sorted((store.results(profile_name) / "runs").glob("*/run.json")):
        content = json.loads(record.read_text())
        runs.append(f"| {record.parent.name} | {content['minutes']:.1f} | {content['rows']} | {content['passes']:.2f} |")
    place = ", ".join(f"{name} {version}" for name, version in store.provenance().items())
    page = ["# Timings", "", f"Profile `{profile_name}`, computed on the machine that built this book ({place}).", "",
            "| notebook | seconds |", "|---|---|", *lines, "", "Training, each run on one thread unless its spec says otherwise:", "",
            "| run | minutes | rows | passes over them |", "|---|---|---|---|", *runs, ""]
    (store.ROOT / "book" / "timings.md").write_text("\n".join(page))


if __name__ == "__main__":
    prepare_book(sys.argv[1])
