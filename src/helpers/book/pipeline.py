"""What the Snakefile asks of the package: what each step of the pipeline reads and makes.

Outside the flow of data: it knows which artefacts each notebook reads, and no artefact depends on
it. A step's inputs are files; what else determines its outputs, settings and versions of libraries,
the Snakefile names as parameters, by the hashes that are computed here.
"""

import dataclasses
import functools
import importlib.metadata
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from adapter_geometry import storage
from helpers import profiles, store
from helpers.profiles import Profile

HELD_OUT = "held-out/teacher.parquet"  # the teacher's rollouts to validation problems
_NOTEBOOKS = store.SOURCE.parent / "notebooks"
# Folders of results that hold tables, beside `runs`.
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
)


# --- commands -------------------------------------------------------------------------------------


def is_large(study: Profile) -> bool:
    """Whether each run gets a job, and each job GPUs, of its own.

    Other studies train a group of controls in one process, on CPUs.
    """
    return study.compute != profiles.ComputeSettings() and not study.published


def on_gpus(study: Profile, command: str, count: int = 1) -> str:
    """A command of the pipeline; in a large study, on `count` GPUs that no other one is using."""
    return f"python -m helpers.cluster.gpus {count} {command}" if is_large(study) else command


def training_command(study: Profile) -> str:
    """What starts a run, before the module's name: one process, or one for each of its GPUs."""
    count = study.compute.processes
    one, several = "python -m", f"torchrun --standalone --nproc-per-node {count} -m"
    return on_gpus(study, one if count == 1 else several, count)


# --- what determines a step's outputs -------------------------------------------------------------


def modules(source: str) -> list[str]:
    """The modules of our packages that a Python file imports, itself included if it is one.

    The files that they read from beside themselves come after them. All paths are relative to the
    repository.
    """
    path = store.ROOT / source
    paths = [path] if path.is_relative_to(store.SOURCE) else []
    paths += store.imported_modules(path)
    paths += sorted({file for module in paths for file in _data_of(module)})
    return [_relative(path) for path in paths]


def _data_of(module: Path) -> Iterator[Path]:
    """The YAML files beside a module that it names, and the templates there if it has some; not
    those of profiles, whose contents steps know as `settings`."""
    if module.parent.name == "profiles":
        return
    text = module.read_text()
    yield from (file for file in module.parent.glob("*.yaml") if f'"{file.name}"' in text)
    if '"templates"' in text:
        yield from (module.parent / "templates").iterdir()


def settings(study: Profile, *parts: str) -> str:
    """Hash of parts of a profile; without their names, of all that a page shows but its runs."""
    if parts:
        return storage.digest(study.model_dump(mode="json", include=set(parts)))
    shown = study.model_dump(mode="json", exclude={"runs", "pretraining"})
    return storage.digest(shown | {"appearance": dataclasses.asdict(study.appearance)})


def spec(study: Profile, run: str) -> str:
    """Hash of one run's spec and of the adapter's settings."""
    return storage.digest({"run": study.runs[run].model_dump(), "lora": study.lora.model_dump()})


def libraries() -> str:
    """Hash of the installed versions of all libraries that requirements.txt pins.

    Pages use more of them than numbers do (`store.versions`).
    """
    requirements = (store.ROOT / "requirements.txt").read_text()
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==", requirements, re.MULTILINE)
    return storage.digest({name: importlib.metadata.version(name) for name in pinned})


# --- what a step makes, and what it reads ---------------------------------------------------------


def _relative(path: Path) -> str:
    return str(path.relative_to(store.ROOT))


def path_of(study: Profile, file: str) -> str:
    """Where a file of results lies or is to be made (`store.find`), relative to the repository."""
    return _relative(store.find(study.name, file))


def run_files(study: Profile, name: str, answers: bool) -> list[str]:
    """Files of a run: its record and, with `answers`, what was measured of it.

    Each where it lies or is to be made, relative to the repository.
    """
    files = [f"runs/{name}/run.json"]
    if answers:
        files += [f"{folder}/{name}.parquet" for folder in ("evaluation", "divergence")]
    if store.results_of_run(study.name, study.runs[name]) == store.shipped(study.name):
        return [path_of(study, file) for file in files]
    # What came with the book belongs to a run of another spec.
    return [f"results/{study.name}/{file}" for file in files]


def group_files(study: Profile, group: str) -> list[str]:
    """All files of a group of controls."""
    controls = study.controls[group]
    return [file for name in controls.runs for file in run_files(study, name, controls.answers)]


def path_files(study: Profile, run: str) -> list[str]:
    """Files of what is measured on the paths that start at a run (`connectivity.measure`).

    Each where it lies or is to be made, relative to the repository.
    """
    starting, answered = _paths_from(study, run)
    files = [f"connectivity/losses-{first}-{second}.parquet" for first, second in starting]
    files += [f"connectivity/answers-{first}-{second}.parquet" for first, second in answered]
    return [path_of(study, file) for file in files]


