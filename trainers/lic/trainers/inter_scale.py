"""A term of the loss that keeps the scales of HPCM's latents apart.

Spectral regularisation (ICLR 2026) rewards adjacent latents of a hierarchical codec for being
different. HPCM has one latent, whose scales s1, s2, s3 are nested grids of samples, picked without
a filter: an order of coding, not bands of frequencies. So what was published is one of the forms
here, without a bound; others ask, within bounds, that a scale does not repeat the one before it.

Shapes: B batch, M latent channels, h w their rows and columns. What is known after s1, s2, s3 is
(B, M, h/4, w/4), (B, M, h/2, w/2), (B, M, h, w).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from lic.codec.errors import ConfigError
from lic.codec.models.hierarchy import (
    COARSE_OF_S2,
    COARSE_OF_S3,
    coarse_patterns,
    coarsen,
    without,
)
from lic.codec.models.hpcm import SCALE_LOW
from lic.trainers.objective_options import SpectralConfig

# Added to all that is divided by: dead channels give 0, with finite gradients.
EPSILON = 1e-6
# Forms that compare samples with what a 1x1 convolution makes of the next finer scale.
ALIGNED = ("rel_l2", "literal")


class InterScale(nn.Module):
    """The term of `--inter-scale-reg`, times its delta, as the mean over (s1, s2) and (s2, s3).

    With a what is known after a scale, b a 1x1 convolution of the 2x2 means of what is known after
    the next one, and rho the correlation of a channel over batch and space, the forms are

    - rel_l2: -delta min(1, |a - b|^2 / (|a|^2 + |b|^2)), in [-delta, 0].
    - literal: -delta MSE(a, b), without a bound; see `warning`.
    - cos2: delta mean(rho^2) of a and the mean of the three new samples of each 2x2 cell, in
      [0, delta].
    - innovation: the same with residuals of the new samples, y less its predicted mean, in units
      of their scales: zero where the context model left nothing to predict. In [0, delta].

    The low-pass is the mean, half of the orthonormal Haar one: its gain at frequency 0 is 1, so
    that of smooth latents b is a without any convolution. The convolutions have no bias, or rel_l2
    would depend on the size of the latents.

    Alignment. rel_l2 is a game of two: `align_loss` trains the convolutions to make the relative
    error small, on detached latents, starting from the identity; `forward` rewards the codec for
    what error is left, and gives the convolutions no gradient. Both losses can go through one
    backward pass. In literal the convolutions get the gradient of the term itself, from small
    random values. In both the parameters need an optimiser and a place in the checkpoint; other
    forms have none. The module is no part of the model and of what is exported.

    What learns from it. Rounding passes gradients straight through, so that y_hat, the rounded
    residual plus its mean, has none with respect to the mean: all forms but innovation reach the
    analysis transform alone. innovation reaches what predicts the means, too. Scales get no
    gradient: it would pay to call wrong what is badly predicted.

    Averages and correlations are those of one process's batch.

    In `eval()` mode the term is 0.

    Args:
        config: options of the run.
        M: latent channels.

    Raises:
        ConfigError: channels that HPCM cannot have.
    """

    s1_in_s2: Tensor
    s2_in_s3: Tensor

    def __init__(self, config: SpectralConfig, M: int) -> None:
        super().__init__()
        if M < 8 or M % 8:
            raise ConfigError(
                f"--inter-scale-reg with {M} latent channels; expected a multiple of 8, as HPCM "
                "has: train that, or leave it out"
            )
        self.config = config
        form = config.inter_scale_form
        weights = [_alignment(form, M) for _ in range(2)] if form in ALIGNED else []
        self.alignments = nn.ParameterList(weights)
        s1_in_s2, s2_in_s3 = coarse_patterns()
        self.register_buffer("s1_in_s2", s1_in_s2, persistent=False)
        self.register_buffer("s2_in_s3", s2_in_s3, persistent=False)

    def active(self, epoch: float) -> bool:
        """Return whether the term is part of the loss: after the epochs of the curriculum."""
        options = self.config
        filtered = options.truncation_epochs if options.spectral_reg else 0.0
        return options.inter_scale_reg and epoch >= filtered

    def forward(self, y_hat: Tensor, residuals: Tensor, scales: Tensor) -> Tensor:
        """Return the scalar to add to the loss, in float32 whatever autocast says.

        Args:
            y_hat: (B, M, h, w), h and w multiples of 4.
            residuals: y less its means, before rounding, in the layout of y.
            scales: of the residuals, as the model gives them, bounded or not.
        """
        if not self.training:
            return y_hat.new_zeros((), dtype=torch.float32)
        with torch.autocast(y_hat.device.type, enabled=False):
            values = self._values(y_hat.float(), residuals.float(), scales.float())
            return self.config.delta * torch.stack(list(values)).mean()

    def align_loss(self, y_hat: Tensor) -> Tensor:
        """Return the loss of the alignment alone: the mean relative error, in [0, 2].

        Of forms without an alignment of its own, and in `eval()` mode, a 0 without a gradient.

        Args:
            y_hat: (B, M, h, w) as in `forward`.
        """
        if self.config.inter_scale_form != "rel_l2" or not self.training:
            return y_hat.new_zeros((), dtype=torch.float32)
        with torch.autocast(y_hat.device.type, enabled=False):
            pairs = _pairs(y_hat.detach().float(), self.alignments)
            return torch.stack([_relative_error(a, b) for a, b in pairs]).mean()

    def _values(self, y_hat: Tensor, residuals: Tensor, scales: Tensor) -> Iterator[Tensor]:
        """Yield the term without delta of (s1, s2) and (s2, s3)."""
        form = self.config.inter_scale_form
        if form == "rel_l2":
            for a, b in _pairs(y_hat, (weight.detach() for weight in self.alignments)):
                yield -_relative_error(a, b).clamp_max(1)
        elif form == "literal":
            for a, b in _pairs(y_hat, self.alignments):
                yield -functional.mse_loss(a, b)
        else:
            new = y_hat
            if form == "innovation":
                new = residuals / scales.detach().clamp_min(SCALE_LOW)
            s1, s2, _ = known_after(y_hat)
            _, new_s2, new_s3 = known_after(new)
            yield squared_correlation(s1, _others(new_s2, self.s1_in_s2)).mean()
            yield squared_correlation(s2, _others(new_s3, self.s2_in_s3)).mean()


def warning(form: str) -> str:
    """Return what a user should know of a form before the run starts; empty if nothing."""
    if form != "literal":
        return ""
    return (
        "--inter-scale-form literal has no lower bound: latents, and the alignment even with "
        "latents as they are, lower the loss for ever by growing, and the rate can grow without "
        "end; rel_l2 takes the same difference in relation to the latents"
    )


def known_after(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the samples of x (B, M, h, w) that are known after s1, s2 and s3.

    Those of a scale and of all before it, densely: (B, M, h/4, w/4), (B, M, h/2, w/2), x.
    """
    assert x.shape[-2] % 4 == x.shape[-1] % 4 == 0, f"latents of {tuple(x.shape)}"
    s2 = coarsen(x, COARSE_OF_S3)
    return coarsen(s2, COARSE_OF_S2), s2, x


