"""Objectives that weigh tasks by their relative progress instead of adding them up."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lic.codec.errors import ConfigError, TrainingError
from lic.trainers.balance import TaskWeights, gram_matrix, min_norm
from lic.trainers.config import LossConfig
from lic.trainers.gamma import GammaSchedule, build_gamma
from lic.trainers.losses import Terms
from lic.trainers.objective import Objective, RateDistortion, build_objective
from lic.trainers.objective_options import SCALES, GammaConfig, ObjectiveConfig
from lic.trainers.sections import numbers
from lic.trainers.tasks import Tasks, exact5, exact7, fixed5, two_tasks

Position = Callable[[int], tuple[float, float]]
Reduce = Callable[[Tensor], Tensor]


class Balanced:
    """sum_i omega_i L_i, omega without gradient, which follows sum_i z_i log(L_i - m_i).

    The weights add up to one, so that gradients are those of the plain sum divided by about K; its
    value means nothing: schedules, validation and what is called best go by the plain sum.

    Args:
        standard: the plain sum, for logs.
        tasks: what is weighed.
        weights: their logits.
        gamma: how fast these forget.
        position: gives epoch and epochs of the run at a step.
        update_every: steps between looks at what a step did.
        reduce: means over all processes.
    """

    def __init__(
        self,
        standard: RateDistortion,
        tasks: Tasks,
        weights: TaskWeights,
        gamma: GammaSchedule,
        position: Position,
        *,
        update_every: int = 1,
        reduce: Reduce = lambda losses: losses,
    ) -> None:
        self.standard = standard
        self.tasks = tasks
        self.weights = weights
        self.splits = tasks.split
        self._gamma = gamma
        self._position = position
        self._every = update_every
        self._reduce = reduce
        self._distortion = tasks.distortion
        self._lmbda = standard.lmbda
        self._values: dict[str, float | Tensor] = {}

    @property
    def formula(self) -> str:
        """The tasks, how they are weighed, and the plain sum."""
        return f"{', '.join(self.tasks.names)} {self._solver}, of {self.standard.formula}"

    @property
    def _solver(self) -> str:
        return "by progress (FAMO)" if self.weights.learns else "with fixed weights"

    @property
    def extra_weight(self) -> float:
        """What a penalty besides is multiplied by, to keep its place beside the tasks."""
        return 1 / len(self.tasks.names)

    def loss(self, terms: Terms, step: int) -> Tensor:
        """Return the weighted sum of a batch's losses.

        Raises:
            TrainingError: a loss is not above its lower bound.
        """
        losses, plain = self.tasks.of(terms), self.standard.loss(terms, step)
        means = self._reduce(losses.detach())
        if not bool(torch.isfinite(means).all()):
            # Nothing to weigh; whoever takes the step sees that it is of no use.
            return plain
        omega = self.weights.weigh(means)
        self._note(means, omega, step)
        self._values["loss"] = plain.detach()
        return (omega.to(losses) * losses).sum()

    def _note(self, means: Tensor, omega: Tensor, step: int) -> None:
        """Keep what the logs have to say of a step."""
        plain, found = means.double().cpu(), self._distortion
        shares = omega * plain
        # By how much a distortion weighs more than a rate, on the whole; of two tasks their ratio.
        distortion = self.tasks.kept * shares[found].sum() / plain[found].sum()
        ratio = distortion / (shares[~found].sum() / plain[~found].sum())
        logits = self.weights.logits.detach()
        self._values = {
            **self.standard.values(),
            "lambda_eff": self._lmbda * float(ratio),
            **self._named("loss", plain.tolist()),
            **self._named("z", self.weights.shares.tolist()),
            # Gammas that differ move all of them together, which no weight depends on.
            **self._named("logit", (logits - logits.mean()).tolist()),
            **self._named("omega", omega.tolist()),
            **self._named("share", (shares / shares.sum()).tolist()),
            **self._named("progress", self.weights.progress.tolist()),
            **self._named("gamma", self._gammas(step)),
        }

    def _named(self, kind: str, values: Sequence[float]) -> dict[str, float]:
        return {f"{kind}/{name}": v for name, v in zip(self.tasks.names, values, strict=True)}

    def _gammas(self, step: int) -> list[float]:
        by_scale = self._gamma.at(*self._position(step))
        return [by_scale[min(scale, len(by_scale) - 1)] for scale in self.tasks.scales]

    def looks_again(self, step: int) -> bool:
        """Return whether the weights learn from what the step does."""
        return self.weights.learns and (step + 1) % self._every == 0

    def look(self, terms: Terms, step: int) -> None:
        """Learn from the terms of the same batch after the step.

        Raises:
            TrainingError: a loss is not above its lower bound.
        """
        after = self._reduce(self.tasks.of(terms).detach())
        if not bool(torch.isfinite(after).all()):
            # The next forward pass meets it as well, and says which batch it is.
            self.forget()
            return
        gammas = torch.tensor(self._gammas(step), dtype=torch.float64)
        delta = self.weights.learn(after, gammas)
        self._gamma.observe_progress(delta.tolist())
        self._values |= self._named("delta", delta.tolist())

    def forget(self) -> None:
        """Drop what a step was weighed by: it was not taken."""
        self.weights.forget()

    def observe(self, values: Mapping[str, float]) -> None:
        """Take notice of a validation."""
        scales = [values[f"val_bpp_{s}"] for s in SCALES if f"val_bpp_{s}" in values]
        self._gamma.observe_validation(values["val_loss"], scales)

    def values(self) -> dict[str, float | Tensor]:
        """Return what is to be logged of the last step."""
        return self._values

    def state_dict(self) -> dict[str, Any]:
        """Return logits, Adam's state, and the schedule's."""
        return {"weights": self.weights.state_dict(), "gamma": self._gamma.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave.

        Raises:
            TrainingError: the state is of a run with another objective.
        """
        if state.keys() != {"weights", "gamma"}:
            raise TrainingError("the checkpoint has no task weights: it is of another --objective")
        self.weights.load_state_dict(state["weights"])
        self._gamma.load_state_dict(state["gamma"])


