# The pipeline: tables -> runs -> evaluations -> executed notebooks -> book.
# Inputs name what a step reads, found from its imports, so that an edit re-runs what depends on it and nothing else;
# parameters name settings and versions of libraries.
# Priorities: what most waits for comes first, training before paths, paths before evaluations.
# `snakemake --config profile=NAME` chooses the study; executor plugins take the same file to a cluster.
from pathlib import Path

from adapter_geometry import storage
from helpers import profiles, store
from helpers.book import pages, pipeline

PROFILE = config.get("profile", "tiny")
study = profiles.load(PROFILE)
RESULTS = f"results/{PROFILE}"
TABLES = {} if study.published else {
    "teacher": study.rollouts.table or f"{RESULTS}/rollouts.parquet", "base": study.rollouts.base_table or f"{RESULTS}/base-rollouts.parquet"}
MODELS = [model for model in study.models if not study.is_elsewhere(model)]
NOTEBOOKS = pipeline.notebooks(study)
SINGLE = [*study.runs] if pipeline.is_large(study) else [*study.main_runs]  # runs that are trained by a job of their own
TRAINER, HELPERS, PAPERMILL = pipeline.training_command(study), pipeline.on_gpus(study, "python -m helpers"), pipeline.on_gpus(study, "papermill")
NUMERICS = storage.digest(store.versions())
MODEL_FILES = [str(path) for source in study.models.values() for path in Path(source).glob("*")]


wildcard_constraints:
    run="|".join(SINGLE),
    model="|".join(MODELS),
    notebook="|".join(NOTEBOOKS),


localrules:
    all,
    notebooks,


rule all:
    input:
        "_build/html/index.html",


rule notebooks:
    input:
        expand(f"{RESULTS}/notebooks/{{notebook}}.ipynb", notebook=NOTEBOOKS),


for writer, table in TABLES.items():
    if table.startswith(RESULTS):

        rule:
            name:
                f"rollouts_{writer}"
            input:
                pipeline.modules("src/helpers/data/rollouts.py"),
            params:
                libraries=NUMERICS,
                writer=writer,
                settings=pipeline.settings(study, "rollouts", "problems", "models"),
            output:
                table,
            benchmark:
                f"{RESULTS}/logs/rollouts-{writer}.tsv"
            shell:
                "{HELPERS} rollouts {PROFILE} {params.writer}"


rule train:
    input:
        pipeline.modules("src/helpers/training/trainer.py"),
        MODEL_FILES,
        lambda wildcards: TABLES.get(study.runs[wildcards.run].writer, []),
    params:
        libraries=NUMERICS,
        spec=lambda wildcards: pipeline.spec(study, wildcards.run),
    output:
        update(f"{RESULTS}/runs/{{run}}/run.json"),
    log:
        f"{RESULTS}/logs/train-{{run}}.log",
    benchmark:
        f"{RESULTS}/logs/train-{{run}}.tsv"
    priority: 30
    threads: lambda wildcards: study.runs[wildcards.run].threads
    shell:
        "OMP_NUM_THREADS={threads} {TRAINER} helpers train {PROFILE} {wildcards.run} 2>&1 | tee {log}"


# Controls that come with the book in results/prerun are not made; those that do not are, a group in one process.
for group in study.controls:
    made = [path for path in pipeline.group_files(study, group) if path.startswith(RESULTS)]
    if made and not set(study.controls[group].runs) <= set(SINGLE):

        rule:
            name:
                f"controls_{group}"
            input:
                pipeline.modules("src/helpers/evaluation/likelihood.py"),
                MODEL_FILES,
                TABLES.values(),
            params:
                libraries=NUMERICS,
                group=group,
                specs=[pipeline.spec(study, run) for run in study.controls[group].runs],
                settings=pipeline.settings(study, "evaluation", "problems"),
            output:
                update(made),
            log:
                f"{RESULTS}/logs/controls-{group}.log",
            benchmark:
                f"{RESULTS}/logs/controls-{group}.tsv"
            priority: 25
            threads: study.evaluation.threads
            shell:
                "OMP_NUM_THREADS={threads} {HELPERS} controls {PROFILE} {params.group} 2>&1 | tee {log}"


rule evaluate_run:
    input:
        pipeline.modules("src/helpers/evaluation/likelihood.py"),
        lambda wildcards: pipeline.run_files(study, wildcards.run, False),
    params:
        libraries=NUMERICS,
        settings=pipeline.settings(study, "evaluation", "problems"),
    output:
        update(f"{RESULTS}/evaluation/{{run}}.parquet"),
        update(f"{RESULTS}/divergence/{{run}}.parquet"),
    log:
        f"{RESULTS}/logs/evaluate-{{run}}.log",
    benchmark:
        f"{RESULTS}/logs/evaluate-{{run}}.tsv"
    priority: 10
    threads: study.evaluation.threads
    shell:
        "OMP_NUM_THREADS={threads} {HELPERS} evaluate {PROFILE} {wildcards.run} 2>&1 | tee {log}"


