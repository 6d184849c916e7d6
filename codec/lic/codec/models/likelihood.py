"""The fully factorised entropy model of Balle et al. (arXiv 1802.01436, appendix 6.1).

Shapes: N batch, M latent channels, h w latent rows and columns, n = N * h * w, L table length.
"""

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.entropy import Tables, build_tables
from lic.codec.errors import NumericsError
from lic.codec.models.blocks import LowerBound
from lic.codec.models.noise import uniform_noise

# What a table leaves to the escape on both sides together, before the tables' own pruning.
TAIL_MASS = 1e-9
LIKELIHOOD_BOUND = 1e-9
# Steps to either side of the centre; tables keep 255, and memory grows with the widest density.
WIDEST = 2**12
# Of photos, the set that codes one best is up to 0.9 octaves off that of its step. With steps this
# far apart the best set costs 0.2 % more than that of a dense grid, and the files stay small.
STEPS = tuple(2.0 ** (3 * number / 8) for number in range(-4, 5))


class EntropyBottleneck(nn.Module):
    """One learned density per channel; parameter and buffer names as in CompressAI.

    The three integer buffers exist only so that state dicts fit in both directions: lic codes with
    the 14-bit tables of `tables()`, frozen in the bundle.
    """

    quantiles: nn.Parameter
    target: Tensor

    def __init__(
        self,
        channels: int,
        *,
        filters: tuple[int, ...] = (3, 3, 3, 3),
        init_scale: float = 10.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.filters = filters
        widths = (1, *filters, 1)
        scale = init_scale ** (1 / (len(filters) + 1))
        self.matrices = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.factors = nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            start = math.log(math.expm1(1 / scale / fan_out))
            self.matrices.append(nn.Parameter(torch.full((channels, fan_out, fan_in), start)))
            self.biases.append(nn.Parameter(torch.empty(channels, fan_out, 1).uniform_(-0.5, 0.5)))
            if i < len(filters):
                self.factors.append(nn.Parameter(torch.zeros(channels, fan_out, 1)))
        edges = torch.tensor([-init_scale, 0.0, init_scale])
        self.quantiles = nn.Parameter(edges.repeat(channels, 1, 1))
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_BOUND)
        target = math.log(2 / TAIL_MASS - 1)
        self.register_buffer("target", torch.tensor([-target, 0.0, target]))
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))

    @property
    def medians(self) -> Tensor:
        """The centre of each channel's quantisation grid, (1, M, 1, 1)."""
        return self.quantiles[:, 0, 1].detach().reshape(1, -1, 1, 1)

    def init_scales(self, deviations: Tensor) -> None:
        """Set the densities to widths that suit standard deviations (M,) of the latents."""
        layers = len(self.matrices)
        with torch.no_grad():
            scale = deviations.clamp(min=0.05).to(torch.float64) ** (1 / layers)
            for matrix in self.matrices:
                value = torch.log(torch.expm1(1 / scale / matrix.shape[1]))
                matrix.copy_(value.reshape(-1, 1, 1).expand_as(matrix))
            for bias in self.biases:
                bias.uniform_(-0.1, 0.1)

    def logits_cumulative(self, values: Tensor, *, frozen: bool = False) -> Tensor:
        """Return the logit of the cumulative density, (M, 1, n), at values (M, 1, n).

        With `frozen`, gradients reach the values only.
        """

        def ready(parameter: Tensor) -> Tensor:
            return (parameter.detach() if frozen else parameter).to(values.dtype)

        logits = values
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            logits = F.softplus(ready(matrix)) @ logits + ready(bias)
            if i < len(self.factors):
                logits = logits + torch.tanh(ready(self.factors[i])) * torch.tanh(logits)
        return logits

    def interval_probability(self, values: Tensor, step: float = 1.0) -> Tensor:
        """Return the mass of [v - step / 2, v + step / 2], (M, 1, n), without a lower bound."""
        n, half = values.shape[2], step / 2
        logits = self.logits_cumulative(torch.cat((values - half, values + half), dim=2))
        lower, upper = logits[..., :n], logits[..., n:]
        # Both ends are mirrored to the side where a sigmoid keeps its relative precision.
        sign = -torch.sign(lower + upper).detach()
        sign = torch.where(sign == 0, torch.ones_like(sign), sign)
        return torch.abs(torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower))

    def quantize(self, y: Tensor) -> Tensor:
        """Return integers (as float) of y (N, M, h, w) relative to the medians."""
        return torch.round(y - self.medians)

    def dequantize(self, symbols: Tensor) -> Tensor:
        """Return y_hat (N, M, h, w) from symbols of the same shape."""
        return symbols + self.medians

    def forward(self, y: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        """Return y_hat and its likelihoods, both (N, M, h, w).

        In training, uniform noise stands for rounding.
        """
        y_hat = self.approximate(y, training)
        return y_hat, self.likelihoods(y_hat)

    def approximate(self, y: Tensor, training: bool | None = None) -> Tensor:
        """Return y_hat (N, M, h, w): y with noise in training, else on the grid."""
        noisy = self.training if training is None else training
        if noisy:
            return y + uniform_noise(y)
        return self.dequantize(self.quantize(y))

    def likelihoods(self, y_hat: Tensor) -> Tensor:
        """Return the mass of the intervals around y_hat (N, M, h, w)."""
        values = y_hat.transpose(0, 1).reshape(self.channels, 1, -1)
        likelihoods: Tensor = self.likelihood_lower_bound(self.interval_probability(values))
        rows = (y_hat.shape[1], y_hat.shape[0], *y_hat.shape[2:])
        return likelihoods.reshape(rows).transpose(0, 1)

    def aux_loss(self) -> Tensor:
        """Return the distance of the quantiles from the tails' true positions (scalar)."""
        # Only the quantiles learn from it: the densities must not move to suit them.
        logits = self.logits_cumulative(self.quantiles, frozen=True)
        return torch.abs(logits - self.target).sum()

    @torch.no_grad()
    def solve_quantiles(self, iterations: int = 64) -> None:
        """Set the quantiles to their exact positions by bisection, in double precision.

        Raises:
            NumericsError: a channel's density has no finite tail.
        """
        targets = self.target.double().reshape(1, 1, 3).expand(self.channels, 1, 3)
        low = torch.full_like(targets, -(2.0**20))
        high = torch.full_like(targets, 2.0**20)
        inside = (self.logits_cumulative(low) < targets) & (self.logits_cumulative(high) > targets)
        if not bool(inside.all()):
            channel = int((~inside).any(dim=2).flatten().nonzero()[0, 0])
            raise NumericsError(
                f"entropy_bottleneck: channel {channel} has no finite tail (found quantiles beyond "
                "2^20 steps, or NaN parameters); train on, or from an earlier checkpoint"
            )
        for _ in range(iterations):
            middle = (low + high) / 2
            below = self.logits_cumulative(middle) < targets
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        self.quantiles.copy_((low + high) / 2)

    @torch.no_grad()
    def pmfs(self, step: float = 1.0) -> tuple[list[NDArray[np.float64]], list[int]]:
        """Return each channel's probabilities (escape mass last) and its smallest symbol.

        Symbols are the nearest integers of (y - median) / step.

        Raises:
            NumericsError: a channel has parameters that are no numbers.
        """
        self._check_finite()
        quantiles = self.quantiles[:, 0].double()
        medians = quantiles[:, 1]
        minima = torch.ceil((medians - quantiles[:, 0]) / step).clamp(0, WIDEST).int()
        maxima = torch.ceil((quantiles[:, 2] - medians) / step).clamp(0, WIDEST).int()
        longest = int((minima + maxima).max()) + 1
        samples = torch.arange(longest, dtype=torch.float64, device=quantiles.device)
        values = medians[:, None, None] + (samples - minima[:, None, None]) * step
        mass = self.interval_probability(values, step)[:, 0].cpu().numpy()
        lengths = (minima + maxima + 1).tolist()
        rows = []
        for row, length in zip(mass, lengths, strict=True):
            pmf = row[:length]
            rows.append(np.append(pmf, max(1.0 - float(pmf.sum()), 0.0)))
        return rows, (-minima).tolist()

    def tables(self) -> Tables:
        """Return the integer tables that a bundle freezes, a set for each of STEPS.

        Raises:
            NumericsError: a channel has parameters that are no numbers.
        """
        sets = [self.pmfs(step) for step in STEPS]
        rows = [row for pmfs, _ in sets for row in pmfs]
        return build_tables(rows, [o for _, offsets in sets for o in offsets], len(STEPS))

    def _check_finite(self) -> None:
        parameters = torch.cat([p.flatten(1) for p in self.parameters()], dim=1)
        bad = (~torch.isfinite(parameters)).any(dim=1).nonzero()
        if len(bad):
            raise NumericsError(
                f"entropy_bottleneck: channel {int(bad[0])} has NaN or infinite parameters; train "
                "on from an earlier checkpoint"
            )
