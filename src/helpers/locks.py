"""Locks that the kernel takes back when their holder ends, however it ended; and
`python -m helpers.locks COMMAND ...`, one pipeline at a time.

Outside the flow of data. Snakemake's own lock outlives a process that is killed, and then has to be
removed by hand.
"""

import fcntl
import os
import sys
from pathlib import Path


def take(path: Path) -> int | None:
    """A descriptor that holds the lock on the file `path` until it is closed; None if another
    process has it."""
    try:
        return _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def wait_for(path: Path) -> int:
    """A descriptor that holds the lock on the file `path` until it is closed, as soon as no other
    process has it."""
    return _lock(path, fcntl.LOCK_EX)


def _lock(path: Path, operation: int) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def main(command: list[str]) -> None:
    """Become `command`, which holds the lock on the results of the folder that it runs in."""
    path = Path("results/pipeline.lock")
    path.parent.mkdir(exist_ok=True)
    lock = take(path)
    if lock is None:
        message = "another `make` is at work in this folder; waiting for it to end"
        print(message, file=sys.stderr, flush=True)
        lock = wait_for(path)
    os.set_inheritable(lock, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
