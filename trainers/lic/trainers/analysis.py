"""What the trials of a sweep say: which setting is best, and by what measure that can be said.

Values of val_loss are compared at one lambda alone. Over several, the smallest lambda has the
smallest number whatever the model is worth, and the greatest has the best PSNR.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from lic.codec.benchmark.bd_rate import LEAST_POINTS, bd_rate
from lic.codec.errors import ConfigError
from lic.trainers.config import TrainConfig
from lic.trainers.search_space import MEASURE, Value, told
from lic.trainers.studies import FAILURE, is_lost, plan_of, spare

Setting = tuple[tuple[str, Value], ...]

# Losses with a weight that makes a curve of rate and quality.
_RATED: Final = ("mse", "ms-ssim", "rd")
# Runs that differ in it alone are runs of the same setting.
_REPEATS: Final = "seed"


class Measure(NamedTuple):
    """What val_loss is made of; options that the loss does not have are 0."""

    loss: str
    lmbda: float
    alpha_l1: float
    lambda_bpp: float

    @classmethod
    def of(cls, trial: FrozenTrial, base: TrainConfig) -> "Measure":
        """Return that of a trial whose other options are `base`."""
        values: dict[str, Any] = {**base.loss.to_dict(), **trial.user_attrs}
        loss = values["loss"]
        plain, mixed = loss in ("mse", "ms-ssim"), loss in ("recon", "rd")
        return cls(
            loss,
            float(values["lmbda"]) if plain else 0.0,
            float(values["alpha_l1"]) if mixed else 0.0,
            float(values["lambda_bpp"]) if loss == "rd" else 0.0,
        )

    @property
    def options(self) -> dict[str, Value]:
        """The options that make it, by name."""
        return {name: value for name, value in self._asdict().items() if value != 0.0}

    @property
    def label(self) -> str:
        """What reports call it."""
        return f"lambda {self.lmbda:g}" if self.loss == "mse" else told(self.options)

    @property
    def slug(self) -> str:
        """The same in the names of files."""
        numbers = (f"{value:g}" for value in self[1:] if value)
        return "-".join(([] if self.loss == "mse" else [self.loss]) + list(numbers))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a setting came to at one measure: means over its finished trials.

    Attributes:
        setting: swept options but for those of the measure, and the seed.
        measure: of the loss.
        numbers: of the trials.
        val_loss: plain sum of rate and weighted distortion.
        spread: greatest minus least val_loss of the trials.
        bpp: bits per pixel.
        psnr: dB.
        ms_ssim: of 1.
    """

    setting: Setting
    measure: Measure
    numbers: tuple[int, ...]
    val_loss: float
    spread: float
    bpp: float
    psnr: float
    ms_ssim: float

    @property
    def quality(self) -> float:
        """What the loss is after, in dB: MS-SSIM, 10 log10 of 1 / (1 - it), or PSNR."""
        if self.measure.loss != "ms-ssim":
            return self.psnr
        return -10 * math.log10(1 - self.ms_ssim) if self.ms_ssim < 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A setting against the reference, over all lambdas.

    Attributes:
        setting: which.
        percent: BD-rate, below 0 where it needs fewer bits; None where there is none.
        note: the range of quality it is of, or why there is none.
    """

    setting: Setting
    percent: float | None
    note: str


class Pick(NamedTuple):
    """A setting that is recommended: for one measure, or all (None), and why."""

    measure: Measure | None
    setting: Setting
    reason: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a study says.

    Attributes:
        name: of the study.
        model: key of RECIPES.
        base: options of every trial but for those swept.
        over: what was swept, by name, as --over has it.
        trials: all but the ones that had nothing to do.
        results: of the finished ones, by measure, best first.
        rankings: by the kind of loss, settings with enough lambdas, best first.
        picks: what is recommended.
    """

    name: str
    model: str
    base: TrainConfig
    over: dict[str, str]
    trials: list[FrozenTrial]
    results: dict[Measure, list[Result]]
    rankings: dict[str, list[Ranked]]
    picks: list[Pick]


def find(study: optuna.Study) -> Findings:
    """Return what a study says.

    Raises:
        ConfigError: another program's study, or no trial has finished.
    """
    plan = plan_of(study)
    base = TrainConfig.from_dict(plan["base"])
    over = {str(name): str(text) for name, text in plan["over"].items()}
    trials = [trial for trial in study.get_trials(deepcopy=False) if not spare(trial)]
    found = _results(trials, base, [name for name in over if name not in (*MEASURE, _REPEATS)])
    if not found:
        raise ConfigError(
            f"study {study.study_name}: none of {len(trials)} trials has finished; expected one at "
            "least, so go on with 'lic train sweep'"
        )
    every = base.to_dict()
    default = {name: value for section in every.values() if isinstance(section, dict)
               for name, value in section.items()}  # fmt: skip
    rankings = {}
    for loss in dict.fromkeys(result.measure.loss for result in found):
        ranked = rank([r for r in found if r.measure.loss == loss], default)
        if ranked:
            rankings[loss] = ranked
    grouped = {
        measure: sorted((r for r in found if r.measure == measure), key=lambda r: r.val_loss)
        for measure in sorted({result.measure for result in found})
    }
    return Findings(
        name=study.study_name,
        model=plan["model"],
        base=base,
        over=over,
        trials=trials,
        results=grouped,
        rankings=rankings,
        picks=_picks(grouped, rankings),
    )


