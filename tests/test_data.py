"""Shipped data are what their lists of checksums say, and data/README.md says how each file was
made."""

import re
import shutil
import subprocess

import pytest

from helpers import store


@pytest.mark.parametrize("folder", ["data", "results/prerun"])
def test_every_shipped_file_is_listed_and_is_the_listed_one(folder):
    there = {
        str(path.relative_to(store.ROOT / folder))
        for path in (store.ROOT / folder).rglob("*")
        if path.is_file()
    }
    listed = {
        line.split("  ", 1)[1]
        for line in (store.ROOT / folder / store.CHECKSUMS).read_text().splitlines()
    }
    assert there - listed - {store.CHECKSUMS, "README.md"} == set(), "without a checksum"
    store.verify_checksums(store.ROOT / folder)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="not on every system")
def test_sha256sum_reads_the_lists_too():
    process = subprocess.run(
        ["sha256sum", "--check", "--quiet", store.CHECKSUMS],
        cwd=store.ROOT / "data",
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_the_readme_says_how_each_file_was_made():
    described = re.findall(
        r"`([^`]+)`",
        "".join(
            re.findall(
                r"^\|([^|]+)\|", (store.ROOT / "data" / "README.md").read_text(), re.MULTILINE
            )
        ),
    )
    for line in (store.ROOT / "data" / store.CHECKSUMS).read_text().splitlines():
        name = line.split("  ", 1)[1]
        assert any(
            name == file or (file.endswith("/") and name.startswith(file)) for file in described
        ), f"{name} is not in the table of data/README.md"
