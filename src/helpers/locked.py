"""One pipeline at a time in a copy of the book: `python -m helpers.locked COMMAND ...` runs a command under a lock that ends with it.

Snakemake's own lock outlives a process that is killed, and then has to be removed by hand; the kernel takes this one back.
"""

import fcntl
import os
import sys

from helpers import store


def main(command):
    folder = store.ROOT / "results"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / "pipeline.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another `make` is at work in this folder; waiting for it to end", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    os.set_inheritable(lock, True)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
