"""GPUs of one node shared out among the steps of a pipeline; nvidia-smi is a stand-in that lists
names."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.cluster import gpus

CODE = (
    "import os, sys, time; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); "
    "time.sleep(float(sys.argv[1]))"
)
SHOW = [sys.executable, "-S", "-c", CODE]


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Make a node with the given GPUs, its locks in a folder of its own."""

    def make(*names):
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\n" + "".join(f"echo {name}\n" for name in names))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


def start(count, seconds):
    return subprocess.Popen(
        [sys.executable, "-m", "helpers.cluster.gpus", str(count), *SHOW, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_commands_side_by_side_get_different_gpus(node):
    node("GPU-a", "GPU-b", "GPU-c")
    both = [start(1, 5), start(2, 5)]
    seen = [process.stdout.readline().strip().split(",") for process in both]
    for process in both:
        process.kill()
    assert sorted(name for names in seen for name in names) == ["GPU-a", "GPU-b", "GPU-c"], (
        "one and two of three"
    )


def test_a_gpu_is_free_again_when_its_command_is_killed(node):
    node("GPU-a")
    first = start(1, 60)
    assert first.stdout.readline().strip() == "GPU-a"
    second = start(1, 0)
    time.sleep(1)
    assert second.poll() is None, "the only GPU is taken: wait"
    first.send_signal(signal.SIGKILL)
    assert second.communicate(timeout=30)[0].strip() == "GPU-a"


def test_a_clusters_choice_is_kept_and_no_gpu_is_no_obstacle(node, monkeypatch):
    node("GPU-a", "GPU-b")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert start(1, 0).communicate(timeout=30)[0].strip() == "3", (
        "what Slurm has set is what may be used"
    )
    with pytest.raises(ValueError, match=r"2 GPUs are asked for and 1 are here \(3\)"):
        gpus.take(2)
    node()
    assert start(1, 0).communicate(timeout=30)[0].strip() == "None", (
        "on a machine without GPUs the command just runs"
    )
