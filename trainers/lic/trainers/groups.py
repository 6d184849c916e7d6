"""Groups of layers: which learn, from which step on, how fast, and which stop before the others.

A key of an option is a group, or the name of a module or parameter in the model, such as "g_a.0".
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from torch import nn

from lic.codec.errors import ConfigError
from lic.trainers.objective_options import SCALES, FinetuneConfig
from lic.trainers.schedules import Gains

TRANSFORMS: Final = ("g_a", "g_s", "h_a", "h_s")
GROUPS: Final = (*TRANSFORMS, "context", "entropy")
# By the first part of a parameter's name, or by how that starts.
CONTEXT: Final = ("y_spatial_prior", "adaptive_params_list", "attn_", "context_net")
ENTROPY: Final = ("means_hyper", "scales_hyper", "entropy_estimation", "entropy_bottleneck")
# Modules of HPCM that work for one scale, and those that work for several.
OF_SCALE: Final = {
    ("s1",): ("y_spatial_prior_adaptor_list_s1.", "attn_s1.", "adaptive_params_list.0"),
    ("s2",): (
        "y_spatial_prior_adaptor_list_s2.",
        "attn_s2.",
        "context_net.0.",
        *(f"adaptive_params_list.{step}" for step in (1, 2, 3)),
    ),
    ("s3",): (
        "y_spatial_prior_adaptor_list_s3.",
        "attn_s3.",
        "y_spatial_prior_s3.",
        "context_net.1.",
        *(f"adaptive_params_list.{step}" for step in (4, 5, 6, 7, 8, 9)),
    ),
    ("s1", "s2"): ("y_spatial_prior_s1_s2.",),
}


def group_of(name: str) -> str:
    """Return the group of a parameter of HPCM or a bmshj2018.

    Raises:
        ConfigError: it belongs to none.
    """
    group = _group(name)
    if group is None:
        raise ConfigError(
            f"parameter {name!r} belongs to no group of layers; expected one of HPCM or of "
            "bmshj2018. Name modules instead of groups"
        )
    return group


def _group(name: str) -> str | None:
    first = name.partition(".")[0]
    if first in TRANSFORMS:
        return first
    if first.startswith(CONTEXT):
        return "context"
    return "entropy" if first in ENTROPY else None


class Plan:
    """Which parameters of a model learn when, and at which share of the learning rate.

    Where several keys mean a parameter, the longest module's name decides, and a group least. What
    had no gradient before stays so. What is never let go has none from now on; what is let go later
    has one from the start, so that optimisers and other processes know it, and `hold` keeps it.

    Args:
        model: `requires_grad` of its parameters changes.
        config: the options.
        steps: of the run, from 1.

    Raises:
        ConfigError: a key that the model does not have, a number that cannot work, a thing that is
            frozen and scaled, or let go without being frozen, or nothing that learns at the start.
    """

    def __init__(self, model: nn.Module, config: FinetuneConfig, steps: int) -> None:
        self._names = _Names(model)
        begins = self._begins_of(config, steps)
        self._factors = self._factors_of(config, begins)
        if begins:
            self._check_learners(begins)
        self._begins = begins
        # After it, nothing is held any more.
        self._last = max((b for b in begins.values() if math.isfinite(b)), default=0.0)
        for name, parameter in model.named_parameters():
            if begins.get(name) == math.inf:
                parameter.requires_grad_(False)

    def _begins_of(self, config: FinetuneConfig, steps: int) -> dict[str, float]:
        """Return the first step of each frozen parameter; infinity for never."""
        frozen = [part.strip() for part in config.freeze.split(",") if config.freeze.strip()]
        begins = {name: math.inf for key in frozen for name in self._names.under(key, "--freeze")}
        shares = _pairs(config.unfreeze, "--unfreeze", "h_a=0.2,h_s=0.5")
        for key, share in sorted(shares.items(), key=_weight):
            if not 0 < share < 1:
                raise ConfigError(
                    f"--unfreeze has {key}={share:g}; expected a share of the run above 0 and "
                    "below 1. What is to stay frozen needs --freeze alone"
                )
            names = self._names.learning(key, "--unfreeze")
            awake = [name for name in names if name not in begins]
            if awake:
                raise ConfigError(
                    f"--unfreeze has {key}, but --freeze leaves {awake[0]} free; expected layers "
                    f"that are frozen. Add {key} to --freeze"
                )
            # Not a step later where 0.1 times 30 is a little more than 3.
            first = min(steps - 1, math.floor(share * steps + 1e-9))
            begins |= dict.fromkeys(names, float(first))
        return begins

    def _factors_of(self, config: FinetuneConfig, begins: Mapping[str, float]) -> dict[str, float]:
        factors: dict[str, float] = {}
        scales = _pairs(config.lr_scale, "--lr-scale", "context=1.0,entropy=0.1")
        for key, factor in sorted(scales.items(), key=_weight):
            if not 0 < factor < math.inf:
                raise ConfigError(
                    f"--lr-scale has {key}={factor:g}; expected a number above 0. To keep layers "
                    "as they are, use --freeze"
                )
            names = self._names.learning(key, "--lr-scale")
            if all(begins.get(name) == math.inf for name in names):
                raise ConfigError(
                    f"--lr-scale has {key}, which --freeze keeps as it is; expected one of both. "
                    "Take it out of one, or say with --unfreeze when it begins"
                )
            factors |= dict.fromkeys(names, factor)
        return factors

    def _check_learners(self, begins: Mapping[str, float]) -> None:
        # Quantiles do not count: no loss but their own moves them.
        learners = [name for name in self._names.open if not name.endswith("quantiles")]
        first = min((begins.get(name, 0.0) for name in learners), default=math.inf)
        if first > 0:
            until = f"before step {first:.0f}" if math.isfinite(first) else "in the whole run"
            raise ConfigError(
                f"nothing to train {until}: --freeze holds all that could learn; expected some "
                "layers that learn from the start. Take a group out of --freeze"
            )

    def frozen_at(self, step: int) -> frozenset[str]:
        """Return the parameters that --freeze holds at `step`, counted from 0."""
        return frozenset(name for name, first in self._begins.items() if step < first)

    def factor(self, name: str) -> float:
        """Return what a parameter's learning rate is multiplied by; without --lr-scale, 1."""
        assert name in self._names.all, name
        return self._factors.get(name, 1.0)

    def hold(self, step: int, model: nn.Module, stopped: Iterable[str] = ()) -> None:
        """Set the gradients of what does not learn at `step` to None.

        Call it after backward and before the optimisers' step; before clipping, too, or gradients
        that move nothing would shorten the others.

        None is not zero. Adam, SOAP and Muon pass over a parameter whose gradient is None: no
        move, no weight decay, no averages, so that none are stale when it is let go. Zeros would
        let weights decay and would be counted: Adam would take its averages for settled, and the
        first true step after thousands of zeros would have 0.1 / sqrt(0.001) = 3.2 times the
        learning rate. Without them Adam, which counts steps per parameter, begins as in a new run.
        SOAP counts for all at once and so does not correct fresh averages: its first step has
        0.05 / sqrt(0.05) = 0.22 times the learning rate, a third of a new run's, and its bases are
        those of the first true gradient.

        Args:
            step: counted from 0.
            model: the one of the plan, not wrapped.
            stopped: how names of further parameters begin, such as `ScaleStopping.stopped()`.
        """
        prefixes = tuple(stopped)
        if step >= self._last and not prefixes:
            return
        frozen = self.frozen_at(step)
        for name, parameter in model.named_parameters():
            if name in frozen or name.startswith(prefixes):
                parameter.grad = None


