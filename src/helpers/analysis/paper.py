"""Numbers of the paper (arXiv:2606.23740), read from `paper.yaml` in this folder.

Outside the flow of data: pages show them next to ours, and nothing is computed from them.
"""

from pathlib import Path

import yaml

_NUMBERS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
COSINES: dict[tuple[str, str], float] = {  # by pair of runs, all modules stacked
    tuple(row["runs"]): row["cosine"] for row in _NUMBERS["cosines"]
}
