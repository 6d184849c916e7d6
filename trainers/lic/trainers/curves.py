"""The curves of a run as one picture: loss, rate and quality against the steps.

Shapes: P points of a curve.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Values = NDArray[np.float64]

# A panel in pixels, and the room for its title and numbers.
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 40, 48
# Drawn larger and shrunk: Pillow's lines have no smooth edges.
SHARPNESS: Final = 2
# Of a smooth line.
POINTS: Final = 100

# Of lines that are told apart, the first ones first.
COLOURS: Final = (
    "#2864a8", "#d1601a", "#3a8f3a", "#8c4fb0", "#b8902a", "#2a9c9c", "#c2447f", "#6b6b6b"
)  # fmt: skip
FAINT, TRAINING, VALIDATION = "#c3d6ec", COLOURS[0], COLOURS[1]
GRID, INK = "#e4e4e4", "#303030"

# Title, what the training tells, what the validation tells.
PANELS: Final = (
    ("loss", "loss", "val_loss"),
    ("bits per pixel", "bpp", "val_bpp"),
    ("PSNR, dB", "psnr", "val_psnr"),
    ("MS-SSIM", "ms_ssim", "val_ms_ssim"),
)


class Curve(NamedTuple):
    """Steps and values, both (P,)."""

    steps: Values
    values: Values


class _Panel(NamedTuple):
    title: str
    training: Curve
    validation: Curve


def draw_curves(rows: Sequence[Mapping[str, float | None]]) -> Image.Image:
    """Return the curves of metrics as an RGB picture, two panels a row.

    Args:
        rows: each with a step; PSNR comes from `mse` where a row has no `psnr`.
    """
    panels = [_panel(rows, *names) for names in PANELS]
    panels = [p for p in panels if len(p.training.steps) or len(p.validation.steps)]
    across = min(2, max(1, len(panels)))
    down = max(1, math.ceil(len(panels) / 2))
    sheet = Image.new("RGB", (across * WIDTH * SHARPNESS, down * HEIGHT * SHARPNESS), "white")
    for place, panel in enumerate(panels):
        corner = (place % 2 * WIDTH * SHARPNESS, place // 2 * HEIGHT * SHARPNESS)
        sheet.paste(_Plot(panel).draw(), corner)
    return sheet.resize((across * WIDTH, down * HEIGHT), Image.Resampling.BOX)


def _panel(
    rows: Sequence[Mapping[str, float | None]], title: str, training: str, validation: str
) -> _Panel:
    return _Panel(title, _curve(rows, training), _curve(rows, validation))


def _curve(rows: Sequence[Mapping[str, float | None]], name: str) -> Curve:
    points = [(row["step"], _value(row, name)) for row in rows]
    known = [(s, v) for s, v in points if s is not None and v is not None and math.isfinite(v)]
    steps, values = np.array(known, np.float64).reshape(-1, 2).T
    return Curve(steps, values)


def _value(row: Mapping[str, float | None], name: str) -> float | None:
    mse = row.get("mse")
    if name == "psnr" and name not in row and mse:
        return -10 * math.log10(mse) if mse > 0 else None
    return row.get(name)


def smoothed(curve: Curve, count: int = POINTS) -> Curve:
    """Return at most `count` points, each the mean of as many neighbours."""
    size = math.ceil(len(curve.steps) / count)
    if size < 2:
        return curve
    starts = np.arange(0, len(curve.steps), size)
    lengths = np.diff(np.append(starts, len(curve.steps)))
    return Curve(*(np.add.reduceat(column, starts) / lengths for column in curve))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, at most `most` of them."""
    span = max(high - low, 1e-12)
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (factor * step) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def extent(values: Values) -> tuple[float, float]:
    """Return the range of values (P,) to show: all, but for a plunge at the start and its like."""
    low, high = float(values.min()), float(values.max())
    if len(values) >= 50:
        # A start far off would press all that follows into one line.
        inner_low, inner_high = (float(value) for value in np.percentile(values, (2, 98)))
        spread = inner_high - inner_low
        low, high = max(low, inner_low - spread / 2), min(high, inner_high + spread / 2)
    # Less than that is no difference, and would have ticks of many digits.
    least = 1e-3 * max(abs(low), abs(high), 1e-6)
    margin = max(0.05 * (high - low), least)
    return low - margin, high + margin


