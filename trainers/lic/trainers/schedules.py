"""Factors of the learning rates: pure functions of the step, and one rule that follows a metric."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from lic.trainers.config import OptimizerConfig
from lic.trainers.objective_options import EPOCHS
from lic.trainers.sections import numbers

# Where a one-cycle schedule starts, as a share of the peak: torch's own default.
ONECYCLE_START = 1 / 25
# A relative gain below this is noise of the validation, not progress.
GAIN = 1e-4


class Schedule(Protocol):
    """Gives the factor of a step; may look at validations, and keeps what that takes."""

    def factor(self, step: int) -> float:
        """Return what peak learning rates are multiplied by at `step`, counted from 0."""
        ...

    def update(self, metric: float) -> None:
        """Take notice of a validation; lower metrics are better."""
        ...

    def state_dict(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


def build_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Return the schedule of a run of `steps` steps.

    Only rates move. The momentum that torch's one-cycle schedule moves as well stays as it is: that
    is for SGD, and in SOAP and Muon the same averages shape the step's direction.
    """
    warmup, final = config.lr_warmup_steps, config.final_lr_fraction
    if config.schedule == "plateau":
        return Plateau(patience=config.plateau_patience, cut=config.plateau_factor, warmup=warmup)
    if config.schedule == "cosine":
        return Timed(partial(warmup_cosine, steps=steps, warmup=warmup, final=final))
    if config.schedule == "onecycle":
        rise = config.onecycle_pct_start
        return Timed(partial(onecycle, steps=steps, rise=rise, warmup=warmup, final=final))
    if config.schedule == "milestones":
        places = [at / EPOCHS for at in numbers(config.milestones)]
        factors = numbers(config.milestone_factors)
        return Timed(
            partial(milestones, steps=steps, places=places, factors=factors, warmup=warmup)
        )
    return Timed(partial(warmed_up, warmup=warmup))


class Timed:
    """A schedule that depends on the step alone."""

    def __init__(self, function: "partial[float]") -> None:
        self._function = function

    def factor(self, step: int) -> float:
        """Return the function's value."""
        return self._function(step)

    def update(self, metric: float) -> None:
        """Nothing: validations do not matter."""

    def state_dict(self) -> dict[str, float]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""


class Gains:
    """Counts validations in a row without a gain of a metric of which less is better.

    A gain is one ten-thousandth below the best so far; a metric that is NaN or infinite is none.

    Attributes:
        best: the least metric.
        idle: validations since.
    """

    def __init__(self, best: float = math.inf, idle: int = 0) -> None:
        self.best = best
        self.idle = idle

    def add(self, metric: float) -> int:
        """Count a validation; returns those without gain."""
        bar = self.best - GAIN * abs(self.best) if math.isfinite(self.best) else math.inf
        gained = math.isfinite(metric) and metric < bar
        self.best, self.idle = (metric, 0) if gained else (self.best, self.idle + 1)
        return self.idle


class Plateau:
    """Multiplies the rates by `cut` after more than `patience` validations in a row without gain.

    What a gain is, `Gains` says.
    """

    def __init__(self, *, patience: int, cut: float, warmup: int = 0) -> None:
        self._patience = patience
        self._cut = cut
        self._warmup = warmup
        self._gains = Gains()
        self._cuts = 0

    def factor(self, step: int) -> float:
        """Return the warm-up's factor times all cuts so far."""
        return warmed_up(step, warmup=self._warmup) * self._cut**self._cuts

    def update(self, metric: float) -> None:
        """Count a validation, and cut where patience is at its end."""
        if self._gains.add(metric) > self._patience:
            self._cuts, self._gains.idle = self._cuts + 1, 0

    def state_dict(self) -> dict[str, float]:
        """Return the best metric, the validations since, and the number of cuts."""
        return {"best": self._gains.best, "idle": self._gains.idle, "cuts": self._cuts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._gains = Gains(float(state["best"]), int(state["idle"]))
        self._cuts = int(state["cuts"])


def warmed_up(step: int, *, warmup: int) -> float:
    """Return a factor that rises linearly over `warmup` steps to 1 and stays there."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Return the learning-rate factor at `step` of `steps`.

    Rises linearly over `warmup` steps to 1, then falls along half a cosine to `final`.
    """
    if step < warmup:
        return warmed_up(step, warmup=warmup)
    return half_cosine((step - warmup) / max(1, steps - warmup), 1.0, final)


def onecycle(step: int, *, steps: int, rise: float, warmup: int, final: float) -> float:
    """Return the factor of a one-cycle schedule (arXiv 1708.07120) at `step` of `steps`.

    Half a cosine from 1/25 to 1 over the share `rise` of the steps, another from there to `final`,
    with torch's OneCycleLR's corners; a warm-up multiplies its start.
    """
    peak, last = max(0.0, rise * steps - 1), max(1, steps - 1)
    if step < peak:
        factor = half_cosine(step / peak, ONECYCLE_START, 1.0)
    else:
        factor = half_cosine((step - peak) / max(last - peak, 1e-9), 1.0, final)
    return factor * warmed_up(step, warmup=warmup)


def milestones(
    step: int, *, steps: int, places: Sequence[float], factors: Sequence[float], warmup: int
) -> float:
    """Return the factor at `step` of `steps`: 1, then from each place (a share) on its own.

    A warm-up multiplies the start.
    """
    passed = [f for at, f in zip(places, factors, strict=True) if step >= at * steps]
    return warmed_up(step, warmup=warmup) * (passed[-1] if passed else 1.0)


def half_cosine(progress: float, start: float, end: float) -> float:
    """Return the value between start and end of half a cosine, at progress 0 to 1 and beyond."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
