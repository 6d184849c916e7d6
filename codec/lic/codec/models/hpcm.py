"""HPCM: hierarchical progressive context modeling (Li et al., ICCV 2025, arXiv 2507.19125).

Shapes: B batch, M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16.
A group of a step at scale s1, s2, s3 is (B, M/2, h/4, w/4), (B, M/4, h/2, w/2), (B, M/8, h, w).

Tensor names and the order of everything are those of the published weights. Tensors of 2M channels
hold scales first, then means.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from lic.codec import nudges
from lic.codec.entropy import Tables, build_tables
from lic.codec.errors import ConfigError
from lic.codec.models import hierarchy
from lic.codec.models.bmshj2018 import ContextOutput, Latents
from lic.codec.models.conditional import GeneralizedGaussian, scale_table
from lic.codec.models.context import ContextModel
from lic.codec.models.hierarchy import STEPS, fold, spread, up
from lic.codec.models.hpcm_blocks import Prior, WindowAttention, channels_last
from lic.codec.models.hpcm_config import HPCMConfig
from lic.codec.models.hpcm_transforms import hyper_transforms, transforms
from lic.codec.models.noise import uniform_noise

# Sides of the attention windows at s1, s2, s3: 256 pixels each.
WINDOWS = (4, 8, 8)
# How many networks adapt the context at s1, s2, s3; the first step of all needs none.
ADAPTORS = (1, 3, 6)
SCALE_LOW, SCALE_HIGH, SCALE_LEVELS = 0.12, 64.0, 60
# Written by upstream's update() and ignored here: lic freezes tables of its own.
TABLE_BUFFERS = (
    "scale_table",
    "quantized_cdf_z",
    "cdf_length_z",
    "offset_z",
    "quantized_cdf_y",
    "cdf_length_y",
    "offset_y",
)


@dataclass
class Progress:
    """Where the walk through the steps is.

    Attributes:
        hyper: (B, 2M, h, w) from the hyper decoder.
        context: (B, 2M, ...) at the size of the current scale.
        parameters: scales and means of the last step where the attention still has to take them
            up, else None.
        y_hat: (B, M, ...), what is known of y at the current scale; zeros elsewhere.
    """

    hyper: Tensor
    context: Tensor
    parameters: Tensor | None
    y_hat: Tensor


class HPCM(ContextModel):
    """Base, Large, PhiContext and smaller, by config."""

    name = "hpcm"
    steps = tuple(step.name for step in STEPS)

    config: HPCMConfig
    means_hyper: nn.Parameter
    scales_hyper: nn.Parameter
    _levels: Tensor
    s1_in_s2: Tensor
    s2_in_s3: Tensor

    def __init__(self, config: HPCMConfig) -> None:
        super().__init__()
        self.config = config
        self.means_hyper = nn.Parameter(torch.zeros(1, config.N, 1, 1))
        self.scales_hyper = nn.Parameter(torch.ones(1, config.N, 1, 1))
        for name in TABLE_BUFFERS:
            self.register_buffer(name, torch.empty(0))
        self.entropy_estimation = GeneralizedGaussian(scale_bound=SCALE_LOW)
        self.g_a, self.g_s = transforms(config)
        self.h_a, self.h_s = hyper_transforms(config)
        self._init_context(config)
        self.register_buffer(
            "_levels", scale_table(SCALE_LOW, SCALE_HIGH, SCALE_LEVELS), persistent=False
        )
        self._init_patterns()
        # As fast on GPUs, and 1.5 times as fast on CPUs. Part of the model, not of an engine, so
        # that whoever runs it gets the same numbers.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _init_context(self, config: HPCMConfig) -> None:
        """Make the networks of the steps."""
        wide, double = 3 * config.M, 2 * config.M
        for scale, count in zip(hierarchy.SCALES, ADAPTORS, strict=True):
            adaptors = nn.ModuleList(nn.Conv2d(wide, wide, 1) for _ in range(count))
            self.add_module(f"y_spatial_prior_adaptor_list_{scale}", adaptors)
        self.y_spatial_prior_s1_s2 = Prior(wide, double, config.prior_s1_s2)
        self.y_spatial_prior_s3 = Prior(wide, double, config.prior_s3)
        # Released files lack these: they were neither trained nor saved then, and stayed ones.
        self.adaptive_params_list = nn.ParameterList(
            nn.Parameter(torch.ones(1, wide, 1, 1)) for _ in STEPS[1:]
        )
        if config.heads:
            for scale, window in zip(hierarchy.SCALES, WINDOWS, strict=True):
                self.add_module(f"attn_{scale}", WindowAttention(double, config.heads, window))
        self.context_net = nn.ModuleList(nn.Conv2d(double, double, 1) for _ in range(2))

    def _init_patterns(self) -> None:
        for number, sites in enumerate(hierarchy.step_patterns()):
            self.register_buffer(f"_sites_{number}", sites, persistent=False)
        s1_in_s2, s2_in_s3 = hierarchy.coarse_patterns()
        self.register_buffer("s1_in_s2", s1_in_s2, persistent=False)
        self.register_buffer("s2_in_s3", s2_in_s3, persistent=False)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Return a freshly initialised model from a config's dictionary."""
        try:
            return cls(HPCMConfig(**config))
        except (TypeError, ConfigError) as error:
            raise ConfigError(f"{cls.name}: {error}") from None

    @property
    def stride(self) -> int:  # type: ignore[override]
        """Pictures are multiples of it: whole windows, or whole cells of the coarsest pattern."""
        whole_windows = self.config.heads or self.config.placement == "upstream"
        return 256 if whole_windows else 128

    def analyze(self, x: Tensor) -> Tensor:
        """Return y (B, M, h, w) of x (B, 3, H, W) in [0, 1]."""
        y: Tensor = self.g_a(channels_last(x))
        return y

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Return x_hat (B, 3, H, W), not clamped, from y_hat (B, M, h, w)."""
        x_hat: Tensor = self.g_s(channels_last(y_hat))
        return x_hat

    def hyper_analyze(self, y: Tensor) -> Tensor:
        """Return z minus its means, not rounded, (B, N, h / 4, w / 4)."""
        z: Tensor = self.h_a(y)
        return z - self.means_hyper

    def begin(self, z: Tensor) -> Progress:
        """Return the state before the first step from the rounded `hyper_analyze(y)`."""
        hyper = self.h_s(channels_last(z + self.means_hyper))
        context = self._both(hyper, self._to_s1)
        known = context.new_zeros(context.shape[0], self.config.M, *context.shape[2:])
        return Progress(hyper=hyper, context=context, parameters=None, y_hat=known)

    def select(self, step: int, y: Tensor) -> Tensor:
        """Return the part of y (B, M, h, w) that a step codes."""
        coarse = (self._to_s1, self._to_s2, None)[STEPS[step].scale]
        return fold(coarse(y) if coarse else y, self._sites(step))

    def parameters_of(self, step: int, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return scales and means of a step's part."""
        scale, place = STEPS[step]
        if step == 0:
            # The hyper parameters as they are; no network takes part, and no attention follows.
            parameters = progress.context
        else:
            self._take_up(step, progress)
            if place == 0:
                self.refine(scale, progress)
            parameters = self._predict(step, progress)
            progress.parameters = parameters
        scales, means = parameters.chunk(2, dim=1)
        sites = self._sites(step)
        return fold(scales, sites), fold(means, sites)

    def accept(self, step: int, progress: Progress, y_hat: Tensor) -> None:
        """Make a step's part known to the steps after it."""
        progress.y_hat = progress.y_hat + spread(y_hat, self._sites(step))

    def y_hat(self, progress: Progress) -> Tensor:
        """Return y_hat (B, M, h, w) after the last step."""
        return progress.y_hat

    def _take_up(self, step: int, progress: Progress) -> None:
        """Bring the last step's parameters into the context: only now, as the last one's never are.

        Which is why the attention after step 10, computed upstream, does not exist here.
        """
        if progress.parameters is None:
            return
        if self.config.heads:
            attention = self.get_submodule(f"attn_{STEPS[step - 1].name}")
            progress.context = attention(progress.parameters, progress.context)
        else:
            progress.context = progress.parameters
        progress.parameters = None

    def refine(self, scale: int, progress: Progress) -> None:
        """Move on from the coarser scale to `scale`, whose other sites get hyper parameters."""
        if scale == 1:
            sites = self.s1_in_s2
            hyper = self._both(self._both(progress.hyper, self._to_s2), self._hyper_s2)
        else:
            sites = self.s2_in_s3
            hyper = self._both(progress.hyper, lambda half: hierarchy.without(half, sites))
        lifted = self._both(progress.context, lambda half: up(half, sites))
        progress.context = self.context_net[scale - 1](lifted + hyper)
        progress.y_hat = up(progress.y_hat, sites)

    def _predict(self, step: int, progress: Progress) -> Tensor:
        """Return scales and means (B, 2M, ...) of all sites, those coded before included."""
        adaptor = self.get_submodule(self.adaptor_of(step))
        prior = self.get_submodule(self.prior_of(STEPS[step].scale))
        adapted = adaptor(torch.cat((progress.context, progress.y_hat), dim=1))
        predicted: Tensor = prior(adapted, self.adaptive_params_list[step - 1])
        return predicted

    @staticmethod
    def adaptor_of(step: int) -> str:
        """Return the name of what adapts the context to a step, from 1 on."""
        scale, place = STEPS[step]
        # Upstream indexes the list by place - 1: the first step of s2 or s3 takes the last one.
        number = (place - 1) % ADAPTORS[scale]
        return f"y_spatial_prior_adaptor_list_{hierarchy.SCALES[scale]}.{number}"

    @staticmethod
    def prior_of(scale: int) -> str:
        """Return the name of the prior of a scale's steps."""
        return "y_spatial_prior_s3" if scale == 2 else "y_spatial_prior_s1_s2"

    def _hyper_s2(self, half: Tensor) -> Tensor:
        if self.config.placement == "upstream":
            return hierarchy.scrambled_without_s1(half)
        return hierarchy.without(half, self.s1_in_s2)

    def _sites(self, step: int) -> Tensor:
        return self.get_buffer(f"_sites_{step}")

    @staticmethod
    def _to_s2(x: Tensor) -> Tensor:
        return hierarchy.coarsen(x, hierarchy.COARSE_OF_S3)

    @classmethod
    def _to_s1(cls, x: Tensor) -> Tensor:
        return hierarchy.coarsen(cls._to_s2(x), hierarchy.COARSE_OF_S2)

    @staticmethod
    def _both(x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """Treat the scales and the means of x (B, 2M, h, w) alike: `act` sees (2B, M, h, w)."""
        batch, channels = x.shape[:2]
        halves = act(x.reshape(2 * batch, channels // 2, *x.shape[2:]))
        return halves.reshape(batch, channels, *halves.shape[2:])

    def forward(self, x: Tensor) -> ContextOutput:
        """Code x (B, 3, H, W) in theory; H and W are multiples of `stride`.

        In training, rounding passes gradients straight through, and likelihoods are those of
        residuals with uniform noise.

        Returns:
            x_hat, not clamped, the latents, and likelihoods "y" (B, M, h, w) and "z"
            (B, N, h / 4, w / 4).

        Raises:
            ConfigError: H or W is no multiple.
        """
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ConfigError(
                f"{self.name}: the picture is {x.shape[-1]}x{x.shape[-2]}; expected multiples of "
                f"{self.stride}, pad it"
            )
        y = self.analyze(x)
        z = self.hyper_analyze(y)
        y_hat, residuals, scales = self.quantize(y, z)
        likelihoods = {
            "y": self.entropy_estimation(self._observed(residuals), scales),
            "z": self.entropy_estimation(self._observed(z), self.scales_hyper.expand_as(z)),
        }
        latents = Latents(y_hat, residuals, scales)
        return ContextOutput(self.synthesize(y_hat), likelihoods, latents)

    def quantize(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take the steps with y (B, M, h, w) and z less its means known.

        Returns:
            y_hat, the residuals before rounding, and their scales, all (B, M, h, w).
        """
        progress = self.begin(self._rounded(z))
        residuals, scales = [], []
        for step in range(len(STEPS)):
            scale, mean = self.parameters_of(step, progress)
            residual = self.select(step, y) - mean
            self.accept(step, progress, self._rounded(residual) + mean)
            residuals.append(residual)
            scales.append(scale)
        return self.y_hat(progress), self.gather(residuals), self.gather(scales)

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the parts of all steps in the layout of y (B, M, h, w)."""
        total = spread(parts[0], self._sites(0))
        for step, part in enumerate(parts[1:], start=1):
            if STEPS[step].place == 0:
                total = up(total, (self.s1_in_s2, self.s2_in_s3)[STEPS[step].scale - 1])
            total = total + spread(part, self._sites(step))
        return total

    def scale_masks(self, height: int, width: int) -> dict[str, Tensor]:
        """Return for s1, s2, s3 which latents belong to it: ones and zeros (1, M, h, w).

        They sum to one everywhere; 1/16, 3/16 and 3/4 of all latents.
        """
        like = self.s1_in_s2.new_zeros(1, self.config.M, height, width)
        parts = [self.select(step, like) for step in range(len(STEPS))]
        return {
            name: self.gather([p + (STEPS[step].scale == scale) for step, p in enumerate(parts)])
            for scale, name in enumerate(hierarchy.SCALES)
        }

    def bits_by_part(
        self, likelihoods: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the bits (scalars) of z, s1, s2, s3 in `forward`'s likelihoods.

        They add up to all bits. `masks`: what `scale_masks` gives for this size, where it is known.
        """
        y = -torch.log2(likelihoods["y"])
        masks = masks or self.scale_masks(y.shape[-2], y.shape[-1])
        parts = {"z": -torch.log2(likelihoods["z"]).sum()}
        return parts | {name: (y * mask).sum() for name, mask in masks.items()}

    def _rounded(self, values: Tensor) -> Tensor:
        if not self.training:
            return torch.round(values)
        return values + (torch.round(values) - values).detach()

    def _observed(self, residuals: Tensor) -> Tensor:
        """Return what likelihoods are taken of."""
        if not self.training:
            return torch.round(residuals)
        return residuals + uniform_noise(residuals)

    @property
    def levels(self) -> Tensor:
        """The scales (60,) that y has tables for."""
        return self._levels

    def tables(self) -> Tables:
        """Return the integer tables: N of z, one for each level of y, one for nudges."""
        rows_z, offsets_z = self.entropy_estimation.pmfs(self.scales_hyper.flatten())
        rows_y, offsets_y = self.entropy_estimation.pmfs(self.levels)
        return build_tables([*rows_z, *rows_y, nudges.pmf()], [*offsets_z, *offsets_y, 0])
