"""The loss of a codec as a list of tasks whose sum it is.

Shapes: B batch, H W pixels, M latent channels, h = H / 16, w = W / 16; K tasks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lic.trainers.losses import Terms

# What the phase-3 recipe gives to s1, s2, s3 of the whole distortion and of the whole rate. A
# quarter of the distortion is in no task.
FIXED_DISTORTION = (0.40, 0.35, 0.0)
FIXED_RATE = (0.30, 0.40, 0.30)


class Splits(Protocol):
    """A model whose y is coded in nested scales."""

    def scale_masks(self, height: int, width: int) -> dict[str, Tensor]:
        """Return for s1, s2, s3 which latents belong to it: ones and zeros (1, M, h, w)."""
        ...

    def bits_by_part(
        self, likelihoods: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the bits (scalars) of z, s1, s2, s3; `masks` are those of `scale_masks`."""
        ...


class ScaleRates:
    """A model's `bits_by_part`, its masks kept by size: all crops of a run have the same."""

    def __init__(self, model: Splits) -> None:
        self._model = model
        self._masks: dict[tuple[int, int], dict[str, Tensor]] = {}

    def __call__(self, likelihoods: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return bits (scalars) by part, of likelihoods "y" (B, M, h, w) and "z"."""
        height, width = likelihoods["y"].shape[-2:]
        if (height, width) not in self._masks:
            self._masks[height, width] = self._model.scale_masks(height, width)
        return self._model.bits_by_part(likelihoods, self._masks[height, width])


@dataclass(frozen=True)
class Tasks:
    """Named parts of a loss.

    Attributes:
        names: of the K tasks; those of distortion begin with D.
        of: makes the losses (K,), with gradients, of a batch's terms.
        scales: for each task the number of its scale, 0 to 2; all 0 where there are none.
        split: whether `Terms.rates` and `Terms.errors` are needed.
        kept: share of the distortion that the tasks add up to.
    """

    names: tuple[str, ...]
    of: Callable[[Terms], Tensor]
    scales: tuple[int, ...]
    split: bool = True
    kept: float = 1.0

    @property
    def distortion(self) -> Tensor:
        """Which tasks are of distortion, bool (K,)."""
        return torch.tensor([name.startswith("D") for name in self.names])


Distortion = Callable[[Terms], Tensor]


def two_tasks(distortion: Distortion) -> Tasks:
    """Return lambda times the distortion, and the rate: Balanced R-D (CVPR 2025)."""
    return Tasks(
        names=("D", "R"),
        of=lambda terms: torch.stack((distortion(terms), terms.bpp)),
        scales=(0, 0),
        split=False,
    )


def exact7(weight: float) -> Tasks:
    """Return `weight` times each part of the squared error, and the rate of s1, s2, s3, z."""

    def of(terms: Terms) -> Tensor:
        rates, errors = _parts(terms)
        distortion = [weight * error for error in errors]
        return torch.stack([*distortion, *(rates[name] for name in ("s1", "s2", "s3", "z"))])

    names = ("D1", "D2", "D3", "R_s1", "R_s2", "R_s3", "R_z")
    return Tasks(names=names, of=of, scales=(0, 1, 2, 0, 1, 2, 0))


def exact5(weight: float) -> Tasks:
    """Return the same parts as five: z counts as s1, and the two finer errors as one."""

    def of(terms: Terms) -> Tensor:
        rates, (d1, d2, d3) = _parts(terms)
        return torch.stack(
            (
                weight * d1,
                rates["s1"] + rates["z"],
                weight * (d2 + d3),
                rates["s2"],
                rates["s3"],
            )
        )

    names = ("D_s1", "R_s1", "D_s2", "R_s2", "R_s3")
    return Tasks(names=names, of=of, scales=(0, 0, 1, 1, 2))


def fixed5(distortion: Distortion, *, renormalise: bool) -> Tasks:
    """Return fixed shares of the whole distortion and rate.

    Rank two whatever the shares are, so that nothing about scales can be learned from it. Three
    quarters of the distortion, and with it of lambda, are left, unless they are made to add up to
    one.
    """
    total = sum(FIXED_DISTORTION) if renormalise else 1.0
    shares = [share / total for share in FIXED_DISTORTION]

    def of(terms: Terms) -> Tensor:
        d, r = distortion(terms), terms.bpp
        parts = (shares[0] * d, FIXED_RATE[0] * r, shares[1] * d, FIXED_RATE[1] * r)
        return torch.stack((*parts, FIXED_RATE[2] * r))

    names = ("D_s1", "R_s1", "D_s2", "R_s2", "R_s3")
    return Tasks(names=names, of=of, scales=(0, 0, 1, 1, 2), split=False, kept=sum(shares))


def _parts(terms: Terms) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
    assert terms.rates is not None and terms.errors is not None
    return terms.rates, terms.errors
