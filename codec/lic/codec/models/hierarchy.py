"""Which latent is coded when: the three nested scales of HPCM and the steps within each.

Shapes: B batch, C channels of one group, n groups, h w rows and columns, p side of a pattern.

A *pattern* (n, 1, 1, p, 1, p) of ones and zeros says for every p x p cell which sites of each of n
groups of channels are meant. It multiplies a view of the tensor, so that nothing depends on the
size of the picture: no mask is built or kept, any batch and device will do, and what an exporter
sees is a reshape, a product and a sum.

The tables below are facts of the model (arXiv 2507.19125); its weights know no other order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Site = tuple[int, int]

# The site of each group that the next coarser scale keeps.
COARSE_OF_S3: tuple[Site, ...] = ((0, 0), (1, 1), (0, 1), (1, 0)) * 2
COARSE_OF_S2: tuple[Site, ...] = ((0, 0), (0, 1), (1, 0), (1, 1))

_DIAGONAL, _ANTIDIAGONAL = ((0, 0), (1, 1)), ((0, 1), (1, 0))
_S1 = ((_DIAGONAL, _ANTIDIAGONAL), (_ANTIDIAGONAL, _DIAGONAL))
# By step, for each quarter of the channels the number of its site in COARSE_OF_S2. The order
# (0, 1, 2, 3), which would come first, is what s1 has coded.
_S2 = ((3, 2, 1, 0), (2, 3, 0, 1), (1, 0, 3, 2))
_PAIRS: tuple[tuple[Site, Site], ...] = (
    ((0, 0), (2, 2)),
    ((0, 2), (2, 0)),
    ((1, 1), (3, 3)),
    ((1, 3), (3, 1)),
    ((0, 1), (2, 3)),
    ((0, 3), (2, 1)),
    ((1, 0), (3, 2)),
    ((1, 2), (3, 0)),
)
# By step, for each eighth of the channels the number of its pair of sites. The first two orders of
# the scheme, (0 2 4 6 1 3 5 7) and (1 3 5 7 0 2 4 6), are what s2 has coded.
_S3 = (
    (2, 4, 6, 0, 3, 5, 7, 1),
    (3, 5, 7, 1, 2, 4, 6, 0),
    (4, 6, 0, 2, 5, 7, 1, 3),
    (5, 7, 1, 3, 4, 6, 0, 2),
    (6, 0, 2, 4, 7, 1, 3, 5),
    (7, 1, 3, 5, 6, 0, 2, 4),
)


class Step(NamedTuple):
    """One of the eleven steps.

    Attributes:
        scale: 0, 1, 2 for s1, s2, s3.
        place: number of the step within its scale.
    """

    scale: int
    place: int

    @property
    def name(self) -> str:
        """The scale's name."""
        return SCALES[self.scale]


SCALES = ("s1", "s2", "s3")
_COUNTS = (2, 3, 6)
STEPS = tuple(Step(scale, place) for scale, count in enumerate(_COUNTS) for place in range(count))


def pattern(sites: Sequence[Sequence[Site]], side: int) -> Tensor:
    """Return the pattern (n, 1, 1, p, 1, p) of the sites of n groups in cells of p = `side`."""
    ones = torch.zeros(len(sites), 1, 1, side, 1, side)
    for group, places in enumerate(sites):
        for row, column in places:
            ones[group, 0, 0, row, 0, column] = 1
    return ones


def step_patterns() -> list[Tensor]:
    """Return for each of STEPS the sites that it codes: each site of each channel occurs once."""
    return [
        *(pattern(sites, 2) for sites in _S1),
        *(pattern([[COARSE_OF_S2[i]] for i in order], 2) for order in _S2),
        *(pattern([_PAIRS[i] for i in order], 4) for order in _S3),
    ]


def coarse_patterns() -> tuple[Tensor, Tensor]:
    """Return the sites of s1 within s2, and those of s2 within s3."""
    return (
        pattern([[site] for site in COARSE_OF_S2], 2),
        pattern([[site] for site in COARSE_OF_S3], 2),
    )