def state(trial: FrozenTrial) -> str:
    """Return finished, pruned, failed, running or stopped."""
    if is_lost(trial):
        return "stopped"
    words = {
        TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"
    }  # fmt: skip
    return words.get(trial.state, "running")


def failures(trials: Iterable[FrozenTrial]) -> list[tuple[int, str]]:
    """Return the numbers of failed trials and why they failed."""
    return [(t.number, str(t.user_attrs[FAILURE])) for t in trials if FAILURE in t.user_attrs]


def rank(results: Sequence[Result], default: Mapping[str, Any]) -> list[Ranked]:
    """Return the settings with results at four lambdas or more, the least BD-rate first.

    The reference, at 0 %, is the setting of the defaults where it is among them, else the first
    that was tried. Settings whose curve gives no BD-rate come last; without a reference, or
    anything to set against it, nothing comes.

    Args:
        results: of one kind of loss.
        default: values of options without the sweep.
    """
    settings = list(dict.fromkeys(r.setting for r in sorted(results, key=lambda r: r.numbers)))
    curves = {s: [(r.bpp, r.quality) for r in results if r.setting == s] for s in settings}
    rated = bool(results) and results[0].measure.loss in _RATED
    # A curve that cannot be measured against itself can measure nothing.
    sound = [s for s in settings if rated and _against(s, curves[s], curves[s]).percent is not None]
    if not sound:
        return []
    own = [s for s in sound if all(default.get(name) == value for name, value in s)]
    reference = (own or sound)[0]
    wide = [s for s in settings if len(curves[s]) >= LEAST_POINTS]
    ranked = [_against(s, curves[reference], curves[s]) for s in wide]
    if len(ranked) < 2:
        return []
    first = Ranked(setting=reference, percent=0.0, note="reference")
    others = [r for r in ranked if r.setting != reference]
    return sorted([first, *others], key=lambda r: math.inf if r.percent is None else r.percent)


def _against(
    setting: Setting, anchor: list[tuple[float, float]], tested: list[tuple[float, float]]
) -> Ranked:
    try:
        delta = bd_rate(anchor, tested)
    except ConfigError as error:
        return Ranked(setting=setting, percent=None, note=str(error))
    note = f"{delta.low:.2f} to {delta.high:.2f} dB, {delta.overlap:.0%} of both curves"
    return Ranked(setting=setting, percent=delta.percent, note=note)


def _results(
    trials: Sequence[FrozenTrial], base: TrainConfig, names: Sequence[str]
) -> list[Result]:
    groups: dict[tuple[Measure, Setting], list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            setting = tuple((name, trial.user_attrs[name]) for name in names)
            groups.setdefault((Measure.of(trial, base), setting), []).append(trial)
    return [_result(measure, setting, members) for (measure, setting), members in groups.items()]


def _result(measure: Measure, setting: Setting, trials: Sequence[FrozenTrial]) -> Result:
    def mean(name: str) -> float:
        return fmean(float(trial.user_attrs.get(name, math.nan)) for trial in trials)

    losses = [float(trial.user_attrs["val_loss"]) for trial in trials]
    return Result(
        setting=setting,
        measure=measure,
        numbers=tuple(trial.number for trial in trials),
        val_loss=fmean(losses),
        spread=max(losses) - min(losses),
        bpp=mean("val_bpp"),
        psnr=mean("val_psnr"),
        ms_ssim=mean("val_ms_ssim"),
    )


def _picks(
    results: Mapping[Measure, Sequence[Result]], rankings: Mapping[str, Sequence[Ranked]]
) -> list[Pick]:
    """Return what is recommended: one setting for all where the trials bear that out."""
    losses = {measure.loss for measure in results}
    if len({result.setting for found in results.values() for result in found}) < 2:
        return []
    if len(losses) == 1 and rankings:
        best = next(iter(rankings.values()))[0]
        return [Pick(None, best.setting, f"BD-rate {best.percent:+.2f} %: {best.note}")]
    picks = [
        Pick(measure, found[0].setting, f"least val_loss at {measure.label}")
        for measure, found in results.items()
        if len(found) > 1
    ]
    if len(picks) > 1 and len({pick.setting for pick in picks}) == 1:
        return [Pick(None, picks[0].setting, "least val_loss at every lambda that was swept")]
    return picks
