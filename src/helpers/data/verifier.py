"""Whether two written answers are equal, judged by math-verify in a process of its own.

Called by `grading`. What a model writes may be a power that never ends, or one that fills the
memory, and math-verify's own limits can't interrupt those: so the process that reads it has limits,
is stopped at them, and is replaced.
"""

import atexit
import functools
import multiprocessing
import re
import resource
import time

from pebble import ProcessExpired, ProcessPool

# For one answer; math-verify stops reading and comparing by itself after 5 seconds each where it
# can.
SECONDS, MEMORY = 12, 2 * 2**30
LONGEST = 1000  # characters; no problem has an answer near it
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,14})")


@functools.cache
def compare(written: str, answer: str) -> tuple[bool, bool]:
    r"""(whether `written` can be read as mathematics, whether it equals `answer`), both as they
    stand in a \boxed{}.

    What is too long, or is not read and compared within `SECONDS` of computing and `MEMORY` bytes,
    counts as unreadable.
    """
    # Nearly all answers are integers, of which the other process would say the same.
    if _INTEGER.fullmatch(written) and _INTEGER.fullmatch(answer):
        return True, int(written) == int(answer)
    if len(written) > LONGEST:
        return False, False
    try:
        task = _pool().schedule(_by_math_verify, args=[written, answer], timeout=2 * SECONDS)
        readable, correct = task.result()
        return readable, correct
    except (TimeoutError, ProcessExpired, MemoryError, RecursionError):
        return False, False


@functools.cache
def _pool() -> ProcessPool:
    pool = ProcessPool(
        max_workers=1, initializer=_limit_memory, context=multiprocessing.get_context("spawn")
    )
    atexit.register(pool.stop)
    return pool


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _by_math_verify(written: str, answer: str) -> tuple[bool, bool]:
    # Late, since with SymPy it takes a second to import, in the process that needs it.
    from math_verify import LatexExtractionConfig, parse, verify

    # The kernel's limit holds even where the process that waits for this one was killed.
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY)
    )
    box = "\\boxed{%s}"
    parsed = parse(box % written, [LatexExtractionConfig()])
    if not parsed:
        return False, False
    return True, bool(verify(parse(box % answer, [LatexExtractionConfig()]), parsed))
