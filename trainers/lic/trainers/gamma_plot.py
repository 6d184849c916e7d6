"""The courses of all schedules of gamma, as numbers and as one picture.

Shapes: P points of a course, G gammas: one for two tasks, or those of s1, s2, s3.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image, ImageDraw

from lic.codec.errors import ConfigError, OutputError
from lic.trainers.curves import COLOURS, GRID, HEIGHT, INK, SHARPNESS, WIDTH, font, ticks
from lic.trainers.gamma import PER_SCALE, TWO_TASK, GammaSchedule, build_gamma
from lic.trainers.objective_options import SCALES, GammaConfig

Rows = list[tuple[float, ...]]

# Room around a panel's axes in pixels, for title, legend, numbers and names.
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 64, 44
POINTS: Final = 1201

# What a run may show an adaptive schedule, and the words for it.
FEEDS: Final[dict[str, tuple[str, ...]]] = {
    "adaptive": ("even validations", "uneven validations"),
    "adaptive_snr": ("clear progress", "unclear progress"),
}
# The two-task schedules of a panel; per scale, each has its own.
TOGETHER: Final = (
    ("fixed", "linear", "cosine"),
    ("step", "hpcm", "hpcm_step"),
    ("adaptive",),
    ("adaptive_snr",),
)


def curves(config: GammaConfig, epochs: float, points: int) -> dict[str, Rows]:
    """Return the course of every schedule, by names such as "two-task/cosine".

    Adaptive ones come twice, such as "two-task/adaptive, even validations": in a run that lets
    gamma fall as soon as it may, and in one that lets it rise, with a validation and a window of
    steps per epoch. What `build_gamma` refuses to make of the options is left out.

    Args:
        config: the options; which schedule they choose does not matter.
        epochs: of the run, above 0.
        points: P, at least 2.

    Returns:
        For each, P rows of an epoch and the G gammas then.
    """
    found = {}
    for kind, known in (("two-task", TWO_TASK), ("per-scale", PER_SCALE)):
        for name in known:
            chosen = replace(config, gamma_schedule=name)
            for feed in FEEDS.get(name, ("",)):
                try:
                    schedule = build_gamma(chosen, per_scale=known is PER_SCALE)
                except ConfigError:
                    continue
                key = f"{kind}/{name}, {feed}" if feed else f"{kind}/{name}"
                found[key] = list(_rows(schedule, feed, epochs, points, config.gamma_window))
    return found


def _rows(
    schedule: GammaSchedule, feed: str, epochs: float, points: int, window: int
) -> Iterator[tuple[float, ...]]:
    seen = 0
    for point in range(points):
        epoch = epochs * point / (points - 1)
        while feed and seen + 1 <= epoch:
            # As in a run, where steps come before the validation.
            schedule.at(seen + 1, epochs)
            _show(schedule, feed, seen, window)
            seen += 1
        yield (epoch, *schedule.at(epoch, epochs))


def _show(schedule: GammaSchedule, feed: str, number: int, window: int) -> None:
    """Show a schedule a validation, or a window of steps."""
    if feed.endswith("progress"):
        for _ in range(window):
            schedule.observe_progress((float(feed == "clear progress"), 0.0))
        return
    # One in a window stands out.
    loss = 1.0 if feed == "even validations" else float(number % window == 0)
    schedule.observe_validation(loss, (loss,) * len(SCALES))


class _Line(NamedTuple):
    label: str
    colour: str
    points: list[tuple[float, float]]


class _Panel(NamedTuple):
    title: str
    lines: list[_Line]


def plot(path: Path, config: GammaConfig, epochs: float = 3000.0) -> None:
    """Draw every schedule's gamma over the epochs of a run, as a PNG.

    Raises:
        OutputError: it cannot be written.
    """
    panels = _panels(curves(config, epochs, POINTS))
    down = -(-len(panels) // 2)
    sheet = Image.new("RGB", (2 * WIDTH * SHARPNESS, down * HEIGHT * SHARPNESS), "white")
    for place, panel in enumerate(panels):
        corner = (place % 2 * WIDTH * SHARPNESS, place // 2 * HEIGHT * SHARPNESS)
        sheet.paste(_Plot(panel, epochs).draw(), corner)
    small = sheet.resize((2 * WIDTH, down * HEIGHT), Image.Resampling.BOX)
    try:
        small.save(path, format="PNG")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _panels(found: Mapping[str, Rows]) -> list[_Panel]:
    panels = [_Panel(f"two tasks: {', '.join(names)}", _tasks(found, names)) for names in TOGETHER]
    panels += [
        _Panel(f"per scale: {key.removeprefix('per-scale/')}", _scales(rows))
        for key, rows in found.items()
        if key.startswith("per-scale/")
    ]
    return [panel for panel in panels if panel.lines]


def _tasks(found: Mapping[str, Rows], names: Sequence[str]) -> list[_Line]:
    """Return the lines of some two-task schedules; what adaptive ones saw tells them apart."""
    split = {key: key.removeprefix("two-task/").partition(", ") for key in found}
    labels = {key: feed or name for key, (name, _, feed) in split.items() if name in names}
    pairs = zip(labels.items(), COLOURS, strict=False)
    return [_Line(label, colour, _course(found[key], 1)) for (key, label), colour in pairs]


def _scales(rows: Rows) -> list[_Line]:
    named = zip(SCALES, COLOURS, strict=False)
    return [_Line(s, colour, _course(rows, place)) for place, (s, colour) in enumerate(named, 1)]


def _course(rows: Rows, place: int) -> list[tuple[float, float]]:
    return [(row[0], row[place]) for row in rows]


class _Plot:
    """One panel; its picture is SHARPNESS times as large as it will be."""

    def __init__(self, panel: _Panel, epochs: float) -> None:
        self.panel = panel
        self.epochs = epochs
        highest = max(gamma for line in panel.lines for _, gamma in line.points)
        # Of zeros alone, some room all the same.
        self.high = 1.08 * highest or 1e-3
        self.width = (WIDTH - LEFT - RIGHT) * SHARPNESS
        self.height = (HEIGHT - TOP - BOTTOM) * SHARPNESS
        self.image = Image.new("RGB", (WIDTH * SHARPNESS, HEIGHT * SHARPNESS), "white")
        self.pen = ImageDraw.Draw(self.image)

    def draw(self) -> Image.Image:
        """Return the panel."""
        self._axes()
        for number, line in enumerate(self.panel.lines):
            # The first ones broader, so that they show where lines lie upon each other.
            width = (len(self.panel.lines) - number + 1) * SHARPNESS
            points = [(self._x(epoch), self._y(gamma)) for epoch, gamma in line.points]
            self.pen.line(points, line.colour, width, joint="curve")
        self._legend()
        return self.image

    def _x(self, epoch: float) -> float:
        return LEFT * SHARPNESS + epoch / self.epochs * self.width

    def _y(self, gamma: float) -> float:
        return TOP * SHARPNESS + (1 - gamma / self.high) * self.height

    def _axes(self) -> None:
        left, right, top, bottom = self._x(0), self._x(self.epochs), self._y(self.high), self._y(0)
        for epoch in ticks(0, self.epochs):
            x = self._x(epoch)
            self.pen.line([(x, top), (x, bottom)], GRID, SHARPNESS)
            self._text((x, bottom + 6 * SHARPNESS), f"{epoch:g}", 12, "ma")
        for gamma in ticks(0, self.high):
            y = self._y(gamma)
            self.pen.line([(left, y), (right, y)], GRID, SHARPNESS)
            self._text((left - 6 * SHARPNESS, y), f"{gamma:g}", 12, "rm")
        self.pen.rectangle((left, top, right, bottom), None, INK, SHARPNESS)
        self._text(((left + right) / 2, self.image.height - 4 * SHARPNESS), "epoch", 13, "md")
        self._text((left - 6 * SHARPNESS, top - 8 * SHARPNESS), "gamma", 13, "rd")
        self._text((left, 20 * SHARPNESS), self.panel.title, 16, "lm")

    def _legend(self) -> None:
        x, y = self._x(0), 46 * SHARPNESS
        for line in self.panel.lines:
            self.pen.line([(x, y), (x + 16 * SHARPNESS, y)], line.colour, 3 * SHARPNESS)
            x += 21 * SHARPNESS
            self._text((x, y), line.label, 12, "lm")
            x += self.pen.textlength(line.label, font(12)) + 14 * SHARPNESS

    def _text(self, at: tuple[float, float], text: str, size: int, anchor: str) -> None:
        self.pen.text(at, text, INK, font(size), anchor=anchor)
