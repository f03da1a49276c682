"""What the Snakefile asks of the package: what each step reads, and the parts of the book made from executed notebooks.

Outside the flow of data: it knows which artefacts each notebook reads, and no artefact depends on it.
"""

import json
import sys

from helpers import profiles, store

HELD_OUT = "held-out/teacher.parquet"
READS = {
    "01_problems": ("models",), "02_rollouts": (), "03_sft": ("sft",), "04_rft": ("rft", "sft"), "05_dft": ("dft",), "06_rift": ("rift",),
    "07_offline_grpo": ("offline-grpo",), "08_dpo": ("dpo",), "09_evaluation": ("models", "main"), "10_norms": ("adapters",),
    "11_angles": ("adapters",), "12_decomposition": ("adapters",), "13_connectivity": ("adapters", "paths", "held-out"),
    "14_representations": ("adapters", "held-out"),
    "22_verdict": ("09_evaluation", "10_norms", "11_angles", "12_decomposition", "13_connectivity", "14_representations"),
    "23_your_adapters": ("adapters", "held-out"),
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
    """Files under the results folder that a notebook reads.

    Its needs in `READS` are "models" (evaluated), "main" (the six runs, evaluated), "adapters" (the six runs), "paths" between
    them, "held-out" texts, one run by its name, or another notebook, for the tables that it writes.
    """
    needs = READS[notebook]
    runs = {name: f"runs/{name}/run.json" for name in study.main_runs}
    evaluated = list(study.main_runs) if "main" in needs else [need for need in needs if need in study.runs]
    found = [runs[name] for name in (study.main_runs if "adapters" in needs else evaluated)]
    found += [f"{folder}/{name}.parquet" for name in evaluated for folder in ("evaluation", "divergence")]
    if evaluated or "paths" in needs:
        found.append("evaluation/base.parquet")
    if "models" in needs:
        found += [f"evaluation/{model}.parquet" for model in study.models]
    if "paths" in needs:
        found += [path for name in study.main_runs for path in path_files(study, name)]
    if "held-out" in needs:
        found.append(HELD_OUT)
    found += [f"notebooks/{need}.ipynb" for need in needs if need in READS]
    return sorted(set(found))


def path_files(study, run):
    """Files under the results folder that hold what was measured on the paths from a run (`connectivity.measure`)."""
    starting = [(first, second) for first, second in study.paths if first == run]
    answered = [path for path in starting if path in study.connectivity.answered_paths]
    return [f"connectivity/{part}-{first}-{second}.parquet" for part, paths in (("losses", starting), ("answers", answered)) for first, second in paths]


def path_inputs(study, run):
    """Files under the results folder that `connectivity.measure` reads: the runs at both ends, and answers of the ends that answer problems."""
    starting = [(first, second) for first, second in study.paths if first == run]
    reached = {end.removeprefix(profiles.SCALED) for path in starting for end in path} - {"base"}
    answering = {end for path in starting if path in study.connectivity.answered_paths for end in path}
    return [HELD_OUT, *sorted(f"runs/{end}/run.json" for end in reached), *sorted(f"evaluation/{end}.parquet" for end in answering)]


def prepare_book(profile_name):
    """Lay a profile's executed notebooks into the book, and write the parts of it that come from them: timings and the front page's table."""
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
    (store.ROOT / "book" / "verdict_table.md").write_text(_verdict_lines(store.read_table(profile_name, "verdict")))


def _verdict_lines(claims):
    """The `verdict` table as Markdown, for the front page."""
    lines = [f"| {row.claim} | {row.paper} | {row.ours} | {row.control} | **{row.verdict}** |" for row in claims.itertuples()]
    return "\n".join(["| claim | the paper | this build (95% interval) | chance level or control | verdict |", "|---|---|---|---|---|", *lines, ""])


if __name__ == "__main__":
    prepare_book(sys.argv[1])
