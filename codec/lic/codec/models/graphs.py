"""The two functions that a deployed codec consists of, as modules.

PyTorch runs them as they are and the exporter turns them into graphs, so that both engines
compute the same thing.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import torch
from torch import Tensor, nn

from lic.codec.models.bmshj2018 import FactorizedPrior

# Larger than any 16-bit symbol: how a graph says that a latent cannot be coded.
UNCODABLE = 2**16
CODABLE = 2**15 - 1


class Encoder(nn.Module):
    """x (N, 3, H, W) in [0, 1] -> symbols (N, M, h, w) int32.

    NaN, infinite and huge latents become UNCODABLE: their conversion to integers would differ from
    machine to machine, and on some give a harmless-looking zero.
    """

    medians: Tensor

    def __init__(self, model: FactorizedPrior) -> None:
        super().__init__()
        self.g_a = model.g_a
        self.register_buffer("medians", model.entropy_bottleneck.medians.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the symbols."""
        steps = torch.round(self.g_a(x) - self.medians)
        codable = torch.abs(steps) <= CODABLE
        return torch.where(codable, steps, float(UNCODABLE)).to(torch.int32)


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
