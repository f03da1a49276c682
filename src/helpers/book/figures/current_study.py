"""How the runs of the study that is drawn look: label, colour and marker of each.

After `style`, before all other modules of figures. The three dictionaries are filled by
`use_style`, which every page calls first.
"""

from helpers.book.figures import style
from helpers.profiles import Profile
from helpers.profiles.appearance import ByMethod, Labels

LABELS, COLOURS, MARKERS = Labels(), ByMethod(), ByMethod()

# Of lines that belong to no method.
_OTHER_COLOURS = ("#000000", "#6a3d9a", "#777777", "#8c564b")
_OTHER_MARKERS = "os^Dv"


def use_style(study: Profile) -> None:
    """Set matplotlib's defaults and the looks of the study's runs, for all figures that follow."""
    style.use_style()
    looks = study.appearance
    for current, values in (
        (LABELS, looks.labels),
        (COLOURS, looks.colours),
        (MARKERS, looks.markers),
    ):
        current.clear()
        current.update(values)


def line_of(name: str, number: int) -> dict[str, str]:
    """Colour, marker and label of a method; any other name has a colour of no method, by its
    number among the lines."""
    return {
        "color": COLOURS.get(name, _OTHER_COLOURS[number % len(_OTHER_COLOURS)]),
        "marker": MARKERS.get(name, _OTHER_MARKERS[number % len(_OTHER_MARKERS)]),
        "label": LABELS[name],
    }


def pair_label(run_a: str, run_b: str) -> str:
    """How a pair of runs is named: "SFT – DPO"."""
    return f"{LABELS[run_a]} – {LABELS[run_b]}"