def squared_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return rho^2 (M,) of each channel of a and b (B, M, h, w), over batch and space."""
    places = (0, 2, 3)
    a = a - a.mean(places, keepdim=True)
    b = b - b.mean(places, keepdim=True)
    covariance = (a * b).mean(places)
    # Divided twice, since the product of both variances overflows for large latents.
    return (covariance / _variance(a)) * (covariance / _variance(b))


def _variance(centred: Tensor) -> Tensor:
    return centred.square().mean((0, 2, 3)) + EPSILON


def _others(x: Tensor, sites: Tensor) -> Tensor:
    """Return the three of each 2x2 cell that a pattern leaves out, as one (B, M, h/2, w/2).

    Three quarters of their mean, which is all one to correlations.
    """
    return functional.avg_pool2d(without(x, sites), 2)


def _alignment(form: str, M: int) -> nn.Parameter:
    """Return the weights (M, M) of the 1x1 convolution that an alignment starts with."""
    if form == "rel_l2":
        return nn.Parameter(torch.eye(M))
    return nn.Parameter(0.1 * nn.init.kaiming_normal_(torch.empty(M, M), nonlinearity="linear"))


def _pairs(y_hat: Tensor, weights: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield s1 and s2 with what the alignments make of the next finer scale."""
    s1, s2, s3 = known_after(y_hat)
    for coarse, fine, weight in zip((s1, s2), (s2, s3), weights, strict=True):
        means = functional.avg_pool2d(fine, 2)
        # As a product of matrices: convolutions on GPUs round to TF32 unless told not to.
        yield coarse, torch.einsum("oi,bihw->bohw", weight, means)


def _relative_error(a: Tensor, b: Tensor) -> Tensor:
    """Return |a - b|^2 / (|a|^2 + |b|^2): 0 if equal, 1 if orthogonal, 2 if opposite."""
    energy = a.square().mean() + b.square().mean()
    return (a - b).square().mean() / (energy + EPSILON)
