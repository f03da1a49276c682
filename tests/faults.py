"""What `make faults` does: interrupt the study in many ways, start it again with the same command,
and compare what comes out.

All in a copy of the repository, with these parts (`python tests/faults.py PART ...` repeats some of
them):

- `pipeline`: the smoke pipeline from its rollouts to an executed page, each trial from nothing,
  killed once at a moment drawn uniformly from the time that it takes. The signals take turns.
- `one_run`: one run of the tiny study, killed twenty times in a row.
- `book`: the build of the smoke study's pages (after `make check`), killed once per trial.
- `disk`: the smoke pipeline on a disk that fills up, and on one that turns read-only. Needs the
  right to mount.
- `again`: the whole tiny study with one job at a time, against the one in this repository, which
  `make book` made with as many as there are cores; and its main runs with two threads.

What was seen is written to data/faults.json, which the book's page on trust shows.
"""

import contextlib
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

from adapter_geometry import storage, updates
from adapter_geometry.adapters import load_update
from helpers import profiles, store

SEED, TRIALS, KILLS_OF_ONE_RUN, BOOKS, DISKS = 1, 21, 20, 6, 8
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
SMOKE, TINY = "results/smoke", "results/tiny"
TARGETS = [
    f"{SMOKE}/{file}"
    for file in (
        "runs/sft/run.json",
        "runs/dpo/run.json",
        "evaluation/base.parquet",
        "evaluation/sft.parquet",
        "held-out/teacher.parquet",
        "notebooks/03_sft.ipynb",
    )
]
ONE_RUN = [sys.executable, "-m", "helpers", "train", "tiny", "sft"]
LIMIT = 600  # seconds for one start of the smoke pipeline or of one run
RECORD = store.ROOT / "data" / "faults.json"


def pipeline(profile, targets, jobs=2):
    options = f"--nolock --cores {jobs} --config profile={profile} --rerun-incomplete --"
    snakemake = f"-m helpers.locks snakemake {options}"
    return [sys.executable, *snakemake.split(), *targets]


SMOKE_PIPELINE = pipeline("smoke", TARGETS)


class Copy:
    """A copy of the committed repository in a folder of its own, and commands that run in it."""

    def __init__(self, folder):
        self.root = Path(folder)
        archive = subprocess.run(
            ["git", "archive", "HEAD"], cwd=store.ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "x"], cwd=self.root, input=archive, check=True)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.root / "src"),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def start(self, command):
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self, command, limit=LIMIT):
        """Run a command to its end, as a user who starts it again would; returns its seconds."""
        started, process = time.monotonic(), self.start(command)
        output, _ = process.communicate(timeout=limit)
        if process.returncode:
            end = output.decode()[-2000:]
            raise SystemExit(f"{' '.join(command)} failed after it was started again:\n{end}")
        return time.monotonic() - started

    def fail(self, command):
        """Run a command that may fail; returns whether it did, and its output."""
        process = self.start(command)
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode != 0, output.decode()

    def kill(self, command, after, name):
        """Start a command, send its whole process group a signal after some seconds; returns
        whether it was still running."""
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
        count = 0
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                count += mark in environment.read_bytes()
            except OSError:
                continue
        return count

    def clear(self):
        for folder in (self.root / "results" / "smoke", self.root / ".snakemake"):
            storage.remove(folder)


def contents(root, folder):
    """{file: hash of what it says}: adapters and tables whole, records without dates and minutes,
    pages by what their cells put out."""
    hashes = {}
    for path in sorted((root / folder).rglob("*")):
        name = str(path.relative_to(root))
        if path.suffix == ".safetensors" and "checkpoints" not in path.parts:
            hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".parquet" and "checkpoints" not in path.parts:
            hashes[name] = hashlib.sha256(pd.read_parquet(path).to_json().encode()).hexdigest()
        elif path.name == "run.json":
            record = json.loads(path.read_text())
            hashes[name] = storage.digest(
                {key: record[key] for key in record if key not in ("date", "minutes")}
            )
        elif path.suffix == ".ipynb" and "notebooks" in path.parts:
            cells = json.loads(path.read_text())["cells"]
            outputs = [
                json.dumps(output.get("data", output.get("text")))
                for cell in cells
                for output in cell.get("outputs", [])
            ]
            # Without random names and addresses.
            plain = [
                re.sub(r"T_[0-9a-f]{5}|0x[0-9a-f]+", "", output)
                for output in outputs
                if "widget-view" not in output
            ]
            hashes[name] = storage.digest(plain)
    return hashes


def differing(wanted, hashes):
    return sorted(file for file in wanted if hashes.get(file) != wanted[file])


def trials_of(copy, rng, command, clear, outcome, number, what):
    """The command killed once per trial, each from where `clear` leaves things, and finished;
    `outcome()` is {file: hash} of what came out."""
    clear()
    seconds = copy.finish(command)
    wanted, trials = outcome(), []
    for trial in tqdm(range(number), desc=f"killing {what}", unit="trial"):
        clear()
        name, after = SIGNALS[trial % len(SIGNALS)], float(rng.uniform(0, seconds))
        was_running = copy.kill(command, after, name)
        orphans = copy.orphans()
        copy.finish(command)
        trials.append(
            {
                "trial": trial,
                "signal": name,
                "after": round(after, 1),
                "of": round(seconds, 1),
                "was_running": was_running,
                "orphans": orphans,
                "differ": differing(wanted, outcome()),
            }
        )
    return {"trials": trials}


def pipeline_trials(copy, rng):
    return trials_of(
        copy,
        rng,
        SMOKE_PIPELINE,
        copy.clear,
        lambda: contents(copy.root, SMOKE),
        TRIALS,
        "the smoke pipeline",
    )