def path_inputs(study: Profile, run: str) -> list[str]:
    """Files that `connectivity.measure` reads for the paths that start at a run.

    These are held-out texts, the runs at both ends of each path, and the answers of both ends of a
    path along which problems are answered.
    """
    starting, answered = _paths_from(study, run)
    ends = {end.removeprefix(profiles.SCALED) for path in starting for end in path} - {"base"}
    return [
        path_of(study, HELD_OUT),
        *sorted(run_files(study, end, False)[0] for end in ends),
        *sorted({path_of(study, f"evaluation/{end}.parquet") for path in answered for end in path}),
    ]


def _paths_from(study: Profile, run: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The paths that start at a run, and those of them along which problems are answered."""
    starting = [path for path in study.paths if path[0] == run]
    return starting, [path for path in starting if path in study.connectivity.answered_paths]


# --- notebooks ------------------------------------------------------------------------------------


@functools.cache
def reads(notebook: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a notebook declares in its header: what it needs, and what it takes where there is some.

    "templated" problems, the table of "rollouts", "models" (evaluated), "main" (the six runs,
    evaluated), "adapters" (the six runs), "paths" between them, "snapshots" of theirs, "held-out"
    texts, one run or one group of controls by its name, seeds for "all methods", or another
    notebook, for the tables that it writes. A profile that lacks one of the former (`reads`) goes
    without the notebook; the latter (`reads_where_present`) are notebooks whose tables it can do
    without. Raises ValueError for a notebook that declares neither.
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


def notebooks(study: Profile) -> list[str]:
    """The notebooks for which a profile has what they need: problems, runs, controls, snapshots.

    Of adapters that were published there is the geometry alone.
    """
    available = {"adapters", *study.controls}
    if not study.published:
        available |= {"rollouts", "models", "main", "paths", "held-out", *study.runs}
    if isinstance(study.problems, profiles.ProblemSettings):
        available.add("templated")
    if all(study.runs[name].snapshots for name in study.main_runs):
        available.add("snapshots")
    replicas = study.controls["seeds"].runs if "seeds" in study.controls else ()
    if _objectives(study, replicas) == _objectives(study, study.main_runs):
        available.add("all methods")
    chosen = []
    for notebook in names():
        if available.issuperset(reads(notebook)[0]):
            chosen.append(notebook)
            available.add(notebook)
    return chosen


def _objectives(study: Profile, runs: tuple[str, ...]) -> set[str]:
    return {study.runs[name].objective for name in runs}


def artefacts(study: Profile, notebook: str) -> list[str]:
    """Files that a notebook reads, relative to the repository: all that it declares (`reads`)."""
    needs = {need for declared in reads(notebook) for need in declared}
    main = list(study.main_runs)
    evaluated = main if "main" in needs else [need for need in needs if need in study.runs]
    files = {file for name in evaluated for file in run_files(study, name, True)}
    if "adapters" in needs:
        files.update(run_files(study, name, False)[0] for name in main)
    for group in needs & study.controls.keys():
        files.update(group_files(study, group))
    if evaluated or "paths" in needs:
        files.add(path_of(study, "evaluation/base.parquet"))
    if "models" in needs:
        models = [model for model in study.models if not study.is_elsewhere(model)]
        files.update(path_of(study, f"evaluation/{model}.parquet") for model in models)
    if "paths" in needs:
        files.update(file for name in main for file in path_files(study, name))
    if "held-out" in needs:
        files.add(path_of(study, HELD_OUT))
    for name in needs & set(notebooks(study)):
        files.add(f"results/{study.name}/notebooks/{name}.ipynb")
    return sorted(files)


# --- what comes with the repository ---------------------------------------------------------------


def ship(study: Profile) -> Path:
    """Copy what is finished of a profile's controls from its results to results/prerun.

    Of a study that comes whole, everything. Returns that folder.
    """
    results, shipped = store.results(study.name), store.shipped(study.name)
    for entry in sorted(_to_ship(study)):
        # Entries that are being written, or were moved aside for other settings.
        is_aside = re.search(r"^\.|-[0-9a-f]{8}$", entry.stem)
        if not is_aside and (entry if entry.suffix else entry / "run.json").exists():
            target = shipped / entry.relative_to(results)
            _copy(entry, target)
            store.update_checksums(target)
    return shipped


def _to_ship(study: Profile) -> Iterator[Path]:
    """The entries of a study's results that come with the repository, finished or not."""
    results = store.results(study.name)
    if study.comes_whole:
        for folder in ("runs", *_RECORDS):
            yield from (results / folder).glob("*")
        return
    yield from (results / "interventions").glob("*")
    for group in study.controls.values():
        for name in group.runs:
            yield results / "runs" / name
            if group.answers:
                yield results / "evaluation" / f"{name}.parquet"
                yield results / "divergence" / f"{name}.parquet"


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, whole or not at all."""
    with storage.whole(target) as temporary_path:
        if source.is_dir():
            shutil.copytree(source, temporary_path)
        else:
            shutil.copy2(source, temporary_path)
