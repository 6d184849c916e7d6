"""What a trial of a sweep is given and tells: its options, and its validations."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from lic.codec.errors import TrainingError
from lic.trainers.config import TrainConfig
from lic.trainers.search_space import Dimension, Value

Say = Callable[[str], object]

# Share of a run before which no trial is compared with others.
WARMUP: Final = 0.25


class Validations:
    """Keeps the last validation of a trial, and ends a trial where others were better by then.

    Attributes:
        config: of the trial.
        last: val_loss, val_bpp, val_psnr, val_ms_ssim and more, as far as they are finite.
    """

    def __init__(
        self,
        trial: optuna.Trial,
        config: TrainConfig,
        *,
        prunes: bool,
        say: Say = lambda _: None,
    ) -> None:
        self.config = config
        self.last: dict[str, float] = {}
        self._trial = trial
        self._prunes = prunes
        self._say = say
        self._epoch = 0.0
        self._step = -1
        self._seen = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take a validation.

        Raises:
            optuna.TrialPruned: the median of other trials at this step is better.
        """
        self._epoch = values.get("epoch", self._epoch)
        if "val_loss" not in values or step <= self._step:
            return
        self._seen, self._step = True, step
        found = {name: float(value) for name, value in values.items() if name.startswith("val_")}
        self.last = {name: value for name, value in found.items() if math.isfinite(value)}
        if "val_loss" not in self.last:
            return
        self._say(f"trial {self._trial.number}, step {step}: {measured(self.last)}")
        self._trial.report(self.last["val_loss"], step)
        # What is at its end may as well be kept.
        if self._prunes and WARMUP <= self._share() < 1 and self._trial.should_prune():
            self._say(f"trial {self._trial.number}: pruned at step {step}")
            raise optuna.TrialPruned

    def _share(self) -> float:
        run = self.config.run
        return self._epoch / run.epochs if run.epochs else self._step / run.steps

    def value(self) -> float:
        """Return the last val_loss.

        Raises:
            TrainingError: there is none, or it is not finite.
        """
        if not self._seen:
            raise TrainingError("no validation was made; expected pictures, so name --set val=DIR")
        if "val_loss" not in self.last:
            raise TrainingError("the last val_loss is not finite")
        return self.last["val_loss"]

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Leave pictures to the run's own trackers."""

    def close(self) -> None:
        """Do nothing: all was told at once."""


class TrialSampler(optuna.samplers.BaseSampler):
    """Gives a trial the values that it took on, and samples the others.

    Each trial has random numbers of its own, by its number: with those of a process, all processes
    would propose the same, and one that goes on what it did before.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self.fixed: Mapping[str, Value] = {}
        self._kind = kind
        self._seed = seed
        self._number = -1
        self._inner: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed)

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return nothing: what is fixed is known only later."""
        return {}

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value that is fixed, or a new one."""
        if param_name in self.fixed:
            return self.fixed[param_name]
        if trial.number != self._number:
            self._number = trial.number
            self._inner = self._fresh((self._seed * 1_000_003 + trial.number) % 2**32)
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def _fresh(self, seed: int) -> optuna.samplers.BaseSampler:
        if self._kind != "tpe":
            return optuna.samplers.RandomSampler(seed)
        # Running trials of other processes count as bad, so that two do not try the same.
        with warnings.catch_warnings(action="ignore"):
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def suggested(trial: optuna.Trial, dimension: Dimension) -> Value:
    """Return a trial's value of an option, and write it down as one of its parameters."""
    if not dimension.is_range:
        chosen = trial.suggest_categorical(dimension.name, dimension.values)
        assert chosen is not None
        return chosen
    low, high = dimension.values
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(dimension.name, low, high, log=dimension.log)
    assert isinstance(low, float) and isinstance(high, float)
    return trial.suggest_float(dimension.name, low, high, log=dimension.log)


def measured(values: Mapping[str, float]) -> str:
    """Return a validation as a text, such as "val_loss 1.2345, 0.4321 bpp, 31.20 dB"."""
    units = (("val_loss", "val_loss {:.4f}"), ("val_bpp", "{:.4f} bpp"), ("val_psnr", "{:.2f} dB"))
    return ", ".join(text.format(values[name]) for name, text in units if name in values)
