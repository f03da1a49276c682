"""What `make faults` does: kill the study at random moments, start it again with the same command, and compare what comes out.

Two kinds of trial, in a copy of the repository: the smoke pipeline from its rollouts to an executed page, each trial from nothing, killed once at a
moment drawn uniformly from the time that it takes; and one run of the tiny study, killed twenty times in a row. The signals take turns. What was seen
is written to data/faults.json, which the book's page on trust shows.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from helpers import store

SEED, TRIALS, KILLS_OF_ONE_RUN = 1, 21, 20
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
SMOKE = "results/smoke"
TARGETS = [f"{SMOKE}/{file}" for file in ("runs/sft/run.json", "runs/dpo/run.json", "evaluation/base.parquet", "evaluation/sft.parquet",
                                          "held-out/teacher.parquet", "notebooks/03_sft.ipynb")]
PIPELINE = [sys.executable, "-m", "helpers.locks", "snakemake", "--nolock", "--cores", "2", "--config", "profile=smoke", "--rerun-incomplete", "--", *TARGETS]
ONE_RUN = [sys.executable, "-m", "helpers", "train", "tiny", "sft"]
LIMIT = 600  # seconds for one start


class Copy:
    """A copy of the committed repository in a folder of its own, and the commands that run in it."""

    def __init__(self, folder):
        self.root = Path(folder)
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=store.ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "x"], cwd=self.root, input=archive, check=True)
        self.environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def start(self, command):
        return subprocess.Popen(command, cwd=self.root, env=self.environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(self, command):
        """Run a command to its end, as a user who starts it again would; returns its seconds."""
        started, process = time.monotonic(), self.start(command)
        _, said = process.communicate(timeout=LIMIT)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed after it was started again:\n{said.decode()[-2000:]}")
        return time.monotonic() - started

    def kill(self, command, after, name):
        """Start a command, send its whole process group a signal after some seconds; returns whether it was still running."""
        process = self.start(command)
        try:
            process.communicate(timeout=after)
            return False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, getattr(signal, name))
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:  # it still tidies up; a user would lose patience too
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return True

    def orphans(self, patience=20):
        """How many processes of this copy are still there, some seconds after a kill."""
        deadline = time.monotonic() + patience
        while (left := self._alive()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return left

    def _alive(self):
        mark = f"PYTHONPATH={self.root / 'src'}".encode()
        found = 0
        for place in Path("/proc").glob("[0-9]*/environ"):
            try:
                found += mark in place.read_bytes()
            except OSError:
                continue
        return found

    def clear(self):
        for folder in (self.root / "results" / "smoke", self.root / ".snakemake"):
            store.remove(folder)

    def contents(self, folder):
        """{file: hash of what it says}: adapters and tables whole, records without dates and minutes, pages by what their cells put out."""
        found = {}
        for path in sorted((self.root / folder).rglob("*")):
            if path.suffix == ".safetensors":
                found[path.name if "runs" not in path.parts else str(path.relative_to(self.root))] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.suffix == ".parquet":
                found[str(path.relative_to(self.root))] = hashlib.sha256(pd.read_parquet(path).to_json().encode()).hexdigest()
            elif path.name == "run.json":
                record = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("date", "minutes")}
                found[str(path.relative_to(self.root))] = store.digest(record)
            elif path.suffix == ".ipynb" and "notebooks" in path.parts:
                cells = json.loads(path.read_text())["cells"]
                outputs = [json.dumps(output.get("data", output.get("text"))) for cell in cells for output in cell.get("outputs", [])]
                plain = [re.sub(r"T_[0-9a-f]{5}|0x[0-9a-f]+", "", output) for output in outputs if "widget-view" not in output]  # random names, addresses
                found[str(path.relative_to(self.root))] = store.digest(plain)
        return found


def pipeline_trials(copy, rng):
    copy.clear()
    seconds = copy.finish(PIPELINE)
    wanted, trials = copy.contents(SMOKE), []
    for number in tqdm(range(TRIALS), desc="killing the smoke pipeline", unit="trial"):
        copy.clear()
        name, after = SIGNALS[number % len(SIGNALS)], float(rng.uniform(0, seconds))
        was_running = copy.kill(PIPELINE, after, name)
        done = sum((copy.root / target).exists() for target in TARGETS)
        orphans = copy.orphans()
        copy.finish(PIPELINE)
        found = copy.contents(SMOKE)
        trials.append({"trial": number, "signal": name, "after": round(after, 1), "of": round(seconds, 1), "was_running": was_running, "targets_done": done,
                       "orphans": orphans, "same": found == wanted, "differ": sorted(file for file in wanted if found.get(file) != wanted[file])})
    return trials


def one_run(copy, rng):
    """The tiny study's SFT, killed again and again until it was killed twenty times, then finished; beside one that was never killed."""
    folder = "results/tiny/runs/sft"
    kills, survived = [], 0
    for number in tqdm(range(KILLS_OF_ONE_RUN), desc="killing one run", unit="kill"):
        name, after = SIGNALS[number % len(SIGNALS)], float(rng.uniform(3, 40))
        kills.append({"signal": name, "after": round(after, 1), "was_running": copy.kill(ONE_RUN, after, name)})
        survived += copy.orphans()
        if (copy.root / folder).exists() and number < KILLS_OF_ONE_RUN - 1:
            store.remove(copy.root / "results" / "tiny")  # it had finished: begin anew, so that all kills hit a run under way
    copy.finish(ONE_RUN)
    killed = copy.contents(folder)
    store.remove(copy.root / "results" / "tiny")
    copy.finish(ONE_RUN)
    return {"kills": kills, "orphans": survived, "same": killed == copy.contents(folder)}


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a program that was started in the background hands an ignored one to its children
    rng = np.random.default_rng(SEED)
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(folder)
        record = {"date": time.strftime("%Y-%m-%d"), "place": store.provenance(), "pipeline": pipeline_trials(copy, rng), "one_run": one_run(copy, rng)}
    (store.ROOT / "data" / "faults.json").write_text(store.as_json(record))
    store.relist(store.ROOT / "data" / "faults.json")
    failed = [trial for trial in record["pipeline"] if not trial["same"] or trial["orphans"]]
    print(f"{len(record['pipeline'])} trials of the pipeline, {len(failed)} of them with another outcome or orphans; the run killed {KILLS_OF_ONE_RUN} times "
          f"{'is the same' if record['one_run']['same'] else 'is ANOTHER ONE'}")
    sys.exit(bool(failed) or not record["one_run"]["same"])


if __name__ == "__main__":
    main()
