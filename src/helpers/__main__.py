"""The command line: `python -m helpers COMMAND PROFILE [NAME]`; the pipeline and
the Makefile call it.
"""

import argparse
import sys


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what, takes in (
        ("pretrain", "make a profile's own models from random weights", "model"),
        ("rollouts", "sample and reward the table of rollouts", "writer"),
        ("train", "train one named run", "run"),
        ("evaluate", "evaluate a named run, or a model by its name", "run"),
        (
            "controls",
            "train the runs of a group of controls and let them answer the test problems",
            "group",
        ),
        ("connect", "measure loss and answers on the paths that start at a run", "run"),
        ("held-out", "write the teacher's rollouts to validation problems", None),
        (
            "ship",
            "copy the finished controls, or a study that comes whole, into results/prerun",
            None,
        ),
        (
            "sweep",
            "train SFT at each learning rate of the profile and record its validation accuracy",
            None,
        ),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("profile", help="name of a profile, for example tiny")
        if takes == "run":
            command.add_argument(
                "run", help="name of a run (or, to evaluate, of a model) in the profile"
            )
        elif takes == "group":
            command.add_argument("group", help="name of a group of controls in the profile")
        elif takes == "writer":
            command.add_argument(
                "writer",
                nargs="?",
                default="teacher",
                choices=("teacher", "base"),
                help="who writes; the teacher by default",
            )
        elif takes == "model":
            command.add_argument("models", nargs="*", help="which of its models; all by default")
    commands.add_parser(
        "env",
        help="print what a report of a fault needs",
        description="Versions, processor, memory, and what is stored of each profile.",
    )
    plan = commands.add_parser(
        "plan",
        help="memory and hours of a run, or of a whole study, on each kind of GPU",
        description="Memory and hours of a run and "
        "its evaluation, or of all stages and main runs of a study, on each kind of GPU, from the profile alone; nothing is loaded.",
    )
    plan.add_argument("profile", help="name of a profile, for example qwen3-4b")
    plan.add_argument(
        "run", nargs="?", help="name of a run in the profile; all main runs by default"
    )
    chosen = parser.parse_args(arguments)
    try:
        _COMMANDS[chosen.command](chosen)
    except (ValueError, OSError, FloatingPointError) as error:
        one_line = "".join(letter if letter.isprintable() else " " for letter in str(error))
        print(f"error: {one_line}", file=sys.stderr)
        sys.exit(2)


def _pretrain(chosen):
    import torch

    from helpers import profiles
    from helpers.training import pretraining

    torch.set_num_threads(1)
    profile = profiles.load(chosen.profile)
    for name in chosen.models or (profile.pretraining.models if profile.pretraining else ["base"]):
        print(pretraining.pretrain(profile, name))


def _rollouts(chosen):
    from helpers import profiles
    from helpers.data import rollouts

    print(rollouts.make_table(profiles.load(chosen.profile), chosen.writer))


def _train(chosen):
    from helpers import profiles
    from helpers.training import trainer

    profile = profiles.load(chosen.profile)
    print(trainer.train(profile, profiles.run(profile, chosen.run)))


def _controls(chosen):
    from helpers import profiles
    from helpers.evaluation import answering, likelihood
    from helpers.training import trainer

    profile = profiles.load(chosen.profile)
    if chosen.group not in profile.controls:
        raise ValueError(
            f"unknown group {chosen.group!r} in profile {profile.name!r}: choose one of {', '.join(profile.controls)}"
        )
    group = profile.controls[chosen.group]
    for name in group.runs:
        print(trainer.train(profile, profile.runs[name]), flush=True)
        if group.answers:
            answering.evaluate(profile, profile.runs[name])
            likelihood.divergence(profile, profile.runs[name])


def _evaluate(chosen):
    from helpers import profiles
    from helpers.evaluation import answering, likelihood

    profile = profiles.load(chosen.profile)
    run = chosen.run if chosen.run in profile.models else profiles.run(profile, chosen.run)
    answering.evaluate(profile, run)
    if profile.sampled and chosen.run in ("base", *profile.main_runs):
        answering.sampled(profile, run)
    if run != chosen.run:
        likelihood.divergence(profile, run)


def _connect(chosen):
    from helpers import profiles
    from helpers.analysis import connectivity

    profile = profiles.load(chosen.profile)
    connectivity.measure(profile, profiles.run(profile, chosen.run).name)


def _env(chosen):
    import os
    import subprocess

    import torch

    from helpers import profiles, store

    told = (
        subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=store.ROOT,
            capture_output=True,
            text=True,
        ).stdout.strip()
        or "no git"
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = {
        "book": told,
        "system": f"{sys.platform}, {os.cpu_count()} cores, {memory:.0f} GiB",
        **store.provenance(),
        "torch threads": torch.get_num_threads(),
        "torch's CPU instructions": torch.backends.cpu.get_cpu_capability(),
        **{
            f"runs of {name}": len(
                list((store.ROOT / "results" / name / "runs").glob("*/run.json"))
            )
            for name in profiles.names()
        },
    }
    print("\n".join(f"{name}: {value}" for name, value in lines.items()))


def _held_out(chosen):
    from helpers import profiles
    from helpers.evaluation import answering

    print(f"{len(answering.teacher_rollouts(profiles.load(chosen.profile)))} rollouts")


def _plan(chosen):
    from helpers import profiles
    from helpers.cluster import planning

    profile = profiles.load(chosen.profile)
    print(planning.plan_text(profile, chosen.run and profiles.run(profile, chosen.run)))


def _ship(chosen):
    from helpers import profiles
    from helpers.book import pipeline

    print(pipeline.ship(profiles.load(chosen.profile)))


def _sweep(chosen):
    from helpers import profiles
    from helpers.evaluation import likelihood

    print(likelihood.sweep(profiles.load(chosen.profile)))


_COMMANDS = {
    "pretrain": _pretrain,
    "rollouts": _rollouts,
    "train": _train,
    "controls": _controls,
    "evaluate": _evaluate,
    "connect": _connect,
    "env": _env,
    "held-out": _held_out,
    "ship": _ship,
    "sweep": _sweep,
    "plan": _plan,
}

if __name__ == "__main__":
    main()
