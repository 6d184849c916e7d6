"""The two functions that a deployed codec consists of, as modules.

PyTorch runs them as they are and the exporter turns them into graphs, so that both engines
compute the same thing.

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


class Encoder(nn.Module):
    """x (N, 3, H, W) in [0, 1] -> symbols (N, M, h, w) int32, see `to_symbols`."""

    medians: Tensor

    def __init__(self, model: FactorizedPrior) -> None:
        super().__init__()
        self.g_a = model.g_a
        self.register_buffer("medians", model.entropy_bottleneck.medians.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols."""
        return to_symbols(torch.round(self.g_a(x) - self.medians))


class Decoder(nn.Module):
    """symbols (N, M, h, w) int32 -> x_hat (N, 3, H, W) in [0, 1]."""

    medians: Tensor

    def __init__(self, model: FactorizedPrior) -> None:
        super().__init__()
        self.g_s = model.g_s
        self.register_buffer("medians", model.entropy_bottleneck.medians.clone())

    def forward(self, symbols: Tensor) -> Tensor:
        """Return the picture."""
        x_hat: Tensor = self.g_s(symbols.to(self.medians.dtype) + self.medians)
        return x_hat.clamp(0, 1)
