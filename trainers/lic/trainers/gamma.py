"""How fast task weights forget in the course of a run: schedules of gamma.

gamma draws the logits of the weights back to their prior; they remember about 1 / (w_lr gamma)
steps. A higher gamma of a task makes its weight more neutral, not larger.

A *position* is an epoch on the scale of upstream's run of 3,000: half of any run is 1,500. Knots,
milestones and warm-ups are positions. During a warm-up and after the end, values hold.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol

import numpy as np

from lic.codec.errors import ConfigError
from lic.trainers.objective_options import EPOCHS, SCALES, GammaConfig
from lic.trainers.schedules import half_cosine
from lic.trainers.sections import numbers

# Above this many thresholds, losses vary enough for a higher gamma.
UNEVEN: Final = 5.0
# How far above its start an adaptive gamma may come.
HIGHEST: Final = 1.5
# Two tasks: what the base is multiplied by. Per scale: what a validation multiplies gamma by.
LOWERED, RAISED = 0.8, 1.2
SCALE_LOWERED, SCALE_RAISED = 0.95, 1.02
# Upstream also holds gamma for 100 epochs, which all lie before the first of these.
HALVINGS: Final = (500.0, 1500.0, 2750.0)
HALVED_FLOOR: Final = 0.0005
# A rise by a fifth, a fall to the half, a slow end.
HPCM_KNOTS: Final = (0.0, 300.0, 2000.0, 3000.0)
HIERARCHICAL_KNOTS: Final = (0.0, 300.0, 1500.0, 2500.0, 3000.0)
HIERARCHICAL: Final = (
    (1.0, 1.2, 0.9, 0.7, 0.5),
    (0.8, 0.8, 1.1, 0.8, 0.5),
    (0.6, 0.6, 1.0, 1.1, 1.3),
)

Curve = Callable[[float], float]


class GammaSchedule(Protocol):
    """Gives the gammas of an epoch; may look at validations and progress, and keeps what it took.

    There is one gamma for both of two tasks, or one each for s1, s2, s3.
    """

    def at(self, epoch: float, epochs: float) -> tuple[float, ...]:
        """Return the gammas at `epoch`, counted from 0, of a run of `epochs`."""
        ...

    def observe_validation(self, loss: float, scale_losses: Sequence[float] = ()) -> None:
        """Take notice of a validation's loss, and of what s1, s2, s3 have in it."""
        ...

    def observe_progress(self, delta: Sequence[float]) -> None:
        """Take notice of what a step gained: the fall of each task's log loss."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as numbers and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


class Timed:
    """Gammas that depend on the position alone, a curve each."""

    def __init__(self, curves: Iterable[Curve]) -> None:
        self._curves = tuple(curves)

    def at(self, epoch: float, epochs: float) -> tuple[float, ...]:
        """Return the curves' values."""
        place = position(epoch, epochs)
        return tuple(curve(place) for curve in self._curves)

    def observe_validation(self, loss: float, scale_losses: Sequence[float] = ()) -> None:
        """Nothing: validations do not matter."""

    def observe_progress(self, delta: Sequence[float]) -> None:
        """Nothing: progress does not matter."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""


class _Steered(Timed):
    """The cosine times a factor that observations set, from the end's value to 1.5 times the start.

    The factor is 1 until the first window of observations is full, and acts after the warm-up.
    """

    def __init__(self, config: GammaConfig) -> None:
        self._start, self._end = config.gamma_initial, config.gamma_final
        self._warmup = config.gamma_warmup
        self._window = config.gamma_window
        super().__init__([partial(cosine, start=self._start, end=self._end, warmup=self._warmup)])
        self._seen: list[float] = []
        self._factor = 1.0

    def at(self, epoch: float, epochs: float) -> tuple[float, ...]:
        """Return the one gamma."""
        base = super().at(epoch, epochs)
        if position(epoch, epochs) < self._warmup:
            return base
        return tuple(_clipped(self._factor * b, self._end, HIGHEST * self._start) for b in base)

    def state_dict(self) -> dict[str, Any]:
        """Return the observations and the factor."""
        return {"seen": list(self._seen), "factor": self._factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._seen = [float(value) for value in state["seen"]]
        self._factor = float(state["factor"])


class Adaptive(_Steered):
    """Lower where the last validations were even, higher where they were uneven.

    Their variation is the standard deviation over the mean's absolute value. Below the threshold,
    the factor is 0.8; above five times it, 1.2. Losses that are not finite are left out. A
    heuristic: that even losses should make weights forget less has no theory behind it.
    """

    def __init__(self, config: GammaConfig) -> None:
        super().__init__(config)
        self._threshold = config.gamma_threshold

    def observe_validation(self, loss: float, scale_losses: Sequence[float] = ()) -> None:  # noqa: ARG002
        """Take up the loss; the scales' parts do not matter."""
        if not math.isfinite(loss):
            return
        self._seen = [*self._seen, float(loss)][-self._window :]
        if len(self._seen) == self._window:
            trend = _trend(self._seen, self._threshold)
            self._factor = {-1: LOWERED, 0: 1.0, 1: RAISED}[trend]


