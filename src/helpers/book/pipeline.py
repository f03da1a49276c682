"""What the Snakefile asks of the package: what each step reads and makes.

Outside the flow of data: it knows which artefacts each notebook reads, and no artefact depends on it.
"""

import dataclasses
import functools
import importlib.metadata
import re
import shutil

import yaml

from adapter_geometry import storage
from helpers import profiles, store

_NOTEBOOKS = store.SOURCE.parent / "notebooks"
HELD_OUT = "held-out/teacher.parquet"
_RECORDS = (
    "evaluation",
    "divergence",
    "sampled",
    "validation",
    "samples",
    "held-out",
    "connectivity",
    "gradients",
    "interventions",
    "tables",
)  # folders of results


def is_large(study):
    """Whether each run gets a job, and each job GPUs, of its own; others run their controls a group in one process, on CPUs."""
    return study.compute != profiles.ComputeSettings() and not study.published


def on_gpus(study, command, count=1):
    """A command of the pipeline, on GPUs that no other one is using where the study is large."""
    return f"python -m helpers.cluster.gpus {count} {command}" if is_large(study) else command


def trainer(study):
    """How a run is started: one process, or one for each of the GPUs that the profile gives to a run."""
    count = study.compute.processes
    return on_gpus(
        study,
        "python -m" if count == 1 else f"torchrun --standalone --nproc-per-node {count} -m",
        count,
    )


def modules(source):
    """The modules of our packages that a Python file imports, itself included if it is one, and the
    files that they read from beside themselves, relative to the repository."""
    source = store.ROOT / source
    own = [source] if source.is_relative_to(store.SOURCE) else []
    paths = [*own, *store.imported_modules(source)]
    paths += sorted({file for path in paths for file in _data_of(path)})
    return [str(path.relative_to(store.ROOT)) for path in paths]


def _data_of(module):
    """The YAML files beside a module that it names, and the templates there if it has some."""
    text = module.read_text()
    yield from (file for file in module.parent.glob("*.yaml") if f'"{file.name}"' in text)
    if '"templates"' in text:
        yield from (module.parent / "templates").iterdir()


def settings(study, *parts):
    """Hash of the named parts of a profile; without names, of all that a page shows but its runs."""
    if parts:
        return storage.digest(study.model_dump(mode="json", include=set(parts)))
    shown = study.model_dump(mode="json", exclude={"runs", "pretraining"})
    return storage.digest(shown | {"appearance": dataclasses.asdict(study.appearance)})


