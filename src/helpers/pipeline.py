"""What the Snakefile asks of the package: what each step reads, and the parts of the book made from executed notebooks.

Outside the flow of data: it knows which artefacts each notebook reads, and no artefact depends on it.
"""

import ast
import base64
import importlib.metadata
import json
import re
import shutil
import sys

import pandas as pd

from helpers import profiles, store

HELD_OUT = "held-out/teacher.parquet"
_RECORDS = ("evaluation", "divergence", "sampled", "validation", "samples", "held-out", "connectivity", "gradients", "interventions",
            "tables")  # folders of results
GENERATED = ("timings.md", "verdict_table.md", "plan_table.md", "headline.md", "headline.png", "faults_table.md")  # files of book/ that `prepare_book` writes
_STEPS = {"rollouts": "sampling a table of rollouts", "train": "training a main run", "controls": "training and asking a group of controls",
          "evaluate": "evaluating a run or a model", "held": "the teacher's held-out rollouts", "connect": "measuring the paths from a run",
          "page": "executing a page"}  # by the beginning of a step's log
_WIDGET = "application/vnd.jupyter.widget-view+json"
READS = {
    "01_problems": ("models", "templated"), "02_rollouts": ("rollouts",),
    "03_sft": ("sft",), "04_rft": ("rft", "sft"), "05_dft": ("dft",), "06_rift": ("rift",),
    "07_offline_grpo": ("offline-grpo",), "08_dpo": ("dpo",), "09_evaluation": ("models", "main", "seeds"), "10_norms": ("adapters", "seeds"),
    "11_angles": ("adapters", "10_norms"), "12_decomposition": ("adapters", "10_norms"), "13_connectivity": ("adapters", "paths", "held-out", "seeds"),
    "14_representations": ("adapters", "held-out", "seeds", "templated"),  # short texts, since it keeps every state
    "15_chance": ("adapters", "seeds", "all methods"),
    "16_seeds": ("main", "seeds", "grid-sft", "grid-rft", "grid-dpo", "mirrored", "rates", "subset", "held-out"),
    "17_matched_dpo": ("models", "main", "matched", "rates", "rounding", "strong", "preference", "paths", "held-out"),
    "18_gradient_plane": ("adapters", "snapshots"), "19_variants": ("main", "rift-variants", "grpo-variants", "grid-rft"),
    "20_on_policy": ("main", "own", "online", "grid-sft", "18_gradient_plane"),
    "21_interventions": ("main", "matched"),
    "22_verdict": ("09_evaluation", "10_norms", "11_angles", "12_decomposition", "13_connectivity", "14_representations", "15_chance", "16_seeds",
                   "17_matched_dpo", "18_gradient_plane", "19_variants", "20_on_policy", "21_interventions", "24_pretrained"),
    "23_your_adapters": ("adapters", "held-out"),
    "24_pretrained": ("main", "matched", "own", "seeds", "subset", "rates"),
}


def is_large(study):
    """Whether each run gets a job, and each job GPUs, of its own; others run their controls a group in one process, on CPUs."""
    return study.compute != profiles.ComputeSettings() and not study.published


def on_gpus(study, command, count=1):
    """A command of the pipeline, on GPUs that no other one is using where the study is large."""
    return f"python -m helpers.gpus {count} {command}" if is_large(study) else command


def trainer(study):
    """How a run is started: one process, or one for each of the GPUs that the profile gives to a run."""
    count = study.compute.processes
    return on_gpus(study, "python -m" if count == 1 else f"torchrun --standalone --nproc-per-node {count} -m", count)


def modules(source):
    """A Python file's helper modules, itself included if it is one, relative to the repository."""
    source = store.ROOT / source
    own = [source] if source.parent == store.PACKAGE else []
    return [str(path.relative_to(store.ROOT)) for path in [*own, *store.imported_modules(source)]]


def settings(study, *parts):
    """Hash of the named parts of a profile; without names, of all but its runs."""
    kept = study.model_dump(mode="json", include=set(parts)) if parts else study.model_dump(mode="json", exclude={"runs", "pretraining"})
    return store.digest(kept)


def libraries():
    """Hash of the installed versions of all libraries that requirements.txt pins; pages use more of them than numbers do (`store.versions`)."""
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==", (store.ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return store.digest({name: importlib.metadata.version(name) for name in pinned})


def spec(study, run):
    """Hash of one run's spec and of the adapter's settings."""
    return store.digest({"run": study.runs[run].model_dump(), "lora": study.lora.model_dump()})


def lies(study, file):
    """Where a file of a study's results is found or is to be made (`store.find`), relative to the repository."""
    return str(store.find(study.name, file).relative_to(store.ROOT))


