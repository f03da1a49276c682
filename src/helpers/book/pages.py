"""Pages: what the book shows besides its own Markdown, laid into `book/` before Sphinx builds it.

After `pipeline`, when all notebooks were executed. Reads the executed notebooks, the
records and tables of one profile and the record of faults; writes `book/notebooks/` and the files
of `GENERATED`, which the pages of `book/` include, and nothing else. `python -m helpers.book.pages
PROFILE` is the pipeline's step before `jupyter-book build`.
"""

import ast
import base64
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from helpers import profiles, store
from helpers.book import pipeline
from helpers.profiles import Profile

# Files of `book/` that `prepare_book` writes.
GENERATED = (
    "timings.md",
    "verdict_table.md",
    "plan_table.md",
    "headline.md",
    "headline.png",
    "faults_table.md",
)
_BOOK = store.ROOT / "book"
# Kinds of the pipeline's steps, by the beginning of their logs' names.
_STEPS = {
    "rollouts": "sampling a table of rollouts",
    "train": "training a main run",
    "controls": "training and asking a group of controls",
    "evaluate": "evaluating a run or a model",
    "held": "the teacher's held-out rollouts",
    "connect": "measuring the paths from a run",
    "page": "executing a page",
}
_WIDGET = "application/vnd.jupyter.widget-view+json"
_PLANNED = ("base log-probabilities", "train sft", "train dpo", "evaluate sft")


def prepare_book(profile_name: str) -> None:
    """Lay a profile's executed notebooks into the book, and write the files of `GENERATED`."""
    study = profiles.load(profile_name)
    folder = _BOOK / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ipynb"):
        old.unlink()
    seconds = {}
    for name in pipeline.notebooks(study):
        notebook = store.read_json(store.results(profile_name) / "notebooks" / f"{name}.ipynb")
        _prepare_cells(notebook)
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
        seconds[name] = notebook["metadata"]["papermill"]["duration"]
    texts = {
        "timings.md": _timings(study, seconds),
        "verdict_table.md": _verdict_table(store.read_table(profile_name, "verdict")),
        "plan_table.md": _plan_table("qwen3-4b"),
        "faults_table.md": _faults(store.ROOT / "data" / "faults.json"),
        "headline.md": _headline(folder / "09_evaluation.ipynb", _BOOK / "headline.png"),
    }
    for file, text in texts.items():
        (_BOOK / file).write_text(text)


def _prepare_cells(notebook: dict[str, Any]) -> None:
    """Take out of an executed notebook, in place, what a page has no use for.

    Injected parameters are not shown, nor are progress bars: these are widgets, and a page has no
    kernel to move them. The code of a computed sentence is folded.
    """
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if "injected-parameters" in tags:
            tags.append("remove-cell")
        if cell["cell_type"] == "code":
            outputs = cell["outputs"]
            cell["outputs"] = [each for each in outputs if _WIDGET not in each.get("data", {})]
            if _is_sentence("".join(cell["source"])):
                cell["metadata"]["tags"] = [*tags, "hide-input"]
    notebook["metadata"].pop("widgets", None)


def _is_sentence(code: str) -> bool:
    """Whether a cell ends by putting numbers into a sentence, that is, with `Markdown(...)`."""
    try:
        last = ast.parse(code).body[-1:]
    except SyntaxError:  # a magic of IPython
        return False
    return any(
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Call)
        and getattr(line.value.func, "id", "") == "Markdown"
        for line in last
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (headings, *rows)]
    lines.insert(1, "|---" * len(headings) + "|")
    return "\n".join([*lines, ""])


def _timings(study: Profile, seconds: dict[str, float]) -> str:
    """The page of timings; seconds: how long each notebook took."""
    machine = ", ".join(f"{name} {version}" for name, version in store.provenance().items())
    notebooks = [(f"[](notebooks/{name}.ipynb)", f"{each:.0f}") for name, each in seconds.items()]
    run_headings = ("run", "minutes", "rows", "passes over them", "trained")
    step_headings = ("step", "how many", "seconds", "peak memory, MB")
    return f"""\
# Timings

Profile `{study.name}`, computed on the machine that built this book ({machine}).

{_table(("notebook", "seconds"), notebooks)}
Training, each run on one thread unless its spec says otherwise. Runs that come with the \
book say when they were trained; `make book CONTROLS=all` trains them again:

{_table(run_headings, _run_rows(study))}
Steps of the pipeline, processes and all: the longest and the largest of each kind. \
Memory is the peak of what a step has for itself plus its share of what it shares \
(proportional set size), looked at every half second in the first half minute and every \
half minute after that.

{_table(step_headings, _step_rows(study.name))}"""


def _run_rows(study: Profile) -> list[tuple[str, ...]]:
    """For each run that was trained: minutes, rows, passes over them, and when."""
    rows: list[tuple[str, ...]] = []
    for name, run in study.runs.items():
        folder = store.results_of_run(study.name, run)
        path = folder / "runs" / name / "run.json"
        if not path.exists():
            continue  # a control that only pages left out would read
        record = store.read_json(path)
        has_table = "rows" in record  # online runs write their own rollouts
        data = (str(record["rows"]), f"{record['passes']:.2f}") if has_table else ("its own", "–")
        trained = record["date"] if folder == store.shipped(study.name) else "this build"
        rows.append((name, f"{record['minutes']:.1f}", *data, trained))
    return rows


def _step_rows(profile_name: str) -> list[tuple[str, ...]]:
    """Most seconds and memory of each kind of step, from what Snakemake measured."""
    logs = sorted((store.results(profile_name) / "logs").glob("*.tsv"))
    measured = [
        pd.read_csv(path, sep="\t", na_values="-").assign(kind=path.stem.partition("-")[0])
        for path in logs
    ]
    kinds = pd.concat(measured).groupby("kind", sort=False) if measured else ()
    return [
        (_STEPS[kind], str(len(steps)), f"{steps.s.max():.0f}", f"{steps.max_pss.max():.0f}")
        for kind, steps in kinds
    ]


