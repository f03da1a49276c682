"""The command line: `python -m helpers COMMAND PROFILE [NAME]`; the pipeline and
the Makefile call it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

# Libraries and modules that take seconds to import are imported by the commands that use them, so
# that help and mistakes are answered at once.


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line asks for; an error that names its cause ends the process with 2."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.execute(arguments)
    except (ValueError, OSError, FloatingPointError) as error:
        one_line = "".join(letter if letter.isprintable() else " " for letter in str(error))
        print(f"error: {one_line}", file=sys.stderr)
        sys.exit(2)


# --- what can be asked for -----------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `execute`, the function that does it."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(
        name: str,
        execute: Callable[[argparse.Namespace], None],
        summary: str,
        description: str | None = None,
        example: str | None = "tiny",
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=description or summary)
        command.set_defaults(execute=execute)
        if example:
            command.add_argument("profile", help=f"name of a profile, for example {example}")
        return command

    command = add("pretrain", _pretrain, "make a profile's own models from random weights")
    command.add_argument("models", nargs="*", help="which of its models; all by default")
    command = add("rollouts", _rollouts, "sample and reward the table of rollouts")
    command.add_argument(
        "writer",
        nargs="?",
        default="teacher",
        choices=("teacher", "base"),
        help="who writes; the teacher by default",
    )
    of_run = "name of a run (or, to evaluate, of a model) in the profile"
    add("train", _train, "train one named run").add_argument("run", help=of_run)
    command = add("evaluate", _evaluate, "evaluate a named run, or a model by its name")
    command.add_argument("run", help=of_run)
    command = add(
        "controls",
        _controls,
        "train the runs of a group of controls and let them answer the test problems",
    )
    command.add_argument("group", help="name of a group of controls in the profile")
    command = add("connect", _connect, "measure loss and answers on the paths that start at a run")
    command.add_argument("run", help=of_run)
    add("held-out", _held_out, "write the teacher's rollouts to validation problems")
    add(
        "ship",
        _ship,
        "copy the finished controls, or a study that comes whole, into results/prerun",
    )
    add(
        "sweep",
        _sweep,
        "train SFT at each learning rate of the profile and record its validation accuracy",
    )
    add(
        "env",
        _env,
        "print what a report of a fault needs",
        "Versions, processor, memory, and what is stored of each profile.",
        example=None,
    )
    command = add(
        "plan",
        _plan,
        "memory and hours of a run, or of a whole study, on each kind of GPU",
        "Memory and hours of a run and its evaluation, or of all stages and main runs of a study, "
        "on each kind of GPU, from the profile alone; nothing is loaded.",
        example="qwen3-4b",
    )
    command.add_argument(
        "run", nargs="?", help="name of a run in the profile; all main runs by default"
    )
    return parser


# --- what is done --------------------------------------------------------------------------------


def _pretrain(arguments: argparse.Namespace) -> None:
    import torch

    from helpers import profiles
    from helpers.training import pretraining

    torch.set_num_threads(1)
    profile = profiles.load(arguments.profile)
    all_models = profile.pretraining.models if profile.pretraining else ["base"]
    for name in arguments.models or all_models:
        print(pretraining.pretrain(profile, name))


def _rollouts(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.data import rollouts

    print(rollouts.make_table(profiles.load(arguments.profile), arguments.writer))


def _train(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.training import trainer

    profile = profiles.load(arguments.profile)
    print(trainer.train(profile, profiles.run(profile, arguments.run)))


def _controls(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.evaluation import answering, likelihood
    from helpers.training import trainer

    profile = profiles.load(arguments.profile)
    if arguments.group not in profile.controls:
        raise ValueError(
            f"unknown group {arguments.group!r} in profile {profile.name!r}: choose one of "
            f"{', '.join(profile.controls)}"
        )
    group = profile.controls[arguments.group]
    for name in group.runs:
        print(trainer.train(profile, profile.runs[name]), flush=True)
        if group.answers:
            answering.evaluate(profile, profile.runs[name])
            likelihood.divergence(profile, profile.runs[name])


def _evaluate(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.evaluation import answering, likelihood

    name = arguments.run
    profile = profiles.load(arguments.profile)
    is_model = name in profile.models
    run = name if is_model else profiles.run(profile, name)
    answering.evaluate(profile, run)
    if profile.sampled and name in ("base", *profile.main_runs):
        answering.sampled_records(profile, run)
    if not is_model:
        likelihood.divergence(profile, run)


def _connect(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.analysis import connectivity

    profile = profiles.load(arguments.profile)
    connectivity.measure(profile, profiles.run(profile, arguments.run).name)


def _held_out(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.evaluation import answering

    print(f"{len(answering.teacher_rollouts(profiles.load(arguments.profile)))} rollouts")


def _ship(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.book import pipeline

    print(pipeline.ship(profiles.load(arguments.profile)))


def _sweep(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.evaluation import likelihood

    print(likelihood.sweep(profiles.load(arguments.profile)))


def _env(arguments: argparse.Namespace) -> None:
    import os
    import subprocess

    import torch

    from helpers import profiles, store

    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=store.ROOT,
        capture_output=True,
        text=True,
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    results = store.ROOT / "results"
    lines = {
        "book": described.stdout.strip() or "no git",
        "system": f"{sys.platform}, {os.cpu_count()} cores, {memory:.0f} GiB",
        **store.provenance(),
        "torch threads": torch.get_num_threads(),
        "torch's CPU instructions": torch.backends.cpu.get_cpu_capability(),
        **{
            f"runs of {name}": len(list((results / name / "runs").glob("*/run.json")))
            for name in profiles.names()
        },
    }
    print("\n".join(f"{name}: {value}" for name, value in lines.items()))


def _plan(arguments: argparse.Namespace) -> None:
    from helpers import profiles
    from helpers.cluster import planning

    profile = profiles.load(arguments.profile)
    run = profiles.run(profile, arguments.run) if arguments.run else None
    print(planning.plan_text(profile, run))


if __name__ == "__main__":
    main()
