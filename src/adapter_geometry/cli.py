"""The command `adapter-geometry`: adapters in; a comparison, a look at one, or a new one out.

Last in the flow of data; it parses, calls what does the work, prints, and turns errors into one
line and an exit code.
"""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

# Exit codes: a condition of --fail-on holds; refused; interrupted and cut off as shells say it, 128
# and the number of the signal
_FAILED, _REFUSED, _INTERRUPTED, _CUT_OFF = 1, 2, 130, 141
_EXTRAS = {"peft": "export", "transformers": "texts"}  # extra of the distribution, by what it adds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the given arguments, by default those of the process.

    Returns where all went well, and exits otherwise: with 2 and one line on standard error for what
    cannot be read, compared or written, with 1 where a condition of `--fail-on` holds, with 130
    after Ctrl-C and 141 where nobody reads the output any more, both without a word.
    """
    chosen = _parser().parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
        sys.stdout.flush()  # so that a reader who has gone is met here and not at the end
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        # what is left in the buffer would raise again at the end of the process
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        code = _CUT_OFF
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        code = _refuse(
            f"this needs {error.name}: pip install 'adapter-geometry[{_EXTRAS[error.name]}]'"
        )
    except (ValueError, OSError, FloatingPointError) as error:
        code = _refuse(str(error))
    if code:
        sys.exit(code)


def _refuse(message: str) -> int:
    """Say in one line why nothing came out; returns the exit code."""
    one_line = "".join(letter if letter.isprintable() else " " for letter in message)
    print(f"error: {one_line}", file=sys.stderr)
    return _REFUSED


def _show(lines: Iterable[str]) -> None:
    """Print lines that may hold names of foreign files: control characters become question marks,
    and what the terminal's encoding lacks is escaped."""
    from adapter_geometry.report.summary import printable

    encoding = sys.stdout.encoding or "utf-8"
    for text in lines:
        for line in text.split("\n"):
            print(printable(line).encode(encoding, "backslashreplace").decode(encoding))


def _show_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))  # ASCII, which every terminal can show


# --- commands -------------------------------------------------------------------------------------
# Imports are late: --help need not wait for torch.


def _compare(chosen: argparse.Namespace) -> int:
    from adapter_geometry.report import output, programs
    from adapter_geometry.report.comparison import compare_adapters

    # what would be refused at the end is refused before anything is computed
    if chosen.out:
        output.require_own(chosen.out)
    for condition in chosen.fail_on:
        programs.parse(condition)
    report = compare_adapters(
        chosen.adapters,
        chosen.base,
        chosen.reference,
        chosen.texts,
        chosen.cache,
        lora_only=chosen.lora_only,
        rank=chosen.rank,
        groups=dict(chosen.group),
    )
    # before the conditions: a report that took hours is there even where one of them is refused
    page = report.write(chosen.out) if chosen.out else None
    met = [sentence for condition in chosen.fail_on for sentence in report.check(condition)]
    if chosen.json:
        _show_json(report.as_json())
    else:
        _show([report.summary(), *([f"\nreport: {page}"] if page else [])])
    for sentence in met:
        print(f"fail-on: {sentence}", file=sys.stderr)
    return _FAILED if met else 0


def _inspect(chosen: argparse.Namespace) -> int:
    from adapter_geometry.inspection import inspect_adapter, require_own

    if chosen.out:
        require_own(chosen.out)
    inspection = inspect_adapter(
        chosen.adapter, chosen.base, chosen.cache, chosen.lora_only, chosen.rank
    )
    folder = inspection.write(chosen.out) if chosen.out else None
    if chosen.json:
        _show_json(inspection.as_json())
    else:
        _show([*inspection.lines(), *([f"\ntables: {folder}"] if folder else [])])
    return 0


def _combine(chosen: argparse.Namespace) -> int:
    return _convert(chosen, chosen.adapters, chosen.weights)


def _compress(chosen: argparse.Namespace) -> int:
    return _convert(chosen, [chosen.adapter])


