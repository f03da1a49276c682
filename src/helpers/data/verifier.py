"""Whether two written answers are equal, judged by math-verify in a process of its own.

Called by `problems` when it grades. What a model writes may be a power that never ends, or one that fills the memory, and
math-verify's own limits can't interrupt those: so the process that reads it has limits, is stopped at them, and is replaced.
"""

import atexit
import functools
import multiprocessing
import re
import resource
import time

from pebble import ProcessExpired, ProcessPool

SECONDS, MEMORY = (
    12,
    2 * 2**30,
)  # for one answer; math-verify stops reading and comparing by itself after 5 seconds each where it can
LONGEST = 1000  # characters; no problem has an answer near it
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,14})")


@functools.cache
def compare(found, answer):
    r"""(whether `found` can be read as mathematics, whether it equals `answer`), both as they stand in a \boxed{}.

    What is too long, or is not read and compared within `SECONDS` of computing and `MEMORY` bytes, counts as unreadable.
    """
    if _INTEGER.fullmatch(found) and _INTEGER.fullmatch(answer):
        return True, int(found) == int(
            answer
        )  # nearly all answers; the other process would say the same
    if len(found) > LONGEST:
        return False, False
    try:
        return _pool().schedule(_by_math_verify, args=[found, answer], timeout=2 * SECONDS).result()
    except (TimeoutError, ProcessExpired, MemoryError, RecursionError):
        return False, False


@functools.cache
def _pool():
    pool = ProcessPool(
        max_workers=1, initializer=_limit_memory, context=multiprocessing.get_context("spawn")
    )
    atexit.register(pool.stop)
    return pool


def _limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _by_math_verify(found, answer):
    from math_verify import (  # with SymPy a second to import, in the process that needs it
        LatexExtractionConfig,
        parse,
        verify,
    )

    # The kernel's limit holds even where the process that waits for this one was killed.
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(time.process_time()) + SECONDS, resource.RLIM_INFINITY)
    )
    box = "\\boxed{%s}"
    read = parse(box % found, [LatexExtractionConfig()])
    return bool(read), bool(read) and verify(parse(box % answer, [LatexExtractionConfig()]), read)
