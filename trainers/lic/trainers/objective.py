"""How the terms of a loss become one number."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lic.trainers.config import LossConfig
from lic.trainers.losses import Terms, terms_of

# Least side in pixels of what `unreached` looks at.
PROBE = 64


class Objective(Protocol):
    """Combines terms into the scalar to minimise, and keeps whatever state that takes.

    Attributes:
        splits: whether terms are needed by scales.
    """

    splits: bool

    @property
    def extra_weight(self) -> float:
        """What a penalty that is added to `loss` is multiplied by."""
        ...

    @property
    def formula(self) -> str:
        """What `loss` computes, in one line for logs."""
        ...

    def loss(self, terms: Terms, step: int) -> Tensor:
        """Return the scalar loss of a batch at `step`, counted from 0."""
        ...

    def looks_again(self, step: int) -> bool:
        """Return whether `look` wants the terms of the same batch after the step."""
        ...

    def look(self, terms: Terms, step: int) -> None:
        """Learn from what the step did."""
        ...

    def forget(self) -> None:
        """Drop what was kept of a step that was not taken."""
        ...

    def observe(self, values: Mapping[str, float]) -> None:
        """Take notice of a validation."""
        ...

    def values(self) -> dict[str, float | Tensor]:
        """Return what is to be logged of the last step besides its terms.

        `loss` among it stands in for that of `loss`, where its value means nothing.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


def build_objective(config: LossConfig) -> Objective:
    """Return the objective of --loss."""
    if config.loss in ("mse", "ms-ssim"):
        return RateDistortion(config.lmbda, config.loss)
    return Perceptual(config.alpha_l1, config.lambda_bpp if config.loss == "rd" else 0.0)


class _Fixed:
    """An objective whose weights are options of the run, so that it has no state."""

    splits = False
    extra_weight = 1.0

    def looks_again(self, step: int) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def look(self, terms: Terms, step: int) -> None:
        """Learn nothing."""

    def forget(self) -> None:
        """Forget nothing."""

    def observe(self, values: Mapping[str, float]) -> None:
        """Take no notice."""

    def values(self) -> dict[str, float | Tensor]:
        """Return nothing: the terms say it all."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""


class RateDistortion(_Fixed):
    """bpp + lambda 255^2 MSE (Balle et al. 2018) or bpp + lambda (1 - MS-SSIM).

    Lambda is on CompressAI's scale, which is HPCM's as well.
    """

    def __init__(self, lmbda: float, metric: str = "mse") -> None:
        self.lmbda = lmbda
        self.metric = metric
        self._values: dict[str, float | Tensor] = {}

    @property
    def formula(self) -> str:
        """The loss with its lambda."""
        kind = "255^2 * MSE" if self.metric == "mse" else "(1 - MS-SSIM)"
        return f"bpp + {self.lmbda:g} * {kind}"

    def distortion(self, terms: Terms) -> Tensor:
        """Return lambda times the distortion of a batch."""
        if self.metric == "mse":
            return self.lmbda * 255**2 * terms.mse
        assert terms.ms_ssim is not None
        return self.lmbda * (1 - terms.ms_ssim)

    def loss(self, terms: Terms, step: int) -> Tensor:  # noqa: ARG002
        """Return the scalar loss of a batch."""
        distortion = self.distortion(terms)
        self._values = {"distortion": distortion.detach()}
        return terms.bpp + distortion

    def values(self) -> dict[str, float | Tensor]:
        """Return lambda times the distortion of the last batch."""
        return self._values


class Perceptual(_Fixed):
    """alpha L1 + (1 - alpha)(1 - MS-SSIM), plus lambda bpp where lambda is not 0."""

    def __init__(self, alpha: float, lambda_bpp: float = 0.0) -> None:
        self.alpha = alpha
        self.lambda_bpp = lambda_bpp

    @property
    def formula(self) -> str:
        """The loss with its weights."""
        text = f"{self.alpha:g} * L1 + {1 - self.alpha:g} * (1 - MS-SSIM)"
        return text + (f" + {self.lambda_bpp:g} * bpp" if self.lambda_bpp else "")

    def loss(self, terms: Terms, step: int) -> Tensor:  # noqa: ARG002
        """Return the scalar loss of a batch."""
        loss = torch.zeros_like(terms.mse)
        if terms.l1 is not None:
            loss = loss + self.alpha * terms.l1
        if terms.ms_ssim is not None:
            loss = loss + (1 - self.alpha) * (1 - terms.ms_ssim)
        return loss + self.lambda_bpp * terms.bpp if self.lambda_bpp else loss


def unreached(model: nn.Module, config: LossConfig) -> list[str]:
    """Return the names of parameters that learn but that no gradient of the loss can reach.

    Always the quantiles of an entropy bottleneck, which have a loss of their own; without a rate
    in the loss all that only serves the rate. Processes that wait for each other's gradients, and
    optimisers under a gradient scaler, need to know: freeze them, or leave them out.

    Looks at one small random picture, so call it before anything observes ranges; random states
    and gradients stay as they are.
    """
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not learning:
        return []
    device = next(iter(learning.values())).device
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        side = max(PROBE, getattr(model, "stride", 1))
        x = torch.rand(1, 3, side, side, device=device)
        loss = build_objective(config).loss(terms_of(model(x), x, config), 0)
        if not loss.requires_grad:
            return list(learning)
        found = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    return [name for name, grad in zip(learning, found, strict=True) if grad is None]


def no_rate_note(names: Sequence[str], config: LossConfig) -> str:
    """Return what a user should know of parameters that `unreached` gave; empty if nothing."""
    rates = [name for name in names if not name.endswith("quantiles")]
    parts = sorted({name.partition(".")[0] for name in rates})
    if not parts:
        return ""
    remedy = "--loss rd" if config.loss == "recon" else "--lambda-bpp above 0"
    return (
        f"no rate in the loss: {', '.join(parts)} get no gradient and stay as they are, and "
        f"nothing keeps files small while the encoder learns; {remedy} does"
    )