def run_files(study, name, answers):
    """A run's record and, with `answers`, what was measured of it, where they lie or are to be made, relative to the repository."""
    files = [f"runs/{name}/run.json", *(f"{part}/{name}.parquet" for part in ("evaluation", "divergence") if answers)]
    if store.place(study.name, study.runs[name]) == store.shipped(study.name):
        return [lies(study, file) for file in files]
    return [f"results/{study.name}/{file}" for file in files]  # what came with the book belongs to a run of another spec


def group_files(study, group):
    """All files of a group of controls."""
    return [file for name in study.controls[group].runs for file in run_files(study, name, study.controls[group].answers)]


def notebooks(study):
    """The notebooks for which the profile has what they read: problems, runs, groups of controls, snapshots; the verdict does without the pages left out.

    Of adapters that were published there is the geometry alone.
    """
    known, kept = {"adapters", *study.controls}, []
    if not study.published:
        known |= {"rollouts", "models", "main", "paths", "held-out", *study.runs}
    if isinstance(study.problems, profiles.ProblemSettings):
        known.add("templated")
    if all(study.runs[name].snapshots for name in study.main_runs):
        known.add("snapshots")
    replicas = study.controls["seeds"].runs if "seeds" in study.controls else ()
    if {study.runs[name].objective for name in replicas} == {study.runs[name].objective for name in study.main_runs}:
        known.add("all methods")
    for notebook, needs in READS.items():
        if known.issuperset(needs) or notebook == "22_verdict":
            kept.append(notebook)
            known.add(notebook)
    return kept


def artefacts(study, notebook):
    """Files that a notebook reads, relative to the repository.

    Its needs in `READS` are "templated" problems, the table of "rollouts", "models" (evaluated), "main" (the six runs, evaluated), "adapters" (the
    six runs), "paths" between them, "snapshots" of theirs, "held-out" texts, one run or one group of controls by its name, seeds for "all methods", or
    another notebook, for the tables that it writes.
    """
    needs = READS[notebook]
    evaluated = list(study.main_runs) if "main" in needs else [need for need in needs if need in study.runs]
    found = [file for name in evaluated for file in run_files(study, name, True)]
    found += [run_files(study, name, False)[0] for name in study.main_runs if "adapters" in needs]
    found += [file for group in study.controls if group in needs for file in group_files(study, group)]
    if evaluated or "paths" in needs:
        found.append(lies(study, "evaluation/base.parquet"))
    if "models" in needs:
        found += [lies(study, f"evaluation/{model}.parquet") for model in study.models if not study.is_elsewhere(model)]
    if "paths" in needs:
        found += [file for name in study.main_runs for file in path_files(study, name)]
    if "held-out" in needs:
        found.append(lies(study, HELD_OUT))
    found += [f"results/{study.name}/notebooks/{need}.ipynb" for need in notebooks(study) if need in needs]
    return sorted(set(found))


def path_files(study, run):
    """Files that hold what was measured on the paths from a run (`connectivity.measure`), where they lie or are to be made."""
    starting = [(first, second) for first, second in study.paths if first == run]
    answered = [path for path in starting if path in study.connectivity.answered_paths]
    files = [f"connectivity/{part}-{first}-{second}.parquet" for part, paths in (("losses", starting), ("answers", answered)) for first, second in paths]
    return [lies(study, file) for file in files]


def path_inputs(study, run):
    """Files that `connectivity.measure` reads: held-out texts, the runs at both ends, and answers of the ends that answer problems."""
    starting = [(first, second) for first, second in study.paths if first == run]
    reached = {end.removeprefix(profiles.SCALED) for path in starting for end in path} - {"base"}
    answering = {end for path in starting if path in study.connectivity.answered_paths for end in path}
    return [lies(study, HELD_OUT), *sorted(run_files(study, end, False)[0] for end in reached),
            *sorted(lies(study, f"evaluation/{end}.parquet") for end in answering)]


def ship(study):
    """Copy what is finished of a profile's controls, or of a study that comes whole, from its results to results/prerun; returns that folder."""
    made, target = store.results(study.name), store.shipped(study.name)
    if study.comes_whole:
        entries = [path for part in ("runs", *_RECORDS) for path in (made / part).glob("*")]
    else:
        entries = list((made / "interventions").glob("*"))
        for group in study.controls.values():
            entries += [made / "runs" / name for name in group.runs]
            entries += [made / part / f"{name}.parquet" for part in ("evaluation", "divergence") if group.answers for name in group.runs]
    for entry in sorted(entries):
        is_aside = re.search(r"^\.|-[0-9a-f]{8}$", entry.stem)  # what is being written, or was moved aside for other settings
        if not is_aside and (entry if entry.suffix else entry / "run.json").exists():
            _copy(entry, target / entry.relative_to(made))
            store.relist(target / entry.relative_to(made))
    return target


