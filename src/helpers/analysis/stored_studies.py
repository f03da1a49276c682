"""What studies are made of and what their runs answered, from what is stored.

The page that sets the pretrained study beside the tiny one reads both through this module.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from helpers import store
from helpers.data import rollouts
from helpers.profiles import Profile
from helpers.training import trainer


def answers(profile: Profile, runs: Sequence[str]) -> pd.DataFrame:
    """Stored answers of runs or models, below one another, named in column run.

    Raises FileNotFoundError where a run has not been evaluated.
    """
    tables = []
    for run in runs:
        file = store.find(profile.name, f"evaluation/{run}.parquet")
        tables.append(store.read_frame(file).assign(run=run))
    return pd.concat(tables)


def facts(profile: Profile) -> dict[str, Any]:
    """What a study is made of, by headings: model, problems, table of rollouts, runs."""
    table = store.read_frame(rollouts.require_table(profile))
    groups = rollouts.group_statistics(table)
    modules = trainer.updates_of_study(profile.name, ["sft"])["sft"].values()
    sft, dpo = profile.runs["sft"], profile.runs["dpo"]
    numbers = sum(factors.B.shape[0] * factors.A.shape[1] for factors in modules)
    solved = answers(profile, ["base"])
    is_mixed = groups.pass_rate.between(0, 1, inclusive="neither")
    return {
        "attention modules": len(modules),
        "width": max(factors.A.shape[1] for factors in modules),
        "numbers in ΔW": f"{numbers:,}",
        "rank of the adapters": profile.lora.rank,
        "test problems": int((solved.split == "test").sum()),
        "prompts": table.problem_id.nunique(),
        "rollouts per prompt": profile.rollouts.samples,
        "right, of the rollouts": f"{table.reward.mean():.0%}",
        "prompts with right and wrong ones": f"{is_mixed.mean():.0%}",
        "tokens per rollout": f"{table.tokens.mean():.0f}",
        "steps × rows of a run": f"{sft.steps} × {sft.batch_size}",
        "learning rate, DPO's": f"{sft.learning_rate:g}, {dpo.learning_rate:g}",
    }
