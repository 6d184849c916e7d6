"""Layers that the models share.

Shapes: N batch, C channels, H W height and width of the tensor at hand.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.models.gdnish import DecoderBlock, DecoderGain, EncoderBlock, EncoderGain

Activation = Literal["gdn", "relu", "igdn1", "gdnish"]
ACTIVATIONS: tuple[Activation, ...] = ("gdn", "relu", "igdn1", "gdnish")


def conv(in_channels: int, out_channels: int, kernel_size: int = 5, stride: int = 2) -> nn.Conv2d:
    """Return a convolution that gives ceil(H / stride) rows: any size from 1x1 works."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2)


def deconv(
    in_channels: int, out_channels: int, kernel_size: int = 5, stride: int = 2
) -> nn.ConvTranspose2d:
    """Return a transposed convolution that gives exactly H * stride rows."""
    return nn.ConvTranspose2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        padding=kernel_size // 2,
        output_padding=stride - 1,
    )


class _LowerBoundFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.maximum(x, bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, bound = ctx.saved_tensors
        (grad,) = grads
        return grad * ((x >= bound) | (grad < 0)), None


_lower_bound: Callable[[Tensor, Tensor], Tensor] = _LowerBoundFunction.apply


class LowerBound(nn.Module):
    """max(x, bound), whose gradient still lets x rise from below the bound."""

    bound: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([float(bound)]))

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, bound), same shape as x."""
        if not torch.is_grad_enabled():
            return torch.maximum(x, self.bound)
        return _lower_bound(x, self.bound)


class NonNegativeParametrizer(nn.Module):
    """Stores sqrt(v + pedestal) in place of v >= minimum (Balle, arXiv 1802.00847, section 3).

    Buffer names are those of CompressAI, so that its checkpoints fit.
    """

    pedestal: Tensor

    def __init__(self, minimum: float = 0.0, reparam_offset: float = 2**-18) -> None:
        super().__init__()
        pedestal = reparam_offset**2
        self.register_buffer("pedestal", torch.tensor([pedestal]))
        self.lower_bound = LowerBound((minimum + pedestal) ** 0.5)

    def init(self, value: Tensor) -> Tensor:
        """Return the stored form of value."""
        return torch.sqrt(torch.maximum(value + self.pedestal, self.pedestal))

    def forward(self, stored: Tensor) -> Tensor:
        """Return the value of the stored form."""
        value: Tensor = self.lower_bound(stored) ** 2 - self.pedestal
        return value


class GDN(nn.Module):
    """Generalised divisive normalisation x / sqrt(beta + gamma x^2), arXiv 1511.06281.

    With `inverse` it multiplies instead. `simplified` gives GDN1, x / (beta + gamma |x|), and its
    inverse x * (beta + gamma |x|) (arXiv 1912.08771): no square, no root, and in the decoder no
    division, which is what NPUs lack.
    """

    def __init__(
        self,
        channels: int,
        *,
        inverse: bool = False,
        simplified: bool = False,
        beta_min: float = 1e-6,
        gamma_init: float = 0.1,
    ) -> None:
        super().__init__()
        self.inverse = inverse
        self.simplified = simplified
        self.beta_reparam = NonNegativeParametrizer(minimum=beta_min)
        self.gamma_reparam = NonNegativeParametrizer()
        self.beta = nn.Parameter(self.beta_reparam.init(torch.ones(channels)))
        self.gamma = nn.Parameter(self.gamma_reparam.init(gamma_init * torch.eye(channels)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return beta (C,) and gamma (C, C) as the formula uses them."""
        return self.beta_reparam(self.beta), self.gamma_reparam(self.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised x (N, C, H, W)."""
        beta, gamma = self.folded()
        return normalise(x, beta, gamma, inverse=self.inverse, simplified=self.simplified)


def normalise(x: Tensor, beta: Tensor, gamma: Tensor, *, inverse: bool, simplified: bool) -> Tensor:
    """Apply GDN or GDN1 with folded parameters to x (N, C, H, W)."""
    weight = gamma[:, :, None, None]
    if simplified:
        pool = F.conv2d(torch.abs(x), weight, beta)
        return x * pool if inverse else x / pool
    pool = F.conv2d(x * x, weight, beta)
    return x * torch.sqrt(pool) if inverse else x * torch.rsqrt(pool)


def activation(
    kind: Activation,
    channels: int,
    *,
    inverse: bool,
    gain: EncoderGain | DecoderGain | None = None,
) -> nn.Module:
    """Return the non-linearity `kind`; `inverse` for the decoder, `gain` of a GDN-ish block."""
    if kind == "relu":
        # Never in place: training start and quantisation look at the values before it.
        return nn.ReLU(inplace=False)
    if kind != "gdnish":
        return GDN(channels, inverse=inverse, simplified=kind == "igdn1")
    if inverse:
        return DecoderBlock(channels, gain if isinstance(gain, DecoderGain) else DecoderGain())
    return EncoderBlock(channels, gain if isinstance(gain, EncoderGain) else EncoderGain())
