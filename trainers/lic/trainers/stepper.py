"""One optimisation step: forward, objective, backward, and whatever keeps it sound.

Shapes: B batch of one process, S crop side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from lic.codec.errors import TrainingError
from lic.codec.models import HPCM
from lic.codec.models.bmshj2018 import Latents
from lic.codec.models.noise import noise_shard
from lic.trainers.balanced import MinNorm
from lic.trainers.config import TrainConfig
from lic.trainers.groups import Plan, ScaleStopping
from lic.trainers.guard import ForwardGuard, check_gradients
from lic.trainers.inter_scale import InterScale
from lic.trainers.losses import Terms, terms_of
from lic.trainers.models import Balle2018, Codec
from lic.trainers.objective import Objective
from lic.trainers.objective_options import EPOCHS, SCALES
from lic.trainers.optimizers import NamedOptimizer, build_optimizers
from lic.trainers.qat import Qat
from lic.trainers.schedules import build_schedule
from lic.trainers.spectral import Curriculum
from lic.trainers.steps import Skips, unchanged_buffers
from lic.trainers.tasks import ScaleRates


class Stepper:
    """Takes the steps of a run: everything that moves a weight, or decides that none moves.

    Args:
        model: what learns, on its device; parameters without gradient stay as they are.
        config: the run's options.
        objective: makes one number of the terms of the loss.
        fabric: devices, processes, precision.
        steps: of the whole run.
        qat: simulated int8 arithmetic, attached to the model.
        say: takes what the user should know of.
    """

    def __init__(
        self,
        model: Codec,
        config: TrainConfig,
        objective: Objective,
        fabric: Fabric,
        *,
        steps: int,
        qat: Qat | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.bare = model
        self.config = config
        self.objective = objective
        self.fabric = fabric
        self.qat = qat
        self.say = say
        self.step = 0
        self._steps = steps
        self._several = fabric.world_size > 1
        self.plan = Plan(model, config.finetune, steps)
        self.stopping = ScaleStopping(config.finetune.scale_patience)
        self.optimizers = build_optimizers(model, config.optimizer, self.plan.factor)
        self.schedule = build_schedule(config.optimizer, steps)
        self.skips = Skips(config.optimizer.skip_nonfinite)
        self.curriculum = Curriculum(config.spectral)
        self.inter_scale = self._inter_scale()
        self._scale_bits = ScaleRates(cast(Any, model)) if objective.splits else None
        self._guard = (
            ForwardGuard(model, config.optimizer.overflow_tol)
            if config.optimizer.overflow_check
            else None
        )
        self._set_up()

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

    def _set_up(self) -> None:
        """Hand model and optimisers to Fabric."""
        # The quantiles' own loss is computed alike by every process, outside of the forward pass
        # that gradients are exchanged after.
        ignored = [name for name, _ in self.bare.named_parameters() if name.endswith("quantiles")]
        vars(self.bare)["_ddp_params_and_buffers_to_ignore"] = ignored
        self._model: Any
        compiled = self.config.run.compile
        learner = cast(nn.Module, torch.compile(self.bare)) if compiled else self.bare
        self._model, *wrapped = self.fabric.setup(
            learner, *(named.optimizer for named in self.optimizers)
        )
        self._wrapped = dict(zip((named.name for named in self.optimizers), wrapped, strict=True))

    @property
    def rate(self) -> float:
        """The learning rate of the transforms' first group at the last step."""
        return float(self.optimizers[0].optimizer.param_groups[0]["lr"])

    def take(self, step: int, x: Tensor) -> dict[str, Tensor]:
        """Take step number `step`, from 0, on crops x (B, 3, S, S) in [0, 1].

        Returns:
            What there is to log, scalars by name; nothing where the step was skipped.

        Raises:
            TrainingError: a loss or gradient is not finite and may not be skipped, or a loss is not
                above its lower bound.
        """
        self.step = step
        if self.qat:
            self.qat.at_step(step, self._steps)
        self._set_rates()
        # The curriculum is told in epochs of a run of 3,000.
        epoch = step / self._steps * EPOCHS
        shown, target = self.curriculum.pair(x, epoch)
        terms, latents = self._forward(shown, target)
        loss = self.objective.loss(terms, step)
        extra, told = self._extra(latents, epoch)
        for optimizer in self._wrapped.values():
            optimizer.zero_grad()
        if not self._usable(loss):
            if not self.skips.allowed:
                self._refuse(loss, terms)
            return self._skip(f"a loss of {loss.item()}")
        self._backward(loss if extra is None else loss + extra, terms)
        norm = self._clip()
        if self.config.precision.amp != "fp16":
            if self.skips.allowed and not torch.isfinite(norm):
                return self._skip(f"a gradient's norm of {norm.item()}")
            check_gradients(norm, step)
        if not self._move():
            return self._skip(f"a gradient's norm of {norm.item()} in fp16", counts=False)
        self.skips.taken()
        if self.objective.looks_again(step):
            self._look_again(shown, target)
        for name, value in self.objective.values().items():
            told[name] = torch.as_tensor(value, device=self.fabric.device)
        # What can be compared between objectives is the plain sum.
        plain = told.pop("loss", loss.detach())
        return {"loss": plain, "grad_norm": norm, **terms.detached(), **told}

    def observe(self, values: Mapping[str, float]) -> None:
        """Take notice of a validation."""
        self.schedule.update(values["val_loss"])
        self.objective.observe(values)
        if self.config.finetune.scale_patience:
            before = self.stopping.stopped()
            self.stopping.observe({scale: values[f"val_bpp_{scale}"] for scale in SCALES})
            new = sorted(self.stopping.stopped() - before)
            if new:
                names = ", ".join(name.rstrip(".") for name in new)
                self.say(f"after step {self.step + 1}: bits no longer fall, stopped {names}")

    def _forward(self, x: Tensor, target: Tensor) -> tuple[Terms, Latents | None]:
        """Return the terms of a batch (B, 3, S, S), with the noise of the present step.

        Args:
            x: what the model gets.
            target: what its output is compared with.
        """
        # The noise depends on the step alone, so that a resumed run, and a second look, repeat it.
        torch.manual_seed(hash((self.config.run.seed, self.step)) & 0x7FFFFFFF)
        by_task = isinstance(self.objective, MinNorm)
        with (
            noise_shard(self.fabric.global_rank, self.fabric.world_size),
            # Gradients by task are taken one by one, and averaged by hand.
            self.fabric.no_backward_sync(self._model, enabled=by_task and self._several),
        ):
            output = self._model(x)
        if self._guard:
            self._guard.check(self.step, self._describe())
        terms = terms_of(output, target, self.config.loss, self._scale_bits)
        return terms, getattr(output, "latents", None)

    def _extra(
        self, latents: Latents | None, epoch: float
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return what is added to the loss, and what to tell of it and of the latents."""
        told: dict[str, Tensor] = {}
        if latents is not None:
            lowest = cast(HPCM, self.bare).levels[0]
            told["floored_scales"] = (latents.scales.detach().float() <= lowest).float().mean()
        if self.config.spectral.spectral_reg:
            tau = self.curriculum.tau(epoch)
            told["tau"] = torch.tensor(math.inf if tau is None else tau, device=self.fabric.device)
        if self.inter_scale is None or not self.inter_scale.active(epoch):
            return None, told
        assert latents is not None
        term = self.inter_scale(*latents)
        align = self.inter_scale.align_loss(latents.y_hat)
        told |= {"inter_scale": term.detach(), "align": align.detach()}
        return self.objective.extra_weight * term + align, told

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
            value = self._mean(value)
        return bool(torch.isfinite(value))

    def _mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes."""
        return cast(Tensor, self.fabric.all_reduce(value))

    def _skip(self, found: str, *, counts: bool = True) -> dict[str, Tensor]:
        """Leave a step out: weights and the objective stay as they are.

        `counts`: whether too many of them end the run. Those of a gradient scaler that looks for
        its scale do not.
        """
        for optimizer in self._wrapped.values():
            optimizer.zero_grad()
        self.objective.forget()
        if counts:
            self.skips.add(f"step {self.step}: {found} on {self._describe()}", self.say)
        else:
            self.skips.total += 1
        return {}

    def _backward(self, loss: Tensor, terms: Terms) -> None:
        """Fill in the gradients of what learns at this step."""
        stopped = self.stopping.stopped()
        if isinstance(self.objective, MinNorm):
            held = self.plan.frozen_at(self.step)
            self._backward_by_task(self.objective, terms, held, tuple(stopped))
        else:
            self.fabric.backward(loss)
        if self.inter_scale is not None and self._several:
            # The alignment is no part of the model that processes exchange gradients of.
            for parameter in self.inter_scale.parameters():
                if parameter.grad is not None:
                    parameter.grad = self._mean(parameter.grad)
        if "aux" in self._wrapped:
            # The quantiles' own loss, which reaches nothing else.
            self.fabric.backward(cast(Balle2018, self.bare).entropy_bottleneck.aux_loss())
        self.plan.hold(self.step, self.bare, stopped)

    def _backward_by_task(
        self, objective: MinNorm, terms: Terms, held: frozenset[str], stopped: tuple[str, ...]
    ) -> None:
        """Weigh the gradients of both tasks, and fill in their sum."""
        learning = [
            parameter
            for name, parameter in self.bare.named_parameters()
            if parameter.requires_grad and name not in held and not name.startswith(stopped)
        ]
        losses = objective.losses(terms)
        gradients = [self._gradients(task, learning) for task in losses]
        omega = objective.weigh_gradients(losses, gradients, self.step).tolist()
        for parameter, *parts in zip(learning, *gradients, strict=True):
            found = [w * part for w, part in zip(omega, parts, strict=True) if part is not None]
            parameter.grad = torch.stack(found).sum(dim=0) if found else None

    def _gradients(self, loss: Tensor, learning: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the gradients of one task, means over all processes."""
        found = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
        present = [g for g in found if g is not None]
        if not self._several or not present:
            return list(found)
        # At once: processes would wait for each other with every parameter.
        whole = self._mean(torch.cat([g.flatten() for g in present]))
        parts = iter(torch.split(whole, [g.numel() for g in present]))
        return [None if g is None else next(parts).view(g.shape) for g in found]

    def _clip(self) -> Tensor:
        """Clip the transforms' gradient where asked to; returns its norm before."""
        limit = self.config.optimizer.max_grad_norm or float("inf")
        if "transforms" not in self._wrapped:
            return torch.zeros(())
        norm = self.fabric.clip_gradients(
            self._model, self._wrapped["transforms"], max_norm=limit, error_if_nonfinite=False
        )
        return norm if norm is not None else torch.zeros(())

    def _move(self) -> bool:
        """Take the step of every optimiser; returns whether a gradient scaler let it happen."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is None:
            for optimizer in self._wrapped.values():
                optimizer.step()
            return True
        scale = scaler.get_scale()
        # Fabric would change the scale after each: the next one's gradients have the old one.
        for named in self.optimizers:
            # The scaler refuses an optimiser none of whose parameters has a gradient.
            if any(p.grad is not None for g in named.optimizer.param_groups for p in g["params"]):
                scaler.step(named.optimizer)
        scaler.update()
        return bool(scaler.get_scale() >= scale)

    def _set_rates(self) -> None:
        factor = self.schedule.factor(self.step)
        for named in self.optimizers:
            for group, rate in zip(named.optimizer.param_groups, named.rates, strict=True):
                group["lr"] = rate * (1.0 if named.name == "aux" else factor)

    def _refuse(self, loss: Tensor, terms: Terms) -> None:
        found = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.detached().items())
        raise TrainingError(
            f"step {self.step}: the loss is {loss.item()} ({found}) on {self._describe()}; the "
            "last checkpoint is kept. Try a lower --lr, or --overflow-check to find the layer"
        )

    def _describe(self) -> str:
        rank = self.fabric.global_rank
        return f"batch {self.step} (process {rank}, seed {self.config.run.seed})"

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of a checkpoint that are this one's to keep."""
        return {
            "model": self.bare.state_dict(),
            "optimizers": {named.name: named.optimizer.state_dict() for named in self.optimizers},
            "schedule": self.schedule.state_dict(),
            "objective": self.objective.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "qat": self.qat.state_dict() if self.qat else {},
            "skips": self.skips.state_dict(),
            "stopping": self.stopping.state_dict(),
            "inter_scale": self.inter_scale.state_dict() if self.inter_scale else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; other entries do not matter."""
        self.bare.load_state_dict(state["model"])
        for named in self.optimizers:
            named.optimizer.load_state_dict(state["optimizers"][named.name])
        self.schedule.load_state_dict(state["schedule"])
        self.objective.load_state_dict(state["objective"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.qat:
            self.qat.load_state_dict(state["qat"])
        self.skips.load_state_dict(state["skips"])
        self.stopping.load_state_dict(state["stopping"])
        if self.inter_scale:
            self.inter_scale.load_state_dict(state["inter_scale"])