def book_trials(copy, rng):
    html = copy.root / "_build" / "html"
    sources = "src notebooks book data Snakefile requirements.txt _config.yml _toc.yml .snakemake"
    for part in (*sources.split(), SMOKE):
        if not (store.ROOT / part).exists():
            raise SystemExit(f"{part} is missing: run `make check` first")
        storage.remove(copy.root / part)
        # With their times, by which Snakemake goes.
        target = (copy.root / part).parent
        subprocess.run(["cp", "-a", str(store.ROOT / part), str(target)], check=True)
    return trials_of(
        copy,
        rng,
        pipeline("smoke", ["all"]),
        lambda: storage.remove(copy.root / "_build"),
        lambda: {
            str(path.relative_to(html)): store.file_digest(path) for path in html.rglob("*.html")
        },
        BOOKS,
        "the build of the book",
    )


def one_run(copy, rng):
    """The tiny study's SFT, killed again and again until it was killed twenty times, then finished;
    compared with one that was never killed."""
    folder = f"{TINY}/runs/sft"
    kills, survived = [], 0
    for number in tqdm(range(KILLS_OF_ONE_RUN), desc="killing one run", unit="kill"):
        name, after = SIGNALS[number % len(SIGNALS)], float(rng.uniform(3, 40))
        was_running = copy.kill(ONE_RUN, after, name)
        kills.append({"signal": name, "after": round(after, 1), "was_running": was_running})
        survived += copy.orphans()
        if (copy.root / folder).exists() and number < KILLS_OF_ONE_RUN - 1:
            # It had finished: begin anew, so that all kills hit a run under way.
            storage.remove(copy.root / TINY)
    copy.finish(ONE_RUN)
    killed = contents(copy.root, folder)
    storage.remove(copy.root / TINY)
    copy.finish(ONE_RUN)
    return {
        "kills": kills,
        "orphans": survived,
        "differ": differing(contents(copy.root, folder), killed),
    }


@contextlib.contextmanager
def disk(folder):
    """A small disk mounted at a folder; yields the function that gives it new options."""

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], check=True)
    try:
        yield remount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk_trials(copy, rng):
    copy.clear()
    trials = []
    with disk(copy.root / SMOKE) as remount:
        seconds = copy.finish(SMOKE_PIPELINE)
        wanted = contents(copy.root, SMOKE)
        size = sum(path.stat().st_size for path in (copy.root / SMOKE).rglob("*") if path.is_file())
    for number in tqdm(range(DISKS), desc="full and read-only disks", unit="trial"):
        copy.clear()
        with disk(copy.root / SMOKE) as remount:
            if fills := number % 2 == 0:
                room = int(rng.uniform(0.05, 0.95) * size)
                remount(f"size={room}")
            else:
                copy.kill(SMOKE_PIPELINE, float(rng.uniform(0, seconds)), "SIGKILL")
                copy.orphans()
                remount("ro")
            failed, output = copy.fail(SMOKE_PIPELINE)
            remount("rw,size=1g")
            copy.finish(SMOKE_PIPELINE)
            cause = "No space left" if fills else "Read-only file system"
            trials.append(
                {
                    "what": "full" if fills else "read-only",
                    "failed": failed,
                    "is_told": cause in output or not failed,
                    "differ": differing(wanted, contents(copy.root, SMOKE)),
                }
            )
    return {"trials": trials}


def again(copy, rng):
    """The tiny study once more, one job at a time; its main runs on two threads, as distances in
    units of an update's length."""
    study = profiles.load("tiny")
    copy.finish(pipeline("tiny", ["notebooks"], jobs=1), limit=7200)
    wanted = contents(copy.root, TINY)
    assert wanted, "the study left nothing"
    code = (
        "import sys; from helpers import profiles; from helpers.training import trainer; "
        "profile = profiles.load('tiny'); "
        "print(trainer.train(profile, profile.runs[sys.argv[1]].model_copy(update={'threads': 2})))"
    )
    distances = {}
    for name in tqdm(study.main_runs, desc="two threads", unit="run"):
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            cwd=copy.root,
            env=copy.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        folders = (copy.root / TINY / "runs" / name, Path(done.stdout.splitlines()[-1]))
        one, two = (load_update(folder / "adapter") for folder in folders)
        distance = updates.norm(updates.combine([two, one], [1, -1]))
        distances[name] = float(distance / updates.norm(one))
    return {
        "jobs": [os.cpu_count(), 1],
        "files": len(wanted),
        "differ": differing(wanted, contents(store.ROOT, TINY)),
        "two_threads": distances,
    }


PARTS = {
    "pipeline": pipeline_trials,
    "one_run": one_run,
    "book": book_trials,
    "disk": disk_trials,
    "again": again,
}


def main(chosen):
    # A program that was started in the background hands an ignored one to its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record = store.read_json(RECORD) if RECORD.exists() else {}
    for name in chosen or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            result = PARTS[name](Copy(folder), np.random.default_rng(SEED))
        record[name] = {"date": time.strftime("%Y-%m-%d"), "place": store.provenance(), **result}
        RECORD.write_text(store.as_json(record))
        store.update_checksums(RECORD)
        trials = result.get("trials", [result])
        wrong = [
            trial
            for trial in trials
            if trial["differ"] or trial.get("orphans") or not trial.get("is_told", True)
        ]
        print(
            f"{name}: {len(trials)} trials, {len(wrong)} with another outcome, orphans, or a "
            "failure that is not told"
        )
    sys.exit(
        any(trial["differ"] for part in record.values() for trial in part.get("trials", [part]))
    )


if __name__ == "__main__":
    main(sys.argv[1:])
