"""Maps module by module: depth along one axis, projections along the other; and the same numbers
for the page's script, which draws them for any pair.

Comes after `findings` and `svg`, before `charts`. Statistics are taken from the tables where these
hold a chance level, else from the `Comparison`.
"""

import base64
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from adapter_geometry.chance import largest_by_chance, projected_moments
from adapter_geometry.geometry import Comparison
from adapter_geometry.report import svg
from adapter_geometry.report.findings import Findings, sizes

COSINE, SHARE, DEGREES = svg.Scale(-1, 1, 0), svg.Scale(0, 1), svg.Scale(90, 0)
_GROUPS = 12  # stacks that have a heading each; more are named in every row
_BYTES = 3e6  # of the numbers for the script
_UNDEFINED = -(2**15)


class Statistic(NamedTuple):
    """A number for each module and pair of adapters.

    name: without the side, which is "" where there is none. `is_within_chance` is false where no
    chance level is known.
    """

    name: str
    side: str
    caption: str
    source: str
    scale: svg.Scale
    values: Float[np.ndarray, "module adapter adapter"]
    is_within_chance: Bool[np.ndarray, "module adapter adapter"]


class Layout(NamedTuple):
    """Where the modules are: rows of projections, grouped by stack, and columns of layers."""

    rows: list[svg.Row]
    columns: list[str]
    row: Int[np.ndarray, " module"]
    column: Int[np.ndarray, " module"]


# --- where modules are ----------------------------------------------------------------------------


def layout_of(modules: pd.DataFrame) -> Layout:
    """The layout of the modules of a `Comparison`: a row for each name without its layer, in the
    modules' order, grouped by stack; what is in no layer comes last, in a column of its own."""
    layers = sorted(modules.layer.dropna().unique())
    columns = [*map(str, layers), *["–"] * bool(modules.layer.isna().any())]
    column = [len(layers) if pd.isna(layer) else layers.index(layer) for layer in modules.layer]
    keys = [
        ("", module) if pd.isna(layer) else (stack, module.removeprefix(f"{stack}.{layer}."))
        for module, stack, layer in zip(
            modules.module, modules["stack"], modules.layer, strict=True
        )
    ]
    groups: dict[str, dict[str, None]] = {}  # names of rows by stack, in order
    for stack, name in sorted(keys, key=lambda key: key[0] == ""):
        groups.setdefault(stack, {})[name] = None
    rows: list[svg.Row] = []
    number: dict[tuple[str, str], int] = {}
    for stack, names in groups.items():
        for place, name in enumerate(names):
            label = _shortest(list(names), name)
            if len(groups) > _GROUPS:
                label = f"{stack}.{label}".removeprefix(".")
            is_first = place == 0 and 1 < len(groups) <= _GROUPS
            number[stack, name] = len(rows)
            rows.append(svg.Row(label, heading=(stack or "no layer") if is_first else ""))
    return Layout(rows, columns, np.array([number[key] for key in keys]), np.array(column))


def _shortest(names: list[str], name: str) -> str:
    """The shortest end of a dotted name that no other one has.

    >>> _shortest(["self_attn.q_proj", "mlp.up_proj", "cross_attn.q_proj"], "mlp.up_proj")
    'up_proj'
    """
    parts = name.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in names) == 1:
            return end
    return name


# --- statistics -----------------------------------------------------------------------------------