class ScaleStopping:
    """Says which layers of HPCM may stop because the bits of their scale no longer fall.

    A scale stops for good after `patience` validations in a row without a gain, see `Gains`.

    Args:
        patience: from 1; 0 stops nothing.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._gains = {scale: Gains() for scale in SCALES}
        self._stopped: set[str] = set()

    def observe(self, bits: Mapping[str, float]) -> None:
        """Take notice of a validation: bits, or bits per pixel, of s1, s2 and s3."""
        for scale in SCALES:
            if 0 < self._patience <= self._gains[scale].add(float(bits[scale])):
                self._stopped.add(scale)

    def stopped(self) -> frozenset[str]:
        """Return how the names of parameters that have stopped begin, such as "attn_s1."."""
        done = [names for scales, names in OF_SCALE.items() if self._stopped.issuperset(scales)]
        return frozenset(name for names in done for name in names)

    def state_dict(self) -> dict[str, Any]:
        """Return the least bits, the validations since, and the scales that stopped."""
        return {
            "best": {scale: gains.best for scale, gains in self._gains.items()},
            "idle": {scale: gains.idle for scale, gains in self._gains.items()},
            "stopped": sorted(self._stopped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._gains = {
            scale: Gains(float(state["best"][scale]), int(state["idle"][scale])) for scale in SCALES
        }
        self._stopped = set(state["stopped"])


class _Names:
    """The names of a model's parameters, and what keys mean of them.

    Attributes:
        all: names of all of them.
        open: of those that have gradients before the plan.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = getattr(model, "name", type(model).__name__)
        self.all = [name for name, _ in model.named_parameters()]
        self.open = {name for name, p in model.named_parameters() if p.requires_grad}

    def under(self, key: str, option: str) -> list[str]:
        """Return the parameters of a group, a module, or of that name.

        Raises:
            ConfigError: there is none.
        """
        if key in GROUPS:
            found = [name for name in self.all if group_of(name) == key]
        else:
            found = [name for name in self.all if name == key or name.startswith(f"{key}.")]
        if not found:
            groups = {group: None for name in self.all if (group := _group(name))}
            raise ConfigError(
                f"{option} has {key!r}, under which {self._model} has no parameters; expected one "
                f"of {', '.join(groups)}, or the name of a module such as {self._example()}"
            )
        return found

    def learning(self, key: str, option: str) -> list[str]:
        """Return those of `under` that have gradients.

        Raises:
            ConfigError: there is none.
        """
        found = [name for name in self.under(key, option) if name in self.open]
        if not found:
            raise ConfigError(
                f"{option} has {key!r}, which does not learn in this run; expected layers that "
                "--train-scope and --freeze-entropy leave free. Take it out, or widen these"
            )
        return found

    def _example(self) -> str:
        """Return the name of a module, of one within a group where there is one."""
        return max(self.all, key=lambda name: name.count(".") == 2).rpartition(".")[0]


def _pairs(text: str, option: str, example: str) -> dict[str, float]:
    """Return the keys and numbers of an option such as "h_a=0.2,h_s=0.5".

    Raises:
        ConfigError: something else stands there, or a key twice.
    """
    found: dict[str, float] = {}
    for part in text.split(",") if text.strip() else ():
        key, _, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not key or math.isnan(value):
            raise ConfigError(f"{option} has {part!r}; expected a name and a number: {example}")
        if key in found:
            raise ConfigError(f"{option} has {key} twice; expected it once. Take one out")
        found[key] = value
    return found


def _weight(pair: tuple[str, float]) -> tuple[bool, int]:
    """Return what sorts groups before modules and these before their own modules."""
    key, _ = pair
    return key not in GROUPS, key.count(".")