class MinNorm(Balanced):
    """Weights in closed form: the shortest convex combination of both log-gradients.

    That direction makes neither task worse (Balanced R-D's quadratic program, with weights held to
    [0, 1]). The loop gives the gradients, see `weigh_gradients`.
    """

    _solver = "by gradients (QP)"

    def loss(self, terms: Terms, step: int) -> Tensor:
        """Return the plain sum: what is weighed waits for the gradients."""
        return self.standard.loss(terms, step)

    def losses(self, terms: Terms) -> Tensor:
        """Return the losses (2,), with gradients."""
        return self.tasks.of(terms)

    def weigh_gradients(
        self, losses: Tensor, gradients: Sequence[Sequence[Tensor | None]], step: int
    ) -> Tensor:
        """Return omega (2,) from the losses (2,) and each task's gradients by parameter.

        Raises:
            TrainingError: a loss is not above its lower bound.
        """
        means = self._reduce(losses.detach()).double().cpu()
        margins = means - self.weights.min_losses
        self.weights.weigh(means)
        # The gradient of a logarithm is that of the loss divided by it.
        gram = gram_matrix(gradients) / torch.outer(margins, margins)
        weights = min_norm(gram) / margins
        omega = weights / weights.sum()
        self._note(means, omega, step)
        return omega


def build_training_objective(
    loss: LossConfig,
    options: ObjectiveConfig,
    gamma: GammaConfig,
    position: Position,
    *,
    reduce: Reduce = lambda losses: losses,
) -> Objective:
    """Return the objective of --objective, of which --loss is the plain sum.

    Raises:
        ConfigError: options that do not go together.
    """
    standard = build_objective(loss)
    if options.objective == "standard":
        return standard
    if not isinstance(standard, RateDistortion):
        raise ConfigError(
            f"--objective {options.objective} needs a rate and one distortion; --loss is "
            f"{loss.loss}, expected mse or ms-ssim"
        )
    tasks = _tasks(standard.distortion, loss, options)
    names = tasks.names
    lows = numbers(options.min_losses)
    if len(lows) == 1:
        lows = lows * len(names)
    if len(lows) != len(names):
        raise ConfigError(
            f"--min-losses has {len(lows)} numbers; expected 1, or {len(names)} for the tasks "
            f"{', '.join(names)}"
        )
    per_scale = options.objective == "hierarchical"
    weights = TaskWeights(
        names,
        lows,
        lr=options.w_lr,
        prior=_prior(tasks, numbers(options.scale_weights)) if per_scale else None,
        learns=options.balanced_solver == "famo",
    )
    kind = Balanced
    if options.balanced_solver == "qp":
        if per_scale:
            raise ConfigError(
                "--balanced-solver qp is for the two tasks of --objective balanced; expected famo "
                "or fixed with hierarchical"
            )
        kind = MinNorm
    return kind(
        standard,
        tasks,
        weights,
        build_gamma(gamma, per_scale=per_scale),
        position,
        update_every=options.update_every,
        reduce=reduce,
    )


def _tasks(
    distortion: Callable[[Terms], Tensor], loss: LossConfig, options: ObjectiveConfig
) -> Tasks:
    if options.objective == "balanced":
        return two_tasks(distortion)
    if options.tasks == "fixed5":
        return fixed5(distortion, renormalise=options.renormalise)
    if loss.loss != "mse":
        raise ConfigError(
            f"--tasks {options.tasks} splits the squared error, and the distortion is MS-SSIM; "
            "expected mse, or --tasks fixed5"
        )
    weight = loss.lmbda * 255**2
    return exact5(weight) if options.tasks == "exact5" else exact7(weight)


def _prior(tasks: Tasks, scale_weights: Sequence[float]) -> list[float]:
    """Return a share for each task: its scale's, divided among the tasks of that scale."""
    counts = [tasks.scales.count(scale) for scale in range(3)]
    return [scale_weights[scale] / counts[scale] for scale in tasks.scales]


def objective_notes(options: ObjectiveConfig) -> list[str]:
    """Return what a user should know of the options."""
    notes = []
    lows = numbers(options.min_losses)
    if options.objective != "standard" and any(math.isclose(low, 0.0) for low in lows):
        notes.append(
            "--min-losses 0: lambda drops out of the direction, and the rate drifts whatever it is"
        )
    if options.objective != "hierarchical":
        return notes
    if options.tasks == "fixed5":
        left = "" if options.renormalise else " and leave out a quarter of the distortion"
        notes.append(
            f"--tasks fixed5: shares of the whole rate and distortion, which tell nothing of "
            f"scales{left}; --renormalise makes those of the distortion add up to one"
        )
    tasks = exact7(1.0) if options.tasks == "exact7" else exact5(1.0)
    prior = _prior(tasks, numbers(options.scale_weights))
    if not math.isclose(min(prior), max(prior)):
        even = ",".join(str(tasks.scales.count(scale)) for scale in range(3))
        notes.append(
            f"--scale-weights {options.scale_weights} weigh some tasks more than others, so this "
            f"trains at another lambda than --lmbda; {even} weighs all alike. See lambda_eff in "
            "the metrics, and compare by BD-rate"
        )
    return notes
