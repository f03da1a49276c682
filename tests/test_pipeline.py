"""What an edit re-runs: a table of edits against the steps that Snakemake then plans.

Each edit is made on a copy of the smoke study. Run after `make check`, which executes that study
once.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from helpers import profiles, store
from helpers.book import pipeline

pytestmark = pytest.mark.slow
SMOKE = profiles.load("smoke")
RUNS = list(SMOKE.main_runs)
NOTEBOOKS = sorted(path.stem for path in (store.ROOT / "notebooks").glob("*.py"))
# What no step reads.
UNREAD = shutil.ignore_patterns("locks", "incomplete", "log", "conda*", "shadow", "mathjax")


@pytest.fixture
def copy(tmp_path):
    """The repository with its finished smoke study, times of files kept."""
    assert (store.ROOT / "results" / "smoke" / "notebooks" / "23_verdict.ipynb").exists(), (
        "run `make check` first"
    )
    for name in ("src", "notebooks", "book", "data", ".snakemake"):
        shutil.copytree(store.ROOT / name, tmp_path / name, ignore=UNREAD)
    for name in ("Snakefile", "_config.yml", "_toc.yml", "requirements.txt"):
        shutil.copy2(store.ROOT / name, tmp_path / name)
    shutil.copytree(store.ROOT / "results" / "smoke", tmp_path / "results" / "smoke")
    return tmp_path


def snakemake(folder, *arguments, profile="smoke"):
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    settings = ["--cores", "2", "--config", f"profile={profile}"]
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments, *settings],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def planned(folder, profile="smoke"):
    """The steps that Snakemake would run to bring the executed notebooks up to date, as names of
    their first outputs."""
    plan = snakemake(folder, "--dry-run", "notebooks", profile=profile)
    assert plan.returncode == 0, plan.stderr
    text = plan.stdout + plan.stderr
    outputs = re.findall(rf"^\s+output: results/{profile}/([^,\s]+)", text, re.MULTILINE)
    return {
        output.removesuffix("/run.json").removesuffix(".parquet").removesuffix(".ipynb")
        for output in outputs
    }


def edit(path, old, new):
    text = path.read_text()
    assert old in text, f"{path.name} no longer holds {old!r}"
    path.write_text(text.replace(old, new, 1))


def reads(name):
    """All that a notebook declares to read."""
    return {need for declared in pipeline.reads(name) for need in declared}


def with_readers(notebooks):
    """These notebooks and those that read their tables, as steps."""
    return {
        f"notebooks/{name}" for name in NOTEBOOKS if name in notebooks or notebooks & reads(name)
    }


def importing(module):
    """Notebooks that import a module, directly or through others, and those that read their tables.

    `tests/test_store.py` tests how imports are followed.
    """
    path = store.SOURCE / f"{module}.py"
    sources = {name: store.ROOT / "notebooks" / f"{name}.py" for name in NOTEBOOKS}
    return with_readers(
        {name for name, source in sources.items() if path in store.imported_modules(source)}
    )


def reading(*needs):
    """Notebooks that read an artefact of one of these kinds, and those that read their tables."""
    return with_readers({name for name in NOTEBOOKS if set(needs) & reads(name)})


def paths_from(start):
    """The first file that the step names which measures the paths from a run."""
    return (
        pipeline.path_files(SMOKE, start)[0].removeprefix("results/smoke/").removesuffix(".parquet")
    )


EVALUATIONS = {f"evaluation/{name}" for name in ("base", "strong-base", "teacher", *RUNS)}
PATHS = {paths_from(run) for run in RUNS}
CONTROLS = {f"runs/{group.runs[0]}" for group in SMOKE.controls.values()}
EVERYTHING = {
    *(f"notebooks/{name}" for name in NOTEBOOKS),
    "rollouts",
    "base-rollouts",
    *EVALUATIONS,
    *PATHS,
    *CONTROLS,
    "held-out/teacher",
    *(f"runs/{run}" for run in RUNS),
}
TO_RIFT = {
    paths_from(first)
    for first, second in SMOKE.paths
    if "rift" in (first, second.removeprefix(profiles.SCALED))
}
ALL_NOTEBOOKS = {f"notebooks/{name}" for name in NOTEBOOKS}
EDITS = {
    "nothing": (None, None, None, set()),
    "one notebook": (
        "notebooks/05_dft.py",
        "# ## Summary",
        "# ## Summary of this page",
        {"notebooks/05_dft"},
    ),
    "figures": (
        "src/helpers/book/figures/style.py",
        "WIDTH = 7.0",
        "WIDTH = 7.5",
        ALL_NOTEBOOKS,
    ),
    "geometry": (
        "src/adapter_geometry/geometry.py",
        "np.diag(gram)",
        "np.diagonal(gram)",
        importing("adapter_geometry/geometry"),
    ),
    "statistics": (
        "src/helpers/evaluation/statistics.py",
        "draws: int = 2000",
        "draws: int = 2001",
        importing("helpers/evaluation/statistics"),
    ),
    "evaluation": (
        "src/helpers/evaluation/answering.py",
        "CONTROL_PROBLEMS = 600",
        "CONTROL_PROBLEMS = 599",
        EVALUATIONS
        | PATHS
        | CONTROLS
        | {"held-out/teacher"}
        | importing("helpers/evaluation/answering")
        | reading("main", "models", "paths", "held-out", *SMOKE.controls),
    ),
    "connectivity": (
        "src/adapter_geometry/mode_connectivity.py",
        "_BATCHES = 4",
        "_BATCHES = 5",
        PATHS | importing("adapter_geometry/mode_connectivity") | reading("paths"),
    ),
    "objectives": (
        "src/helpers/training/objectives.py",
        "bias: float = 0.1",
        "bias: float = 0.2",
        EVERYTHING - {"rollouts", "base-rollouts", "notebooks/02_rollouts"},
    ),
    "a template of the problems": (
        "src/helpers/data/templates.py",
        "How many does",
        "What number does",
        EVERYTHING,
    ),
    "a setting of the rollouts": (
        "src/helpers/profiles/smoke.yaml",
        "samples: 4",
        "samples: 5",
        EVERYTHING - {f"evaluation/{model}" for model in SMOKE.models},
    ),
    "the colour of a method": (
        "src/helpers/profiles/methods.yaml",
        "#56B4E9",
        "#56B4EA",
        ALL_NOTEBOOKS,
    ),
    "a claim": (
        "src/helpers/analysis/claims.yaml",
        "DPO keeps the accuracy of the base",
        "DPO keeps the base's accuracy",
        importing("helpers/analysis/verdict"),
    ),
    "a template of the explorers": (
        "src/helpers/book/templates/explorer.css",
        "padding: 1rem;",
        "padding: 2rem;",
        importing("helpers/book/explorers"),
    ),
    "a helper of one page": (
        "src/helpers/analysis/interventions.py",
        "_LARGEST = 64.0",
        "_LARGEST = 65.0",
        importing("helpers/analysis/interventions"),
    ),
    "one run's spec": (
        "src/helpers/profiles/smoke.yaml",
        "rift: {objective: rift, snapshots",
        "rift: {objective: rift, steps: 4, snapshots",
        {"runs/rift", "evaluation/rift"} | TO_RIFT | reading("main", "adapters", "paths", "rift"),
    ),
    "one control's spec": (
        "src/helpers/profiles/smoke.yaml",
        "rft-chosen: {",
        "rft-chosen: {steps: 4, ",
        {"runs/dpo-matched"} | reading("matched"),
    ),
}


@pytest.mark.parametrize(
    ("library", "expected"), [("numpy", EVERYTHING), ("matplotlib", ALL_NOTEBOOKS)]
)
def test_another_version_of_a_library_reruns_what_it_may_change(copy, library, expected):
    about = copy / "src" / f"{library}-99.dist-info" / "METADATA"  # found before the installed one
    about.parent.mkdir()
    about.write_text(f"Metadata-Version: 2.1\nName: {library}\nVersion: 99\n")
    assert planned(copy) == expected


def test_another_profile_is_served_nothing_of_this_one(copy):
    profile = copy / "src" / "helpers" / "profiles" / "smoke.yaml"
    shutil.copy(profile, profile.with_name("other.yaml"))
    assert planned(copy, "other") == EVERYTHING


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_reruns_what_depends_on_it_and_nothing_else(copy, what):
    path, old, new, expected = EDITS[what]
    if path:
        edit(copy / path, old, new)
    assert planned(copy) == expected, f"after editing {what}"


def test_a_failed_cell_stops_with_its_traceback_and_keeps_the_notebook(copy):
    edit(
        copy / "notebooks" / "01_problems.py",
        "figures.use_style(study)\n",
        "figures.use_style(study)\n1 / 0\n",
    )
    failed = snakemake(copy, "results/smoke/notebooks/01_problems.ipynb")
    assert failed.returncode != 0, "a failed cell must fail the pipeline"
    assert "ZeroDivisionError" in failed.stdout + failed.stderr, "the traceback is on the screen"
    log = copy / "results" / "smoke" / "logs" / "01_problems.ipynb"
    assert "ZeroDivisionError" in log.read_text(), "the partly executed notebook is kept"
    edit(copy / "notebooks" / "01_problems.py", "1 / 0\n", "")
    assert snakemake(copy, "results/smoke/notebooks/01_problems.ipynb").returncode == 0, (
        "and the next run starts there"
    )
