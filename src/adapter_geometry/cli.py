"""The command `adapter-geometry`: two or more adapters in, a summary and a report out.

Last in the flow of data; it parses, calls `compare_adapters`, and turns errors into one line.
"""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the process; exits with 2 and
    one line on standard error for what cannot be compared."""
    chosen = _parser().parse_args(arguments)
    # after --help, which need not wait for torch
    from adapter_geometry.report.comparison import compare_adapters

    try:
        report = compare_adapters(
            chosen.adapters, chosen.base, chosen.reference, chosen.texts, chosen.cache
        )
        print(report.summary())
        if chosen.out:
            print(f"\nreport: {report.write(chosen.out)}")
    except (ValueError, OSError, FloatingPointError) as error:
        one_line = "".join(letter if letter.isprintable() else " " for letter in str(error))
        print(f"error: {one_line}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adapter-geometry",
        description="Compare PEFT LoRA adapters of one base model.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser(
        "compare",
        help="compare LoRA adapters of your own",
        description="Compare PEFT LoRA adapters of one base model: directions, angles, norms and "
        "ranks of their updates, with chance levels; prints a summary and writes a report.",
    )
    compare.add_argument(
        "adapters",
        nargs="+",
        metavar="ADAPTER",
        help="PEFT folder or hub id (owner/name or owner/name/folder), or NAME=FOLDER",
    )
    compare.add_argument(
        "--base",
        help="folder or hub id of the base model: "
        "relative norms, intruder dimensions, spectral shift",
    )
    compare.add_argument(
        "--reference",
        metavar="NAME",
        help="adapter that the others are measured against; the first by default",
    )
    compare.add_argument(
        "--texts",
        metavar="FILE",
        help="JSON lines with prompt and completion: losses along paths and CKA (with --base)",
    )
    compare.add_argument(
        "--out",
        metavar="DIR",
        help="folder for report.html and the tables; nothing is written without it",
    )
    compare.add_argument(
        "--cache",
        metavar="DIR",
        help="folder for decompositions of the base's weights; the user's cache folder by default",
    )
    return parser
