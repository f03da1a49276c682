"""Shipped data are what data/README.md says."""

import hashlib
import re

from helpers import store


def test_readme_lists_every_shipped_file_with_its_size_and_hash():
    listed = {path: (int(size), digest) for path, size, digest in
              re.findall(r"^\| `([^`]+)` \| ([\d]+) \| `([0-9a-f]{64})`", (store.ROOT / "data" / "README.md").read_text(), re.MULTILINE)}
    shipped = {str(path.relative_to(store.ROOT / "data")) for path in (store.ROOT / "data").rglob("*") if path.is_file() and path.name != "README.md"}
    assert set(listed) == shipped, "the list and the folder differ"
    for path, (size, digest) in listed.items():
        content = (store.ROOT / "data" / path).read_bytes()
        assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest()), f"{path} is not the file that the list describes"
