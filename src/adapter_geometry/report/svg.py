"""Charts as SVG: lines over an axis, and cells in rows and columns.

Before `page`, which puts them into its HTML. The browser sets the text, in any script that it has
fonts for, and the style sheet gives the colours, which are classes here, so that one chart serves
the light and the dark theme. Nothing is known of adapters but a number each, for its look.
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

STEPS = 20  # of the colour scale, whose middle is step 10: classes q0 to q20 of the style sheet
COLOURS = 8  # classes a0 to a7
LETTER, _LINE = 6.8, 15.0  # mean width of a letter and height of a line of text, in pixels
_FOLD, _FOLDED = 34, 4  # letters of a line of a row's label, and how many lines it may have
_HEIGHT = 250.0  # of a chart of lines
WIDTH = 460.0
Place = Callable[[float, float], tuple[float, float]]  # from a value to pixels
# From the middle of a point on.
_MARKERS = (
    "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0z",  # circle
    "m-3-3h6v6h-6z",  # square
    "m0-4l3.8 6.6h-7.6z",  # triangle
    "m0-4.2l4.2 4.2-4.2 4.2-4.2-4.2z",  # diamond
    "m0 4l3.8-6.6h-7.6z",  # triangle, turned over
    "m-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",  # plus
    "m0-4l3.8 2.8-1.4 4.4h-4.8l-1.4-4.4z",  # pentagon
    "m-3.4-3.6h6.8l-6.8 7.2h6.8z",  # hourglass
)


class Look(NamedTuple):
    """A colour's class and the shape of a marker."""

    colour: str
    marker: str


class Scale(NamedTuple):
    """A colour scale, from the value of its first colour to that of the last, which may be the
    smaller; first: 0 for a scale of two colours, 10 for half of one, from the middle on."""

    low: float
    high: float
    first: int = STEPS // 2

    def step(self, value: float) -> int:
        """The colour of a value; what lies outside has that of the end.

        >>> [Scale(-1, 1, 0).step(value) for value in (-1, 0, 0.5, 3)]
        [0, 10, 15, 20]
        >>> [Scale(90, 0).step(value) for value in (90, 45, 0)]
        [10, 15, 20]
        """
        share = (value - self.low) / (self.high - self.low)
        place = self.first + (STEPS - self.first) * share
        return int(np.clip(np.floor(place + 0.5), self.first, STEPS))


