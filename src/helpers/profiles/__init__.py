"""Profiles: one YAML file beside this module describes one study from its problems to its runs.

After `schema` and `appearance`, before all other modules, which take their settings from here and
from nowhere else (keys, GPUs and CONTROLS come from the environment, and are no settings). `schema`
says which fields there are.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from helpers.profiles.schema import (
    SCALED,
    THOUGHT,
    CollectionSettings,
    ComputeSettings,
    ConnectivitySettings,
    Controls,
    EndpointSettings,
    EvaluationSettings,
    LoraSettings,
    PretrainedModel,
    PretrainingSettings,
    ProblemSettings,
    Profile,
    PublishedSettings,
    RepresentationSettings,
    RolloutSettings,
    Run,
    SampledSettings,
    Source,
    first_fault,
)

__all__ = [
    "SCALED",
    "THOUGHT",
    "CollectionSettings",
    "ComputeSettings",
    "ConnectivitySettings",
    "Controls",
    "EndpointSettings",
    "EvaluationSettings",
    "LoraSettings",
    "PretrainedModel",
    "PretrainingSettings",
    "ProblemSettings",
    "Profile",
    "PublishedSettings",
    "RepresentationSettings",
    "RolloutSettings",
    "Run",
    "SampledSettings",
    "Source",
    "load",
    "names",
    "run",
]

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The profiles that exist."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml") if path.stem != "methods")


def _fields(name: str) -> dict[str, Any]:
    """The fields of a profile's file, those of the profile that it is `like` below its own."""
    if name not in names():
        raise ValueError(
            f"unknown profile {name!r}: choose one of {', '.join(names())}, "
            f"or add {name}.yaml beside them"
        )
    try:
        fields = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}.yaml can't be read as YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{name}.yaml holds no fields: a profile is a list of names with values")
    return (_fields(fields.pop("like")) | fields) if "like" in fields else fields


def load(name: str) -> Profile:
    """The profile called `name`.

    A profile that is `like` another one has that one's fields where it gives none of its own.

    Raises ValueError for an unknown name, an unknown or missing field, or a value out of range,
    naming the file and the field.
    """
    fields = _fields(name)
    defaults = fields.pop("run_defaults", {})
    runs, groups = fields.get("runs", {}), fields.get("controls", {})
    # A group of controls holds the runs themselves in the file, and their names in a `Profile`.
    for group in groups.values():
        runs |= group["runs"]
        group["runs"] = list(group["runs"])
    fields["runs"] = {run: {**defaults, **spec, "name": run} for run, spec in runs.items()}
    try:
        return Profile(name=name, **fields)
    except ValidationError as error:
        raise ValueError(f"{name}.yaml: {first_fault(error)}") from error


def run(profile: Profile, name: str) -> Run:
    """The run called `name` of a profile; raises ValueError naming the ones that exist."""
    if name not in profile.runs:
        raise ValueError(
            f"unknown run {name!r} in profile {profile.name!r}: "
            f"choose one of {', '.join(profile.runs)}"
        )
    return profile.runs[name]
