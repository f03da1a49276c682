"""TODO docstring."""

import ast
import base64
import json
import sys

import pandas as pd

from helpers import profiles, store
from helpers.book import pipeline

GENERATED = (
    "timings.md",
    "verdict_table.md",
    "plan_table.md",
    "headline.md",
    "headline.png",
    "faults_table.md",
)  # files of book/ that `prepare_book` writes
_STEPS = {
    "rollouts": "sampling a table of rollouts",
    "train": "training a main run",
    "controls": "training and asking a group of controls",
    "evaluate": "evaluating a run or a model",
    "held": "the teacher's held-out rollouts",
    "connect": "measuring the paths from a run",
    "page": "executing a page",
}  # by the beginning of a step's log
_WIDGET = "application/vnd.jupyter.widget-view+json"


def prepare_book(profile_name):
    """Lay a profile's executed notebooks into the book, and write the parts of it that come from them: timings and the front page's table."""
    target = store.ROOT / "book" / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.ipynb"):
        old.unlink()
    lines = []
    study = profiles.load(profile_name)
    for executed in (
        store.results(profile_name) / "notebooks" / f"{name}.ipynb"
        for name in pipeline.notebooks(study)
    ):
        notebook = store.read_json(executed)
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("tags", [])
            if "injected-parameters" in tags:
                tags.append("remove-cell")
            if cell["cell_type"] == "code":
                # Progress bars are widgets, and a page has no kernel to move those.
                cell["outputs"] = [
                    output for output in cell["outputs"] if _WIDGET not in output.get("data", {})
                ]
                if _is_sentence("".join(cell["source"])):
                    cell["metadata"]["tags"] = [*tags, "hide-input"]
        notebook["metadata"].pop("widgets", None)
        (target / executed.name).write_text(json.dumps(notebook))
        duration = notebook["metadata"]["papermill"]["duration"]
        lines.append(f"| [](notebooks/{executed.name}) | {duration:.0f} |")
    runs = []
    for name, run in study.runs.items():
        folder = store.home(profile_name, run)
        if not (folder / "runs" / name / "run.json").exists():
            continue  # a control that only pages left out would read
        content = store.read_json(folder / "runs" / name / "run.json")
        data = (
            f"{content['rows']} | {content['passes']:.2f}" if "rows" in content else "its own | –"
        )
        trained = content["date"] if folder == store.shipped(profile_name) else "this build"
        runs.append(f"| {name} | {content['minutes']:.1f} | {data} | {trained} |")
    place = ", ".join(f"{name} {version}" for name, version in store.provenance().items())
    page = [
        "# Timings",
        "",
        f"Profile `{profile_name}`, computed on the machine that built this book ({place}).",
        "",
        "| notebook | seconds |",
        "|---|---|",
        *lines,
        "",
        "Training, each run on one thread unless its spec says otherwise. Runs that come with the "
        "book say when they were trained; `make book CONTROLS=all` trains them again:",
        "",
        "| run | minutes | rows | passes over them | trained |",
        "|---|---|---|---|---|",
        *runs,
        "",
        "Steps of the pipeline, processes and all: the longest and the largest of each kind. Memory is the peak of what a step has for itself plus its "
        "share of what it shares (proportional set size), looked at every half second in the first half minute and every half minute after that.",
        "",
        *_stage_lines(profile_name),
        "",
    ]
    (store.ROOT / "book" / "timings.md").write_text("\n".join(page))
    (store.ROOT / "book" / "verdict_table.md").write_text(
        _verdict_lines(store.read_table(profile_name, "verdict"))
    )
    (store.ROOT / "book" / "plan_table.md").write_text(_plan_lines("qwen3-4b"))
    (store.ROOT / "book" / "faults_table.md").write_text(
        _fault_lines(store.ROOT / "data" / "faults.json")
    )
    (store.ROOT / "book" / "headline.md").write_text(_headline(target / "09_evaluation.ipynb"))


def _stage_lines(profile_name):
    """Seconds and memory of the pipeline's steps as a Markdown table, from what Snakemake measured, a kind of step a row."""
    logs = sorted((store.results(profile_name) / "logs").glob("*.tsv"))
    measured = [
        pd.read_csv(path, sep="\t", na_values="-").assign(kind=path.stem.partition("-")[0])
        for path in logs
    ]
    kinds = pd.concat(measured).groupby("kind", sort=False) if measured else []
    lines = [
        f"| {_STEPS[kind]} | {len(steps)} | {steps.s.max():.0f} | {steps.max_pss.max():.0f} |"
        for kind, steps in kinds
    ]
    return ["| step | how many | seconds | peak memory, MB |", "|---|---|---|---|", *lines]


def _is_sentence(code):
    """Whether a cell ends by putting numbers into a sentence: the page then shows the sentence, and its making where one asks for it."""
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


