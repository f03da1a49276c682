"""Numbers of the paper (arXiv:2606.23740), read from `paper.yaml` in this folder.

Outside the flow of data: pages compare ours with them, and no artefact depends on them.
"""

from pathlib import Path

import yaml

_NUMBERS = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))
COSINES: dict[tuple[str, str], float] = {  # by pair of runs, all modules stacked
    tuple(row["runs"]): row["cosine"] for row in _NUMBERS["cosines"]
}
