"""The pipeline of a large study on a cluster: what each job asks for, and that every rule it names
exists. Slurm itself is in book/full_size.md."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from helpers import profiles, store
from helpers.book import pipeline

CLUSTER = store.ROOT / "cluster"
LARGE = [name for name in profiles.names() if pipeline.is_large(profiles.load(name))]


@pytest.fixture(scope="module", params=LARGE)
def planned(request):
    """Snakemake's own plan of a large study, with the commands."""
    snakemake = (
        f"-m snakemake --dry-run --printshellcmds --cores 8 --config profile={request.param}"
    )
    done = subprocess.run(
        [sys.executable, *snakemake.split()],
        cwd=store.ROOT,
        env={**os.environ, "PYTHONPATH": str(store.ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return request.param, done.stdout + done.stderr


def test_the_papers_profiles_are_the_large_ones():
    assert LARGE == ["llama-3.2-3b", "qwen3-4b"]


def test_every_run_of_a_large_study_is_a_job_of_its_own_on_a_gpu_of_its_own(planned):
    name, plan = planned
    commands = re.findall(r"Shell command: .*?helpers train (\S+) (\S+)", plan)
    assert sorted(run for _, run in commands) == sorted(profiles.load(name).runs), (
        "main runs and controls alike"
    )
    steps = [
        line
        for line in plan.splitlines()
        if "Shell command:" in line
        and "helpers.book.pages" not in line
        and not line.endswith("None")
    ]
    assert all("python -m helpers.cluster.gpus 1 " in line for line in steps), (
        "no step may take a GPU that another one is using"
    )


def test_cluster_profiles_name_rules_that_exist(planned):
    rules = set(re.findall(r"^(?:local)?rule (\S+):", planned[1], re.MULTILINE))
    for path in CLUSTER.glob("*/config.yaml"):
        named = {
            rule
            for part in ("set-resources", "set-threads")
            for rule in yaml.safe_load(path.read_text()).get(part, {})
        }
        assert named <= rules, f"{path}: no rule {sorted(named - rules)}"


def test_all_that_computes_asks_slurm_for_a_gpu(planned):
    rules = set(re.findall(r"^rule (\S+):", planned[1], re.MULTILINE)) - {"all", "book"}
    asked = yaml.safe_load((CLUSTER / "slurm-gpu" / "config.yaml").read_text())["set-resources"]
    assert {rule for rule, resources in asked.items() if resources.get("gpu")} == rules