def _headline(executed):
    """The front page's figure as Markdown, with alt text and caption from its own page, or nothing where there is no such page; writes the image."""
    cells = json.loads(executed.read_text())["cells"] if executed.exists() else []
    for cell in cells:
        about = cell["metadata"].get("mystnb", {})
        if about.get("figure", {}).get("name") == "fig-evaluation-headline":
            image = next(
                output["data"]["image/png"]
                for output in cell["outputs"]
                if "image/png" in output.get("data", {})
            )
            (store.ROOT / "book" / "headline.png").write_bytes(base64.b64decode(image))
            return f"```{{figure}} headline.png\n:name: fig-headline\n:alt: {about['image']['alt']}\n\n{about['figure']['caption']}\n```\n"
    return ""


def _fault_lines(path):
    """The record of `make faults` as Markdown: what was interrupted how often, and what came of it; the study made again."""
    record, rows = store.read_json(path) if path.exists() else {}, []
    for part, what, kind in (
        ("pipeline", "the smoke pipeline, from nothing", "signal"),
        ("book", "the build of the smoke study's pages", "signal"),
        ("disk", "the smoke pipeline, from nothing", "what"),
    ):
        for trials in _by(kind, record.get(part, {"trials": []})):
            how = trials[0][kind] if kind == "signal" else f"its disk is {trials[0][kind]}"
            rows.append(
                (
                    what,
                    how,
                    sum(trial.get("was_running", trial.get("failed")) for trial in trials),
                    trials,
                )
            )
    if one := record.get("one_run"):
        rows.append(
            (
                "one run of the tiny study, again and again",
                "all three in turn",
                sum(kill["was_running"] for kill in one["kills"]),
                [one],
            )
        )
    if not rows:
        return "No trials have been made with this version of the book.\n"
    lines, dates = [], sorted({part["date"] for part in record.values()})
    for what, how, hit, trials in rows:
        same, orphans = (
            sum(not trial["differ"] for trial in trials),
            [trial["orphans"] for trial in trials if "orphans" in trial],
        )
        lines.append(
            f"| {what} | {how} | {hit} | {same} of {len(trials)} | {sum(orphans) if orphans else '–'} |"
        )  # not looked for with a disk
    told = [
        f"Interrupted at random moments on {' to '.join(dict.fromkeys([dates[0], dates[-1]]))} and started again with the same command, "
        f"without any other step ({store.made_on(next(iter(record.values()))['place'])}):",
        "",
        "| what | interrupted by | stopped while at work | the same in the end | processes left behind |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ]
    if disk := record.get("disk"):
        named = sum(trial["is_told"] for trial in disk["trials"])
        told += [
            f"In {named} of {len(disk['trials'])} trials with a disk the message named the cause.",
            "",
        ]
    if again := record.get("again"):
        apart, other = again["two_threads"], again["differ"]
        told += [
            f"The tiny study was made twice on one machine, with {again['jobs'][0]} jobs at a time and with {again['jobs'][1]}: of {again['files']} "
            f"adapters, records, tables and executed pages {again['files'] - len(other)} have the same contents"
            f"{'; these differ: ' if other else ''}{', '.join(f'`{file}`' for file in other)}. "
            f"With two threads instead of one the updates of its main runs are {min(apart.values()):.1g} to {max(apart.values()):.1g} of their length "
            f"away (furthest: {max(apart, key=apart.get)}).",
            "",
        ]
    return "\n".join(told)


def _by(key, part):
    """The trials of a part of the record of faults, in lists of one kind each."""
    trials = part["trials"]
    return [
        [trial for trial in trials if trial[key] == kind]
        for kind in dict.fromkeys(trial[key] for trial in trials)
    ]


def _verdict_lines(claims):
    """The `verdict` table as Markdown, for the front page."""
    lines = [
        f"| {row.claim} | {row.paper} | {row.ours} | {row.control} | **{row.verdict}** |"
        for row in claims.itertuples()
    ]
    return "\n".join(
        [
            "| claim | the paper | this build (95% interval) | chance level or control | verdict |",
            "|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def _plan_lines(profile_name):
    """The plan of a large study as Markdown: memory on each GPU, and hours on each kind of GPU, of its stages and of the runs of two methods."""
    from helpers.cluster import (
        planning,  # which reads the sizes of models, and so needs the libraries that load them
    )

    table = planning.plan(profiles.load(profile_name)).query("gpu != 'none'")
    kept = table[
        table.item.isin(["base log-probabilities", "train sft", "train dpo", "evaluate sft"])
    ]
    kinds = list(kept.gpu.unique())
    lines = [
        f"| step | M tokens | GB a GPU | {' | '.join(kinds)} |",
        "|---" * (3 + len(kinds)) + "|",
    ]
    for item, rows in kept.groupby("item", sort=False):
        hours = [
            f"{row.hours:.1f} ({row.hours_low:.1f} to {row.hours_high:.1f})"
            if row.fits
            else "too small"
            for row in rows.itertuples()
        ]
        lines.append(
            f"| {item} | {rows.tokens.iloc[0] / 1e6:.1f} | {rows.total_gb.iloc[0]:.0f} | {' | '.join(hours)} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    prepare_book(sys.argv[1])