def look_of(number: int) -> Look:
    """The look of the adapter with this number, from 0; of 64, no two are alike."""
    shape = (number + number // COLOURS) % len(_MARKERS)
    return Look(f"a{number % COLOURS}", _MARKERS[shape])


OF_BASE = Look("base", _MARKERS[0])  # of the base model


class Line(NamedTuple):
    """A line of `lines`: NaN in `y` leaves a gap."""

    name: str
    look: Look
    x: Float[np.ndarray, " point"]
    y: Float[np.ndarray, " point"]
    low: Float[np.ndarray, " point"] | None = None  # ends of an interval, shaded
    high: Float[np.ndarray, " point"] | None = None


class Band(NamedTuple):
    """What chance gives, shaded behind the lines."""

    x: Float[np.ndarray, " point"]
    low: Float[np.ndarray, " point"]
    high: Float[np.ndarray, " point"]


class Grid(NamedTuple):
    """Where the cells of a chart are: pixels, from the upper left corner."""

    tops: list[float]  # of the rows
    height: float  # of a cell, at the top of its row
    left: float
    width: float  # of a cell
    numbers: float  # width of the rows' numbers, between labels and cells


class Row(NamedTuple):
    """A row of `cells`: its label, the look of the adapter that it stands for, a heading over it,
    and a number to the right of the label."""

    label: str
    look: Look | None = None
    heading: str = ""
    number: str = ""


def legend_marker(look: Look) -> str:
    """A marker for a legend in HTML."""
    return (
        f'<svg class="{look.colour}" width="12" height="12" viewBox="-6 -6 12 12" '
        f'aria-hidden="true"><path class="marker" d="M0 0{look.marker}"/></svg>'
    )


# --- lines ----------------------------------------------------------------------------------------


def lines(
    drawn: Sequence[Line],
    band: Band | None,
    label_x: str,
    label_y: str,
    alternative: str,
    is_whole: bool = True,
) -> str:
    """A chart of lines; is_whole: x counts something, and its ticks are whole numbers."""
    left, right, top, bottom = 62.0, WIDTH - 12, 12.0, _HEIGHT - 40
    heights = [part for line in drawn for part in (line.y, line.low, line.high) if part is not None]
    heights += [band.low, band.high] if band else []
    ticks_x = ticks(np.concatenate([line.x for line in drawn]), 8, is_whole)
    ticks_y = ticks(np.concatenate(heights), 5)
    first_x, last_x = _ends(np.concatenate([*(line.x for line in drawn), ticks_x]))
    first_y, last_y = _ends(np.concatenate([*heights, ticks_y]))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * (x - first_x) / (last_x - first_x),
            bottom - (bottom - top) * (y - first_y) / (last_y - first_y),
        )

    parts = []
    for tick in ticks_y:
        y = place(first_x, tick)[1]
        parts.append(f'<path class="rule" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(_text(left - 6, y + 4, _number(tick, ticks_y), "end"))
    for tick in ticks_x:
        parts.append(_text(place(tick, 0)[0], bottom + 17, _number(tick, ticks_x), "middle"))
    parts.append(_text((left + right) / 2, _HEIGHT - 6, label_x, "middle"))
    middle = (top + bottom) / 2
    parts.append(
        f'<text transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(label_y)}</text>"
    )
    if band:
        parts.append(f'<path class="chance" d="{_area(band.x, band.low, band.high, place)}"/>')
    for line in drawn:
        points = [place(x, y) for x, y in zip(line.x, line.y, strict=True) if np.isfinite(y)]
        shade = ""
        if line.low is not None and line.high is not None:
            shade = f'<path class="interval" d="{_area(line.x, line.low, line.high, place)}"/>'
        strokes = "".join(f"M{run}" for run in _runs(line, place))
        shapes = "".join(f"M{x:.1f} {y:.1f}{line.look.marker}" for x, y in points)
        parts.append(
            f'<g class="line {line.look.colour}" data-name="{escape(line.name)}">{shade}'
            f'<path class="stroke" d="{strokes}"/><path class="marker" d="{shapes}"/></g>'
        )
    return _svg(WIDTH, _HEIGHT, alternative, "".join(parts))


def ticks(values: Float[np.ndarray, " value"], count: int, is_whole: bool = False) -> list[float]:
    """Round numbers, about `count`, that the values lie between or near.

    >>> ticks(np.array([0.0, 0.94]), 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(np.array([0.0, 35.0]), 8, is_whole=True)
    [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0]
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [0.0, 1.0]
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return [low] if is_whole else sorted({0.0, low}) if low else [0.0, 1.0]
    rough = (high - low) / count
    size = 10.0 ** np.floor(np.log10(rough))
    apart = next(each * size for each in (1, 2, 5, 10) if each * size >= rough * 0.999)
    if is_whole:
        apart = max(1.0, apart)
    numbers = np.arange(np.floor(low / apart + 1e-9), np.ceil(high / apart - 1e-9) + 1)
    if is_whole:  # a layer that is not there has no tick
        numbers = numbers[(numbers * apart >= low) & (numbers * apart <= high)]
    return [float(f"{number * apart:.12g}") for number in numbers]


def _ends(values: Float[np.ndarray, " value"]) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _number(tick: float, among: Sequence[float]) -> str:
    """A tick as text, with no more digits than tell the ticks apart."""
    if max(map(abs, among)) >= 1e5 or 0 < max(map(abs, among)) < 1e-3:
        return f"{tick:.2g}"
    return next(f"{tick:.{n}f}" for n in range(7) if n == 6 or _all_differ(among, n))


def _all_differ(among: Sequence[float], digits: int) -> bool:
    return all(abs(round(tick, digits) - tick) < 1e-9 * max(1, abs(tick)) for tick in among)


def _runs(line: Line, place: Place) -> Iterator[str]:
    """The parts of a line between gaps."""
    points: list[str] = []
    for x, y in zip(line.x, line.y, strict=True):
        if np.isfinite(y):
            points.append("{:.1f} {:.1f}".format(*place(x, y)))
        elif points:
            yield "L".join(points)
            points = []
    if points:
        yield "L".join(points)


def _area(
    x: Float[np.ndarray, " point"],
    low: Float[np.ndarray, " point"],
    high: Float[np.ndarray, " point"],
    place: Place,
) -> str:
    """The outline of what lies between two lines, where both are defined."""
    is_defined = np.isfinite(low) & np.isfinite(high)
    x, low, high = x[is_defined], low[is_defined], high[is_defined]
    corners = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
    points = ["{:.1f} {:.1f}".format(*place(*corner)) for corner in corners]
    return f"M{'L'.join(points)}z" if points else ""


# --- cells ----------------------------------------------------------------------------------------


def cells(
    values: Float[np.ndarray, "row column"],
    rows: Sequence[Row],
    columns: Sequence[str],
    scale: Scale,
    label_x: str,
    alternative: str,
    is_within_chance: Bool[np.ndarray, "row column"] | None = None,
    digits: int | None = None,
    cell: tuple[float, float] | None = None,
    tree: Sequence[Sequence[tuple[float, float]]] = (),
) -> str:
    """A chart of coloured cells, hatched where they are within chance; NaN is no cell.

    digits: of the number that is written into each cell; none by default. cell: (width, height) in
    pixels. tree: lines to the left of the labels, each of points (share of the width, row).
    """
    space = 90.0 if tree else 0.0
    place = grid(rows, columns, cell, space)
    bottom = place.tops[-1] + max(place.height, _LINE) + 2
    parts, free = [], 0.0  # where the next label may stand
    for top, row in zip(place.tops, rows, strict=True):
        middle = top + place.height / 2
        if row.heading:
            parts.append(_text(space, top - 7, row.heading, "start", "heading"))
        if row.look:
            parts.append(
                f'<g class="{row.look.colour}" data-name="{escape(row.label)}"><path class="marker"'
                f' d="M{space + 8:.1f} {middle:.1f}{row.look.marker}"/></g>'
            )
        label = folded(row.label)
        first = middle + 4 - _LINE / 2 * (len(label) - 1)
        if first >= free:
            parts += [
                _text(place.left - place.numbers - 6, first + _LINE * number, line, "end")
                for number, line in enumerate(label)
            ]
            parts.append(_text(place.left - 6, middle + 4, row.number, "end") if row.number else "")
            free = first + _LINE * len(label) - 2
    colours, hatches = _painted(values, place, scale, is_within_chance)
    parts.append(f'<g class="cells">{colours}<path class="hatch" d="{hatches}"/></g>')
    if digits is not None:
        parts += _written(values, place, scale, digits)
    widest = max(map(width_of, columns)) * LETTER + 8
    apart = int(np.ceil(widest / place.width))
    parts += [
        _text(place.left + place.width * (number + 0.5), bottom + 12, column, "middle")
        for number, column in enumerate(columns)
        if number % apart == 0
    ]
    right = place.left + place.width * len(columns)
    half = width_of(label_x) * LETTER / 2
    parts.append(_text((place.left + right) / 2, bottom + 29, label_x, "middle"))
    for branch in tree:
        points = [
            f"{4 + (space - 10) * x:.1f} "
            f"{np.interp(row, range(len(rows)), place.tops) + place.height / 2:.1f}"
            for x, row in branch
        ]
        parts.append(f'<path class="branch" d="M{"L".join(points)}"/>')
    width = max(right, (place.left + right) / 2 + half) + 6
    return _svg(width, bottom + 36, alternative, "".join(parts))


def grid(
    rows: Sequence[Row],
    columns: Sequence[str],
    cell: tuple[float, float] | None = None,
    space: float = 0.0,
) -> Grid:
    """Where `cells` puts its cells, `space` pixels from the left; a chart of the default size fits
    beside another one."""
    height = 18.0 if len(rows) <= 60 else max(4.0, 1080 / len(rows))
    cell = cell or (min(26.0, max(3.0, 340 / len(columns))), height)
    labels = [folded(row.label) for row in rows]
    longest = max(width_of(line) for lines in labels for line in lines)
    indent = 16.0 if any(row.look for row in rows) else 0.0
    tops, y = [], 4.0
    for row, label in zip(rows, labels, strict=True):
        # room above and below for a label of several lines
        room = max(0.0, _LINE * len(label) - cell[1]) / 2 if len(label) > 1 else 0.0
        y += (22 if row.heading else 0) + room
        tops.append(y)
        y += cell[1] + room
    numbers = max(len(row.number) for row in rows) * LETTER + 6 if rows[0].number else 0.0
    return Grid(tops, cell[1], space + indent + longest * LETTER + numbers + 10, cell[0], numbers)


def _painted(
    values: Float[np.ndarray, "row column"],
    place: Grid,
    scale: Scale,
    is_within_chance: Bool[np.ndarray, "row column"] | None,
) -> tuple[str, str]:
    """The cells, one path for each colour step, and the hatching of those within chance."""
    by_step: dict[int, list[str]] = {}
    hatches = []
    for row, column in np.argwhere(np.isfinite(values)):
        x, y = place.left + place.width * column, place.tops[row]
        box = f"M{x:.1f} {y:.1f}h{place.width:.1f}v{place.height:.1f}h-{place.width:.1f}z"
        by_step.setdefault(scale.step(values[row, column]), []).append(box)
        if is_within_chance is not None and is_within_chance[row, column]:
            hatches.append(f"M{x:.1f} {y + place.height:.1f}l{place.width:.1f}-{place.height:.1f}")
    paths = [f'<path class="q{each}" d="{"".join(by_step[each])}"/>' for each in sorted(by_step)]
    return "".join(paths), "".join(hatches)


def _written(
    values: Float[np.ndarray, "row column"], place: Grid, scale: Scale, digits: int
) -> Iterator[str]:
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        is_strong = abs(scale.step(value) - STEPS / 2) > STEPS * 0.3
        x, y = place.left + place.width * (column + 0.5), place.tops[row] + place.height / 2 + 4
        text = f"{value:z.{digits}f}"
        yield _text(x, y, text, "middle", "strong" if is_strong else "number")


# --- text -----------------------------------------------------------------------------------------


def width_of(text: str) -> int:
    """How many letters wide a text is, where Chinese, Japanese and Korean ones count twice.

    >>> width_of("sft"), width_of("数学")
    (3, 4)
    """
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def folded(label: str) -> list[str]:
    """A label as lines of at most 34 letters, parted behind a separator where there is one; what
    is left after four lines is cut, and ends in an ellipsis.

    >>> folded("Qwen3-4B-Instruct-2507-SFT-lr5e-6-r32-seed42")
    ['Qwen3-4B-Instruct-2507-SFT-lr5e-6-', 'r32-seed42']
    """
    parted: list[str] = []
    rest = label
    while rest:
        end, width = 0, 0
        while end < len(rest) and width + width_of(rest[end]) <= _FOLD:
            width += width_of(rest[end])
            end += 1
        if end < len(rest):
            behind = max(rest.rfind(mark, 0, end) for mark in "-_./: ") + 1
            end = behind if behind > end / 2 else end
        parted.append(rest[:end])
        rest = rest[end:]
    return parted if len(parted) <= _FOLDED else [*parted[: _FOLDED - 1], f"{parted[3][:-1]}…"]


def _text(x: float, y: float, text: str, anchor: str, name: str = "label") -> str:
    return (
        f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: float, height: float, alternative: str, content: str) -> str:
    """The whole chart, as wide as its place, from three quarters of its size up."""
    return (
        f'<svg class="chart" role="img" aria-label="{escape(alternative)}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" '
        f'style="max-width:{1.4 * width:.0f}px;min-width:{0.75 * width:.0f}px">{content}</svg>'
    )
