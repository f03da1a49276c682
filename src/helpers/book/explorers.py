"""Explorers: interactive figures that need no network and no kernel.

An explorer is one block of HTML with its data, its style and its script inside. The same block
works on a page of the book, from disk and in a live notebook. This module says what an explorer
shows; how it looks and what its controls do is in `templates/`: for each kind its HTML and its
script, `<kind>.html` and `<kind>.js`, and for all of them `card.html`, `table.html`, `card.js` and
`explorer.css`. After `figures`, whose labels they take; explorers compute nothing.

All text reaches the page escaped or through `textContent`, and each block is an opaque card, so
that it reads in both themes.
"""

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from helpers.book import figures

_TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"allow_nan": False}  # a browser reads no NaN

# By metric of the table `connectivity`.
_HEADINGS = {
    "rollout": "loss of rollouts, nats per token",
    "boxed answer": "loss of the bare answer, nats per token",
    "accuracy": "share of problems solved",
}


def frames(
    pictures: Iterable[tuple[str, Figure, str]],
    label: str,
    table: pd.DataFrame | list[dict[str, Any]],
    name: str,
    is_ordered: bool = True,
) -> HTML:
    """A card that shows one of several pictures of one kind.

    pictures: (label, figure, alternative text) of each, best from a generator, since a figure is
        closed as soon as it is read.
    label: what is chosen.
    table: the numbers behind all pictures, folded out below; a list has a row of cells by heading.
    name: id of the card, unique on the page.
    is_ordered: whether a picture is chosen by a slider, or else from a list.
    """
    images = [{"label": text, "alt": alt, "image": _png(figure)} for text, figure, alt in pictures]
    return _card("frames", name, images, table, label=label, is_ordered=is_ordered)


def rollout_browser(problems: list[dict[str, Any]], methods: list[str], name: str) -> HTML:
    """A card with rollouts token by token, coloured by the weight an objective gives each token.

    problems: {"question", "answer", "completions": [{"reward", "tokens": [text], "weights":
        {method: [number per token]}}]} of each; a method that does not use a completion has no
        entry.
    methods: names of the objectives, in the order of the list to choose from.
    name: id of the card, unique on the page.
    """
    rounded = [
        {**problem, "completions": [_rounded(each) for each in problem["completions"]]}
        for problem in problems
    ]
    data = {
        "problems": rounded,
        "methods": methods,
        "labels": [figures.LABELS[method] for method in methods],
    }
    return _card("rollouts", name, data, _weight_sums(rounded, methods))


def path_explorer(
    connectivity: pd.DataFrame, examples: pd.DataFrame, name: str = "path-explorer"
) -> HTML:
    """A card in which t moves along a path between two updates.

    It shows both losses, the accuracy, and what the model writes to one problem.

    connectivity: rows of the table `connectivity` of the paths to show (run_a, run_b, t, metric,
        value, low, high), of which t from 0 to 1 is shown; a path needs all three metrics.
    examples: one row for each path and t, with columns run_a, run_b, t, question, answer,
        completion, correct; one problem for each path.
    name: id of the card, unique on the page.

    Raises ValueError for a path that lacks a metric or an example.
    """
    rows = connectivity[connectivity.metric.isin(list(_HEADINGS)) & connectivity.t.between(0, 1)]
    paths = [
        {
            "from": figures.LABELS[first],
            "to": figures.LABELS[second],
            "is_to_base": second == "base",
            "curves": _curves(group, f"the path from {first} to {second}"),
            "example": _example(examples, first, second),
        }
        for (first, second), group in rows.groupby(["run_a", "run_b"], sort=False)
    ]
    ranges = {
        metric: [float(group.low.min()), float(group.high.max())]
        for metric, group in rows.groupby("metric")
    }
    data = {
        "metrics": list(_HEADINGS),
        "headings": _HEADINGS,
        "ranges": ranges,
        "ticks": {metric: _ticks(*ranges[metric]) for metric in _HEADINGS},
        "paths": paths,
    }
    return _card("paths", name, data, _path_rows(paths))


