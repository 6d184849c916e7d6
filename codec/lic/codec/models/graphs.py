"""The two functions that a deployed codec consists of, as modules.

PyTorch runs `Analysis` and `Synthesis` as they are and the exporter turns them into a bundle's
graphs, so that both engines compute the same thing. What lies between, latents to symbols and back
in a step that a file tells, is numpy's: the same on every engine, and an encoder that looks for a
step needs the latents once. `Encoder` and `Decoder` are for devices that are to give and take
symbols.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import torch
from torch import Tensor, nn

from lic.codec.latents import SYMBOL_LIMIT, UNCODABLE
from lic.codec.models.bmshj2018 import FactorizedPrior


def to_symbols(steps: Tensor) -> Tensor:
    """Return rounded latents (any shape) as int32; NaN and what is too large as UNCODABLE."""
    codable = torch.abs(steps) <= SYMBOL_LIMIT
    return torch.where(codable, steps, float(UNCODABLE)).to(torch.int32)


class Analysis(nn.Module):
    """x (N, 3, H, W) in [0, 1] -> y less the medians (N, M, h, w), float: who calls rounds it."""

    medians: Tensor

    def __init__(self, model: FactorizedPrior) -> None:
        super().__init__()
        self.g_a = model.g_a
        self.register_buffer("medians", model.entropy_bottleneck.medians.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return y less the medians."""
        y: Tensor = self.g_a(x) - self.medians
        return y


class Synthesis(nn.Module):
    """y_hat less the medians (N, M, h, w), float -> x_hat (N, 3, H, W) in [0, 1]."""

    medians: Tensor

    def __init__(self, model: FactorizedPrior) -> None:
        super().__init__()
        self.g_s = model.g_s
        self.register_buffer("medians", model.entropy_bottleneck.medians.clone())

    def forward(self, y_hat: Tensor) -> Tensor:
        """Return the picture."""
        x_hat: Tensor = self.g_s(y_hat + self.medians)
        return x_hat.clamp(0, 1)


class Encoder(Analysis):
    """x (N, 3, H, W) in [0, 1] -> symbols (N, M, h, w) int32 of step 1, see `to_symbols`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols."""
        return to_symbols(torch.round(super().forward(x)))


class Decoder(Synthesis):
    """symbols (N, M, h, w) int32 of step 1 -> x_hat (N, 3, H, W) in [0, 1]."""

    def forward(self, y_hat: Tensor) -> Tensor:
        """Return the picture."""
        return super().forward(y_hat.to(self.medians.dtype))
