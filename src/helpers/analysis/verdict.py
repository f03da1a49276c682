"""The verdict: which of the paper's claims the tables of this book support, against which control.

After the notebooks that write the tables, and `claim_statistics`; `book` shows its table. The
claims are records of `claims.yaml`, each with the name and the arguments of one of
`claim_statistics`. A claim *holds* when the ordering that it states is true here at every seed and
our interval lies outside the band of its control; what is true but inside the band, or true
whatever the data are, is said to be so.
"""

import contextlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from helpers import store
from helpers.analysis.claim_statistics import STATISTICS, Finding, Number, Ordering, Tables

CLAIMS = Path(__file__).with_name("claims.yaml")
HOLDS, FAILS = "holds", "does not hold here"
CHANCE, CONSTRUCTION = "holds, but at chance", "holds, by construction"
UNTESTED = "can't be tested at this size"
PRETRAINED = "smollm2-135m"  # the study whose geometry others are compared with

Band = tuple[float, float]


class Measurement(BaseModel):
    """A statistic by its name; all other fields are its arguments."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @model_validator(mode="after")
    def _is_known(self) -> "Measurement":
        if self.name not in STATISTICS:
            raise ValueError(f"unknown statistic: choose one of {', '.join(STATISTICS)}")
        try:
            inspect.signature(STATISTICS[self.name]).bind(None, **self.arguments)
        except TypeError as error:
            raise ValueError(f"arguments of {self.name}: {error}") from error
        known = Ordering.__annotations__
        if unknown := set(self.arguments.get("ordering", {})) - set(known):
            raise ValueError(
                f"ordering of {self.name}: unknown key {sorted(unknown)[0]!r}: choose among "
                f"{', '.join(known)}"
            )
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the statistic besides the tables."""
        return self.model_extra or {}

    def of(self, tables: Tables) -> Finding | None:
        """What the statistic finds in the tables."""
        return STATISTICS[self.name](tables, **self.arguments)


class Claim(BaseModel):
    """One record of `claims.yaml`; the head of that file says what its fields mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    claim: str
    paper: str
    paper_value: float = np.nan
    statistic: Measurement | None = None
    band: Literal["control"] | Band | None = None
    margin: float | None = None
    by_construction: bool = False
    form: str = ".3f"
    control: str


def load_claims(path: Path = CLAIMS) -> list[Claim]:
    """The claims of a file, in its order.

    Raises ValueError for an unknown or missing field, an unknown statistic or argument, an unknown
    key of an ordering, or a value of another type, naming the file, the claim, the field and the
    value.
    """
    claims = []
    for record in yaml.safe_load(path.read_text(encoding="utf-8")):
        try:
            claims.append(Claim(**record))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"{path.name}: claim {record.get('claim')!r}: {field}: {first['msg']} "
                f"(found {first['input']!r})"
            ) from error
    return claims


def verdict_table(profile_name: str) -> pd.DataFrame:
    """The `verdict` table: one row per claim.

    Columns part, claim, paper, value, low, high, control, verdict, ours, paper_value, chance_low,
    chance_high. `value` with its interval `low` to `high` is in the claim's own unit; `ours` is the
    same as text; `control` says what the value would be by chance or without what the claim is
    about, `chance_low` to `chance_high` is that band, and `paper_value` the paper's number where it
    is one of the same quantity. Intervals are over seeds (`replication.interval`), for accuracies
    over seeds and problems. A part that needs a table which no page of the profile wrote is left
    out.
    """
    tables, claims, rows = Tables(profile_name), load_claims(), []
    for part in dict.fromkeys(claim.part for claim in claims):
        with contextlib.suppress(FileNotFoundError):
            judged = [row_of(claim, tables) for claim in claims if claim.part == part]
            rows += [row for row in judged if row is not None]
    return pd.DataFrame(rows)


def row_of(claim: Claim, tables: Tables) -> dict[str, Any] | None:
    """The row of a claim in the `verdict` table; None if the claim is not about the profile.

    Raises FileNotFoundError for a table that no page wrote, and ValueError for a control that names
    a value which its statistic does not have.
    """
    untested = Finding((np.nan, np.nan, np.nan), is_true=False)
    finding = claim.statistic.of(tables) if claim.statistic else untested
    if finding is None:
        return None
    value, low, high = (float(number) for number in finding.interval)
    band, control = _band_and_control(claim, finding.values)
    by_construction = claim.by_construction or finding.by_construction
    verdict = judge(finding.is_true, low, high, band, by_construction, claim.margin)
    interval = f" ({low:{claim.form}} to {high:{claim.form}})" if low < high else ", one run"
    return {
        "part": claim.part,
        "claim": claim.claim,
        "paper": claim.paper,
        "value": value,
        "low": low,
        "high": high,
        "control": control,
        "verdict": verdict if claim.statistic else UNTESTED,
        "ours": f"{value:{claim.form}}{interval}" if claim.statistic else "–",
        "paper_value": claim.paper_value,
        "chance_low": band[0] if band else np.nan,
        "chance_high": band[1] if band else np.nan,
    }


def _band_and_control(claim: Claim, values: dict[str, Any]) -> tuple[Band | None, str]:
    """The control of a claim, its band and its text, from the values of its statistic."""
    try:
        band = values["band"] if claim.band == "control" else claim.band
        return band, claim.control.format(margin=claim.margin, **values)
    except KeyError as error:
        raise ValueError(
            f"{CLAIMS.name}: claim {claim.claim!r}: its statistic has no value {error}; "
            f"it has {', '.join(values) or 'none'}"
        ) from error


def judge(
    is_true: bool | np.bool,
    low: Number,
    high: Number,
    band: tuple[Number, Number] | None = None,
    by_construction: bool = False,
    margin: Number | None = None,
) -> str:
    """One of the verdicts, from the truth of the ordering, our interval, and the control's band.

    There is no band where the claim is an absence. With `margin`, the claim is an equality: no
    difference is seen, and the interval must also leave out every difference of that size.
    """
    if not is_true:
        return FAILS
    if by_construction:
        return CONSTRUCTION
    if margin is not None:
        return HOLDS if -margin < low and high < margin else CHANCE
    return HOLDS if band is None or low > band[1] or high < band[0] else CHANCE


def agreement(profile_name: str, other: str) -> dict[str, list[str]]:
    """Claims by where they hold, of those on which both studies have a tested verdict.

    {"in both": [...], "in <one> only": [...], "in <other> only": [...], "in neither": [...]}.
    """
    held = {}
    for name in (profile_name, other):
        table = store.read_table(name, "verdict").set_index("claim").verdict
        held[name] = table[table != UNTESTED] == HOLDS
    both = pd.DataFrame(held).dropna().astype(bool)
    first, second = both[profile_name], both[other]
    return {
        "in both": [*both.index[first & second]],
        f"in {profile_name} only": [*both.index[first & ~second]],
        f"in {other} only": [*both.index[~first & second]],
        "in neither": [*both.index[~first & ~second]],
    }


def side_by_side(profile_names: Sequence[str]) -> pd.DataFrame:
    """The verdicts of several profiles, by claim in the order of the first.

    Columns paper, and for each profile (name, "ours") and (name, "verdict").
    """
    tables = {name: store.read_table(name, "verdict").set_index("claim") for name in profile_names}
    papers = pd.concat([table.paper for table in tables.values()])
    papers = papers[~papers.index.duplicated()]
    columns = {
        (name, column): table[column].reindex(papers.index)
        for name, table in tables.items()
        for column in ("ours", "verdict")
    }
    return pd.concat([papers.to_frame(), pd.DataFrame(columns)], axis=1)
