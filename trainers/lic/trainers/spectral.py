"""Low frequencies first: pictures are low-pass filtered in the first epochs of training.

A soft radial mask on the coefficients of an orthonormal 2-D DCT-II opens epoch by epoch
("intra-scale frequency regularisation" of the paper on spectral regularisation, ICLR 2026).

Shapes: B batch, H W pixels.
"""

import math

import torch
from torch import Tensor, nn

from lic.trainers.objective_options import SpectralConfig


class Curriculum(nn.Module):
    """The filter of a run, with the options of `--spectral-reg`; without it there is none.

    A coefficient at (u, v) is multiplied by max(0, 1 - r / tau), where r^2 = (u/H)^2 + (v/W)^2 and
    tau grows linearly with the epoch; the mean of a picture stays. tau = 1 is not the identity: it
    multiplies by 1 - r and removes the fifth of the coefficients that has r above 1. So the end is
    a jump unless `--truncation-continuous` blends the picture in, with a share of (epoch / T)^2.

    No parameters and no state. In `eval()` mode nothing is filtered.
    """

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        self._matrices: dict[tuple[int, torch.device], Tensor] = {}

    def tau(self, epoch: float) -> float | None:
        """Return the filter's radius after `epoch` epochs, fractions included; None once over."""
        options = self.config
        if not options.spectral_reg or epoch >= options.truncation_epochs:
            return None
        share = epoch / options.truncation_epochs
        return options.tau_init + (options.tau_final - options.tau_init) * share

    def forward(self, x: Tensor, epoch: float) -> Tensor:
        """Return x (B, 3, H, W) filtered; once over, x itself.

        Few pixels leave the range of x, by a fifth of it at the very most.

        Computed in float32 outside of autocast, returned in the type of x.
        """
        tau = self.tau(epoch)
        if tau is None or not self.training:
            return x
        with torch.autocast(x.device.type, enabled=False):
            pixels = x.float()
            filtered = self._low_pass(pixels, tau)
            if self.config.truncation_continuous:
                filtered = filtered.lerp(pixels, (epoch / self.config.truncation_epochs) ** 2)
        return filtered.to(x.dtype)

    def pair(self, x: Tensor, epoch: float) -> tuple[Tensor, Tensor]:
        """Return what the model gets in place of x (B, 3, H, W), and what its output is held to.

        With `--truncation-target truncated` both are the same tensor, and not clamped: a clamped
        one would have high frequencies again. With `original` the target is x, and the input is
        clamped to the [0, 1] of pictures. Once over, both are x.
        """
        filtered = self(x, epoch)
        if filtered is x or self.config.truncation_target == "truncated":
            return filtered, filtered
        return filtered.clamp(0, 1), x

    def _low_pass(self, x: Tensor, tau: float) -> Tensor:
        rows, columns = (self._matrix(size, x.device) for size in x.shape[-2:])
        mask = low_pass_mask(x.shape[-2], x.shape[-1], tau, x.device)
        # The mean takes no part, which keeps it exactly and the rounding of all else small.
        mean = x.mean((-2, -1), keepdim=True)
        return mean + rows.T @ (rows @ (x - mean) @ columns.T * mask) @ columns

    def _matrix(self, size: int, device: torch.device) -> Tensor:
        key = size, device
        if key not in self._matrices:
            self._matrices[key] = dct_matrix(size).to(device)
        return self._matrices[key]


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II (size, size), a row for each frequency, in float32.

    Built in float64: cosines of large arguments in float32 make a round trip ten times worse.
    """
    places = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * places[:, None] * (places + 0.5))
    waves[0] *= math.sqrt(0.5)
    return (math.sqrt(2 / size) * waves).float()


def low_pass_mask(
    height: int, width: int, tau: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the factors (height, width) in [0, 1] of the DCT's coefficients, 1 for the mean."""
    rows = torch.arange(height, device=device) / height
    columns = torch.arange(width, device=device) / width
    radius = torch.hypot(rows[:, None], columns)
    return (1 - radius / tau).clamp_min(0)
