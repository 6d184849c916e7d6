"""What the models whose entropy parameters come from a network offer to the coding walk.

Shapes: B batch, M latent channels, H W pixels, h = H / 16, w = W / 16; a group of step k has
(B, C, h', w'), a part of the M h w latents that no other step holds.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from lic.codec.entropy import Tables

Progress = Any


class ContextModel(nn.Module, ABC):
    """Codes z first, channel by channel, then y in steps, each with what is known by then.

    Attributes:
        name: key of `lic.codec.models.MODELS`.
        config: the sizes, with N channels of z and M of y.
        stride: pictures must be multiples of it.
        steps: for each step the name of the part of y that it belongs to.

    All methods work on any batch, device and floating dtype, and both for training and coding: a
    file decodes to the very y_hat that `forward` computes.
    """

    name: ClassVar[str]
    config: Any
    stride: int
    steps: tuple[str, ...]

    @classmethod
    @abstractmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Return a freshly initialised model from a config's dictionary."""

    @abstractmethod
    def analyze(self, x: Tensor) -> Tensor:
        """Return y (B, M, h, w) of x (B, 3, H, W) in [0, 1]."""

    @abstractmethod
    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Return x_hat (B, 3, H, W), not clamped, from y_hat (B, M, h, w)."""

    @abstractmethod
    def hyper_analyze(self, y: Tensor) -> Tensor:
        """Return z minus its means, not rounded, (B, N, h / 4, w / 4)."""

    @abstractmethod
    def begin(self, z: Tensor) -> Progress:
        """Return the state before the first step from the rounded `hyper_analyze(y)`."""

    @abstractmethod
    def select(self, step: int, y: Tensor) -> Tensor:
        """Return the part (B, C, h', w') of y (B, M, h, w) that a step codes."""

    @abstractmethod
    def parameters_of(self, step: int, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return scales and means of a step's part, both (B, C, h', w')."""

    @abstractmethod
    def accept(self, step: int, progress: Progress, y_hat: Tensor) -> None:
        """Make a step's part (B, C, h', w') known to the steps after it."""

    @abstractmethod
    def y_hat(self, progress: Progress) -> Tensor:
        """Return y_hat (B, M, h, w) after the last step."""

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """The scales (T,) that y has tables for, rising."""

    @abstractmethod
    def tables(self) -> Tables:
        """Return the integer tables that a bundle freezes.

        N for the channels of z, T for the levels of y, one for nudges (`lic.codec.nudges`).
        """

    @property
    def table_count(self) -> int:
        """How many tables `tables()` returns."""
        return int(self.config.N) + len(self.levels) + 1
