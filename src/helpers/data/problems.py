"""TODO docstring."""

from helpers import profiles
from helpers.data import templates
from helpers.data.problem import SPLITS


def problem_sets(settings):
    """The problems of each split, {split: tuple of Problem}: templated ones, or those of public collections (`benchmarks`), as a profile's settings say."""
    if isinstance(settings, profiles.CollectionSettings):
        from helpers.data import (
            collections,  # which makes the same `Problem`s, from libraries that templated problems do without
        )

        return collections.problem_sets(settings)
    return templates.templated_sets(settings)


def held_out_chains(settings):
    """Chains of every problem of the study: what pretraining must not see."""
    return {problem.chain for split in SPLITS for problem in problem_sets(settings)[split]}