def _export(chosen: argparse.Namespace) -> int:
    chosen.rank = None
    return _convert(chosen, [chosen.adapter])


def _convert(
    chosen: argparse.Namespace, adapters: Sequence[str], weights: Sequence[float] = (1.0,)
) -> int:
    from adapter_geometry.conversion import convert

    _show(
        convert(
            chosen.folder, adapters, weights, chosen.rank, chosen.base, chosen.lora_only
        ).lines()
    )
    return 0


# --- arguments ------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, as the commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(_REFUSED, f"error: {message} ({self.prog} --help)\n")


class _Version(argparse.Action):
    """Prints the version of the distribution, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import importlib.metadata

        print(f"{parser.prog} {importlib.metadata.version('adapter-geometry')}")
        parser.exit()


def _positive(text: str) -> int:
    """A whole number from 1 on."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _group(text: str) -> tuple[str, list[str]]:
    """The name of a group and those of its adapters."""
    name, _, members = text.partition("=")
    if not (name and all(members.split(","))):
        raise argparse.ArgumentTypeError(f"{text!r} is no group: NAME=A,B,... is expected")
    return name, members.split(",")


_ADAPTER = (
    "PEFT folder, whole model (with --base), or hub id: owner/name, with @revision and /folder if "
    "wanted"
)
_EXIT_CODES = "exit codes: 0 done, 2 refused (one line on standard error says why)"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="adapter-geometry",
        description="Geometry of LoRA adapters and fine-tunes: directions, angles, norms and ranks "
        "of their updates beside what chance gives.",
        epilog="`adapter-geometry COMMAND --help` shows options and examples.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compare = _command(
        commands,
        "compare",
        _compare,
        "compare adapters of one base model",
        "Compare adapters or fine-tunes of one base model: directions, angles, norms and ranks of "
        "their updates, with chance levels. Prints a summary; --out writes a page and tables.",
        """
  adapter-geometry compare runs/sft/adapter runs/dpo/adapter --out report
  adapter-geometry compare mine=runs/a theirs=owner/name@main/checkpoint-500 \\
    --base Qwen/Qwen3-4B
  adapter-geometry compare new=out old=released --fail-on 'cosine<0.9' --json > numbers.json""",
        "exit codes: 0 compared, 1 compared and a condition of --fail-on holds,\n"
        "2 refused (one line on standard error says why)",
    )
    compare.add_argument(
        "adapters", nargs="+", metavar="ADAPTER", help=f"{_ADAPTER}; NAME=ADAPTER gives it a name"
    )
    _add_reading(
        compare,
        "relative norms, intruder dimensions, spectral shift; needed for whole models and for "
        "adapters whose update depends on the base",
    )
    _add_rank(compare)
    compare.add_argument(
        "--reference",
        metavar="NAME",
        help="adapter that the others are measured against; the first by default",
    )
    compare.add_argument(
        "--texts",
        metavar="FILE",
        help="JSON lines with prompt and completion: losses along paths, CKA and behaviour (with "
        "--base)",
    )
    compare.add_argument(
        "--group",
        action="append",
        default=[],
        type=_group,
        metavar="NAME=A,B",
        help="adapters that belong together, such as seeds of a method: mean cosines with other "
        "groups and within it; given once for each group",
    )
    _add_output(compare, "report.html, report.json and the tables")
    compare.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="CONDITION",
        help="exit with 1 where it holds for an adapter, as in 'cosine<0.9' or "
        "'relative_norm>0.1'; may be given several times",
    )

    inspect = _command(
        commands,
        "inspect",
        _inspect,
        "look at one adapter alone",
        "Measure one adapter: norms, the rank that is used, spectra, modules that are dead or "
        "stand out. With --base also relative norms, intruder dimensions beside those of a turned "
        "copy, and what its first output directions write through the unembedding.",
        """
  adapter-geometry inspect runs/sft/adapter
  adapter-geometry inspect owner/name --base Qwen/Qwen3-4B --out inspected""",
    )
    inspect.add_argument("adapter", metavar="ADAPTER", help=_ADAPTER)
    _add_reading(inspect, "relative norms, intruder dimensions, logit lens")
    _add_rank(inspect)
    _add_output(inspect, "the tables, as Parquet and CSV, and inspection.json")

    combine = _command(
        commands,
        "combine",
        _combine,
        "write the weighted sum of adapters",
        "Write w1 dW1 + w2 dW2 + ... as a PEFT folder: the sum of the updates themselves, exact "
        "but for the rounding to float32, which adding their factors is not. Its rank is the sum "
        "of theirs, or what --rank says, at the loss that is printed.",
        """
  adapter-geometry combine merged runs/sft/adapter runs/dpo/adapter --weights .5 .5
  adapter-geometry combine difference new old --weights 1 -1 --rank 16""",
    )
    combine.add_argument("folder", metavar="OUT", help="folder to write")
    combine.add_argument("adapters", nargs="+", metavar="ADAPTER", help=_ADAPTER)
    combine.add_argument(
        "--weights", nargs="+", type=float, required=True, metavar="W", help="one for each adapter"
    )
    combine.add_argument(
        "--rank", type=_positive, help="rank of the result; exact by default", metavar="R"
    )
    _add_reading(combine, "for whole models and adapters whose update depends on the base", False)

    compress = _command(
        commands,
        "compress",
        _compress,
        "write an adapter at a lower rank",
        "Write the best approximation of a rank, module by module, as a PEFT folder, and print the "
        "share of the squared norm that it loses.",
        """
  adapter-geometry compress small runs/sft/adapter --rank 8
  adapter-geometry compress extracted owner/fine-tune --base owner/base --rank 64""",
    )
    compress.add_argument("folder", metavar="OUT", help="folder to write")
    compress.add_argument("adapter", metavar="ADAPTER", help=_ADAPTER)
    compress.add_argument("--rank", type=_positive, required=True, help="rank to keep", metavar="R")
    _add_reading(compress, "for whole models and adapters whose update depends on the base", False)

    export = _command(
        commands,
        "export",
        _export,
        "write any adapter as a plain LoRA folder of PEFT",
        "Write an adapter that was read, whoever saved it and of whatever kind, as a PEFT folder "
        "of plain LoRA factors. Where they are no exact ones, their error is printed.",
        """
  adapter-geometry export plain checkpoints/compiled-model
  adapter-geometry export plain runs/dora/adapter --base Qwen/Qwen3-4B""",
    )
    export.add_argument("folder", metavar="OUT", help="folder to write")
    export.add_argument("adapter", metavar="ADAPTER", help=_ADAPTER)
    _add_reading(export, "for whole models and adapters whose update depends on the base", False)
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
    examples: str,
    exit_codes: str = _EXIT_CODES,
) -> argparse.ArgumentParser:
    """The parser of a command, whose help ends with examples and the exit codes."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description="\n".join(textwrap.wrap(description, 79)),
        epilog=f"examples:{examples}\n\n{exit_codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_reading(parser: argparse.ArgumentParser, why: str, has_cache: bool = True) -> None:
    """The options that say how adapters are read."""
    parser.add_argument(
        "--base", metavar="MODEL", help=f"folder or hub id of the base model: {why}"
    )
    parser.add_argument(
        "--lora-only",
        action="store_true",
        help="leave out, and name, parts that are no update of a weight matrix (heads, biases, "
        "norms), which are refused otherwise",
    )
    if has_cache:
        parser.add_argument(
            "--cache",
            metavar="DIR",
            help="folder for decompositions of the base's weights; the user's cache folder by "
            "default",
        )


def _add_rank(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rank",
        type=_positive,
        metavar="R",
        help="rank at which updates that are no product of factors are cut, such as those of whole "
        "models; 64 by default, and their error is said",
    )


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--out", metavar="DIR", help=f"folder for {what}; nothing is written without it"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the summary")