def libraries():
    """Hash of the installed versions of all libraries that requirements.txt pins; pages use more of them than numbers do (`store.versions`)."""
    pinned = re.findall(
        r"^([A-Za-z0-9._-]+)==", (store.ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    return storage.digest({name: importlib.metadata.version(name) for name in pinned})


def spec(study, run):
    """Hash of one run's spec and of the adapter's settings."""
    return storage.digest({"run": study.runs[run].model_dump(), "lora": study.lora.model_dump()})


def path_of(study, file):
    """Where a file of a study's results is found or is to be made (`store.find`), relative to the repository."""
    return str(store.find(study.name, file).relative_to(store.ROOT))


def run_files(study, name, answers):
    """A run's record and, with `answers`, what was measured of it, where they lie or are to be made, relative to the repository."""
    files = [
        f"runs/{name}/run.json",
        *(f"{part}/{name}.parquet" for part in ("evaluation", "divergence") if answers),
    ]
    if store.home(study.name, study.runs[name]) == store.shipped(study.name):
        return [path_of(study, file) for file in files]
    return [
        f"results/{study.name}/{file}" for file in files
    ]  # what came with the book belongs to a run of another spec


def group_files(study, group):
    """All files of a group of controls."""
    return [
        file
        for name in study.controls[group].runs
        for file in run_files(study, name, study.controls[group].answers)
    ]


@functools.cache
def reads(notebook: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a notebook declares in its header: (what it needs, the pages whose tables it takes where a
    profile has them).

    "templated" problems, the table of "rollouts", "models" (evaluated), "main" (the six runs,
    evaluated), "adapters" (the six runs), "paths" between them, "snapshots" of theirs, "held-out"
    texts, one run or one group of controls by its name, seeds for "all methods", or another
    notebook, for the tables that it writes. Raises ValueError for a notebook that declares neither.
    """
    path = _NOTEBOOKS / f"{notebook}.py"
    header = path.read_text().split("# ---\n")[1]
    metadata = yaml.safe_load("\n".join(line[2:] for line in header.splitlines()))["jupyter"]
    if not metadata.keys() & {"reads", "reads_where_present"}:
        raise ValueError(
            f"{path.name} does not say what it reads: add `reads: [...]` to its header, below "
            "kernelspec, with what `helpers.book.pipeline.reads` lists"
        )
    return tuple(metadata.get("reads", ())), tuple(metadata.get("reads_where_present", ()))


def names() -> list[str]:
    """Names of all notebooks, in the order of the book."""
    return sorted(path.stem for path in _NOTEBOOKS.glob("*.py"))


def notebooks(study):
    """The notebooks for which the profile has what they need: problems, runs, groups of controls, snapshots.

    Of adapters that were published there is the geometry alone.
    """
    known, chosen = {"adapters", *study.controls}, []
    if not study.published:
        known |= {"rollouts", "models", "main", "paths", "held-out", *study.runs}
    if isinstance(study.problems, profiles.ProblemSettings):
        known.add("templated")
    if all(study.runs[name].snapshots for name in study.main_runs):
        known.add("snapshots")
    replicas = study.controls["seeds"].runs if "seeds" in study.controls else ()
    if {study.runs[name].objective for name in replicas} == {
        study.runs[name].objective for name in study.main_runs
    }:
        known.add("all methods")
    for notebook in names():
        if known.issuperset(reads(notebook)[0]):
            chosen.append(notebook)
            known.add(notebook)
    return chosen


def artefacts(study, notebook):
    """Files that a notebook reads, relative to the repository: all that it declares (`reads`)."""
    needs = {need for declared in reads(notebook) for need in declared}
    evaluated = (
        list(study.main_runs) if "main" in needs else [need for need in needs if need in study.runs]
    )
    found = [file for name in evaluated for file in run_files(study, name, True)]
    found += [run_files(study, name, False)[0] for name in study.main_runs if "adapters" in needs]
    found += [
        file for group in study.controls if group in needs for file in group_files(study, group)
    ]
    if evaluated or "paths" in needs:
        found.append(path_of(study, "evaluation/base.parquet"))
    if "models" in needs:
        found += [
            path_of(study, f"evaluation/{model}.parquet")
            for model in study.models
            if not study.is_elsewhere(model)
        ]
    if "paths" in needs:
        found += [file for name in study.main_runs for file in path_files(study, name)]
    if "held-out" in needs:
        found.append(path_of(study, HELD_OUT))
    found += [
        f"results/{study.name}/notebooks/{need}.ipynb" for need in notebooks(study) if need in needs
    ]
    return sorted(set(found))


def path_files(study, run):
    """Files that hold what was measured on the paths from a run (`connectivity.measure`), where they lie or are to be made."""
    starting = [(first, second) for first, second in study.paths if first == run]
    answered = [path for path in starting if path in study.connectivity.answered_paths]
    files = [
        f"connectivity/{part}-{first}-{second}.parquet"
        for part, paths in (("losses", starting), ("answers", answered))
        for first, second in paths
    ]
    return [path_of(study, file) for file in files]


def path_inputs(study, run):
    """Files that `connectivity.measure` reads: held-out texts, the runs at both ends, and answers of the ends that answer problems."""
    starting = [(first, second) for first, second in study.paths if first == run]
    reached = {end.removeprefix(profiles.SCALED) for path in starting for end in path} - {"base"}
    answering = {
        end for path in starting if path in study.connectivity.answered_paths for end in path
    }
    return [
        path_of(study, HELD_OUT),
        *sorted(run_files(study, end, False)[0] for end in reached),
        *sorted(path_of(study, f"evaluation/{end}.parquet") for end in answering),
    ]


def ship(study):
    """Copy what is finished of a profile's controls, or of a study that comes whole, from its results to results/prerun; returns that folder."""
    made, target = store.results(study.name), store.shipped(study.name)
    if study.comes_whole:
        entries = [path for part in ("runs", *_RECORDS) for path in (made / part).glob("*")]
    else:
        entries = list((made / "interventions").glob("*"))
        for group in study.controls.values():
            entries += [made / "runs" / name for name in group.runs]
            entries += [
                made / part / f"{name}.parquet"
                for part in ("evaluation", "divergence")
                if group.answers
                for name in group.runs
            ]
    for entry in sorted(entries):
        is_aside = re.search(
            r"^\.|-[0-9a-f]{8}$", entry.stem
        )  # what is being written, or was moved aside for other settings
        if not is_aside and (entry if entry.suffix else entry / "run.json").exists():
            _copy(entry, target / entry.relative_to(made))
            store.relist(target / entry.relative_to(made))
    return target


def _copy(source, target):
    with storage.whole(target) as beside:
        if source.is_dir():
            shutil.copytree(source, beside)
        else:
            shutil.copy2(source, beside)
