"""Pictures of a sweep: heat map, dots and curves. Drawn with Pillow, as those of a run are.

Shapes: P points of a curve.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from PIL import Image, ImageDraw

from lic.trainers.curves import COLOURS, GRID, INK, SHARPNESS, font, ticks

Point = tuple[float, float]
Scale = Callable[[float], float]

# From little, which is good, to much: viridis, that prints in gray and shows to the colour-blind.
_RAMP: Final = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
_BEST, _MISSING = COLOURS[1], "#eeeeee"
# Of more values on an axis, each has its place by its size and not a row of its own.
_MOST_CELLS: Final = 10
_LONGEST: Final = 60


class Axis(NamedTuple):
    """An option on an axis, and its values."""

    name: str
    values: Sequence[float]


class Dot(NamedTuple):
    """A row: its name, value, and the least and greatest that it is the mean of."""

    label: str
    value: float
    low: float
    high: float


class _Canvas:
    """A white picture to draw on in its final pixels; it is SHARPNESS times as large until then."""

    def __init__(self, width: float, height: float) -> None:
        self.size = (round(width), round(height))
        larger = (self.size[0] * SHARPNESS, self.size[1] * SHARPNESS)
        self.image = Image.new("RGB", larger, "white")
        self._pen = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, size: int = 12, anchor: str = "lm", ink: str = INK
    ) -> None:
        self._pen.text((x * SHARPNESS, y * SHARPNESS), text, ink, font(size), anchor=anchor)

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        larger = [(x * SHARPNESS, y * SHARPNESS) for x, y in points]
        self._pen.line(larger, colour, round(width * SHARPNESS), joint="curve")

    def dot(self, x: float, y: float, radius: float, fill: str, edge: str | None = None) -> None:
        at, width = (x * SHARPNESS, y * SHARPNESS), 2 * SHARPNESS if edge else 0
        self._pen.circle(at, radius * SHARPNESS, fill, edge, width)

    def box(
        self, corners: tuple[float, float, float, float], fill: str | None, edge: str | None = None,
        width: float = 1,
    ) -> None:  # fmt: skip
        larger = [corner * SHARPNESS for corner in corners]
        self._pen.rectangle(larger, fill, edge, round(width * SHARPNESS))

    def done(self) -> Image.Image:
        return self.image.resize(self.size, Image.Resampling.BOX)


def heat_map(
    title: str, across: Axis, up: Axis, values: Mapping[Point, float], words: Mapping[Point, str]
) -> Image.Image:
    """Return a heat map: small values are good, the least has an orange edge.

    Few values on both axes make cells with their numbers in them; many, as sampled from ranges,
    make dots at their places.

    Args:
        title: above the picture.
        across: option from left to right, values rising.
        up: option from below, values rising.
        values: by (across, up).
        words: of places without a value, why.
    """
    cells = max(len(across.values), len(up.values)) <= _MOST_CELLS
    width = 92.0 * len(across.values) if cells else 440.0
    height = 46.0 * len(up.values) if cells else 320.0
    # Room for the title, which may be wider than few columns.
    margin = max(0.0, _length(title, 16) - width - 180)
    canvas = _Canvas(84 + width + 190 + margin, 56 + height + 56)
    low, high, over = _shades(list(values.values()))
    frame = (84.0, 56.0, 84 + width, 56 + height)
    canvas.text(84, 26, title, 16)
    draw = _cells if cells else _places
    draw(canvas, frame, (across, up), values, words, (low, high))
    canvas.text((frame[0] + frame[2]) / 2, frame[3] + 42, across.name, 13, "mm")
    canvas.text(frame[0] - 8, 44, up.name, 13, "rm")
    _colour_bar(canvas, frame, low, high, over)
    return canvas.done()


def dots(title: str, name: str, rows: Sequence[Dot]) -> Image.Image:
    """Return rows of dots on one axis that does not start at zero; lines show the spread."""
    labels = [_shortened(row.label) for row in rows]
    left = 24 + max(_length(label, 12) for label in labels)
    width, height = 420.0, 24.0 * len(rows)
    canvas = _Canvas(max(left + width + 90, _length(title, 16) + 40), 56 + height + 52)
    canvas.text(16, 24, title, 16)
    at, marks = _axis(min(r.low for r in rows), max(r.high for r in rows), left, left + width)
    bottom = 56 + height
    for mark in marks:
        canvas.line([(at(mark), 48), (at(mark), bottom)], GRID)
        canvas.text(at(mark), bottom + 12, f"{mark:g}", 12, "mm")
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = 56 + 24 * place + 12
        canvas.text(left - 10, y, label, 12, "rm")
        canvas.line([(at(row.low), y), (at(row.high), y)], COLOURS[0], 2)
        canvas.dot(at(row.value), y, 5, _BEST if place == 0 else COLOURS[0])
        canvas.text(left + width + 10, y, f"{row.value:.4f}", 12)
    canvas.text(left + width / 2, bottom + 34, name, 13, "mm")
    return canvas.done()


def rate_distortion(title: str, quality: str, curves: Mapping[str, Sequence[Point]]) -> Image.Image:
    """Return curves of quality (dB) over bits per pixel, each P points, with a legend."""
    labels = [_shortened(label) for label in curves]
    left, top, width, height = 64.0, 48.0, 460.0, 320.0
    legend = left + width + 20
    canvas = _Canvas(legend + 30 + max(_length(label, 12) for label in labels), top + height + 52)
    canvas.text(left, 24, title, 16)
    points = [point for curve in curves.values() for point in curve]
    rates, qualities = zip(*points, strict=True)
    x, x_marks = _axis(min(rates), max(rates), left, left + width)
    y, y_marks = _axis(min(qualities), max(qualities), top + height, top)
    for mark in x_marks:
        canvas.line([(x(mark), top), (x(mark), top + height)], GRID)
        canvas.text(x(mark), top + height + 12, f"{mark:g}", 12, "mm")
    for mark in y_marks:
        canvas.line([(left, y(mark)), (left + width, y(mark))], GRID)
        canvas.text(left - 8, y(mark), f"{mark:g}", 12, "rm")
    canvas.box((left, top, left + width, top + height), None, INK)
    for place, (label, curve) in enumerate(zip(labels, curves.values(), strict=True)):
        colour = COLOURS[place % len(COLOURS)]
        placed = [(x(rate), y(value)) for rate, value in sorted(curve)]
        canvas.line(placed, colour, 2)
        for point in placed:
            canvas.dot(*point, 3.5, colour)
        canvas.line(
            [(legend, top + 12 + 20 * place), (legend + 16, top + 12 + 20 * place)], colour, 3
        )
        canvas.text(legend + 22, top + 12 + 20 * place, label)
    canvas.text(left + width / 2, top + height + 34, "bits per pixel", 13, "mm")
    canvas.text(left - 8, 40, quality, 12, "rm")
    return canvas.done()


def _cells(
    canvas: _Canvas,
    frame: tuple[float, float, float, float],
    axes: tuple[Axis, Axis],
    values: Mapping[Point, float],
    words: Mapping[Point, str],
    shades: Point,
) -> None:
    across, up = axes
    left, _, right, bottom = frame
    wide = (right - left) / len(across.values)
    high = (bottom - frame[1]) / len(up.values)
    best = min(values, key=lambda place: values[place])
    outlined = frame
    for column, x in enumerate(across.values):
        canvas.text(left + wide * (column + 0.5), bottom + 14, f"{x:g}", 12, "mm")
        for row, y in enumerate(up.values):
            corner = (left + wide * column, bottom - high * (row + 1))
            box = (*corner, corner[0] + wide, corner[1] + high)
            middle = (corner[0] + wide / 2, corner[1] + high / 2)
            value = values.get((x, y))
            fill, ink = _shade(value, *shades)
            canvas.box(box, fill, "white", 2)
            told = words.get((x, y), "not run") if value is None else f"{value:.4f}"
            canvas.text(*middle, told, 13, "mm", ink)
            outlined = box if (x, y) == best else outlined
    for row, y in enumerate(up.values):
        canvas.text(left - 8, bottom - high * (row + 0.5), f"{y:g}", 12, "rm")
    canvas.box(outlined, None, _BEST, 3)


def _places(
    canvas: _Canvas,
    frame: tuple[float, float, float, float],
    axes: tuple[Axis, Axis],
    values: Mapping[Point, float],
    words: Mapping[Point, str],
    shades: Point,
) -> None:
    left, top, right, bottom = frame
    x, x_marks = _log_axis(axes[0].values, left, right)
    y, y_marks = _log_axis(axes[1].values, bottom, top)
    for mark in x_marks:
        canvas.line([(x(mark), top), (x(mark), bottom)], GRID)
        canvas.text(x(mark), bottom + 14, f"{mark:g}", 12, "mm")
    for mark in y_marks:
        canvas.line([(left, y(mark)), (right, y(mark))], GRID)
        canvas.text(left - 8, y(mark), f"{mark:g}", 12, "rm")
    canvas.box(frame, None, INK)
    for place in words:
        canvas.dot(x(place[0]), y(place[1]), 4, _MISSING)
    best = min(values, key=lambda place: values[place])
    for place, value in values.items():
        edge = _BEST if place == best else None
        canvas.dot(x(place[0]), y(place[1]), 9 if edge else 6, _shade(value, *shades)[0], edge)


def _colour_bar(
    canvas: _Canvas, frame: tuple[float, float, float, float], low: float, high: float, over: bool
) -> None:
    left, top, bottom = frame[2] + 24, frame[1] + 4, frame[3]
    steps = 64
    for step in range(steps):
        a = bottom - (bottom - top) * step / steps
        b = bottom - (bottom - top) * (step + 1) / steps
        canvas.box((left, b, left + 16, a), _shade(low + (high - low) * step / steps, low, high)[0])
    canvas.text(left, 26 + 18, "val_loss, less is better", 12, "lm")
    canvas.text(left + 22, bottom - 6, f"{low:.4f}", 12)
    canvas.text(left + 22, top + 6, f"{high:.4f}{' or more' if over else ''}", 12)


def _shades(values: Sequence[float]) -> tuple[float, float, bool]:
    """Return the range of colours; one bad value must not make all the others look alike."""
    ordered = sorted(values)
    low, high, middle = ordered[0], ordered[-1], ordered[len(ordered) // 2]
    capped = low + 4 * (middle - low)
    return (low, capped, True) if middle > low and high > capped else (low, high, False)


def _shade(value: float | None, low: float, high: float) -> tuple[str, str]:
    """Return the colour of a value, and that of letters on it."""
    if value is None:
        return _MISSING, INK
    share = min(1.0, (value - low) / (high - low)) if high > low else 0.0
    place = share * (len(_RAMP) - 1)
    first = min(int(place), len(_RAMP) - 2)
    pairs = zip(_RAMP[first], _RAMP[first + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (place - first)) for a, b in pairs)
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 128
    return f"#{red:02x}{green:02x}{blue:02x}", "white" if dark else INK


def _axis(low: float, high: float, start: float, end: float) -> tuple[Scale, list[float]]:
    """Return what places a value between two pixels, and the round values to mark."""
    margin = max(0.05 * (high - low), 1e-3 * max(abs(low), abs(high)), 1e-9)
    low, high = low - margin, high + margin
    return lambda value: start + (value - low) / (high - low) * (end - start), ticks(low, high)


def _log_axis(values: Sequence[float], start: float, end: float) -> tuple[Scale, list[float]]:
    """Return the same in logarithms, where all values have one, with marks at 1, 2, 5."""
    if min(values) <= 0:
        return _axis(min(values), max(values), start, end)
    place, _ = _axis(math.log10(min(values)), math.log10(max(values)), start, end)
    low, high = sorted((start, end))
    decades = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1)
    marks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    inside = [mark for mark in marks if low <= place(math.log10(mark)) <= high]
    return lambda value: place(math.log10(value)), inside


def _shortened(label: str) -> str:
    label = label or "as in the base"
    return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 3]}..."


def _length(text: str, size: int) -> float:
    return font(size).getlength(text) / SHARPNESS
