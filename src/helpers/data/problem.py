"""What a problem is, and the splits of a study.

First of the modules of data: `templates` and `collections` make problems, and `problems` chooses
between the two. `Problem` has a file of its own so that no import runs in a circle: all three need
it, and `problems` imports the other two.
"""

from dataclasses import dataclass
from typing import Any

SPLITS = ("train", "validation", "test", "hard")
# By runs and by the choice of hyper-parameters; all other sets are for measuring.
TRAINED_ON = ("train", "validation")

# The starting count and then the operations: (5, ("add", 7), ("lots", 3, 6)). Empty where a problem
# has no template.
Chain = tuple[Any, ...]


@dataclass(frozen=True)
class Problem:
    """One problem with its gold answer.

    `chain` holds the start and the operations of a templated problem, ("add", 7) or ("lots", 3, 6)
    for three boxes of six. `steps` is the number of equations that a worked solution needs.
    """

    problem_id: str
    split: str
    question: str
    answer: str
    steps: int
    chain: Chain
    person: str
    things: str


ProblemSets = dict[str, tuple[Problem, ...]]  # by split
