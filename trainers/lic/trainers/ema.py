"""Averaged weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a model's parameters; decay 0 keeps the last weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: p.detach().clone() for k, p in model.named_parameters()} if decay else {}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the parameters; early steps move faster so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if name in self.shadow:
                self.shadow[name].lerp_(parameter.detach(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Give the model its averaged weights for a while, then the very bits it had."""
        kept = {k: p.detach().clone() for k, p in model.named_parameters() if k in self.shadow}
        try:
            _fill(model, self.shadow)
            yield
        finally:
            _fill(model, kept)

    def load(self, shadow: dict[str, Tensor]) -> None:
        """Take back the averages of a checkpoint."""
        for name, value in shadow.items():
            self.shadow[name].copy_(value)


@torch.no_grad()
def _fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in values:
            parameter.copy_(values[name])