def _headline(executed: Path, image: Path) -> str:
    """The front page's figure as Markdown, with alt text and caption from its own page.

    Writes the image. Where there is no such page, or no figure on it, there is none.
    """
    cells = store.read_json(executed)["cells"] if executed.exists() else []
    for cell in cells:
        mystnb = cell["metadata"].get("mystnb", {})
        if mystnb.get("figure", {}).get("name") != "fig-evaluation-headline":
            continue
        pictures = (output.get("data", {}).get("image/png") for output in cell["outputs"])
        image.write_bytes(base64.b64decode(next(filter(None, pictures))))
        return (
            f"```{{figure}} {image.name}\n:name: fig-headline\n:alt: {mystnb['image']['alt']}\n\n"
            f"{mystnb['figure']['caption']}\n```\n"
        )
    return ""


def _faults(path: Path) -> str:
    """The record of `make faults` as Markdown: what was interrupted, and what came of it.

    The study that was made a second time comes last.
    """
    record = store.read_json(path) if path.exists() else {}
    rows = _fault_rows(record)
    if not rows:
        return "No trials have been made with this version of the book.\n"
    headings = (
        "what",
        "interrupted by",
        "stopped while at work",
        "the same in the end",
        "processes left behind",
    )
    dates = sorted({part["date"] for part in record.values()})
    period = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    machine = store.short_provenance(next(iter(record.values()))["place"])
    text = (
        f"Interrupted at random moments on {period} and started again with the same command, "
        f"without any other step ({machine}):\n\n{_table(headings, rows)}"
    )
    if disk := record.get("disk"):
        named = sum(trial["is_told"] for trial in disk["trials"])
        total = len(disk["trials"])
        text += f"\nIn {named} of {total} trials with a disk the message named the cause.\n"
    if again := record.get("again"):
        text += f"\n{_again_sentence(again)}\n"
    return text


def _fault_rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """For each kind of trial: what, how, how often at work, the same in the end, orphans."""
    rows: list[tuple[str, ...]] = []
    for part, what, kind in (
        ("pipeline", "the smoke pipeline, from nothing", "signal"),
        ("book", "the build of the smoke study's pages", "signal"),
        ("disk", "the smoke pipeline, from nothing", "what"),
    ):
        all_trials = record.get(part, {"trials": []})["trials"]
        for value in dict.fromkeys(trial[kind] for trial in all_trials):
            trials = [trial for trial in all_trials if trial[kind] == value]
            how = value if kind == "signal" else f"its disk is {value}"
            stopped = sum(trial.get("was_running", trial.get("failed")) for trial in trials)
            rows.append((what, how, str(stopped), *_outcome(trials)))
    if one := record.get("one_run"):
        stopped = sum(kill["was_running"] for kill in one["kills"])
        what = "one run of the tiny study, again and again"
        rows.append((what, "all three in turn", str(stopped), *_outcome([one])))
    return rows


def _outcome(trials: list[dict[str, Any]]) -> tuple[str, str]:
    """How many trials came to the same in the end, and how many processes they left behind."""
    same = sum(not trial["differ"] for trial in trials)
    # Not looked for with a disk.
    orphans = [trial["orphans"] for trial in trials if "orphans" in trial]
    return f"{same} of {len(trials)}", str(sum(orphans)) if orphans else "–"


def _again_sentence(again: dict[str, Any]) -> str:
    """What came of the study made a second time, with other numbers of jobs and threads."""
    distances, different = again["two_threads"], again["differ"]
    listed = ", ".join(f"`{file}`" for file in different)
    return (
        f"The tiny study was made twice on one machine, with {again['jobs'][0]} jobs at a time "
        f"and with {again['jobs'][1]}: of {again['files']} adapters, records, tables and executed "
        f"pages {again['files'] - len(different)} have the same contents"
        f"{'; these differ: ' if different else ''}{listed}. "
        f"With two threads instead of one the updates of its main runs are "
        f"{min(distances.values()):.1g} to {max(distances.values()):.1g} of their length away "
        f"(furthest: {max(distances, key=distances.get)})."
    )


def _verdict_table(claims: pd.DataFrame) -> str:
    """The table `verdict` as Markdown, for the front page."""
    rows = [
        (row.claim, row.paper, row.ours, row.control, f"**{row.verdict}**")
        for row in claims.itertuples()
    ]
    control = "chance level or control"
    return _table(("claim", "the paper", "this build (95% interval)", control, "verdict"), rows)


def _plan_table(profile_name: str) -> str:
    """The plan of a large study as Markdown, of its stages and of the runs of two methods.

    Memory on each GPU, and hours on each kind of GPU with their range.
    """
    # Reads the sizes of models, and so needs the libraries that load them.
    from helpers.cluster import planning

    plan = planning.plan(profiles.load(profile_name)).query("gpu != 'none'")
    shown = plan[plan.item.isin(_PLANNED)]
    rows = []
    for item, steps in shown.groupby("item", sort=False):
        hours = [
            f"{step.hours:.1f} ({step.hours_low:.1f} to {step.hours_high:.1f})"
            if step.fits
            else "too small"
            for step in steps.itertuples()
        ]
        first = steps.iloc[0]
        rows.append((item, f"{first.tokens / 1e6:.1f}", f"{first.total_gb:.0f}", *hours))
    return _table(("step", "M tokens", "GB a GPU", *shown.gpu.unique()), rows)


if __name__ == "__main__":
    prepare_book(sys.argv[1])
