"""Terms of the training loss, in float32 whatever the network computes in.

Shapes: N batch, C planes, H W pixels.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lic.codec.errors import ConfigError
from lic.codec.models import Output, bits
from lic.codec.models.bmshj2018 import ContextOutput
from lic.codec.models.likelihood import LIKELIHOOD_BOUND
from lic.trainers.config import LossConfig

# MS-SSIM of Wang, Simoncelli and Bovik 2003: window, stabilisers for values in [0, 1], weights.
TAPS = 11
SIGMA = 1.5
STABILISERS = (0.01**2, 0.03**2)
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


ScaleBits = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class Terms(NamedTuple):
    """Scalars of one batch; what the loss does not need is None.

    Attributes:
        bpp: bits per pixel of all latents together.
        mse: mean squared error on the scale 0 to 1.
        l1: mean absolute error on the scale 0 to 1.
        ms_ssim: multi-scale structural similarity, 0 to 1.
        rates: bits per pixel of the parts z, s1, s2, s3.
        errors: `mse` split by resolution, coarse parts first.
        floored_symbols: how many likelihoods are at their floor; at 29.9 bits each, few of them
            weigh on the whole rate.
    """

    bpp: Tensor
    mse: Tensor
    l1: Tensor | None = None
    ms_ssim: Tensor | None = None
    rates: dict[str, Tensor] | None = None
    errors: tuple[Tensor, Tensor, Tensor] | None = None
    floored_symbols: Tensor | None = None

    def detached(self) -> dict[str, Tensor]:
        """Return the terms that were computed, by name, for logs."""
        names = ("bpp", "mse", "l1", "ms_ssim", "floored_symbols")
        whole = {name: getattr(self, name) for name in names}
        rates = {f"bpp_{name}": value for name, value in (self.rates or {}).items()}
        errors = {f"mse_{i}": value for i, value in enumerate(self.errors or (), start=1)}
        found = {**whole, **rates, **errors}
        return {name: value.detach() for name, value in found.items() if value is not None}


def terms_of(
    output: Output | ContextOutput, x: Tensor, loss: LossConfig, scale_bits: ScaleBits | None = None
) -> Terms:
    """Return the terms of a forward pass on x (N, 3, H, W) in [0, 1], in float32.

    Squared and absolute errors are those of x_hat as it is. MS-SSIM is that of x_hat clamped, but
    with --loss ms-ssim of x_hat as it is, as published models were trained.

    Args:
        output: of a model.
        x: what went in.
        loss: which terms are needed.
        scale_bits: gives the bits of z, s1, s2, s3 of likelihoods; None: not needed.

    Raises:
        ConfigError: pictures too small for MS-SSIM.
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    perceptual = loss.loss in ("recon", "rd")
    similar = loss.loss == "ms-ssim" or (perceptual and loss.alpha_l1 < 1)
    with torch.autocast(x.device.type, enabled=False):
        x, x_hat = x.float(), output.x_hat.float()
        likelihoods = {name: values.float() for name, values in output.likelihoods.items()}
        rate = bits(likelihoods)
        parts = scale_bits(likelihoods) if scale_bits else None
        floored = [(values <= LIKELIHOOD_BOUND).sum() for values in likelihoods.values()]
        return Terms(
            bpp=rate / pixels,
            mse=F.mse_loss(x_hat, x),
            l1=F.l1_loss(x_hat, x) if perceptual and loss.alpha_l1 > 0 else None,
            ms_ssim=ms_ssim(x_hat, x, clamp=perceptual) if similar else None,
            rates=parts and {name: value / pixels for name, value in parts.items()},
            errors=pyramid(x - x_hat) if scale_bits else None,
            floored_symbols=torch.stack(floored).sum().float(),
        )


