"""The problems of a study: templated ones, or those of public collections.

Where all that needs problems gets them. Comes after `templates` and `collections`, which make them,
and before `rollouts`, which lets the teacher answer those of the training split.
"""

from helpers.data import templates
from helpers.data.problem import SPLITS, Chain, ProblemSets
from helpers.profiles import CollectionSettings, ProblemSettings


def problem_sets(settings: ProblemSettings | CollectionSettings) -> ProblemSets:
    """The problems of each split, as a profile's settings say: templated ones, or those of public
    collections."""
    if isinstance(settings, CollectionSettings):
        # Late, since it needs the library `datasets`, which templated problems do without.
        from helpers.data import collections

        return collections.problem_sets(settings)
    return templates.templated_sets(settings)


def held_out_chains(settings: ProblemSettings | CollectionSettings) -> set[Chain]:
    """Chains of every problem of the study: what pretraining must not see."""
    return {problem.chain for split in SPLITS for problem in problem_sets(settings)[split]}
