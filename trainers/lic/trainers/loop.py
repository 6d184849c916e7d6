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
from torch import Tensor, distributed, nn

from lic.codec.errors import OutputError, TrainingError
from lic.codec.models.bmshj2018 import Latents
from lic.codec.models.noise import noise_shard
from lic.trainers.balanced import MinNorm
from lic.trainers.checkpoints import CheckpointManager
from lic.trainers.config import TrainConfig
from lic.trainers.data import TrainingData
from lic.trainers.ema import Ema
from lic.trainers.groups import SCALES, Plan, ScaleStopping
from lic.trainers.guard import ForwardGuard, check_gradients
from lic.trainers.inter_scale import InterScale
from lic.trainers.losses import Terms, terms_of
from lic.trainers.models import Balle2018, Codec
from lic.trainers.objective import Objective
from lic.trainers.optimizers import NamedOptimizer, build_optimizers
from lic.trainers.qat import Qat
from lic.trainers.reconstructions import Reconstructions
from lic.trainers.schedules import build_schedule
from lic.trainers.spectral import Curriculum
from lic.trainers.steps import Skips, unchanged_buffers
from lic.trainers.stopping import Interrupted, peers_told_apart, stopped_by_signals
from lic.trainers.tasks import ScaleRates
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
        self.objective = objective
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
        self._several = fabric.world_size > 1
        self._by_task = isinstance(objective, MinNorm)
        self.checkpoints = CheckpointManager(folder, config.checkpoint, say)
        self.reconstructions = Reconstructions(folder, config.watch.recon_count, say=say)
        self.steps, self.epoch_steps = run_length(config, data, fabric.world_size)
        moved = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.bare: Codec = moved.to(fabric.device)
        # After the move, so that averages lie on the device of what they average.
        self.ema = Ema(self.bare, config.optimizer.ema)
        self.plan = Plan(self.bare, config.finetune, self.steps)
        self.stopping = ScaleStopping(config.finetune.scale_patience)
        self.optimizers = build_optimizers(self.bare, config.optimizer, self.plan.factor)
        self.curriculum = Curriculum(config.spectral)
        self.inter_scale = self._inter_scale()
        self.schedule = build_schedule(config.optimizer, self.steps)
        self.scale_bits = ScaleRates(cast(Any, self.bare)) if objective.splits else None
        self.skips = Skips(config.optimizer.skip_nonfinite)
        self.guard = (
            ForwardGuard(self.bare, config.optimizer.overflow_tol)
            if config.optimizer.overflow_check
            else None
        )
        self._metrics: Values = {}
        # Sums of what the steps since the last line of metrics gave.
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._wait = 0.0
        self._stop = threading.Event()
        self._set_up()

    def _set_up(self) -> None:
        """Hand model and optimisers to Fabric."""
        # The quantiles' own loss is computed alike by every process, outside of the forward pass
        # that gradients are exchanged after.
        ignored = [name for name, _ in self.bare.named_parameters() if name.endswith("quantiles")]
        vars(self.bare)["_ddp_params_and_buffers_to_ignore"] = ignored
        self.model: Any
        compiled = self.config.run.compile
        learner = cast(nn.Module, torch.compile(self.bare)) if compiled else self.bare
        self.model, *wrapped = self.fabric.setup(
            learner, *(named.optimizer for named in self.optimizers)
        )
        self._wrapped = dict(zip((named.name for named in self.optimizers), wrapped, strict=True))

    def _inter_scale(self) -> InterScale | None:
        """Return the term between scales, its alignment among the optimisers."""
        if not self.config.spectral.inter_scale_reg:
            return None
        term = InterScale(self.config.spectral, self.bare.config.M).to(self.fabric.device)
        learning = list(term.parameters())
        if learning:
            adam = torch.optim.Adam(learning, lr=self.config.spectral.align_lr)
            self.optimizers.append(NamedOptimizer("align", adam))
        return term

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
            self._add(self._train_step(self._next(batches)))
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

    def _next(self, batches: Iterator[tuple[Tensor, dict[Path, str]]]) -> Tensor:
        """Return the next batch (B, 3, S, S) in [0, 1] on the device."""
        before = time.monotonic()
        crops, unreadable = next(batches)
        self.data.unreadable.update(unreadable)
        self._wait += time.monotonic() - before
        x = crops.to(self.fabric.device, non_blocking=True).float().div_(255)
        return x.contiguous(memory_format=torch.channels_last)

    def _train_step(self, x: Tensor) -> dict[str, Tensor]:
        if self.qat:
            self.qat.at_step(self.step, self.steps)
        self._set_rates()
        epoch = self.step / self.epoch_steps
        shown, target = self.curriculum.pair(x, epoch)
        terms, latents = self._forward(shown, target)
        loss = self.objective.loss(terms, self.step)
        extra, told = self._extra(latents, epoch)
        for optimizer in self._wrapped.values():
            optimizer.zero_grad()
        if not self._usable(loss):
            if not self.skips.allowed:
                self._refuse(loss, terms)
            return self._skip(f"a loss of {loss.item()}")
        self._backward(loss if extra is None else loss + extra, terms)
        self._share_alignment()
        self._learn_quantiles()
        self.plan.hold(self.step, self.bare, self.stopping.stopped())
        norm = self._clip()
        if self.config.precision.amp != "fp16":
            if self.skips.allowed and not torch.isfinite(norm):
                return self._skip(f"a gradient's norm of {norm.item()}")
            check_gradients(norm, self.step)
        self._move()
        self.ema.update(self.bare, self.step)
        self.skips.taken()
        if self.objective.looks_again(self.step):
            self._look_again(shown, target)
        device = self.fabric.device
        own = self.objective.values().items()
        told |= {name: torch.as_tensor(value, device=device) for name, value in own}
        # What can be compared between objectives is the plain sum.
        shown = told.pop("loss", loss.detach())
        return {"loss": shown, "grad_norm": norm, **terms.detached(), **told}

    def _forward(self, x: Tensor, target: Tensor) -> tuple[Terms, Latents | None]:
        """Return the terms of a batch (B, 3, S, S), with the noise of the present step.

        Args:
            x: what the model gets.
            target: what its output is compared with.
        """
        # The noise depends on the step alone, so that a resumed run, and a second look, repeat it.
        torch.manual_seed(hash((self.config.run.seed, self.step)) & 0x7FFFFFFF)
        with (
            noise_shard(self.fabric.global_rank, self.fabric.world_size),
            # Gradients by task are taken one by one, and averaged by hand.
            self.fabric.no_backward_sync(self.model, enabled=self._by_task and self._several),
        ):
            output = self.model(x)
        if self.guard:
            self.guard.check(self.step, self._describe())
        terms = terms_of(output, target, self.config.loss, self.scale_bits)
        return terms, output.latents

    def _extra(
        self, latents: Latents | None, epoch: float
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return what is added to the loss, and what to tell of the regularisation."""
        told: dict[str, Tensor] = {}
        tau = self.curriculum.tau(epoch)
        if self.config.spectral.spectral_reg:
            told["tau"] = torch.tensor(math.inf if tau is None else tau, device=self.fabric.device)
        if self.inter_scale is None or not self.inter_scale.active(epoch):
            return None, told
        assert latents is not None
        term = self.inter_scale(*latents)
        align = self.inter_scale.align_loss(latents.y_hat)
        told |= {"inter_scale": term.detach(), "align": align.detach()}
        return self.objective.extra_weight * term + align, told

    def _share_alignment(self) -> None:
        """Average the gradients of the alignment, which is no part of the model, over processes."""
        if self.inter_scale is None or not self._several:
            return
        for parameter in self.inter_scale.parameters():
            if parameter.grad is not None:
                parameter.grad = cast(Tensor, self.fabric.all_reduce(parameter.grad))

    @torch.no_grad()
    def _look_again(self, x: Tensor, target: Tensor) -> None:
        """Show the objective what the step did to the same batch; nothing else is changed by it."""
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), unchanged_buffers(self.bare):
            self.objective.look(self._forward(x, target)[0], self.step)

    def _usable(self, loss: Tensor) -> bool:
        """Return whether a loss is finite, in every process where a step can be skipped."""
        value = loss.detach()
        if self.skips.allowed and self._several:
            value = cast(Tensor, self.fabric.all_reduce(value))
        return bool(torch.isfinite(value))

    def _skip(self, found: str) -> dict[str, Tensor]:
        """Leave a step out: weights, averages and the objective stay as they are."""
        for optimizer in self._wrapped.values():
            optimizer.zero_grad()
        self.objective.forget()
        self.skips.add(f"step {self.step}: {found} on {self._describe()}", self.say)
        return {}

    def _backward(self, loss: Tensor, terms: Terms) -> None:
        """Fill in the gradients of what learns."""
        if not isinstance(self.objective, MinNorm):
            self.fabric.backward(loss)
            return
        losses = self.objective.losses(terms)
        held, stopped = self.plan.frozen_at(self.step), tuple(self.stopping.stopped())
        learning = [
            parameter
            for name, parameter in self.bare.named_parameters()
            if parameter.requires_grad and name not in held and not name.startswith(stopped)
        ]
        gradients = [self._gradients(task, learning) for task in losses]
        omega = self.objective.weigh_gradients(losses, gradients, self.step).tolist()
        for parameter, *parts in zip(learning, *gradients, strict=True):
            found = [w * part for w, part in zip(omega, parts, strict=True) if part is not None]
            parameter.grad = torch.stack(found).sum(dim=0) if found else None

    def _move(self) -> None:
        """Take the step of every optimiser."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is None:
            for optimizer in self._wrapped.values():
                optimizer.step()
            return
        # Fabric would change the scale after each: the next one's gradients have the old one.
        for named in self.optimizers:
            # The scaler refuses an optimiser none of whose parameters has a gradient.
            if any(p.grad is not None for g in named.optimizer.param_groups for p in g["params"]):
                scaler.step(named.optimizer)
        scaler.update()

    def _gradients(self, loss: Tensor, learning: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of one task, means over all processes."""
        found = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
        if not self._several:
            return list(found)
        return [g if g is None else cast(Tensor, self.fabric.all_reduce(g)) for g in found]

    def _learn_quantiles(self) -> None:
        """Add the gradient of the quantiles' own loss, which reaches nothing else."""
        if "aux" in self._wrapped:
            bottleneck = cast(Balle2018, self.bare).entropy_bottleneck
            self.fabric.backward(bottleneck.aux_loss())

    def _set_rates(self) -> None:
        factor = self.schedule.factor(self.step)
        for named in self.optimizers:
            for group, rate in zip(named.optimizer.param_groups, named.rates, strict=True):
                group["lr"] = rate * (1.0 if named.name == "aux" else factor)

    def _clip(self) -> Tensor:
        """Clip the transforms' gradient where asked to; returns its norm before."""
        limit = self.config.optimizer.max_grad_norm or float("inf")
        for named in self.optimizers:
            if named.name == "transforms":
                norm = self.fabric.clip_gradients(
                    self.model,
                    self._wrapped["transforms"],
                    max_norm=limit,
                    error_if_nonfinite=False,
                )
                return norm if norm is not None else torch.zeros(())
        return torch.zeros(())

    def _refuse(self, loss: Tensor, terms: Any) -> None:
        found = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.detached().items())
        raise TrainingError(
            f"step {self.step}: the loss is {loss.item()} ({found}) on {self._describe()}; the "
            "last checkpoint is kept. Try a lower --lr, or --overflow-check to find the layer"
        )

    def _describe(self) -> str:
        rank = self.fabric.global_rank
        return f"batch {self.step} (process {rank}, seed {self.config.run.seed})"

    def _add(self, values: dict[str, Tensor]) -> None:
        """Add what a step gave to the sums that the next line of metrics is made of."""
        if values:
            self._sums = {k: self._sums.get(k, 0.0) + v for k, v in values.items()}
            self._summed += 1

    def _log(self, seconds: float, steps: int) -> Values:
        """Return the means since the last line of metrics, and tell the trackers of them.

        Args:
            seconds: that this process took.
            steps: that it took in them; fewer than the means are of, where it resumed between.
        """
        images = steps * self.data.batch_size * self.fabric.world_size
        self.elapsed += seconds
        found = {
            "step": float(self.step),
            "epoch": self.step / self.epoch_steps,
            **self._means(),
            **({"skipped": float(self.skips.total)} if self.skips.total else {}),
            "lr": self.optimizers[0].optimizer.param_groups[0]["lr"],
            "seconds_per_step": seconds / steps,
            "images_per_second": images / seconds,
            "data_wait": self._wait / seconds,
        }
        self._sums, self._summed = {}, 0
        self._metrics.update(found)
        self._track(found)
        return found

    def _means(self) -> Values:
        """Return what the steps since the last line gave on average; NaN if all were skipped."""
        if not self._summed:
            return {"loss": math.nan, "bpp": math.nan}
        return self._over_processes({k: v / self._summed for k, v in self._sums.items()})

    def _over_processes(self, values: dict[str, Tensor]) -> Values:
        """Return the means over all processes; each has seen a share of the batch."""
        if self.fabric.world_size > 1:
            reduced = self.fabric.all_reduce(torch.stack([v.float() for v in values.values()]))
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
        self.schedule.update(values["val_loss"])
        self.objective.observe(values)
        self._stop_scales(values)
        self._track(values)

    def _stop_scales(self, values: Values) -> None:
        """Stop the layers of the scales whose bits no longer fall."""
        if self.config.finetune.scale_patience:
            before = self.stopping.stopped()
            self.stopping.observe({scale: values[f"val_bpp_{scale}"] for scale in SCALES})
            new = sorted(self.stopping.stopped() - before)
            if new:
                self.say(f"step {self.step}: bits no longer fall, stopped {', '.join(new)}")

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
            "model": self.bare.state_dict(),
            "ema": self.ema.shadow,
            "optimizers": {named.name: named.optimizer.state_dict() for named in self.optimizers},
            "schedule": self.schedule.state_dict(),
            "objective": self.objective.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "qat": self.qat.state_dict() if self.qat else {},
            "facts": self.facts,
            "elapsed": self.elapsed,
            "skips": self.skips.state_dict(),
            "stopping": self.stopping.state_dict(),
            "inter_scale": self.inter_scale.state_dict() if self.inter_scale else {},
            "since_line": {"sums": self._sums, "steps": self._summed},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint, which holds this run's own options."""
        self.bare.load_state_dict(state["model"])
        for named in self.optimizers:
            named.optimizer.load_state_dict(state["optimizers"][named.name])
        self.ema.load(state["ema"])
        self.schedule.load_state_dict(state["schedule"])
        self.objective.load_state_dict(state["objective"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.qat:
            self.qat.load_state_dict(state["qat"])
        self.step = state["step"]
        self.elapsed = state["elapsed"]
        self.skips.load_state_dict(state["skips"])
        self.stopping.load_state_dict(state["stopping"])
        if self.inter_scale:
            self.inter_scale.load_state_dict(state["inter_scale"])
        since = state["since_line"]
        self._sums = {name: v.to(self.fabric.device) for name, v in since["sums"].items()}
        self._summed = since["steps"]