def _copy(source, target):
    with store.whole(target) as beside:
        if source.is_dir():
            shutil.copytree(source, beside)
        else:
            shutil.copy2(source, beside)


def prepare_book(profile_name):
    """Lay a profile's executed notebooks into the book, and write the parts of it that come from them: timings and the front page's table."""
    target = store.ROOT / "book" / "notebooks"
    target.mkdir(parents=True, exist_ok=True)
    for old in target.glob("*.ipynb"):
        old.unlink()
    lines = []
    study = profiles.load(profile_name)
    for executed in (store.results(profile_name) / "notebooks" / f"{name}.ipynb" for name in notebooks(study)):
        notebook = store.read_json(executed)
        for cell in notebook["cells"]:
            tags = cell["metadata"].get("tags", [])
            if "injected-parameters" in tags:
                tags.append("remove-cell")
            if cell["cell_type"] == "code":
                # Progress bars are widgets, and a page has no kernel to move those.
                cell["outputs"] = [output for output in cell["outputs"] if _WIDGET not in output.get("data", {})]
                if _is_sentence("".join(cell["source"])):
                    cell["metadata"]["tags"] = [*tags, "hide-input"]
        notebook["metadata"].pop("widgets", None)
        (target / executed.name).write_text(json.dumps(notebook))
        duration = notebook["metadata"]["papermill"]["duration"]
        lines.append(f"| [](notebooks/{executed.name}) | {duration:.0f} |")
    runs = []
    for name, run in study.runs.items():
        folder = store.place(profile_name, run)
        if not (folder / "runs" / name / "run.json").exists():
            continue  # a control that only pages left out would read
        content = store.read_json(folder / "runs" / name / "run.json")
        data = f"{content['rows']} | {content['passes']:.2f}" if "rows" in content else "its own | –"
        trained = content["date"] if folder == store.shipped(profile_name) else "this build"
        runs.append(f"| {name} | {content['minutes']:.1f} | {data} | {trained} |")
    place = ", ".join(f"{name} {version}" for name, version in store.provenance().items())
    page = ["# Timings", "", f"Profile `{profile_name}`, computed on the machine that built this book ({place}).", "",
            "| notebook | seconds |", "|---|---|", *lines, "", "Training, each run on one thread unless its spec says otherwise. Runs that come with the "
            "book say when they were trained; `make book CONTROLS=all` trains them again:", "",
            "| run | minutes | rows | passes over them | trained |", "|---|---|---|---|---|", *runs, "",
            "Steps of the pipeline, processes and all: the longest and the largest of each kind. Memory is the peak of what a step has for itself plus its "
            "share of what it shares (proportional set size), looked at every half second in the first half minute and every half minute after that.", "",
            *_stage_lines(profile_name), ""]
    (store.ROOT / "book" / "timings.md").write_text("\n".join(page))
    (store.ROOT / "book" / "verdict_table.md").write_text(_verdict_lines(store.read_table(profile_name, "verdict")))
    (store.ROOT / "book" / "plan_table.md").write_text(_plan_lines("qwen3-4b"))
    (store.ROOT / "book" / "faults_table.md").write_text(_fault_lines(store.ROOT / "data" / "faults.json"))
    (store.ROOT / "book" / "headline.md").write_text(_headline(target / "09_evaluation.ipynb"))


def _stage_lines(profile_name):
    """Seconds and memory of the pipeline's steps as a Markdown table, from what Snakemake measured, a kind of step a row."""
    logs = sorted((store.results(profile_name) / "logs").glob("*.tsv"))
    measured = [pd.read_csv(path, sep="\t", na_values="-").assign(kind=path.stem.partition("-")[0]) for path in logs]
    kinds = pd.concat(measured).groupby("kind", sort=False) if measured else []
    lines = [f"| {_STEPS[kind]} | {len(steps)} | {steps.s.max():.0f} | {steps.max_pss.max():.0f} |" for kind, steps in kinds]
    return ["| step | how many | seconds | peak memory, MB |", "|---|---|---|---|", *lines]


def _is_sentence(code):
    """Whether a cell ends by putting numbers into a sentence: the page then shows the sentence, and its making where one asks for it."""
    try:
        last = ast.parse(code).body[-1:]
    except SyntaxError:  # a magic of IPython
        return False
    return any(isinstance(line, ast.Expr) and isinstance(line.value, ast.Call) and getattr(line.value.func, "id", "") == "Markdown" for line in last)


