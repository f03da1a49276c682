"""Locks that the kernel takes back when their holder ends, however it ended; and `python -m helpers.locks COMMAND ...`, one pipeline at a time.

Outside the flow of data. Snakemake's own lock outlives a process that is killed, and then has to be removed by hand.
"""

import fcntl
import os
import sys
from pathlib import Path


def take(path, waits=False):
    """A descriptor that holds the lock on the file `path` until it is closed; None if another process has it and this one does not wait."""
    lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def main(command):
    """Become `command`, which holds the lock on the results of the folder that it runs in."""
    path = Path("results/pipeline.lock")
    path.parent.mkdir(exist_ok=True)
    lock = take(path)
    if lock is None:
        print(
            "another `make` is at work in this folder; waiting for it to end",
            file=sys.stderr,
            flush=True,
        )
        lock = take(path, waits=True)
    os.set_inheritable(lock, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