def statistics(findings: Findings) -> list[Statistic]:
    """Everything that is shown module by module."""
    compared = findings.compared
    cosines = beside_chance(findings.tables["cosine"].query("scope == 'module'"))
    cosine, low, high = (
        by_module(findings, cosines, column) for column in ("cosine", "chance_low", "chance_high")
    )
    directions = beside_chance(findings.tables["directions"])
    first = {
        side: [by_module(findings, rows, column) for column in ("overlap", "chance_high")]
        for side, rows in directions.groupby("side")
    }
    first_source = "|⟨u₁, u₁'⟩| of the first singular vectors"
    found = [
        Statistic(
            "Cosine",
            "",
            "Cosine of the two updates of a module.",
            "⟨dW, dW'⟩ / (|dW| |dW'|), chance as above",
            COSINE,
            cosine,
            (cosine >= low) & (cosine <= high),
        ),
        Statistic(
            "First direction",
            "outputs",
            "Overlap of the first left singular vectors: do both write the same direction most?",
            f"{first_source}; by chance: a random unit vector, whose squared overlap is "
            "Beta(½, (d - 1)/2)",
            SHARE,
            first["left"][0],
            first["left"][0] <= first["left"][1],
        ),
        Statistic(
            "First direction",
            "inputs",
            "Overlap of the first right singular vectors: do both read the same direction most? "
            "Adapters that started from one A share rows, so that this may be large by chance.",
            f"{first_source} on the side of the inputs; by chance, the larger of: B with these "
            "singular values and random frames, or Gaussian B, on each update's own A",
            SHARE,
            first["right"][0],
            first["right"][0] <= first["right"][1],
        ),
    ]
    k = sizes(compared)
    angles = findings.tables["angles"].query("index == 1").dropna(subset="module")
    angles = beside_chance(angles)
    for side, name in (("left", "outputs"), ("right", "inputs")):
        of_side = angles[angles.side == side]
        degrees, limit = (
            by_module(findings, of_side, column) for column in ("degrees", "chance_low")
        )
        found.append(
            Statistic(
                "Smallest angle",
                name,
                f"Smallest principal angle, in degrees, between the subspaces of the top {k} "
                f"singular vectors of {name}.",
                "arccos σ₁(U'U'') of bases of the two subspaces (Björck & Golub 1973)",
                DEGREES,
                degrees,
                degrees >= limit,
            )
        )
    limit = captured_by_chance(compared)
    for share, by_chance, of, within in (
        (compared.alignment, limit, "second", "first"),
        (compared.alignment.swapaxes(1, 2), limit.swapaxes(1, 2), "first", "second"),
    ):
        found.append(
            Statistic(
                "Captured share",
                f"{of} in {within}",
                f"Share of the {of} update's norm that lies within the {within} one's top {k} "
                "output directions.",
                "|U U' dW'| / |dW'| of a basis U of the subspace; by chance: a random one, about "
                "(k / d)^½",
                SHARE,
                share,
                share <= by_chance,
            )
        )
    return found


def captured_by_chance(compared: Comparison) -> Float[np.ndarray, "module adapter adapter"]:
    """Below which 95 % of the shares of the second update's norm lie that a random subspace of the
    dimension of the first one's top singular vectors captures, as in `Comparison.alignment`."""
    sigma = np.nan_to_num(compared.singular_values)
    energy = (sigma**2).sum(-1)
    # (module, adapter): tr(C^2) of C = dW dW' / |dW|^2
    square = np.divide((sigma**4).sum(-1), energy**2, out=np.ones_like(energy), where=energy > 0)
    d_out = compared.modules.d_out.to_numpy()[:, None, None]
    moments = projected_moments(d_out, compared.compared, 1.0, square[:, None, :])
    limit: np.ndarray = np.sqrt(largest_by_chance(*moments))
    return limit


def beside_chance(table: pd.DataFrame) -> pd.DataFrame:
    """A table with the wider of the bands of its nulls as chance_low and chance_high, where it has
    such ends."""
    ends = {"chance_low": table.filter(regex="_low$").min(axis=1)} if "chance_low" in table else {}
    return table.assign(**ends, chance_high=table.filter(regex="_high$").max(axis=1))


def by_pair(
    findings: Findings, table: pd.DataFrame, column: str
) -> Float[np.ndarray, "adapter adapter"]:
    """A column of a table of pairs as a symmetric matrix; NaN for pairs that it lacks."""
    names = pd.Index(findings.compared.runs)
    values = np.full((len(names), len(names)), np.nan)
    i, j = (names.get_indexer(table[run]) for run in ("run_a", "run_b"))
    values[i, j] = values[j, i] = table[column].to_numpy()
    return values