rule evaluate_model:
    input:
        pipeline.modules("src/helpers/evaluation/likelihood.py"),
        MODEL_FILES,
    params:
        libraries=NUMERICS,
        settings=pipeline.settings(study, "evaluation", "problems", "models"),
    output:
        update(f"{RESULTS}/evaluation/{{model}}.parquet"),
    log:
        f"{RESULTS}/logs/evaluate-{{model}}.log",
    benchmark:
        f"{RESULTS}/logs/evaluate-{{model}}.tsv"
    priority: 10
    threads: study.evaluation.threads
    shell:
        "OMP_NUM_THREADS={threads} {HELPERS} evaluate {PROFILE} {wildcards.model} 2>&1 | tee {log}"


rule held_out:
    input:
        pipeline.modules("src/helpers/evaluation/likelihood.py"),
        MODEL_FILES,
    params:
        libraries=NUMERICS,
        settings=pipeline.settings(study, "evaluation", "problems", "models", "rollouts"),
    output:
        update(f"{RESULTS}/{pipeline.HELD_OUT}"),
    log:
        f"{RESULTS}/logs/held-out.log",
    benchmark:
        f"{RESULTS}/logs/held-out.tsv"
    priority: 20
    threads: study.evaluation.threads
    shell:
        "OMP_NUM_THREADS={threads} {HELPERS} held-out {PROFILE} 2>&1 | tee {log}"


for start in study.main_runs:
    made = [path for path in pipeline.path_files(study, start) if path.startswith(RESULTS)]
    if made:

        rule:
            name:
                f"connect_{start}"
            input:
                pipeline.modules("src/helpers/analysis/connectivity.py"),
                pipeline.path_inputs(study, start),
            params:
                libraries=NUMERICS,
                run=start,
                settings=pipeline.settings(study, "evaluation", "problems", "models", "connectivity"),
            output:
                update(made),
            log:
                f"{RESULTS}/logs/connect-{start}.log",
            benchmark:
                f"{RESULTS}/logs/connect-{start}.tsv"
            priority: 20
            threads: study.evaluation.threads
            shell:
                "OMP_NUM_THREADS={threads} {HELPERS} connect {PROFILE} {params.run} 2>&1 | tee {log}"


rule execute:
    input:
        source="notebooks/{notebook}.py",
        modules=lambda wildcards: pipeline.modules(f"notebooks/{wildcards.notebook}.py"),
        tables=TABLES.values(),
        artefacts=lambda wildcards: pipeline.artefacts(study, wildcards.notebook),
    params:
        libraries=pipeline.libraries(),
        settings=pipeline.settings(study),
    output:
        f"{RESULTS}/notebooks/{{notebook}}.ipynb",
    log:
        f"{RESULTS}/logs/{{notebook}}.ipynb",
    benchmark:
        f"{RESULTS}/logs/page-{{notebook}}.tsv"
    retries: 1  # two kernels that start at once may choose the same port
    threads: 1
    shell:
        # The running notebook is the log, so that what a failed cell left can be opened.
        "jupytext --to ipynb --output - {input.source} | "
        "OMP_NUM_THREADS={threads} {PAPERMILL} - {log} --cwd . -k python3 -p profile {PROFILE} --no-progress-bar && cp {log} {output}"


rule book:
    input:
        notebooks=rules.notebooks.input,
        pages=[str(path) for pattern in ("book/*.md", "book/*.bib", "book/_static/*.*", "book/_ext/*.py") for path in sorted(Path().glob(pattern)) if path.name not in pages.GENERATED],
        configuration=["_config.yml", "_toc.yml"],
        pipeline=pipeline.modules("src/helpers/book/pages.py"),
    output:
        "_build/html/index.html",
    log:
        f"{RESULTS}/logs/book.log",
    params:
        libraries=pipeline.libraries(),
        # Links to pages that a profile has no controls for lead nowhere; in a whole book every warning is an error.
        strict="-W -n --keep-going" if len(NOTEBOOKS) == len(pipeline.names()) else "",
    threads: 2
    shell:
        # Sphinx builds upon what is there, and can't upon what an interrupted build has left.
        "python -m helpers.book.pages {PROFILE} && {{ [ -e _build/whole ] || rm -rf _build; }} && rm -f _build/whole {output} && "
        "{{ jupyter-book build . {params.strict} > {log} 2>&1 && {{ "
        # Another major version ends well, and has written nothing of this.
        "[ -e {output} ] || {{ echo 'ERROR: jupyter-book has written no {output}; is its version that of requirements.txt?' >> {log}; false; }}; }} && "
        "touch _build/whole || {{ grep -E 'WARNING|ERROR' -A 3 {log} || tail -n 40 {log}; exit 1; }}; }}"
