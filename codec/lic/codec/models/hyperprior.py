"""The scale-hyperprior model of Balle et al. 2018 (arXiv 1802.01436), with a choice of activations.

Shapes: B batch, H W pixels, M latent channels, h = H / 16, w = W / 16, N channels of z, which has
h / 4 rows and w / 4 columns; T scales that have a table. `config.N` is the number of hidden
channels as well, as in the paper.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec import nudges
from lic.codec.entropy import Tables, build_tables
from lic.codec.errors import ModelMismatchError
from lic.codec.models.blocks import Activation, conv, deconv
from lic.codec.models.bmshj2018 import (
    Output,
    TransformConfig,
    analysis_transform,
    synthesis_transform,
)
from lic.codec.models.conditional import GaussianConditional, scale_table
from lic.codec.models.context import ContextModel
from lic.codec.models.likelihood import EntropyBottleneck
from lic.codec.models.noise import uniform_noise

SCALE_MIN, SCALE_MAX, SCALE_LEVELS = 0.11, 256.0, 64
# What a foreign table may hold. Tables keep 255 symbols, so that wider densities only cost memory.
_MOST_LEVELS = 1024
_WIDEST_SCALE = 4096.0


class HyperpriorConfig(TransformConfig):
    """Options of ScaleHyperprior."""


def hyperprior_config(size: str, act: Activation = "gdn") -> HyperpriorConfig:
    """Return the config of a quality "1" to "8" or of the size "lite".

    `act` is the activation of g_a and g_s; h_a and h_s have ReLU in any case.

    Raises:
        ConfigError: no such size or activation.
    """
    return HyperpriorConfig.of_size(size, act)


@dataclass
class Known:
    """What is known of y (B, M, h, w): its scales, and after the only step y_hat."""

    scales: Tensor
    y_hat: Tensor | None = None


class ScaleHyperprior(ContextModel):
    """bmshj2018-hyperprior: y is Gaussian around zero, and z tells its scales.

    Names and shapes of the state dict are those of CompressAI 1.2.8's model after `update()`,
    but for the integer tables, which are empty. The scale table is a part of the weights: its
    entries decide which table a symbol is coded with.
    """

    name = "bmshj2018-hyperprior"
    config: HyperpriorConfig
    stride = 64
    steps = ("y",)

    def __init__(self, config: HyperpriorConfig) -> None:
        super().__init__()
        self.config = config
        n, m = config.N, config.M
        self.g_a = analysis_transform(config)
        self.g_s = synthesis_transform(config)
        self.h_a = nn.Sequential(
            conv(m, n, kernel_size=3, stride=1), nn.ReLU(), conv(n, n), nn.ReLU(), conv(n, n)
        )
        self.h_s = nn.Sequential(
            deconv(n, n),
            nn.ReLU(),
            deconv(n, n),
            nn.ReLU(),
            conv(n, m, kernel_size=3, stride=1),
            nn.ReLU(),
        )
        self.entropy_bottleneck = EntropyBottleneck(n)
        standard = scale_table(SCALE_MIN, SCALE_MAX, SCALE_LEVELS)
        self.gaussian_conditional = GaussianConditional(standard, scale_bound=SCALE_MIN)
        hook = _admit_scale_table
        self.gaussian_conditional.register_load_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Return a freshly initialised model from a config's dictionary.

        Raises:
            ConfigError: fields that do not exist or cannot work.
        """
        return cls(HyperpriorConfig.from_dict(config, model=cls.name))

    def analyze(self, x: Tensor) -> Tensor:
        """Return y (B, M, h, w) of x (B, 3, H, W) in [0, 1]."""
        y: Tensor = self.g_a(x)
        return y

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Return x_hat (B, 3, H, W), not clamped, from y_hat (B, M, h, w)."""
        x_hat: Tensor = self.g_s(y_hat)
        return x_hat

    def hyper_analyze(self, y: Tensor) -> Tensor:
        """Return z minus the bottleneck's medians, not rounded, (B, N, h / 4, w / 4)."""
        return self._z(y) - self.entropy_bottleneck.medians

    def begin(self, z: Tensor) -> Known:
        """Return the scales that the rounded `hyper_analyze(y)` tells."""
        return self._known(self.entropy_bottleneck.dequantize(z))

    def select(self, step: int, y: Tensor) -> Tensor:  # noqa: ARG002
        """Return y (B, M, h, w): the only step codes all of it."""
        return y

    def parameters_of(self, step: int, progress: Known) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return scales and means, which are zero, both (B, M, h, w)."""
        return progress.scales, torch.zeros_like(progress.scales)

    def accept(self, step: int, progress: Known, y_hat: Tensor) -> None:  # noqa: ARG002
        """Make y_hat (B, M, h, w) known."""
        progress.y_hat = y_hat

    def y_hat(self, progress: Known) -> Tensor:
        """Return y_hat (B, M, h, w) after the step."""
        assert progress.y_hat is not None, "y_hat is known after the step only"
        return progress.y_hat

    @property
    def levels(self) -> Tensor:
        """The scales (T,) that y has tables for."""
        return self.gaussian_conditional.scale_table

    def tables(self) -> Tables:
        """Return N tables of z's channels, T of the scale table's Gaussians, one for nudges.

        Raises:
            NumericsError: a channel of the bottleneck has parameters that are no numbers.
        """
        z_rows, z_offsets = self.entropy_bottleneck.pmfs()
        y_rows, y_offsets = self.gaussian_conditional.pmfs(self.levels)
        rows = [*z_rows, *y_rows, nudges.pmf()]
        return build_tables(rows, [*z_offsets, *y_offsets, 0])

    def forward(self, x: Tensor) -> Output:
        """Code x (B, 3, H, W) of any size in theory: noise in training, rounding otherwise.

        Likelihoods of y and z cover all that is coded: x is extended to multiples of 64 by its
        last rows and columns.
        """
        y_hat, likelihoods = self.code(self.analyze(self.extend(x)))
        x_hat = self.synthesize(y_hat)
        return Output(x_hat[..., : x.shape[-2], : x.shape[-1]], likelihoods)

    def code(self, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return y_hat and likelihoods by latent name for y (B, M, h, w): the entropy model.

        h and w are multiples of 4.
        """
        z_hat, z_likelihoods = self.entropy_bottleneck(self._z(y))
        progress = self._known(z_hat)
        scales, means = self.parameters_of(0, progress)
        residual = self.select(0, y) - means
        residual = residual + uniform_noise(residual) if self.training else torch.round(residual)
        self.accept(0, progress, residual + means)
        y_likelihoods = self.gaussian_conditional(residual, scales)
        return self.y_hat(progress), {"y": y_likelihoods, "z": z_likelihoods}

    def extend(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) with its last row and column repeated up to multiples of 64."""
        rows, columns = -x.shape[-2] % self.stride, -x.shape[-1] % self.stride
        return F.pad(x, (0, columns, 0, rows), mode="replicate") if rows or columns else x

    def _z(self, y: Tensor) -> Tensor:
        z: Tensor = self.h_a(torch.abs(y))
        return z

    def _known(self, z_hat: Tensor) -> Known:
        return Known(self.h_s(z_hat))


def _admit_scale_table(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Let a state dict bring a scale table of another length, or an empty one for the standard.

    CompressAI's is empty until `update()`, which may be given any.

    Raises:
        ModelMismatchError: the scales cannot have tables.
    """
    name = f"{prefix}scale_table"
    own = module.get_buffer("scale_table")
    table = state_dict.get(name)
    if table is None:
        return
    if not table.numel():
        state_dict[name] = own
        return
    if (
        table.ndim != 1
        or len(table) > _MOST_LEVELS
        or not bool((table > 0).all() and (table <= _WIDEST_SCALE).all())
        or not bool((table.diff() > 0).all())
    ):
        raise ModelMismatchError(
            f"{name} has shape {tuple(table.shape)} and values from {float(table.min()):g} to "
            f"{float(table.max()):g}; expected up to {_MOST_LEVELS} rising scales above 0 and up "
            f"to {_WIDEST_SCALE:g}"
        )
    if table.shape != own.shape:
        module.register_buffer("scale_table", torch.empty_like(table, device=own.device))
