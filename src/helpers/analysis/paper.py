"""Numbers of the paper, read from `paper.yaml` beside this module."""

from pathlib import Path

import yaml

_NUMBERS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
COSINES: dict[tuple[str, str], float] = {
    tuple(row["runs"]): row["cosine"] for row in _NUMBERS["cosines"]
}
