"""Bjontegaard's deltas between two rate-quality curves: rate at equal quality, and the reverse.

Curves of log(rate) over quality, or of quality over log(rate), are integrated over what both cover.
How points are joined:

    pchip   piecewise cubics that keep the shape (Fritsch and Butland 1984), which neither overshoot
            nor ring between points; JCT-VC and AOM use them
    akima   piecewise cubics whose slopes follow the near points (Akima 1970)
    cubic   one cubic polynomial by least squares, as VCEG-M33 has it

K points of a curve.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ConfigError

Points = Sequence[tuple[float, float]]
Method = Literal["pchip", "akima", "cubic"]
METHODS: tuple[Method, ...] = get_args(Method)
_Array = NDArray[np.float64]

LEAST_POINTS = 4


@dataclass(frozen=True)
class DeltaRate:
    """Mean difference in rate at equal quality.

    Attributes:
        percent: below zero where the tested codec needs less.
        low: least quality that both curves reach.
        high: greatest.
        overlap: what both cover, as a share of the narrower curve's range of quality.
    """

    percent: float
    low: float
    high: float
    overlap: float


@dataclass(frozen=True)
class DeltaQuality:
    """Mean difference in quality at equal rate: BD-PSNR where the quality is PSNR.

    Attributes:
        difference: in the unit of quality; above zero where the tested codec is better.
        low: least rate that both curves have.
        high: greatest.
        overlap: what both cover, as a share of the narrower curve's range of log(rate).
    """

    difference: float
    low: float
    high: float
    overlap: float


def bd_rate(anchor: Points, tested: Points, method: Method = "pchip") -> DeltaRate:
    """Return the BD-rate of `tested` against `anchor`, each K points (rate, quality).

    Raises:
        ConfigError: fewer than four points, a curve that does not rise, no common quality, or no
            such method.
    """
    curves = [_curve(points) for points in (anchor, tested)]
    over_quality = [(qualities, np.log(rates)) for rates, qualities in curves]
    low, high, overlap = _common(over_quality, "quality", _plain)
    means = [_mean(x, y, low, high, method) for x, y in over_quality]
    return DeltaRate(100 * float(np.expm1(means[1] - means[0])), low, high, overlap)


def bd_quality(anchor: Points, tested: Points, method: Method = "pchip") -> DeltaQuality:
    """Return the mean gain in quality of `tested` over `anchor`, each K points (rate, quality).

    Raises:
        ConfigError: as `bd_rate`, but where the curves have no rate in common.
    """
    curves = [_curve(points) for points in (anchor, tested)]
    over_rate = [(np.log(rates), qualities) for rates, qualities in curves]
    low, high, overlap = _common(over_rate, "rate", np.exp)
    means = [_mean(x, y, low, high, method) for x, y in over_rate]
    return DeltaQuality(means[1] - means[0], float(np.exp(low)), float(np.exp(high)), overlap)


def _plain(value: float) -> float:
    return value


def _curve(points: Points) -> tuple[_Array, _Array]:
    """Return rates and qualities (K) of a curve, by rate."""
    if len(points) < LEAST_POINTS:
        raise ConfigError(f"a curve has {len(points)} points; expected {LEAST_POINTS} or more")
    rates, qualities = np.array(sorted(points), np.float64).T
    if not (np.all(np.isfinite(points)) and rates[0] > 0 and np.all(np.diff(rates) > 0)):
        raise ConfigError("rates of a curve are not finite, above 0 and all different")
    for (rate, quality), (more, less) in pairwise(zip(rates, qualities, strict=True)):
        if less <= quality:
            raise ConfigError(
                f"a curve's quality does not rise with its rate (from {quality:.4g} to {less:.4g} "
                f"between rates of {rate:.4g} and {more:.4g}); leave out such points"
            )
    return rates, qualities


def _common(
    curves: Sequence[tuple[_Array, _Array]], what: str, told: Callable[[float], float]
) -> tuple[float, float, float]:
    """Return from where to where both curves go, and its share of the narrower one's range.

    A learned codec that lies within the wide range of a classic one overlaps wholly.
    """
    (low_a, high_a), (low_b, high_b) = ((float(x[0]), float(x[-1])) for x, _ in curves)
    low, high = max(low_a, low_b), min(high_a, high_b)
    if low >= high:
        first, second = (
            f"from {told(start):.2f} to {told(end):.2f}"
            for start, end in ((low_a, high_a), (low_b, high_b))
        )
        raise ConfigError(
            f"curves {first} and {second} have no {what} in common; expected an overlap: measure "
            "settings that reach the other's range"
        )
    return low, high, (high - low) / min(high_a - low_a, high_b - low_b)


def _mean(x: _Array, y: _Array, low: float, high: float, method: Method) -> float:
    """Return the mean between `low` and `high` of the curve that joins K points."""
    if method == "cubic":
        integral = np.polynomial.Polynomial.fit(x, y, 3).integ()
        return float(integral(high) - integral(low)) / (high - low)
    slopes = {"pchip": _pchip_slopes, "akima": _akima_slopes}.get(method)
    if slopes is None:
        raise ConfigError(f"method is {method!r}; expected {', '.join(METHODS)}")
    return _integral(x, _cubics(x, y, slopes(x, y)), low, high) / (high - low)


def _cubics(x: _Array, y: _Array, d: _Array) -> _Array:
    """Return (K - 1, 4) coefficients of t = x - x_k, constant first, from the slopes d (K)."""
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    c = (3 * slope - 2 * d[:-1] - d[1:]) / h
    b = (d[:-1] + d[1:] - 2 * slope) / h**2
    return np.stack([y[:-1], d[:-1], c, b], axis=1)


def _pchip_slopes(x: _Array, y: _Array) -> _Array:
    """Return slopes (K): weighted harmonic means of the two next to a point, 0 at an extremum."""
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    d = np.zeros_like(x)
    same = slope[1:] * slope[:-1] > 0
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        d[1:-1] = np.where(same, (w1 + w2) / (w1 / slope[:-1] + w2 / slope[1:]), 0.0)
    d[0] = _pchip_end(h[0], h[1], slope[0], slope[1])
    d[-1] = _pchip_end(h[-1], h[-2], slope[-1], slope[-2])
    return d


def _pchip_end(h0: float, h1: float, slope0: float, slope1: float) -> float:
    """Return the slope at an end: of three points, held back so that the curve keeps its shape."""
    d = ((2 * h0 + h1) * slope0 - h0 * slope1) / (h0 + h1)
    if d * slope0 <= 0:
        return 0.0
    if slope0 * slope1 <= 0 and abs(d) > 3 * abs(slope0):
        return 3 * slope0
    return d


def _akima_slopes(x: _Array, y: _Array) -> _Array:
    """Return slopes (K): means of the two next to a point, by how even the curve is beyond.

    Two intervals at each end go on from the last three points as a parabola does. Where the four
    around a point are two pairs of equals, no weight tells them apart, and the plain mean is taken.
    """
    slope = np.diff(y) / np.diff(x)
    for _ in range(2):
        before, after = 2 * slope[0] - slope[1], 2 * slope[-1] - slope[-2]
        slope = np.concatenate([[before], slope, [after]])
    bends = np.abs(np.diff(slope))
    left, right = slope[1:-2], slope[2:-1]
    weight_left, weight_right = bends[2:], bends[:-2]
    weights = weight_left + weight_right
    even = weights <= 1e-9 * weights.max()
    weights[even] = 1.0
    weighted = (weight_left * left + weight_right * right) / weights
    return np.asarray(np.where(even, (left + right) / 2, weighted))


def _integral(x: _Array, cubics: _Array, low: float, high: float) -> float:
    total = 0.0
    powers = np.arange(1, 5)
    for left, right, coefficients in zip(x[:-1], x[1:], cubics, strict=True):
        a, b = max(low, left) - left, min(high, right) - left
        if b > a:
            total += float(np.sum(coefficients / powers * (b**powers - a**powers)))
    return total