def _headline(executed):
    """The front page's figure as Markdown, with alt text and caption from its own page, or nothing where there is no such page; writes the image."""
    cells = json.loads(executed.read_text())["cells"] if executed.exists() else []
    for cell in cells:
        about = cell["metadata"].get("mystnb", {})
        if about.get("figure", {}).get("name") == "fig-evaluation-headline":
            image = next(output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {}))
            (store.ROOT / "book" / "headline.png").write_bytes(base64.b64decode(image))
            return f"```{{figure}} headline.png\n:name: fig-headline\n:alt: {about['image']['alt']}\n\n{about['figure']['caption']}\n```\n"
    return ""


def _fault_lines(path):
    """The record of `make faults` as Markdown: what was interrupted how often, and what came of it; the study made again."""
    record, rows = store.read_json(path) if path.exists() else {}, []
    for part, what, kind in (("pipeline", "the smoke pipeline, from nothing", "signal"), ("book", "the build of the smoke study's pages", "signal"),
                             ("disk", "the smoke pipeline, from nothing", "what")):
        for trials in _by(kind, record.get(part, {"trials": []})):
            how = trials[0][kind] if kind == "signal" else f"its disk is {trials[0][kind]}"
            rows.append((what, how, sum(trial.get("was_running", trial.get("failed")) for trial in trials), trials))
    if one := record.get("one_run"):
        rows.append(("one run of the tiny study, again and again", "all three in turn", sum(kill["was_running"] for kill in one["kills"]), [one]))
    if not rows:
        return "No trials have been made with this version of the book.\n"
    lines, dates = [], sorted({part["date"] for part in record.values()})
    for what, how, hit, trials in rows:
        same, orphans = sum(not trial["differ"] for trial in trials), [trial["orphans"] for trial in trials if "orphans" in trial]
        lines.append(f"| {what} | {how} | {hit} | {same} of {len(trials)} | {sum(orphans) if orphans else '–'} |")  # not looked for with a disk
    told = [f"Interrupted at random moments on {' to '.join(dict.fromkeys([dates[0], dates[-1]]))} and started again with the same command, "
            f"without any other step ({store.made_on(next(iter(record.values()))['place'])}):", "",
            "| what | interrupted by | stopped while at work | the same in the end | processes left behind |", "|---|---|---|---|---|", *lines, ""]
    if disk := record.get("disk"):
        named = sum(trial["is_told"] for trial in disk["trials"])
        told += [f"In {named} of {len(disk['trials'])} trials with a disk the message named the cause.", ""]
    if again := record.get("again"):
        apart, other = again["two_threads"], again["differ"]
        told += [f"The tiny study was made twice on one machine, with {again['jobs'][0]} jobs at a time and with {again['jobs'][1]}: of {again['files']} "
                 f"adapters, records, tables and executed pages {again['files'] - len(other)} have the same contents"
                 f"{'; these differ: ' if other else ''}{', '.join(f'`{file}`' for file in other)}. "
                 f"With two threads instead of one the updates of its main runs are {min(apart.values()):.1g} to {max(apart.values()):.1g} of their length "
                 f"away (furthest: {max(apart, key=apart.get)}).", ""]
    return "\n".join(told)


def _by(key, part):
    """The trials of a part of the record of faults, in lists of one kind each."""
    trials = part["trials"]
    return [[trial for trial in trials if trial[key] == kind] for kind in dict.fromkeys(trial[key] for trial in trials)]


def _verdict_lines(claims):
    """The `verdict` table as Markdown, for the front page."""
    lines = [f"| {row.claim} | {row.paper} | {row.ours} | {row.control} | **{row.verdict}** |" for row in claims.itertuples()]
    return "\n".join(["| claim | the paper | this build (95% interval) | chance level or control | verdict |", "|---|---|---|---|---|", *lines, ""])


def _plan_lines(profile_name):
    """The plan of a large study as Markdown: memory on each GPU, and hours on each kind of GPU, of its stages and of the runs of two methods."""
    from helpers import planning  # which reads the sizes of models, and so needs the libraries that load them

    table = planning.plan(profiles.load(profile_name)).query("gpu != 'none'")
    kept = table[table.item.isin(["base log-probabilities", "train sft", "train dpo", "evaluate sft"])]
    kinds = list(kept.gpu.unique())
    lines = [f"| step | M tokens | GB a GPU | {' | '.join(kinds)} |", "|---" * (3 + len(kinds)) + "|"]
    for item, rows in kept.groupby("item", sort=False):
        hours = [f"{row.hours:.1f} ({row.hours_low:.1f} to {row.hours_high:.1f})" if row.fits else "too small" for row in rows.itertuples()]
        lines.append(f"| {item} | {rows.tokens.iloc[0] / 1e6:.1f} | {rows.total_gb.iloc[0]:.0f} | {' | '.join(hours)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    prepare_book(sys.argv[1])
