"""Terms of the training loss.

Shapes: N batch, H W pixels.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lic.codec.models import Output, bits


class Terms(NamedTuple):
    """Scalars of one batch: bits per pixel and mean squared error on the scale 0 to 1."""

    bpp: Tensor
    mse: Tensor


def rate_distortion_terms(output: Output, x: Tensor) -> Terms:
    """Return the terms of a forward pass on x (N, 3, H, W) in [0, 1], in float32."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return Terms(bits(output.likelihoods).float() / pixels, F.mse_loss(output.x_hat.float(), x))