def pyramid(error: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean square of an error (B, 3, H, W), split by resolution.

    The parts are those of 4x4 means, of 2x2 means within them, and of pixels within these: the
    energies of a two-level orthonormal Haar transform. None is negative, and they add up.

    Raises:
        ConfigError: 4 does not divide H and W.
    """
    if error.shape[-2] % 4 or error.shape[-1] % 4:
        raise ConfigError(
            f"crops are {error.shape[-1]}x{error.shape[-2]}; expected multiples of 4 to split the "
            "distortion by resolution"
        )
    halves = F.avg_pool2d(error, 2)
    coarse = F.avg_pool2d(halves, 2)
    d1 = coarse.square().mean()
    # As variances within blocks, so that rounding never makes them negative.
    d2 = (halves - _repeated(coarse)).square().mean()
    d3 = (error - _repeated(halves)).square().mean()
    return d1, d2, d3


def _repeated(means: Tensor) -> Tensor:
    return means.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


def ms_ssim_scales(side: int) -> int:
    """Return how many of the five scales fit into pictures whose smaller side is `side` pixels.

    Raises:
        ConfigError: not even one window fits.
    """
    if side < TAPS:
        raise ConfigError(
            f"MS-SSIM of pictures of {side} pixels; expected {TAPS} or more on the smaller side, "
            "161 for all scales"
        )
    most = len(SCALE_WEIGHTS)
    return 1 + sum(1 for scale in range(1, most) if side > (TAPS - 1) * 2**scale)


def ms_ssim_note(side: int) -> str:
    """Return what a user should know of MS-SSIM on crops of `side` pixels; empty if nothing.

    Raises:
        ConfigError: not even one window fits.
    """
    scales, most = ms_ssim_scales(side), len(SCALE_WEIGHTS)
    if scales == most:
        return ""
    return (
        f"MS-SSIM of {side} pixel crops has room for {scales} of {most} scales, and their weights "
        "are made to add up to one; --crop 176 is the smallest with all"
    )


def ms_ssim(x_hat: Tensor, x: Tensor, *, clamp: bool = True) -> Tensor:
    """Return the mean MS-SSIM (scalar) of x_hat and x (N, 3, H, W), x in [0, 1].

    With `clamp` x_hat is clamped to [0, 1], and where it lay outside it only gets gradients of a
    loss that pull it back: a plain clamp would leave it there for ever. Values and, inside,
    gradients are those of pytorch-msssim, which has no form for fewer scales: below 161 pixels
    those that fit are used, their weights made to add up to one, as in `lic.codec.metrics`.

    A plane in which no structure is left on some scale (a correlation of zero or less) counts
    zero and gets no gradient.

    Raises:
        ConfigError: a side below 11 pixels.
    """
    weights = _weights(ms_ssim_scales(min(x.shape[-2:])))
    a, b = _clamped(x_hat) if clamp else x_hat, x
    window = _window().to(x)
    factors = []
    for scale, weight in enumerate(weights):
        last = scale == len(weights) - 1
        similarity = _structure(a, b, window, luminance=last)
        factors.append(torch.relu(similarity) ** weight)
        if not last:
            a, b = _halved(a), _halved(b)
    return torch.stack(factors).prod(dim=0).mean()


def _weights(scales: int) -> tuple[float, ...]:
    weights = SCALE_WEIGHTS[:scales]
    # All five add up to 1.0001 as published, and stay so: figures of others have it in them.
    total = sum(weights) if scales < len(SCALE_WEIGHTS) else 1.0
    return tuple(weight / total for weight in weights)


def _structure(a: Tensor, b: Tensor, window: Tensor, *, luminance: bool) -> Tensor:
    """Return mean contrast and structure (N, 3), with `luminance` mean SSIM, of each colour."""
    c1, c2 = STABILISERS
    # The two variances occur only as a sum, which saves one of five blurs.
    blurred = _blurred(torch.cat((a, b, a * a + b * b, a * b), dim=1), window)
    mean_a, mean_b, squares, product = blurred.chunk(4, dim=1)
    mean_product, mean_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    ratio = (2 * (product - mean_product) + c2) / (squares - mean_squares + c2)
    if luminance:
        ratio = ratio * (2 * mean_product + c1) / (mean_squares + c1)
    return ratio.mean(dim=(2, 3))


def _window() -> Tensor:
    """Return the taps (11,) of the Gaussian window."""
    taps = [math.exp(-((i - TAPS // 2) ** 2) / (2 * SIGMA**2)) for i in range(TAPS)]
    return torch.tensor(taps, dtype=torch.float64) / sum(taps)


def _blurred(planes: Tensor, window: Tensor) -> Tensor:
    """Return planes (N, C, H, W) under the window: (N, C, H - 10, W - 10)."""
    channels = planes.shape[1]
    down = F.conv2d(planes, window.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(down, window.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _halved(planes: Tensor) -> Tensor:
    """Return means of 2x2; odd sides get a border of zeros, as in pytorch-msssim."""
    return F.avg_pool2d(planes, 2, padding=[side % 2 for side in planes.shape[-2:]])


class _ClampFunction(torch.autograd.Function):
    """Clamp to [0, 1] whose gradient, outside, only passes where descent leads back inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        (grad,) = grads
        passes = ((x >= 0) | (grad < 0)) & ((x <= 1) | (grad > 0))
        return torch.where(passes, grad, 0.0)


_clamped: Callable[[Tensor], Tensor] = _ClampFunction.apply
