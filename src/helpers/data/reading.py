"""The program of the process that reads answers with math-verify.

Run by `verifier` as a file of its own, so that it imports only what grading needs, whatever the
script that grades has imported: one JSON list [written, answer] per line of standard input, one
JSON list per line of standard output (`compare`). Ends at the end of its input, or dies of its
limit of computing; what is too large for its memory, or nested too deeply, it says.
"""

import functools
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

READY = "ready"
_OF_LIMITS = (MemoryError, RuntimeError)  # the latter is what a RecursionError is


def main() -> None:
    """Answer requests; the arguments are the limits of one: seconds of computing, and bytes of
    memory on top of what the process has mapped when it is ready."""
    seconds, memory = int(sys.argv[1]), int(sys.argv[2])
    # An interrupt from the keyboard reaches this process too, and is the other one's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Replies have a channel of their own: what a library prints goes to standard error.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    compare("1", "1")  # so that all that is imported late is there before the limits
    resource.setrlimit(resource.RLIMIT_AS, _limits(resource.RLIMIT_AS, _mapped_bytes() + memory))
    print(json.dumps(READY), file=replies, flush=True)
    for line in sys.stdin:
        # The kernel keeps this limit even where the process that waits was killed.
        limit = int(time.process_time()) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, _limits(resource.RLIMIT_CPU, limit))
        print(json.dumps(compare(*json.loads(line))), file=replies, flush=True)


def compare(written: str, answer: str) -> tuple[bool, bool, bool]:
    r"""(whether `written` is mathematics, whether `answer` is, whether they are equal), both as
    they stand in a \boxed{}; none of it where memory or recursion meet their limits."""
    parse, verify = _parse_and_verify()
    try:
        read = [parse(f"\\boxed{{{text}}}") for text in (written, answer)]
        # Where it finds no mathematics, it hands the text back.
        is_mathematics = [any(not isinstance(one, str) for one in parsed) for parsed in read]
        return is_mathematics[0], is_mathematics[1], bool(verify(read[1], read[0]))
    except (MemoryError, RecursionError):
        return False, False, False


@functools.cache
def _parse_and_verify() -> tuple[Callable[[str], list[Any]], Callable[[Any, Any], bool]]:
    """The two functions of math-verify, without its own limits of time, which depend on what else
    the machine does and can't interrupt one long operation."""
    # Late, since with SymPy it takes seconds to import, in the process that needs it.
    from math_verify import LatexExtractionConfig, grader, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that it has no limits
    # It takes every exception for "not equal", those of memory and recursion too: here they go on.
    ordinary = [kind for kind in Exception.__subclasses__() if kind not in _OF_LIMITS]
    grader.Exception = (*ordinary, NotImplementedError)
    return (
        functools.partial(parse, extraction_config=[LatexExtractionConfig()], parsing_timeout=None),
        functools.partial(verify, timeout_seconds=None),
    )


def _limits(kind: int, wanted: int) -> tuple[int, int]:
    """A soft limit, no higher than the hard one that the process was given."""
    hard = resource.getrlimit(kind)[1]
    return (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)), hard


def _mapped_bytes() -> int:
    """Size of the process's address space; 0 where the system does not say, and does not limit."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    main()
