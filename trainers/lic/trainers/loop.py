"""The training loop: batches in, checkpoints and a log of metrics out.

Shapes: B batch, S crop side.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lic.codec.errors import OutputError, TrainingError
from lic.codec.models import FactorizedPrior
from lic.trainers import checkpoints
from lic.trainers.config import TrainConfig
from lic.trainers.data import RandomCrops
from lic.trainers.losses import Terms, rate_distortion_terms
from lic.trainers.objective import Objective
from lic.trainers.optimizers import build_optimizers
from lic.trainers.schedules import warmup_cosine

METRICS = "metrics.jsonl"

Report = Callable[[dict[str, float]], None]


class Ema:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: p.detach().clone() for k, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move towards the parameters; early steps move faster so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.shadow[name].lerp_(parameter.detach(), 1 - decay)


class Trainer:
    """State of one run: model, optimisers, averaged weights and the step it is at."""

    def __init__(
        self,
        model: FactorizedPrior,
        config: TrainConfig,
        objective: Objective,
        crops: RandomCrops,
        folder: Path,
        fabric: Fabric,
    ) -> None:
        self.config = config
        self.objective = objective
        self.crops = crops
        self.folder = folder
        self.fabric = fabric
        self.step = 0
        self._bare = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._bare = self._bare.to(fabric.device)
        # After the move, so that averages lie on the device of what they average.
        self.ema = Ema(self._bare, config.ema) if config.ema else None
        self._optimizers = build_optimizers(self._bare, config)
        self.model: Any
        self.model, *wrapped = fabric.setup(self._bare, *self._optimizers)
        self._wrapped = wrapped
        self._rates = [group["lr"] for opt in self._optimizers for group in opt.param_groups]

    def run(self, report: Report) -> None:
        """Train from the present step to the last; checkpoints on the way and at the end.

        Raises:
            TrainingError: the loss or a weight is not finite; the last checkpoint stays.
            OutputError: metrics or a checkpoint cannot be written; the last checkpoint stays.
        """
        # Exact zeros of ReLU drift into denormal numbers, which cost ten times the time.
        torch.set_flush_denormal(True)
        try:
            self._run(report)
        finally:
            # What follows in this process computes like any other, freezing tables above all.
            torch.set_flush_denormal(False)

    def _run(self, report: Report) -> None:
        self._bare.train()
        started, first = time.monotonic(), self.step
        while self.step < self.config.steps:
            values = self._train_step()
            self.step += 1
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                elapsed = time.monotonic() - started
                values["seconds_per_step"] = elapsed / (self.step - first)
                self._log(values)
                report(values)
            if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                self.save()

    def _train_step(self) -> dict[str, float]:
        self._set_rates()
        rank = self.fabric.global_rank
        batch = self.crops.batch(self.step, rank=rank)
        x = batch.contiguous(memory_format=torch.channels_last).to(self.fabric.device)
        # The noise depends on the step alone, so that a resumed run repeats it.
        torch.manual_seed(hash((self.config.seed, self.step, rank)) & 0x7FFFFFFF)
        terms = rate_distortion_terms(self.model(x), x)
        loss = self.objective.loss(terms, self.step)
        self._check_finite(loss, terms)
        for optimizer in self._wrapped:
            optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self._clip()
        for optimizer in self._wrapped:
            optimizer.step()
        if self.ema:
            self.ema.update(self._bare, self.step)
        return {
            "step": float(self.step + 1),
            "loss": loss.item(),
            "bpp": terms.bpp.item(),
            "mse": terms.mse.item(),
            "grad_norm": norm,
            "lr": self._optimizers[0].param_groups[0]["lr"],
        }

    def _set_rates(self) -> None:
        factor = warmup_cosine(
            self.step,
            steps=self.config.steps,
            warmup=self.config.warmup_steps,
            final=self.config.final_lr_fraction,
        )
        groups = [group for opt in self._optimizers for group in opt.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _clip(self) -> float:
        """Clip where asked to; returns the gradient's norm before."""
        transforms = [*self._bare.g_a.parameters(), *self._bare.g_s.parameters()]
        limit = self.config.max_grad_norm or float("inf")
        return float(torch.nn.utils.clip_grad_norm_(transforms, limit))

    def _check_finite(self, loss: Tensor, terms: Terms) -> None:
        if not torch.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: the loss is {loss.item()} (bpp {terms.bpp.item()}, mse "
                f"{terms.mse.item()}); the last checkpoint is kept. Try a lower --lr"
            )

    def _log(self, values: dict[str, float]) -> None:
        if self.fabric.is_global_zero:
            with _writing(self.folder / METRICS):
                self.folder.mkdir(parents=True, exist_ok=True)
                with (self.folder / METRICS).open("a") as file:
                    file.write(json.dumps(values) + "\n")

    def averaged(self) -> dict[str, Tensor]:
        """Return the state dict to evaluate and ship: averaged where averages are kept."""
        state = {k: v.detach().cpu() for k, v in self._bare.state_dict().items()}
        if self.ema:
            state.update({k: v.detach().cpu() for k, v in self.ema.shadow.items()})
        return state

    def save(self) -> None:
        """Write the checkpoint of the present step.

        Raises:
            TrainingError: a weight is not finite; the last checkpoint stays.
            OutputError: it cannot be written; the last checkpoint stays.
        """
        # A finite loss can have a gradient that is not, and no later step would mend the weights.
        for name, parameter in self._bare.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"step {self.step}: {name} is not finite; the last checkpoint is kept. "
                    "Try a lower --lr"
                )
        if self.fabric.is_global_zero:
            state = {
                "step": self.step,
                "train_config": self.config.to_dict(),
                "model_config": self._bare.config.to_dict(),
                "model": self._bare.state_dict(),
                "averaged": self.averaged(),
                "ema": self.ema.shadow if self.ema else {},
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
                "objective": self.objective.state_dict(),
            }
            with _writing(self.folder / checkpoints.NAME):
                checkpoints.save(self.folder / checkpoints.NAME, state)

    def resume(self) -> None:
        """Go on from the folder's checkpoint.

        Raises:
            TrainingError: no readable checkpoint, or one of another run's options.
            OutputError: the folder cannot be written.
        """
        state = checkpoints.load(self.folder / checkpoints.NAME)
        wanted = {**self._bare.config.to_dict(), **self.config.to_dict()}
        found = {**state["model_config"], **state["train_config"]}
        names = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        if names:
            raise TrainingError(
                f"{self.folder}: the checkpoint was made with other values of {', '.join(names)}; "
                "resume with the same options, or start in a new folder"
            )
        self._bare.load_state_dict(state["model"])
        for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        if self.ema:
            for name, value in state["ema"].items():
                self.ema.shadow[name].copy_(value)
        self.objective.load_state_dict(state["objective"])
        self.step = state["step"]
        self._forget_later_metrics()

    def _forget_later_metrics(self) -> None:
        """Drop the lines of steps that an interrupted run did after its last checkpoint."""
        path = self.folder / METRICS
        if self.fabric.is_global_zero and path.is_file():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= self.step]
            with _writing(path):
                path.write_text("".join(line + "\n" for line in kept))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    # On a full disk torch's writer raises one of its own while the system's error is under way.
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
        raise OutputError(
            f"{path}: cannot be written ({reason}); the last checkpoint is kept"
        ) from error


def _step_of(line: str) -> float:
    """Return the step of a line of metrics; a line cut off by a crash counts as later than any."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
