"""Measures of quality, and what curves have of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lic.codec.benchmark.schema import Curve, Point
from lic.codec.metrics import ms_ssim_db


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measure of quality.

    Attributes:
        key: of the page's data.
        label, unit: for axes and tables.
        digits: after the point.
        falls: less is better.
    """

    key: str
    label: str
    unit: str = ""
    digits: int = 2
    falls: bool = False

    @property
    def axis(self) -> str:
        """Name and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def of(self, numbers: Mapping[str, float | None]) -> float | None:
        """Return it from a mean or a row, None where it was not measured.

        MS-SSIM in dB is that of the mean, as published tables have it, not a mean of dB.
        """
        if self.key != "ms_ssim_db":
            return numbers.get(self.key)
        found = numbers.get("ms_ssim")
        decibels = None if found is None else ms_ssim_db(found)
        return decibels if decibels is not None and math.isfinite(decibels) else None


METRICS = (
    Metric(key="psnr", label="PSNR", unit="dB"),
    Metric(key="psnr_y", label="PSNR Y", unit="dB"),
    Metric(key="ms_ssim_db", label="MS-SSIM", unit="dB"),
    Metric(key="lpips", label="LPIPS", digits=4, falls=True),
)
MS_SSIM_DB = METRICS[2]


def points_of(curve: Curve, metric: Metric) -> list[tuple[Point, float, float]]:
    """Return (point, bpp, quality) of the settings that have both, from few bits to many."""
    found = [(point, point.mean.get("bpp"), metric.of(point.mean)) for point in curve.points]
    return sorted(
        ((p, rate, quality) for p, rate, quality in found if rate and quality is not None),
        key=lambda each: each[1],
    )
