"""Make a trained model wider, so that what it learned need not be learned again.

A small model learns several times as many steps in an hour. Its wider heir begins as the same
function: the old channels get from the old ones what they got, and nothing from the new ones,
which start random and listen to everything. (Net2Net, arXiv 1511.05641, copies channels instead;
here no symmetry has to be broken first.) New channels have the spread of old ones, about nought, so
that ReLU passes half of what they see; new latents are quiet, round to nought, and cost next to
nothing until they are of use.

Shapes: B crops, C channels of a layer's input, K of its output, H W height and width.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models import ScaleHyperprior
from lic.codec.models.blocks import GDN
from lic.codec.models.likelihood import EntropyBottleneck
from lic.trainers.models import Balle2018

# Standard deviation of new latents, in quantisation steps.
QUIET = 0.1

_Conv = nn.Conv2d | nn.ConvTranspose2d


@torch.no_grad()
def widen(model: Balle2018, n: int, m: int, crops: Tensor) -> Balle2018:
    """Return a model of N = n, M = m that gives the same x_hat, and the same latents first.

    Args:
        model: stays as it is.
        n: hidden channels, as many as the model has or more.
        m: latent channels, likewise.
        crops: (B, 3, H, W) in [0, 1], which new channels are scaled by.

    Raises:
        ConfigError: narrower than the model, or GDN-ish blocks, whose expanded channels lie
            interleaved.
    """
    old = model.config
    if n < old.N or m < old.M:
        raise ConfigError(f"N = {old.N}, M = {old.M} cannot be widened to N = {n}, M = {m}")
    if "gdnish" in (old.encoder_activation, old.decoder_activation):
        raise ConfigError("a model with gdnish cannot be widened; expected relu, gdn or igdn1")
    new: Balle2018 = type(model)(replace(old, N=n, M=m))  # type: ignore[arg-type]
    parts = dict(model.named_modules())
    for name, module in new.named_modules():
        if isinstance(module, EntropyBottleneck):
            _widen_bottleneck(cast(EntropyBottleneck, parts[name]), module)
        elif isinstance(module, _Conv):
            _widen_convolution(cast(_Conv, parts[name]), module)
        elif isinstance(module, GDN):
            _widen_gdn(cast(GDN, parts[name]), module)
    x = new.extend(crops)
    y = _settle(new.g_a, model.g_a, x, spread=QUIET)
    if isinstance(new, ScaleHyperprior) and isinstance(model, ScaleHyperprior):
        z = _settle(new.h_a, model.h_a, torch.abs(y), spread=QUIET)
        # New latents' scales are their spread, whatever z says.
        _settle(new.h_s, model.h_s, torch.round(z), spread=0.0, mean=QUIET)
    _settle(new.g_s, model.g_s, torch.round(y), spread=0.0)
    return new


def _widen_convolution(old: _Conv, new: _Conv) -> None:
    """Copy the old taps; from new channels to old ones there are none."""
    source, target = _by_output(old), _by_output(new)
    outputs, inputs = source.shape[:2]
    target[:outputs] = 0
    target[:outputs, :inputs] = source
    cast(Tensor, new.bias)[:outputs] = cast(Tensor, old.bias)


def _widen_gdn(old: GDN, new: GDN) -> None:
    """Let old channels be normalised by old ones alone."""
    channels = len(old.beta)
    new.beta[:channels] = old.beta
    new.gamma[:channels] = new.gamma_reparam.init(torch.zeros_like(new.gamma[:channels]))
    new.gamma[:channels, :channels] = old.gamma


def _widen_bottleneck(old: EntropyBottleneck, new: EntropyBottleneck) -> None:
    """Copy the old channels' densities; new ones suit quiet latents and their noise."""
    new.init_scales(torch.full((new.channels,), QUIET + 1 / 12**0.5))
    for source, target in zip(old.parameters(), new.parameters(), strict=True):
        target[: old.channels] = source


def _settle(
    new: nn.Sequential, old: nn.Sequential, x: Tensor, *, spread: float, mean: float = 0.0
) -> Tensor:
    """Give new channels the old ones' spread about nought, layer by layer; returns new(x).

    Args:
        new: layers of which the first channels are those of `old`.
        old: the narrower layers.
        x: (B, C, H, W).
        spread: standard deviation of the new channels of the last convolution.
        mean: of the same.
    """
    number = max(i for i, layer in enumerate(new) if isinstance(layer, _Conv))
    for i, (layer, narrow) in enumerate(zip(new, old, strict=True)):
        if isinstance(layer, _Conv) and isinstance(narrow, _Conv):
            known = narrow.out_channels
            deviations, means = torch.std_mean(layer(x), dim=(0, 2, 3))
            wanted = spread if i == number else deviations[:known].median()
            centre = mean if i == number else 0.0
            gain = wanted / deviations[known:].clamp(min=1e-6)
            bias = cast(Tensor, layer.bias)
            _by_output(layer)[known:] *= gain[:, None, None, None]
            bias[known:] = centre - gain * (means - bias)[known:]
        x = layer(x)
    return x


def _by_output(layer: _Conv) -> Tensor:
    """Return a view (K, C, rows, columns) of a convolution's weight."""
    return layer.weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else layer.weight
