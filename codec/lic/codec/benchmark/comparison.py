"""Curves held against each other: what a system saves at equal quality, and gains at equal rate."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from lic.codec.benchmark.bd_rate import DeltaQuality, DeltaRate, Method, bd_quality, bd_rate
from lic.codec.benchmark.quality import METRICS, Metric, points_of
from lic.codec.benchmark.schema import Curve, Dataset
from lic.codec.errors import ConfigError

T = TypeVar("T")
PSNR = METRICS[0]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two curves, the tested one against the reference.

    Attributes:
        reference, tested: their names.
        rate: BD-rate, None where it is refused.
        quality: BD-quality in the metric's unit, above 0 where the tested one is better, None
            where it is refused.
        reason: why something is refused.
        left_out: settings without the metric's mean, in words.
    """

    reference: str
    tested: str
    rate: DeltaRate | None = None
    quality: DeltaQuality | None = None
    reason: str = ""
    left_out: tuple[str, ...] = ()


def compare(
    reference: Curve, tested: Curve, metric: Metric = PSNR, method: Method = "pchip"
) -> Comparison:
    """Return what `tested` saves and gains against `reference`, or why that cannot be told."""
    anchor, lacks = _points(reference, metric)
    points, lacks_too = _points(tested, metric)
    left_out = tuple(text for text in (lacks, lacks_too) if text)
    reasons: list[str] = []
    # A curve against itself has nothing wrong but what is wrong with the curve.
    _told(lambda: bd_rate(anchor, anchor, method), reasons, f"{reference.system}: ")
    _told(lambda: bd_rate(points, points, method), reasons, f"{tested.system}: ")
    rate = quality = None
    if not reasons:
        rate = _told(lambda: bd_rate(anchor, points, method), reasons)
        quality = _told(lambda: bd_quality(anchor, points, method), reasons)
    if rate and metric.falls:
        rate = replace(rate, low=-rate.high, high=-rate.low)
    return Comparison(
        reference=reference.system,
        tested=tested.system,
        rate=rate,
        quality=quality,
        reason="; ".join(dict.fromkeys(reasons)),
        left_out=left_out,
    )


def _points(curve: Curve, metric: Metric) -> tuple[list[tuple[float, float]], str]:
    """Return points (bpp, quality) of a curve, and which of its settings lack a mean."""
    sign = -1 if metric.falls else 1
    found = points_of(curve, metric)
    points = [(rate, sign * quality) for _, rate, quality in found]
    known = [point for point, _, _ in found]
    lost = [point.setting for point in curve.points if point not in known]
    if not lost:
        return points, ""
    return points, f"{curve.system} at {', '.join(lost)}: no mean {metric.label}"


def _told(make: Callable[[], T], reasons: list[str], who: str = "") -> T | None:
    """Return what a function makes; if it refuses, None, and the reason is told."""
    try:
        return make()
    except ConfigError as error:
        reasons.append(f"{who}{error}")
        return None


def check_same_pictures(a: Dataset, b: Dataset) -> None:
    """Refuse to compare means over different pictures.

    Raises:
        ConfigError: says how the data sets differ.
    """
    first, second = (Counter(p.sha256 for p in each.pictures if p.width) for each in (a, b))
    # Published results have no pictures; their data set's name has to do.
    if not first or not second:
        same = a.name.casefold() == b.name.casefold()
        what = ""
    else:
        same = first == second
        what = f": {(first & second).total()} of {first.total()} and {second.total()} are the same"
    if not same:
        raise ConfigError(
            f"the results are of different pictures ({a.name!r} and {b.name!r}{what}); measure "
            "both on one data set"
        )
