"""Bjontegaard's delta rate between two rate-quality curves, by shape-preserving cubics.

VCEG-M33 fits one cubic polynomial; JCT-VC and AOM use piecewise cubics (PCHIP, Fritsch and Butland
1984), which neither overshoot nor ring between points. K points of a curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ConfigError

Points = Sequence[tuple[float, float]]
_Array = NDArray[np.float64]

LEAST_POINTS = 4


@dataclass(frozen=True)
class DeltaRate:
    """Mean difference in rate at equal quality.

    Attributes:
        percent: below zero where the tested codec needs less.
        low: least quality that both curves reach.
        high: greatest.
        overlap: share of the curves' joint range of quality that both cover.
    """

    percent: float
    low: float
    high: float
    overlap: float


def bd_rate(anchor: Points, tested: Points) -> DeltaRate:
    """Return the BD-rate of `tested` against `anchor`, each K points (rate, quality).

    Raises:
        ConfigError: fewer than four points, a curve that does not rise, or no common quality.
    """
    (low_a, high_a), (low_b, high_b) = (_range(points) for points in (anchor, tested))
    low, high = max(low_a, low_b), min(high_a, high_b)
    if low >= high:
        raise ConfigError(
            f"curves from {low_a:.2f} to {high_a:.2f} and from {low_b:.2f} to {high_b:.2f} have no "
            "quality in common; expected an overlap"
        )
    means = [_mean_log_rate(points, low, high) for points in (anchor, tested)]
    percent = 100 * float(np.expm1(means[1] - means[0]))
    overlap = (high - low) / (max(high_a, high_b) - min(low_a, low_b))
    return DeltaRate(percent, low, high, overlap)


def _range(points: Points) -> tuple[float, float]:
    if len(points) < LEAST_POINTS:
        raise ConfigError(f"a curve has {len(points)} points; expected {LEAST_POINTS} or more")
    rates, qualities = np.array(sorted(points), np.float64).T
    if not (np.all(np.isfinite(points)) and rates[0] > 0 and np.all(np.diff(rates) > 0)):
        raise ConfigError("rates of a curve are not finite, above 0 and all different")
    if not np.all(np.diff(qualities) > 0):
        raise ConfigError("a curve's quality does not rise with its rate; leave out such points")
    return float(qualities[0]), float(qualities[-1])


def _mean_log_rate(points: Points, low: float, high: float) -> float:
    """Return the mean of log(rate) over a range of quality."""
    rates, qualities = np.array(sorted(points), np.float64).T
    cubics = _cubics(qualities, np.log(rates))
    return _integral(qualities, cubics, low, high) / (high - low)


def _cubics(x: _Array, y: _Array) -> _Array:
    """Return (K - 1, 4) coefficients of t = x - x_k, constant first, of the PCHIP through x, y."""
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    d = np.zeros_like(x)
    same = slope[1:] * slope[:-1] > 0
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        d[1:-1] = np.where(same, (w1 + w2) / (w1 / slope[:-1] + w2 / slope[1:]), 0.0)
    d[0] = _end(h[0], h[1], slope[0], slope[1])
    d[-1] = _end(h[-1], h[-2], slope[-1], slope[-2])
    c = (3 * slope - 2 * d[:-1] - d[1:]) / h
    b = (d[:-1] + d[1:] - 2 * slope) / h**2
    return np.stack([y[:-1], d[:-1], c, b], axis=1)


def _end(h0: float, h1: float, slope0: float, slope1: float) -> float:
    """Return the slope at an end: of three points, held back so that the curve keeps its shape."""
    d = ((2 * h0 + h1) * slope0 - h0 * slope1) / (h0 + h1)
    if d * slope0 <= 0:
        return 0.0
    if slope0 * slope1 <= 0 and abs(d) > 3 * abs(slope0):
        return 3 * slope0
    return d


def _integral(x: _Array, cubics: _Array, low: float, high: float) -> float:
    total = 0.0
    powers = np.arange(1, 5)
    for left, right, coefficients in zip(x[:-1], x[1:], cubics, strict=True):
        a, b = max(low, left) - left, min(high, right) - left
        if b > a:
            total += float(np.sum(coefficients / powers * (b**powers - a**powers)))
    return total
