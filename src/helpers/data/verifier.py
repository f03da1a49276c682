"""Whether two written answers are equal, judged by math-verify in a process of its own.

Called by `grading`, after `spelling` and `reading`. What a model writes may be a power that never
ends, or one that fills the memory: so the process that reads it has limits, dies of them, and is
replaced. It is started once, where the first answer needs it, and again in a forked child; whatever
the program that grades is (a notebook, a script, a worker of a pool), the process runs
`reading` alone. What it can't read within its limits is unreadable; a process that fails for
another reason is an error and no verdict.
"""

import atexit
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading

from helpers.data import reading, spelling

SECONDS, MEMORY = 10, 2 * 2**30  # for one answer: of computing, and bytes
LONGEST = 1000  # characters; no problem has an answer near it
_PATIENCE = 600  # seconds of waiting, after which something else than the answer is wrong
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,14})")


@functools.cache
def compare(written: str, answer: str) -> tuple[bool, bool]:
    r"""(whether `written` can be read, whether it equals `answer`), both as they stand in a
    \boxed{}.

    Read is what math-verify takes for mathematics, and what says the answer in its own words; words
    are read where the answer is words. Of a labelled choice, (E) 13, the label counts where the
    answer is one, else what it stands for. What is too long, nested too deeply, or not read and
    compared within `SECONDS` of computing and `MEMORY` bytes, is unreadable.

    Raises RuntimeError if the process that reads can't be started, or dies of something else than
    its limits.
    """
    # Nearly all answers are integers, of which the other process would say the same.
    if _INTEGER.fullmatch(written) and _INTEGER.fullmatch(answer):
        return True, int(written) == int(answer)
    if max(len(written), len(answer)) > LONGEST:
        return False, False
    choice, gold_choice = map(spelling.labelled_choice, (written, answer))
    label, gold_label = map(spelling.label, (written, answer))
    if gold_choice and (choice or label):
        return True, gold_choice[0] == (choice[0] if choice else label)
    if choice and gold_label:
        return True, choice[0] == gold_label
    if choice or gold_choice:
        return compare(choice[1] if choice else written, gold_choice[1] if gold_choice else answer)
    spelled, gold = spelling.plain(written), spelling.plain(answer)
    is_mathematics, _, equal = _reply(spelled, gold)
    if spelling.is_prose(gold):
        same_words = spelling.words(spelled).lower() == spelling.words(gold).lower()
        return bool(spelled), equal or same_words
    return equal or (is_mathematics and not spelling.is_prose(spelled)), equal


def is_mathematics(answer: str) -> bool:
    r"""Whether an answer as it stands in a \boxed{} is mathematics to math-verify, or the label of
    a choice. Raises what `compare` raises."""
    if _INTEGER.fullmatch(answer) or spelling.label(answer) or spelling.labelled_choice(answer):
        return True
    spelled = spelling.plain(answer)
    return len(answer) <= LONGEST and not spelling.is_prose(spelled) and _reply(spelled, "1")[0]


# --- the process ---------------------------------------------------------------------------------


class _Process:
    """A running `reading`, ready for requests."""

    def __init__(self) -> None:
        # What it says beside its replies; no pipe, which it could fill.
        self.messages = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # -P: the folder of the file is none to import from; its modules have names of Python's own.
        command = [sys.executable, "-P", reading.__file__, str(SECONDS), str(MEMORY)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.messages,
            text=True,
        )
        # However slowly it imports; what a site's own start-up prints is passed over.
        while (line := self._next_line()).strip() != json.dumps(reading.READY):
            if not line:
                raise RuntimeError(f"the process that reads answers does not start: {self.end()}")

    def ask(self, written: str, answer: str) -> tuple[bool, bool, bool] | None:
        """The reply to a request, None if the process died."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps([written, answer]) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._next_line()
        return tuple(json.loads(line)) if line else None

    def _next_line(self) -> str:
        """The next line that the process writes; empty if it died."""
        assert self.process.stdout is not None
        watch = threading.Timer(_PATIENCE, self.process.kill)
        watch.daemon = True
        watch.start()
        try:
            return self.process.stdout.readline()
        finally:
            watch.cancel()

    def end(self) -> str:
        """End the process; returns how it ended, and the last line it said of it."""
        self.process.kill()
        code = self.process.wait()
        self.messages.seek(0)
        last = self.messages.read().strip().rpartition("\n")[2] or "it said nothing"
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"{how}; {last}"


_process: _Process | None = None
_lock = threading.Lock()


def _forget() -> None:
    """Leave the parent's process to it, after a fork."""
    global _process, _lock
    _process, _lock = None, threading.Lock()


def _end() -> None:
    if _process is not None:
        _process.end()


os.register_at_fork(after_in_child=_forget)
atexit.register(_end)


def _reply(written: str, answer: str) -> tuple[bool, bool, bool]:
    """What `reading.compare` says; unreadable where the process dies of its limits."""
    global _process
    with _lock:
        for _ in range(2):  # a process may be killed from outside, once
            _process = _process or _Process()
            try:
                reply = _process.ask(written, answer)
            except BaseException:
                _process.end()  # with a reply under way that is nobody's
                _process = None
                raise
            if reply is not None:
                return reply
            ended, _process = _process, None
            code = ended.process.wait()
            if -code == signal.SIGXCPU:
                return False, False, False
        if -code == signal.SIGSEGV:  # twice, so of this answer: its nesting fills the stack
            return False, False, False
        raise RuntimeError(
            f"the process that reads answers died twice ({ended.end()}) while it compared "
            f"{written[:60]!r} with {answer[:60]!r}; this is no verdict on the answer. "
            "Is the machine short of memory, or does something end its processes?"
        )
