"""`python -m helpers.cluster.gpus COUNT COMMAND ...`: run a command on GPUs of its own.

Those that no other command started like this is using; it waits until there are enough.

Outside the flow of data: the pipeline puts it before each step of a large study, so that steps side
by side on one node do not meet on the first GPU. The GPUs are those of CUDA_VISIBLE_DEVICES, as a
cluster sets it, or all; on a machine without any the command just runs. A GPU is taken by a lock on
a file that the command inherits, so that it is free again when the command has ended, however it
ended.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers import locks

# By user, who may not write into another's folder, and by job, since a cluster may number each
# job's GPUs from 0.
_JOB = os.environ.get("SLURM_JOB_ID", "")
_LOCKS = Path(tempfile.gettempdir()) / f"weight-space-book-gpus-{os.getuid()}-{_JOB}"
_PAUSE = 2.0  # seconds between two looks for a free GPU


def present() -> list[str]:
    """Names of the GPUs that this process may use: CUDA_VISIBLE_DEVICES, or nvidia-smi's list."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, text=True).stdout.split()
    return []


def take(count: int) -> list[str]:
    """Names of `count` free GPUs, locked as long as this process, or what it becomes, lives.

    An empty list where there are none at all. Raises ValueError for more than there are.
    """
    names = present()
    if names and count > len(names):
        raise ValueError(
            f"{count} GPUs are asked for and {len(names)} are here ({', '.join(names)}): lower "
            "compute.processes of the profile"
        )
    _LOCKS.mkdir(exist_ok=True)
    taken: dict[str, int] = {}  # {name: descriptor of its lock}
    while len(taken) < min(count, len(names)):
        for name in names:
            if (
                name not in taken
                and len(taken) < count
                and (lock := locks.take(_LOCKS / name)) is not None
            ):
                taken[name] = lock
        if len(taken) < count:
            # Two that each hold half of what they need would wait for ever.
            for lock in taken.values():
                os.close(lock)
            taken = {}
            time.sleep(_PAUSE)
    for lock in taken.values():
        os.set_inheritable(lock, True)
    return list(taken)


def main(count: str, *command: str) -> None:
    """Become `command`, which sees the GPUs taken for it and no others."""
    if taken := take(int(count)):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
