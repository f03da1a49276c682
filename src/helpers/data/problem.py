"""TODO docstring."""

from dataclasses import dataclass

SPLITS = ("train", "validation", "test", "hard")
TRAINED_ON = (
    "train",
    "validation",
)  # by runs and by the choice of hyper-parameters; all other sets are for measuring


@dataclass(frozen=True)
class Problem:
    """One problem with its gold answer.

    `chain` holds the start and the operations of a templated problem, ("add", 7) or ("lots", 3, 6) for three boxes of six.
    `steps` is the number of equations that a worked solution needs.
    """

    problem_id: str
    split: str
    question: str
    answer: str
    steps: int
    chain: tuple
    person: str
    things: str