class _Plot:
    """One panel; its picture is SHARPNESS times as large as it will be."""

    def __init__(self, panel: _Panel) -> None:
        self.panel = panel
        curves = (smoothed(panel.training, 4 * POINTS), panel.validation)
        self.low, self.high = extent(np.concatenate([curve.values for curve in curves]))
        last = max(float(curve.steps.max()) for curve in curves if len(curve.steps))
        self.last = max(last, 1.0)
        self.width = (WIDTH - LEFT - RIGHT) * SHARPNESS
        self.height = (HEIGHT - TOP - BOTTOM) * SHARPNESS
        self.image = Image.new("RGB", (WIDTH * SHARPNESS, HEIGHT * SHARPNESS), "white")
        self.pen = ImageDraw.Draw(self.image)

    def draw(self) -> Image.Image:
        """Return the panel."""
        # On a picture of its own, so that lines end where the axes do.
        inside = Image.new("RGB", (self.width, self.height), "white")
        pen = ImageDraw.Draw(inside)
        for step in ticks(0, self.last):
            pen.line([(self._x(step), 0), (self._x(step), self.height)], GRID, SHARPNESS)
        for value in ticks(self.low, self.high):
            pen.line([(0, self._y(value)), (self.width, self._y(value))], GRID, SHARPNESS)
        self._line(pen, smoothed(self.panel.training, 4 * POINTS), FAINT, 1)
        self._line(pen, smoothed(self.panel.training), TRAINING, 2)
        self._line(pen, self.panel.validation, VALIDATION, 2)
        if len(self.panel.validation.steps) <= POINTS:
            self._dots(pen, self.panel.validation)
        self.image.paste(inside, (LEFT * SHARPNESS, TOP * SHARPNESS))
        self._words()
        return self.image

    def _x(self, step: float) -> float:
        return step / self.last * (self.width - 1)

    def _y(self, value: float) -> float:
        return (self.high - value) / (self.high - self.low) * (self.height - 1)

    def _points(self, curve: Curve) -> list[tuple[float, float]]:
        return [(self._x(s), self._y(v)) for s, v in zip(*curve, strict=True)]

    def _line(self, pen: ImageDraw.ImageDraw, curve: Curve, colour: str, width: int) -> None:
        if len(curve.steps) == 1:
            self._dots(pen, curve, colour)
        pen.line(self._points(curve), colour, width * SHARPNESS, joint="curve")

    def _dots(self, pen: ImageDraw.ImageDraw, curve: Curve, colour: str = VALIDATION) -> None:
        for point in self._points(curve):
            pen.circle(point, 3 * SHARPNESS, fill=colour)

    def _words(self) -> None:
        left, top = LEFT * SHARPNESS, TOP * SHARPNESS
        self.pen.rectangle((left, top, left + self.width, top + self.height), None, INK, SHARPNESS)
        for step in ticks(0, self.last):
            below = (left + self._x(step), top + self.height + 6 * SHARPNESS)
            self.pen.text(below, _thousands(step), INK, font(12), anchor="ma")
        for value in ticks(self.low, self.high):
            beside = (left - 6 * SHARPNESS, top + self._y(value))
            self.pen.text(beside, f"{value:g}", INK, font(12), anchor="rm")
        line = top - 16 * SHARPNESS
        self.pen.text((left, line), self.panel.title, INK, font(16), anchor="lm")
        end = left + self.width
        words = (("validation", VALIDATION, self.panel.validation),
                 ("training", TRAINING, self.panel.training))  # fmt: skip
        for word, colour, curve in words:
            if len(curve.steps):
                self.pen.text((end, line), word, colour, font(13), anchor="rm")
                end -= 84 * SHARPNESS
        bottom = self.image.height - 4 * SHARPNESS
        self.pen.text((left + self.width, bottom), "steps", INK, font(12), anchor="rd")


def _thousands(step: float) -> str:
    if step >= 1e6:
        return f"{step / 1e6:g}M"
    return f"{step / 1e3:g}k" if step >= 1e4 else f"{step:g}"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of a size in pixels, for pictures SHARPNESS times as large."""
    return ImageFont.load_default(size=size * SHARPNESS)
