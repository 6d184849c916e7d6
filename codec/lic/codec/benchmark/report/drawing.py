"""How plots for papers look: as on the page, in light.

The same results give the same bytes, so that a repository which holds them does not grow for
nothing.
"""

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0067a5", "#c44900", "#00785a", "#9b3a83", "#7d6200", "#4d4fc4", "#a2243c", "#3f464d")
MUTED = ("#5c6a76", "#7a6658", "#5d7361", "#7d6382", "#6f6d4c", "#4f6f7d")
MARKS = ("o", "s", "^", "D", "v", "P", "h", "*")
DASHES = ((7, 4), (3, 3), (10, 3, 2, 3), (5, 2), (2, 4), (12, 4))


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.grid(color="#dededa", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def saved(figure: "Figure", form: str) -> bytes:
    """Return a figure's file, "png" or "svg", without the time of its making."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "lic"}):
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()


def plain(text: str) -> str:
    """Return text that matplotlib does not take for formulas."""
    return text.replace("$", r"\$")


def measured_style(i: int) -> dict[str, Any]:
    """Return how the i-th measured curve looks: solid, with full marks."""
    colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
    return {"color": colour, "marker": mark, "markersize": 4.5, "linewidth": 1.8}


def published_style(i: int) -> dict[str, Any]:
    """Return how the i-th published curve looks: muted, dashed, with hollow marks."""
    return {
        "color": MUTED[i % len(MUTED)],
        "marker": MARKS[i % len(MARKS)],
        "markersize": 4,
        "markerfacecolor": "white",
        "linewidth": 1.0,
        "dashes": DASHES[i % len(DASHES)],
    }
