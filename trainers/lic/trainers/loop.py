"""The training loop: batches in; checkpoints, metrics and pictures out.

Shapes: B batch of one process, S crop side.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed

from lic.codec.errors import OutputError, TrainingError
from lic.trainers.checkpoints import CheckpointManager
from lic.trainers.config import TrainConfig
from lic.trainers.data import TrainingData
from lic.trainers.ema import Ema
from lic.trainers.models import Codec
from lic.trainers.objective import Objective
from lic.trainers.qat import Qat
from lic.trainers.reconstructions import Reconstructions
from lic.trainers.shards import Photo
from lic.trainers.stepper import Stepper
from lic.trainers.steps import Means
from lic.trainers.stopping import Interrupted, peers_told_apart, stopped_by_signals
from lic.trainers.trackers import Tracker
from lic.trainers.validation import validate

Values = dict[str, float]
Report = Callable[[Values], None]


def run_length(config: TrainConfig, data: TrainingData, processes: int) -> tuple[int, int]:
    """Return the steps of a run and those of one epoch of it."""
    epoch = data.steps_per_epoch(processes)
    return config.run.epochs * epoch or config.run.steps, epoch


class Trainer:
    """State of one run: model, optimisers, averaged weights and the step it is at.

    Args:
        model: what learns; parameters without gradient stay as they are.
        config: the run's options.
        objective: makes one number of the terms of the loss.
        data: the crops.
        folder: of the run.
        fabric: devices, processes, precision.
        validation: pictures, looked at by the first process.
        facts: what checkpoints keep besides (plain values), such as the replaced modules.
        qat: simulated int8 arithmetic, attached to the model.
        say: takes what the user should know of.

    Attributes:
        trackers: where metrics and pictures go, of the first process.
    """

    def __init__(
        self,
        model: Codec,
        config: TrainConfig,
        objective: Objective,
        data: TrainingData,
        folder: Path,
        fabric: Fabric,
        *,
        validation: Sequence[Path] = (),
        facts: dict[str, Any] | None = None,
        qat: Qat | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.config = config
        self.data = data
        self.folder = folder
        self.fabric = fabric
        self.validation = list(validation)
        self.trackers: list[Tracker] = []
        self.facts = facts or {}
        self.qat = qat
        self.step = 0
        self.elapsed = 0.0
        self.say = say
        self.checkpoints = CheckpointManager(folder, config.checkpoint, say)
        self.reconstructions = Reconstructions(folder, config.watch.recon_count, say=say)
        self.steps, self.epoch_steps = run_length(config, data, fabric.world_size)
        moved = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.bare: Codec = moved.to(fabric.device)
        # After the move, so that averages lie on the device of what they average.
        self.ema = Ema(self.bare, config.optimizer.ema)
        self.stepper = Stepper(
            self.bare, config, objective, fabric,
            steps=self.steps, qat=qat, say=say,
        )  # fmt: skip
        self._metrics: Values = {}
        self._means = Means()
        self._wait = 0.0
        self._stop = threading.Event()

    def run(self, report: Report) -> None:
        """Train from the present step to the last; checkpoints on the way and at the end.

        The first Ctrl-C or SIGTERM ends the step, writes a checkpoint and raises Interrupted.

        Raises:
            TrainingError: a loss, gradient or weight is not finite, or another process has ended;
                the last checkpoint stays.
            OutputError: metrics or a checkpoint cannot be written; the last checkpoint stays.
            Interrupted: the run was asked to stop.
        """
        # Exact zeros of ReLU drift into denormal numbers, which cost ten times the time.
        torch.set_flush_denormal(True)
        try:
            alone = self.fabric.world_size == 1
            with stopped_by_signals(self._stop, wanted=alone), peers_told_apart():
                self._run(report)
        except BaseException:
            # What went wrong first is what matters.
            with contextlib.suppress(OutputError):
                self._close()
            raise
        finally:
            # What follows in this process computes like any other, freezing tables above all.
            torch.set_flush_denormal(False)
        self._close()

    def _close(self) -> None:
        for tracker in self.trackers:
            tracker.close()

    def _run(self, report: Report) -> None:
        self.bare.train()
        batches = self.data.loader(
            self.step,
            self.steps,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            pin=self.fabric.device.type == "cuda",
        )
        clock, first = time.monotonic(), self.step
        while self.step < self.steps:
            values = self.stepper.take(self.step, self._next(batches))
            if values:
                self.ema.update(self.bare, self.step)
            self._means.add(values)
            self.step += 1
            # What was measured of earlier weights says nothing of these.
            self._metrics = {k: v for k, v in self._metrics.items() if not k.startswith("val_")}
            if self._due(self.config.watch.log_every):
                now = time.monotonic()
                report(self._log(now - clock, self.step - first))
                clock, first = now, self.step
                self._wait = 0.0
            stopping = self._stop.is_set() and self.step < self.steps
            self._look(stopping=stopping)
            if stopping:
                raise Interrupted(
                    f"stopped after the checkpoint of step {self.step}; --resume goes on"
                )
        self._share_unreadable()

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _next(self, batches: Iterator[tuple[Tensor, dict[Photo, str]]]) -> Tensor:
        """Return the next batch (B, 3, S, S) in [0, 1] on the device."""
        before = time.monotonic()
        crops, unreadable = next(batches)
        self.data.unreadable.update(unreadable)
        self._wait += time.monotonic() - before
        x = crops.to(self.fabric.device, non_blocking=True).float().div_(255)
        return x.contiguous(memory_format=torch.channels_last)

    def _log(self, seconds: float, steps: int) -> Values:
        """Return the means since the last line of metrics, and tell the trackers of them.

        Args:
            seconds: that this process took.
            steps: that it took in them; fewer than the means are of, where it resumed between.
        """
        images = steps * self.data.batch_size * self.fabric.world_size
        self.elapsed += seconds
        skipped = self.stepper.skips.total
        found = {
            "step": float(self.step),
            "epoch": self.step / self.epoch_steps,
            # Where all steps were skipped there is no loss to tell of.
            **({"loss": math.nan, "bpp": math.nan} | self._over_processes(self._means.take())),
            **({"skipped": float(skipped)} if skipped else {}),
            "lr": self.stepper.rate,
            "seconds_per_step": seconds / steps,
            "images_per_second": images / seconds,
            "data_wait": self._wait / seconds,
        }
        self._metrics.update(found)
        self._track(found)
        return found

    def _over_processes(self, values: dict[str, Tensor]) -> Values:
        """Return the means over all processes; each has seen a share of the batch."""
        if self.fabric.world_size > 1 and values:
            reduced = self.fabric.all_reduce(torch.stack(list(values.values())))
            return dict(zip(values, cast(Tensor, reduced).tolist(), strict=True))
        return {name: float(value) for name, value in values.items()}

    def _share_unreadable(self) -> None:
        """Have every process know the unreadable files of all."""
        if self.fabric.world_size > 1:
            found: list[Any] = [None] * self.fabric.world_size
            distributed.all_gather_object(found, self.data.unreadable)
            for unreadable in found:
                self.data.unreadable.update(unreadable)

    def _track(self, values: Values) -> None:
        for tracker in self.trackers:
            tracker.log(self.step, values)

    def _look(self, *, stopping: bool) -> None:
        """Validate, reconstruct and save where the step asks for it; `stopping`, save anyhow."""
        saves = self._due(self.config.checkpoint.checkpoint_every)
        every = self.config.watch.val_every
        if self.validation and (self._due(every) if every else saves):
            self._validate()
        self._reconstruct()
        # Once: a second time, the values that rank the checkpoint would be gone.
        if saves or stopping:
            self.save()

    def _validate(self) -> None:
        """Measure the averaged weights; not before simulated int8 arithmetic is on, if ever."""
        if self.qat and self.step <= self.config.qat.qat_calibration_steps:
            return
        values: Values = {}
        if self.fabric.is_global_zero:
            with self.ema.in_place(self.bare):
                values = validate(self.bare, self.validation, self.config.loss, say=self.say)
        if self.fabric.world_size > 1:
            values = self.fabric.broadcast(values)
        self._metrics.update(values)
        self.stepper.observe(values)
        self._track(values)

    def _reconstruct(self) -> None:
        every = self.config.watch.recon_every * self.epoch_steps
        if every and self.validation and self.fabric.is_global_zero and self._due(every):
            with self.ema.in_place(self.bare):
                sheet = self.reconstructions.add(
                    self.bare, self.validation, epoch=-(-self.step // self.epoch_steps)
                )
            for tracker in self.trackers:
                tracker.image(self.step, "reconstructions", sheet)

    def save(self) -> None:
        """Write the checkpoint of the present step.

        Raises:
            TrainingError: a weight is not finite; the last checkpoint stays.
            OutputError: it cannot be written; the last checkpoint stays.
        """
        # A finite loss can have a gradient that is not, and no later step would mend the weights.
        for name, parameter in self.bare.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"step {self.step}: {name} is not finite; the last checkpoint is kept. "
                    "Try a lower --lr"
                )
        if self.fabric.is_global_zero:
            self.checkpoints.write(self._state(), self.step, self._metrics)

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "config": self.config.to_dict(),
            "architecture": self.bare.name,
            "model_config": self.bare.config.to_dict(),
            "ema": self.ema.shadow,
            "facts": self.facts,
            "elapsed": self.elapsed,
            "since_line": self._means.state_dict(),
            **self.stepper.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint, which holds this run's own options."""
        self.stepper.load_state_dict(state)
        self.ema.load(state["ema"])
        self.step = state["step"]
        self.elapsed = state["elapsed"]
        self._means.load_state_dict(state["since_line"], self.fabric.device)
