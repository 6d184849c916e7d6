"""Entropy models whose scale comes from a network: Gaussian and generalised Gaussian.

Shapes: values and scales have any one shape; T scales in the table.

Both code a residual (the latent minus its mean, rounded) with the table of the smallest scale in a
fixed list that is not below the network's. The likelihood in training takes the scale as it is.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.codec.errors import NumericsError
from lic.codec.models.blocks import LowerBound
from lic.codec.models.likelihood import LIKELIHOOD_BOUND, TAIL_MASS, WIDEST


def scale_table(low: float, high: float, levels: int) -> Tensor:
    """Return `levels` scales from low to high, even in their logarithm, as float32."""
    return torch.exp(torch.linspace(math.log(low), math.log(high), levels))


def scale_indexes(scales: Tensor, table: Tensor) -> Tensor:
    """Return for each scale the index of the smallest entry not below it; the last for larger ones.

    A scale that is negative or zero gets index 0, and NaN the last.
    """
    return torch.bucketize(scales, table[:-1])


class Conditional(nn.Module, ABC):
    """A symmetric density of which a network gives the scale."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood_lower_bound = LowerBound(LIKELIHOOD_BOUND)

    @abstractmethod
    def bounded(self, scales: Tensor) -> Tensor:
        """Return the scales that are used in place of a network's, which may be negative."""

    @abstractmethod
    def mass(self, values: Tensor, scales: Tensor) -> Tensor:
        """Return the mass of [v - 1/2, v + 1/2] around values, scales being positive."""

    @abstractmethod
    def tail(self, mass: float) -> float:
        """Return at how many scales from the centre `mass` is left beyond, on one side."""

    def forward(self, values: Tensor, scales: Tensor) -> Tensor:
        """Return the likelihoods of residuals, bounded from below."""
        mass = self.mass(values, self.bounded(scales))
        likelihoods: Tensor = self.likelihood_lower_bound(mass)
        return likelihoods

    @torch.no_grad()
    def pmfs(self, scales: Tensor) -> tuple[list[NDArray[np.float64]], list[int]]:
        """Return for scales (T,) the masses of residuals (the escape's last), and the first one.

        Raises:
            NumericsError: a scale is NaN or infinite.
        """
        if not bool(torch.isfinite(scales).all()):
            number = int((~torch.isfinite(scales)).nonzero()[0, 0])
            raise NumericsError(f"scale {number} of {len(scales)} is {float(scales[number])}")
        rows, offsets = [], []
        tail = self.tail(TAIL_MASS / 2)
        for scale in self.bounded(scales).cpu().double():
            reach = min(max(1, math.ceil(float(scale) * tail)), WIDEST)
            values = torch.arange(reach + 1, dtype=torch.float64)
            half = self.mass(values, scale.expand_as(values)).numpy()
            row = np.concatenate((half[:0:-1], half))
            rows.append(np.append(row, max(1.0 - math.fsum(row), 0.0)))
            offsets.append(-reach)
        return rows, offsets


class GaussianConditional(Conditional):
    """Zero-mean Gaussian; buffers as in CompressAI, whose integer tables lic does not use."""

    scale_table: Tensor

    def __init__(self, table: Tensor, *, scale_bound: float = 0.11) -> None:
        super().__init__()
        self.lower_bound_scale = LowerBound(scale_bound)
        self.register_buffer("scale_table", table)
        self.register_buffer("scale_bound", torch.tensor([float(scale_bound)]))
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))

    def bounded(self, scales: Tensor) -> Tensor:
        """Return max(scales, bound)."""
        bounded: Tensor = self.lower_bound_scale(scales)
        return bounded

    def mass(self, values: Tensor, scales: Tensor) -> Tensor:
        """Return the mass around values, taken on the side where the tail keeps its precision."""
        values = torch.abs(values)
        return _normal_cdf((0.5 - values) / scales) - _normal_cdf((-0.5 - values) / scales)

    def tail(self, mass: float) -> float:
        """Return the quantile of the standard normal distribution."""
        return -float(torch.special.ndtri(torch.tensor(mass, dtype=torch.float64)))


def _normal_cdf(values: Tensor) -> Tensor:
    return 0.5 * torch.erfc(values * -(2**-0.5))


SHAPE = 1.5


class GeneralizedGaussian(Conditional):
    """Density proportional to exp(-|t / scale|^1.5), buffers as in HPCM (arXiv 2507.19125).

    "Scale" is that of the exponent: the standard deviation is 0.859 of it.
    """

    beta: Tensor

    def __init__(self, *, scale_bound: float = 0.12) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor([SHAPE]))
        self.scale_lower_bound = LowerBound(scale_bound)

    def bounded(self, scales: Tensor) -> Tensor:
        """Return max(scales, bound)."""
        bounded: Tensor = self.scale_lower_bound(scales)
        return bounded

    def mass(self, values: Tensor, scales: Tensor) -> Tensor:
        """Return the mass around values, as a plain difference of cumulative densities.

        In float32 that has steps of 6e-8 and is nought beyond some six scales. Published
        bit counts contain this, and a model trained otherwise would not be comparable.
        """
        return cumulative((values + 0.5) / scales) - cumulative((values - 0.5) / scales)

    def tail(self, mass: float) -> float:
        """Return the quantile of the standard density, by bisection."""
        low, high = 0.0, 64.0
        for _ in range(64):
            middle = (low + high) / 2
            beyond = 1 - float(cumulative(torch.tensor(middle, dtype=torch.float64)))
            low, high = (middle, high) if beyond > mass else (low, middle)
        return high


def _cumulative(t: Tensor) -> Tensor:
    """Return F(t) = (1 + sign(t) P(1 / 1.5, |t|^1.5)) / 2, P the regularised incomplete gamma."""
    inside = torch.special.gammainc(t.new_tensor(1 / SHAPE), torch.abs(t) ** SHAPE)
    value: Tensor = 0.5 * (1 + torch.sign(t) * inside)
    return value


class _CumulativeFunction(torch.autograd.Function):
    """F with its exact derivative: that of gammainc is infinity times nought at 0."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.save_for_backward(t)
        return _cumulative(t)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        (grad,) = grads
        density = torch.exp(-(torch.abs(t) ** SHAPE) - math.lgamma(1 / SHAPE))
        gradient: Tensor = grad * (SHAPE / 2 * density)
        return gradient


_cumulative_with_gradient: Callable[[Tensor], Tensor] = _CumulativeFunction.apply


def cumulative(t: Tensor) -> Tensor:
    """Return the cumulative generalised Gaussian of shape 1.5 and scale 1 at t, same shape."""
    if not torch.is_grad_enabled():
        return _cumulative(t)
    return _cumulative_with_gradient(t)
