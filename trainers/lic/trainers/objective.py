"""How the terms of a loss become one number."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lic.trainers.config import LossConfig
from lic.trainers.losses import Terms, terms_of

# Side in pixels of what `unreached` looks at: a multiple of every model's stride.
PROBE = 64


class Objective(Protocol):
    """Combines terms into the scalar to minimise, and keeps whatever state that takes."""

    @property
    def formula(self) -> str:
        """What `loss` computes, in one line for logs."""
        ...

    def loss(self, terms: Terms, step: int) -> Tensor:
        """Return the scalar loss of a batch at `step`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        ...


def build_objective(config: LossConfig) -> Objective:
    """Return the objective of --loss."""
    if config.loss == "mse":
        return RateDistortion(config.lmbda)
    return Perceptual(config.alpha_l1, config.lambda_bpp if config.loss == "rd" else 0.0)


class _Fixed:
    """An objective whose weights are options of the run, so that it has no state."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""


class RateDistortion(_Fixed):
    """bpp + lambda 255^2 MSE (Balle et al. 2018), lambda on CompressAI's scale."""

    def __init__(self, lmbda: float) -> None:
        self.lmbda = lmbda

    @property
    def formula(self) -> str:
        """The loss with its lambda."""
        return f"bpp + {self.lmbda:g} * 255^2 * MSE"

    def loss(self, terms: Terms, step: int) -> Tensor:  # noqa: ARG002
        """Return the scalar loss of a batch."""
        return terms.bpp + self.lmbda * 255**2 * terms.mse


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
        x = torch.rand(1, 3, PROBE, PROBE, device=device)
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
