"""Repeats work and tells what it took: wall time, processor time, stages, energy."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from lic.codec.benchmark.energy import EnergyMeter
from lic.codec.benchmark.schema import DirectionTimes, Times
from lic.codec.stages import synchronised

Wait = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one run took: milliseconds, those of all threads for cpu, and joules."""

    wall: float
    cpu: float
    stages: dict[str, float]
    energy: float | None = None


def repeat(
    work: Callable[[], dict[str, float]],
    runs: int,
    warmup: int,
    *,
    meter: EnergyMeter | None = None,
    wait: Wait | None = None,
) -> list[Spent]:
    """Return what each of `runs` runs took, after `warmup` that do not count.

    Args:
        work: returns milliseconds by stage.
        runs: that count.
        warmup: that go before.
        meter: of energy.
        wait: returns once the device has nothing left to do; called wherever the clock is read.
    """
    meter = meter or EnergyMeter([])
    together: AbstractContextManager[None] = synchronised(wait) if wait else nullcontext()
    spent = []
    with together:
        for number in range(warmup + runs):
            joules = meter.read()
            cpu, start = time.process_time(), time.perf_counter()
            stages = work()
            if wait:
                wait()
            wall = time.perf_counter() - start
            cpu = time.process_time() - cpu
            energy = meter.since(joules)
            if number >= warmup:
                spent.append(Spent(wall=1000 * wall, cpu=1000 * cpu, stages=stages, energy=energy))
    return spent


def summarise(spent: Sequence[Spent], pixels: int) -> DirectionTimes:
    """Return medians and percentiles over runs of `pixels` pixels each."""
    names = dict.fromkeys(name for run in spent for name in run.stages)
    wall = times([run.wall for run in spent])
    joules = [run.energy for run in spent if run.energy is not None]
    return DirectionTimes(
        wall=wall,
        cpu=times([run.cpu for run in spent]),
        stages={name: times([run.stages.get(name, 0.0) for run in spent]) for name in names},
        mpx_per_s=round(pixels / 1000 / wall.median, 4),
        energy=round(sum(joules) / len(joules), 6) if joules else None,
    )


def times(values: Sequence[float]) -> Times:
    """Return percentiles; between two values they are interpolated."""
    median, p90, p95, p99 = np.percentile(values, [50, 90, 95, 99])
    return Times(
        median=round(float(median), 4),
        p90=round(float(p90), 4),
        p95=round(float(p95), 4),
        p99=round(float(p99), 4),
    )
