"""What an edit re-runs: a table of edits against the steps that Snakemake then plans, on a copy of the smoke study.

Run after `make check`, which executes the smoke study once.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest

from helpers import pipeline, profiles, store

pytestmark = pytest.mark.slow
SMOKE = profiles.load("smoke")
RUNS = list(SMOKE.main_runs)
NOTEBOOKS = sorted(path.stem for path in (store.ROOT / "notebooks").glob("*.py"))


@pytest.fixture
def copy(tmp_path):
    """The repository with its finished smoke study, times of files kept."""
    assert (store.ROOT / "results" / "smoke" / "notebooks" / "22_verdict.ipynb").exists(), "run `make check` first"
    for name in ("src", "notebooks", "book", "data", ".snakemake", "Snakefile", "_config.yml", "_toc.yml"):
        source = store.ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("locks", "incomplete", "log", "conda*", "shadow", "mathjax"))
        else:
            shutil.copy2(source, tmp_path / name)
    shutil.copytree(store.ROOT / "results" / "smoke", tmp_path / "results" / "smoke")
    return tmp_path


def snakemake(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--config", "profile=smoke"], cwd=folder, env=environment,
                          capture_output=True, text=True)


def planned(folder):
    """The steps that Snakemake would run to bring the executed notebooks up to date, as names of their first outputs."""
    told = snakemake(folder, "--dry-run", "notebooks")
    assert told.returncode == 0, told.stderr
    outputs = re.findall(r"^\s+output: results/smoke/([^,\s]+)", told.stdout + told.stderr, re.MULTILINE)
    return {output.removesuffix("/run.json").removesuffix(".parquet").removesuffix(".ipynb") for output in outputs}


def edit(path, old, new):
    text = path.read_text()
    assert old in text, f"{path.name} no longer holds {old!r}"
    path.write_text(text.replace(old, new, 1))


def after(run):
    """Steps behind a run: its training, its evaluation, the paths that end at it, and the notebooks that read any of these."""
    reading = {"sft": ["03_sft", "04_rft"], "rft": ["04_rft"], "dft": ["05_dft"], "rift": ["06_rift"],
               "offline-grpo": ["07_offline_grpo"], "dpo": ["08_dpo"]}[run]
    starts = {first for first, second in SMOKE.paths if run in (first, second.removeprefix(profiles.SCALED))}
    return {f"runs/{run}", f"evaluation/{run}", *(paths_from(start) for start in starts),
            *(f"notebooks/{name}" for name in [*reading, "09_evaluation", *GEOMETRY, "22_verdict", "23_your_adapters"])}


def paths_from(start):
    """The first file that the step names which measures the paths from a run."""
    return pipeline.path_files(SMOKE, start)[0].removesuffix(".parquet")


GEOMETRY = ["10_norms", "11_angles", "12_decomposition", "13_connectivity", "14_representations"]
ALL_NOTEBOOKS = {f"notebooks/{name}" for name in NOTEBOOKS}
FACTORS_ONLY = {"notebooks/10_norms", "notebooks/11_angles", "notebooks/12_decomposition"}
EVALUATIONS = {f"evaluation/{name}" for name in ("base", "strong-base", "teacher", *RUNS)}
PATHS = {paths_from(run) for run in RUNS}
EVERYTHING = {*ALL_NOTEBOOKS, *EVALUATIONS, *PATHS, "held-out/teacher", *(f"runs/{run}" for run in RUNS)}
EDITS = {
    "nothing": (None, None, None, set()),
    "one notebook": ("notebooks/05_dft.py", "# ## Summary", "# ## Summary of this page", {"notebooks/05_dft"}),
    "figures": ("src/helpers/figures.py", "_WIDTH = 7.0", "_WIDTH = 7.5", ALL_NOTEBOOKS),
    "geometry": ("src/helpers/geometry.py", "np.diag(gram)", "np.diagonal(gram)",
                 FACTORS_ONLY | {"notebooks/09_evaluation", "notebooks/22_verdict", "notebooks/23_your_adapters"}),
    "statistics": ("src/helpers/statistics.py", "draws=2000", "draws=2001",
                   ALL_NOTEBOOKS - FACTORS_ONLY - {"notebooks/02_rollouts", "notebooks/23_your_adapters"}),
    "evaluation": ("src/helpers/evaluation.py", "batch_size=64", "batch_size=32",
                   EVALUATIONS | PATHS | {"held-out/teacher"} | ALL_NOTEBOOKS - FACTORS_ONLY - {"notebooks/02_rollouts"}),
    "connectivity": ("src/helpers/connectivity.py", "draws=2000", "draws=2001",
                     PATHS | {"notebooks/13_connectivity", "notebooks/22_verdict", "notebooks/23_your_adapters"}),
    "objectives": ("src/helpers/objectives.py", "bias=0.1", "bias=0.2", EVERYTHING - {"notebooks/02_rollouts"}),
    "one run's spec": ("src/helpers/profiles/smoke.yaml", "rift: {objective: rift}", "rift: {objective: rift, steps: 4}", after("rift")),
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_reruns_what_depends_on_it_and_nothing_else(copy, what):
    path, old, new, expected = EDITS[what]
    if path:
        edit(copy / path, old, new)
    assert planned(copy) == expected, f"after editing {what}"


def test_a_failed_cell_stops_with_its_traceback_and_keeps_the_notebook(copy):
    edit(copy / "notebooks" / "01_problems.py", "figures.use_style()\n", "figures.use_style()\n1 / 0\n")
    told = snakemake(copy, "results/smoke/notebooks/01_problems.ipynb")
    assert told.returncode != 0, "a failed cell must fail the pipeline"
    assert "ZeroDivisionError" in told.stdout + told.stderr, "the traceback is on the screen"
    assert "ZeroDivisionError" in (copy / "results" / "smoke" / "logs" / "01_problems.ipynb").read_text(), "the partly executed notebook is kept"
    edit(copy / "notebooks" / "01_problems.py", "1 / 0\n", "")
    assert snakemake(copy, "results/smoke/notebooks/01_problems.ipynb").returncode == 0, "and the next run starts there"