def _cells(x: Tensor, groups: int, side: int) -> Tensor:
    """Return x (B, n C, h, w) as (B, n, C, h / p, p, w / p, p)."""
    batch, channels, height, width = x.shape
    return x.reshape(batch, groups, channels // groups, height // side, side, width // side, side)


def fold(x: Tensor, sites: Tensor) -> Tensor:
    """Return the sites that a pattern keeps of x (B, n C, h, w), packed into (B, C, h, w).

    Every site of the result comes from exactly one of the n groups.
    """
    cells = _cells(x, sites.shape[0], sites.shape[-1])
    return (cells * sites).sum(1).reshape(x.shape[0], -1, x.shape[2], x.shape[3])


def spread(folded: Tensor, sites: Tensor) -> Tensor:
    """Return `fold`'s result (B, C, h, w) put back into (B, n C, h, w), with zeros elsewhere."""
    cells = _cells(folded, 1, sites.shape[-1])
    return (cells * sites).reshape(folded.shape[0], -1, folded.shape[2], folded.shape[3])


def coarsen(x: Tensor, sites: Sequence[Site]) -> Tensor:
    """Return of each group of x (B, n C, h, w) its own site of every 2x2 cell: (B, n C, h/2, w/2).

    `up` undoes it but for zeros at the other sites.
    """
    groups = x.chunk(len(sites), dim=1)
    kept = [g[..., row::2, col::2] for g, (row, col) in zip(groups, sites, strict=True)]
    return torch.cat(kept, dim=1)


def up(x: Tensor, sites: Tensor) -> Tensor:
    """Return x (B, n C, h, w) put at the sites of a 2x2 pattern: (B, n C, 2h, 2w), else zeros."""
    batch, channels, height, width = x.shape
    groups = sites.shape[0]
    cells = x.reshape(batch, groups, channels // groups, height, 1, width, 1)
    return (cells * sites).reshape(batch, channels, 2 * height, 2 * width)


def without(x: Tensor, sites: Tensor) -> Tensor:
    """Return x (B, n C, h, w) with zeros at the sites of a pattern."""
    cells = _cells(x, sites.shape[0], sites.shape[-1])
    return (cells * (1 - sites)).reshape(x.shape)


def scrambled_without_s1(x: Tensor) -> Tensor:
    """Return the hyper parameters of s2 as the published models see them.

    x is (B, M, h, w) at the size of s2, both sides even. The s1 sites are zeros, as in
    `without(x, s1)`, but in three quarters of the channels the other values stand at wrong sites:
    upstream picks them by sites of s1 that are not those of these channels, and writes them row by
    row to the sites that are left. Where they land depends on the width of the padded picture. The
    published weights were trained with this and give nonsense without.
    """
    first, second, third, fourth = x.chunk(4, dim=1)
    height, width = x.shape[-2:]

    def rows(quarter: Tensor) -> tuple[Tensor, Tensor]:
        return quarter[..., 0::2, :], quarter[..., 1::2, :]

    def columns(even: Tensor, odd: Tensor) -> Tensor:
        """Weave two (..., w / 2) into columns (..., w)."""
        return torch.stack((even, odd), dim=-1).flatten(-2)

    def weave(even: Tensor, odd: Tensor) -> Tensor:
        """Weave two (..., h / 2, w) into rows (..., h, w)."""
        return torch.stack((even, odd), dim=-2).reshape(*even.shape[:-2], height, width)

    even, odd = rows(first)
    kept = columns(torch.zeros_like(even[..., 0::2]), even[..., 1::2])
    quarters = [weave(kept, odd)]

    even, odd = rows(second)
    moved = columns(even[..., 1::2], torch.zeros_like(even[..., 1::2]))
    quarters.append(weave(moved, odd))

    for quarter, lands_odd in ((third, True), (fourth, False)):
        even, odd = rows(quarter)
        left, right = odd[..., : width // 2], odd[..., width // 2 :]
        packed = torch.cat((even[..., 0::2], left), dim=-1)
        zeros = torch.zeros_like(right)
        tail = columns(zeros, right) if lands_odd else columns(right, zeros)
        quarters.append(weave(packed, tail))
    return torch.cat(quarters, dim=1)