class AdaptiveSnr(_Steered):
    """Lower where one task clearly gains more than the other, higher where noise hides it.

    Clearly: over a window of steps that were looked at, the mean of delta_1 - delta_2 is more than
    two standard errors from zero. Then weights have something to learn and to remember: the factor
    is 0.8, else 1.2. It is decided once per window, of steps that no earlier decision saw; windows
    that overlap would count the same noise again and again. Deltas that are no finite numbers are
    left out.
    """

    def observe_progress(self, delta: Sequence[float]) -> None:
        """Take up the difference of two tasks' gains."""
        first, second = delta
        if not math.isfinite(first - second):
            return
        self._seen.append(float(first - second))
        if len(self._seen) < self._window:
            return
        mean, deviation = _moments(self._seen)
        # Of a sample: the window's own deviation is too small by this.
        error = deviation / math.sqrt(self._window - 1)
        self._factor = LOWERED if abs(mean) > 2 * error else RAISED
        self._seen = []


class ScaleAdaptive(Timed):
    """Gammas per scale that every validation multiplies once the window is full.

    By 0.95 where the scale's losses varied less than the threshold, by 1.02 where they varied more
    than five times it, from the end's value to 1.5 times the start. During the warm-up losses are
    collected, and gammas hold. Losses of a scale that are not finite are left out.
    """

    def __init__(
        self,
        ends: Sequence[tuple[float, float]],
        *,
        window: int,
        threshold: float,
        warmup: float = 0.0,
    ) -> None:
        super().__init__(())
        self._bounds = [(end, HIGHEST * start) for start, end in ends]
        self._window = window
        self._threshold = threshold
        self._warmup = warmup
        self._moves = warmup == 0
        self._gammas = [float(start) for start, _ in ends]
        self._losses: list[list[float]] = [[] for _ in ends]

    def at(self, epoch: float, epochs: float) -> tuple[float, ...]:
        """Return the gammas as validations have left them.

        Also takes notice of the warm-up's end: validations come without an epoch.
        """
        self._moves = self._moves or position(epoch, epochs) >= self._warmup
        return tuple(self._gammas)

    def observe_validation(self, loss: float, scale_losses: Sequence[float] = ()) -> None:  # noqa: ARG002
        """Take up the scales' losses, one each; the whole does not matter."""
        assert len(scale_losses) == len(self._gammas), "a loss for each scale"
        for scale, value in enumerate(scale_losses):
            if math.isfinite(value):
                self._losses[scale] = [*self._losses[scale], float(value)][-self._window :]
                self._move(scale)

    def _move(self, scale: int) -> None:
        losses = self._losses[scale]
        if self._moves and len(losses) == self._window:
            trend = _trend(losses, self._threshold)
            factor = {-1: SCALE_LOWERED, 0: 1.0, 1: SCALE_RAISED}[trend]
            self._gammas[scale] = _clipped(factor * self._gammas[scale], *self._bounds[scale])

    def state_dict(self) -> dict[str, Any]:
        """Return gammas, the losses that were seen, and whether the warm-up is over."""
        losses = [list(values) for values in self._losses]
        return {"gammas": list(self._gammas), "losses": losses, "moves": self._moves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._gammas = [float(gamma) for gamma in state["gammas"]]
        self._losses = [[float(value) for value in values] for values in state["losses"]]
        self._moves = bool(state["moves"])


def position(epoch: float, epochs: float) -> float:
    """Return where `epoch` of `epochs` lies between 0 and 3,000; the end, if behind it."""
    # In this order, whole epochs meet milestones exactly.
    return min(EPOCHS, epoch * EPOCHS / epochs)


def fixed(_: float, *, value: float) -> float:
    """Return the value, wherever."""
    return value


def linear(place: float, *, start: float, end: float, warmup: float = 0.0) -> float:
    """Return the value on a line from `start` at the warm-up's end to `end`."""
    return start + (end - start) * _progress(place, warmup)


def cosine(place: float, *, start: float, end: float, warmup: float = 0.0) -> float:
    """Return the value on half a cosine from `start` at the warm-up's end to `end`."""
    return half_cosine(_progress(place, warmup), start, end)


def stepped(
    place: float, *, start: float, low: float, milestones: Sequence[float], factor: float
) -> float:
    """Return `start` times `factor` for each milestone reached, but no less than `low`."""
    return max(low, start * factor ** sum(milestone <= place for milestone in milestones))


def knots(place: float, *, places: Sequence[float], values: Sequence[float]) -> float:
    """Return the value on straight lines through the knots."""
    return float(np.interp(place, places, values))


def _progress(place: float, warmup: float) -> float:
    return _clipped((place - warmup) / (EPOCHS - warmup), 0.0, 1.0)


def _clipped(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation of what was seen, not of what it is a sample of."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


def _trend(losses: Sequence[float], threshold: float) -> int:
    """Return -1 for even losses, 1 for uneven ones, 0 between."""
    mean, deviation = _moments(losses)
    variation = deviation / (abs(mean) + 1e-8)
    return -1 if variation < threshold else int(variation > UNEVEN * threshold)


def _two_moving(curve: Callable[..., float], c: GammaConfig) -> GammaSchedule:
    start, end = c.gamma_initial, c.gamma_final
    return Timed([partial(curve, start=start, end=end, warmup=c.gamma_warmup)])


def _two_stepped(c: GammaConfig) -> GammaSchedule:
    marks, start, low = numbers(c.gamma_milestones), c.gamma_initial, c.gamma_final
    _refuse_rise(c, "--gamma-initial", start, "--gamma-final", low)
    return Timed([partial(stepped, start=start, low=low, milestones=marks, factor=c.gamma_factor)])


def _two_halvings(c: GammaConfig) -> GammaSchedule:
    start, low = c.gamma_initial, HALVED_FLOOR
    _refuse_rise(c, "--gamma-initial", start, "its floor", low)
    return Timed([partial(stepped, start=start, low=low, milestones=HALVINGS, factor=0.5)])


def _two_hpcm(c: GammaConfig) -> GammaSchedule:
    start, end = c.gamma_initial, c.gamma_final
    values = (start, 1.2 * start, 0.5 * start, end)
    return Timed([partial(knots, places=HPCM_KNOTS, values=values)])


def _two_steered(kind: type[_Steered], c: GammaConfig) -> GammaSchedule:
    _refuse_rise(c, "--gamma-initial", c.gamma_initial, "--gamma-final", c.gamma_final)
    return kind(c)


def _scale_ends(c: GammaConfig) -> list[tuple[float, float]]:
    """Return start and end of each scale."""
    starts = numbers(c.scale_gammas)
    ends = numbers(c.scale_gammas_final) or tuple(0.5 * start for start in starts)
    return list(zip(starts, ends, strict=True))


def _scale_moving(curve: Callable[..., float], c: GammaConfig) -> GammaSchedule:
    warmup = c.gamma_warmup
    return Timed(partial(curve, start=s, end=e, warmup=warmup) for s, e in _scale_ends(c))


def _scale_adaptive(c: GammaConfig) -> GammaSchedule:
    for scale, (start, end) in zip(SCALES, _scale_ends(c), strict=True):
        _refuse_rise(c, f"--scale-gammas of {scale}", start, "--scale-gammas-final", end)
    return ScaleAdaptive(
        _scale_ends(c),
        window=c.gamma_window,
        threshold=c.gamma_threshold,
        warmup=c.gamma_warmup,
    )


def _scale_hierarchical(c: GammaConfig) -> GammaSchedule:
    pairs = zip(numbers(c.scale_gammas), HIERARCHICAL, strict=True)
    return Timed(
        partial(knots, places=HIERARCHICAL_KNOTS, values=[start * factor for factor in factors])
        for start, factors in pairs
    )


def _refuse_rise(c: GammaConfig, name: str, start: float, low_name: str, low: float) -> None:
    """Refuse a lower bound above the start: gamma would jump there."""
    if low > start:
        raise ConfigError(
            f"{name} is {start:g} and {low_name} {low:g}, which --gamma-schedule "
            f"{c.gamma_schedule} never goes below; expected a start of at least {low:g}"
        )


Build = Callable[[GammaConfig], GammaSchedule]

TWO_TASK: Final[dict[str, Build]] = {
    "fixed": lambda c: Timed([partial(fixed, value=c.gamma)]),
    "linear": partial(_two_moving, linear),
    "cosine": partial(_two_moving, cosine),
    "step": _two_stepped,
    "adaptive": partial(_two_steered, Adaptive),
    "hpcm": _two_hpcm,
    "hpcm_step": _two_halvings,
    "adaptive_snr": partial(_two_steered, AdaptiveSnr),
}
PER_SCALE: Final[dict[str, Build]] = {
    "fixed": lambda c: Timed(partial(fixed, value=start) for start, _ in _scale_ends(c)),
    "linear": partial(_scale_moving, linear),
    "cosine": partial(_scale_moving, cosine),
    "adaptive": _scale_adaptive,
    "hierarchical": _scale_hierarchical,
}


def build_gamma(config: GammaConfig, *, per_scale: bool) -> GammaSchedule:
    """Return the schedule of `--gamma-schedule`.

    Args:
        config: the options.
        per_scale: gammas for s1, s2, s3, of --objective hierarchical; else one for two tasks.

    Raises:
        ConfigError: there is no such schedule per scale or for two tasks, or its lower bound lies
            above its start.
    """
    known = PER_SCALE if per_scale else TWO_TASK
    if config.gamma_schedule not in known:
        mode = "hierarchical" if per_scale else "balanced"
        raise ConfigError(
            f"--gamma-schedule is {config.gamma_schedule}, which --objective {mode} does not have; "
            f"expected one of {', '.join(known)}"
        )
    return known[config.gamma_schedule](config)
