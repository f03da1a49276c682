"""Texts of two writers and the divergences of the runs trained on them.

The page on on-policy data shows what is computed here. Nothing is stored but the divergences, by
`evaluation.likelihood`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from helpers.evaluation import likelihood, statistics
from helpers.profiles import Profile


def in_sentences(completions: pd.Series) -> pd.Series:
    """Which texts begin with a word, as the teacher's do, and not with an equation."""
    return completions.str.match(r"\s*[A-Z]")


def writers_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What tables of rollouts hold, by their writers: one row per table.

    tables: with the columns of `rollouts.with_group_columns`. Columns: writer, rows, and means
    over the rows but for "mixed groups", the share of prompts with right and wrong rollouts, and
    the log-probability, a mean over all tokens.
    """
    return pd.DataFrame(
        [
            {
                "writer": writer,
                "rows": len(table),
                "right": table.reward.mean(),
                "mixed groups": (table.groupby("problem_id").spread.first() > 0).mean(),
                "begins with a sentence": in_sentences(table.completion).mean(),
                "tokens": table.tokens.mean(),
                "log-probability per token, base": np.concatenate(list(table.logp_base)).mean(),
            }
            for writer, table in tables.items()
        ]
    )


def divergences(profile: Profile, names: Sequence[str]) -> pd.DataFrame:
    """Divergence of runs from the base in both directions, nats per token: one row per direction.

    Columns: run, direction, kl, interval (text; none for the base, which comes first).
    """
    rows = [
        {"run": "base", "direction": direction, "kl": 0.0} for direction in ("forward", "reverse")
    ]
    for name in names:
        texts = likelihood.divergence(profile, profile.runs[name])
        for direction, group in texts.groupby("direction"):
            value, low, high = statistics.bootstrap_ratio(group.nats, group.tokens)
            rows.append(
                {
                    "run": name,
                    "direction": direction,
                    "kl": value,
                    "interval": f"{low:.4f} to {high:.4f}",
                }
            )
    return pd.DataFrame(rows)
