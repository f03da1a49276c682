"""How runs look: label, colour and marker of each, from methods.yaml and the runs' own labels.

Before `schema`, whose `Profile` says how its runs look; reads methods.yaml and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

_FILE = Path(__file__).with_name("methods.yaml")


class ByMethod(dict[str, str]):
    """A value for each run and method; any other name takes that of the method it begins with.

    Raises KeyError for a name that begins with no method.
    """

    def __missing__(self, name: str) -> str:
        method = method_of(name)
        if method is None:
            raise KeyError(name)
        return self[method]


class Labels(dict[str, str]):
    """Labels by run; `sft-43-44` is "SFT 43/44" (initialisation / order), any other name stands for
    itself."""

    def __missing__(self, name: str) -> str:
        method, *seeds = name.rsplit("-", 2)
        is_replica = len(seeds) == 2 and method in self and all(map(str.isdigit, seeds))
        return f"{self[method]} {'/'.join(seeds)}" if is_replica else name


@dataclass(frozen=True)
class Appearance:
    """Label, colour and marker of each run and model of a study."""

    labels: Labels
    colours: ByMethod
    markers: ByMethod


def appearance(objectives: Mapping[str, str], labels: Mapping[str, str]) -> Appearance:
    """How the runs of a study look, from {run: its objective} and {run: its own label}."""
    method_of_run = {run: method_of(objective) for run, objective in objectives.items()}
    values = {
        field: {method: about[field] for method, about in _methods().items()}
        for field in ("label", "colour", "marker")
    }
    return Appearance(
        Labels(values["label"] | dict(labels)),
        *(
            ByMethod(
                values[field]
                | {run: values[field][method] for run, method in method_of_run.items() if method}
            )
            for field in ("colour", "marker")
        ),
    )


def method_of(name: str) -> str | None:
    """The longest method of methods.yaml that a name is or begins with, if there is one."""
    methods = [each for each in _methods() if name == each or name.startswith(f"{each}-")]
    return max(methods, key=len, default=None)


@cache
def _methods() -> dict[str, dict[str, str]]:
    methods: dict[str, dict[str, str]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return methods
