"""BD-rates of every system of a section against every anchor, or why there is none."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lic.codec.benchmark.comparison import compare
from lic.codec.benchmark.quality import Metric, points_of
from lic.codec.benchmark.report.content import Section
from lic.codec.benchmark.schema import Curve

# Below this share of common quality a mean difference says little about the narrower curve.
LITTLE_OVERLAP = 0.5


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A system against an anchor.

    Attributes:
        system, anchor: their names.
        percent: more rate at equal quality; None where it was refused.
        low, high: quality that both reach.
        overlap: as `DeltaRate` has it.
        refusal: why there is no number.
    """

    system: str
    anchor: str
    percent: float | None = None
    low: float | None = None
    high: float | None = None
    overlap: float | None = None
    refusal: str = ""


def deltas(section: Section, metric: Metric) -> Iterator[Delta]:
    """Yield row by row: shown systems, and for each the anchors, without itself."""
    curves = {curve.system: curve for curve in section.curves}
    for curve in section.shown:
        for name in section.anchors:
            if name != curve.system:
                yield _delta(curve, curves[name], metric)


def _delta(curve: Curve, anchor: Curve, metric: Metric) -> Delta:
    delta = Delta(system=curve.system, anchor=anchor.system)
    for each in (curve, anchor):
        if not points_of(each, metric):
            return replace(delta, refusal=f"{each.system} has no {metric.label}")
    found = compare(anchor, curve, metric)
    if found.rate is None:
        return replace(delta, refusal=found.reason)
    rate = found.rate
    return replace(delta, percent=rate.percent, low=rate.low, high=rate.high, overlap=rate.overlap)