def by_module(
    findings: Findings, table: pd.DataFrame, column: str
) -> Float[np.ndarray, "module adapter adapter"]:
    """As `by_pair`, of a table with a row per module and pair."""
    modules, names = findings.compared.modules, pd.Index(findings.compared.runs)
    values = np.full((len(modules), len(names), len(names)), np.nan)
    module = pd.Index(modules.module).get_indexer(table.module)
    i, j = (names.get_indexer(table[run]) for run in ("run_a", "run_b"))
    values[module, i, j] = values[module, j, i] = table[column].to_numpy()
    return values


# --- drawn ----------------------------------------------------------------------------------------


def chart(layout: Layout, statistic: Statistic, i: int, j: int, alternative: str) -> str:
    """The map of a statistic of the adapters i and j."""
    values = np.full((len(layout.rows), len(layout.columns)), np.nan)
    within = np.zeros(values.shape, dtype=bool)
    values[layout.row, layout.column] = statistic.values[:, i, j]
    within[layout.row, layout.column] = statistic.is_within_chance[:, i, j]
    return svg.cells(
        values, layout.rows, layout.columns, statistic.scale, "layer", alternative, within
    )


class Explorer(NamedTuple):
    """What the script needs: the chart that it paints, names and places, and the numbers."""

    chart: str
    data: dict[str, Any]
    caption: str


def explorer(findings: Findings, layout: Layout, found: list[Statistic]) -> Explorer:
    """The explorer of all pairs; where their numbers would be more than 3 MB, of the pairs with the
    reference.

    `values` are little-endian 16-bit integers by statistic, pair and module, -32768 where nothing
    is defined: twice the number of thousandths, or of tenths of a degree, and one more for a cell
    within chance. `mirrored` is the statistic of the pair the other way round.
    """
    names, modules = findings.compared.runs, findings.compared.modules
    reference = names.index(findings.reference)
    first, second = np.triu_indices(len(names), 1)
    is_whole = len(found) * len(first) * len(modules) * 2 * 4 / 3 <= _BYTES
    if not is_whole:
        second = np.delete(np.arange(len(names)), reference)
        first = np.full_like(second, reference)
    stored = []
    for statistic in found:
        values = statistic.values[:, first, second].T  # (pair, module)
        within = statistic.is_within_chance[:, first, second].T
        whole = 2 * np.rint(values * _parts(statistic)) + within
        stored.append(np.where(np.isfinite(values), whole, _UNDEFINED))
    grid = svg.grid(layout.rows, layout.columns)
    data = {
        "adapters": names,
        "modules": list(modules.module),
        "columns": layout.columns,
        "column": layout.column.tolist(),
        "x": [round(grid.left + grid.width * column, 1) for column in layout.column],
        "y": [round(grid.tops[row], 1) for row in layout.row],
        "cell": [round(grid.width, 1), round(grid.height, 1)],
        "pairs": np.stack([first, second], axis=1).tolist(),
        "statistics": [
            {
                "name": each.name,
                "side": each.side,
                "caption": each.caption,
                "low": each.scale.low,
                "high": each.scale.high,
                "first": each.scale.first,
                "parts": _parts(each),
                "mirrored": _mirrored(found, each),
                "unit": "°" if each.scale == DEGREES else "",
            }
            for each in found
        ],
        "values": base64.b64encode(np.stack(stored).astype("<i2").tobytes()).decode(),
    }
    of_reference = (
        f"Pairs with {findings.reference}; those of all pairs, in the tables beside the page, "
        "would make it too large."
    )
    caption = "Every pair of adapters." if is_whole else of_reference
    i, j = int(first[0]), int(second[0])
    alternative = f"Map of {found[0].name}, {names[i]} and {names[j]}"
    return Explorer(chart(layout, found[0], i, j, alternative), data, caption)


def _parts(statistic: Statistic) -> int:
    """What a number is multiplied by before it is rounded: an angle keeps tenths of a degree."""
    return 10 if statistic.scale == DEGREES else 1000


def _mirrored(found: list[Statistic], statistic: Statistic) -> int:
    """Number of the statistic of (j, i) that is this one of (i, j): itself, if it is symmetric."""
    turned = " in ".join(reversed(statistic.side.split(" in ")))
    return next(
        number
        for number, other in enumerate(found)
        if (other.name, other.side) == (statistic.name, turned)
    )
