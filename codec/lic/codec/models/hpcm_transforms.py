"""The four transforms of HPCM (arXiv 2507.19125) by its config; fresh weights.

Shapes: B batch, M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16;
x, x_hat (B, 3, H, W), y, y_hat (B, M, h, w), z (B, N, h / 4, w / 4).
"""

from torch import nn

from lic.codec.models.hpcm_blocks import Branch, PartialBlock, down, upsample
from lic.codec.models.hpcm_config import HPCMConfig


def transforms(config: HPCMConfig) -> tuple[nn.Module, nn.Module]:
    """Return g_a, from x to y, and g_s, from y_hat to x_hat."""

    def blocks(place: int) -> list[nn.Module]:
        return [PartialBlock(config.widths[place]) for _ in range(config.blocks[place])]

    half, quarter, eighth = config.widths
    g_a = Branch(
        [
            down(3, half, 4),
            *blocks(0),
            down(half, quarter, 2),
            *blocks(1),
            down(quarter, eighth, 2),
            *blocks(2),
            down(eighth, config.M, 2),
        ]
    )
    g_s = Branch(
        [
            upsample(config.M, eighth, 2),
            *blocks(2),
            upsample(eighth, quarter, 2),
            *blocks(1),
            upsample(quarter, half, 2),
            *blocks(0),
            upsample(half, 3, 4),
        ]
    )
    return g_a, g_s


def hyper_transforms(config: HPCMConfig) -> tuple[nn.Module, nn.Module]:
    """Return h_a, from y to z, and h_s, from z to scales and means (B, 2M, h, w)."""
    m, n = config.M, config.N
    h_a = Branch(
        [
            PartialBlock(m),
            down(m, n, 2),
            *(PartialBlock(n) for _ in range(3)),
            down(n, n, 2),
        ]
    )
    h_s = Branch(
        [
            upsample(n, n, 2),
            *(PartialBlock(n) for _ in range(3)),
            upsample(n, 2 * m, 2),
            PartialBlock(2 * m),
        ]
    )
    return h_a, h_s