def _card(
    kind: str,
    name: str,
    data: Any,
    table: pd.DataFrame | list[dict[str, Any]],
    **settings: Any,
) -> HTML:
    """The card of one kind: `data` is for its script, `settings` for its template alone."""
    style, shared_script, script = (
        (_TEMPLATES / file).read_text(encoding="utf-8")
        for file in ("explorer.css", "card.js", f"{kind}.js")
    )
    page = _ENVIRONMENT.get_template(f"{kind}.html").render(
        kind=kind,
        name=name,
        data=data,
        table=_cell_texts(table),
        style=style,
        script=f"{shared_script}\n{script}",
        **settings,
    )
    return HTML(page)  # type: ignore[no-untyped-call]


def _cell_texts(table: pd.DataFrame | list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Headings of a table and the texts of its cells, row by row."""
    rows = table if isinstance(table, list) else table.to_dict("records")
    return {
        "headings": list(rows[0]),
        "rows": [
            [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row.values()]
            for row in rows
        ],
    }


def _png(figure: Figure) -> str:
    """A figure as a data: address, in few colours, for a page with dozens; closes the figure."""
    drawn, reduced = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(96).save(reduced, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(reduced.getvalue()).decode()


def _rounded(completion: dict[str, Any]) -> dict[str, Any]:
    """A completion, its weights with as many decimals as the browser shows and one more."""
    weights = completion["weights"].items()
    return {
        **completion,
        "weights": {method: np.round(values, 4).tolist() for method, values in weights},
    }


def _weight_sums(problems: list[dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """The sum of the weights of each rollout by objective, for readers without a script."""
    rows = []
    for number, problem in enumerate(problems, 1):
        for rollout, completion in enumerate(problem["completions"], 1):
            weights = completion["weights"]
            row = {"problem": number, "rollout": rollout, "reward": f"{completion['reward']:g}"}
            for method in methods:
                is_used = method in weights
                row[figures.LABELS[method]] = (
                    f"{np.sum(weights[method]):+.2f}" if is_used else "not used"
                )
            rows.append(row)
    return rows


def _curves(path: pd.DataFrame, title: str) -> dict[str, dict[str, list[float]]]:
    """{metric: {"t", "value", "low", "high"}} of a path's rows, in the order of t.

    Numbers are rounded to what a pixel and a readout can show. Raises ValueError, in which the path
    is called `title`, for a metric without rows.
    """
    curves = {}
    for metric in _HEADINGS:
        rows = path[path.metric == metric].sort_values("t")
        if rows.empty:
            raise ValueError(
                f"{title} has no rows of metric {metric!r}; "
                f"the explorer shows {', '.join(_HEADINGS)}"
            )
        curves[metric] = {
            column: [round(float(value), 4) for value in rows[column]]
            for column in ("t", "value", "low", "high")
        }
    return curves


def _example(examples: pd.DataFrame, first: str, second: str) -> dict[str, Any]:
    """The problem of the path between two runs, and what the model writes to it at each t.

    Raises ValueError where `examples` has no row of the path.
    """
    rows = examples[(examples.run_a == first) & (examples.run_b == second)].sort_values("t")
    if rows.empty:
        raise ValueError(
            f"the path from {first} to {second} has no example: add rows to `examples`"
        )
    return {
        "question": str(rows.question.iloc[0]),
        "answer": str(rows.answer.iloc[0]),
        "t": [round(float(t), 4) for t in rows.t],
        "completion": [str(completion) for completion in rows.completion],
        "correct": [bool(correct) for correct in rows.correct],
    }


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from `low` to `high`."""
    spread = max(high - low, 1e-6)
    steps = (size * 10.0**power for power in range(-8, 8) for size in (1, 2, 2.5, 5))
    step = next(step for step in steps if spread / step <= 5)
    first, last = int(-(-low // step)), int(high // step)
    return [round(multiple * step, 9) for multiple in range(first, last + 1)]


def _path_rows(paths: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The curves at the t of the examples, for readers without a script or a pointer."""
    rows = []
    for path in paths:
        for t, is_correct in zip(path["example"]["t"], path["example"]["correct"], strict=True):
            row = {"path": f"{path['from']} to {path['to']}", "t": f"{t:.2f}"}
            for metric, heading in _HEADINGS.items():
                curve = path["curves"][metric]
                nearest = np.argmin(np.abs(np.subtract(curve["t"], t)))
                row[heading] = f"{curve['value'][nearest]:.3f}"
            rows.append({**row, "the problem shown": "right" if is_correct else "wrong"})
    return rows
