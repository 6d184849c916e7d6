"""Start a strided convolutional codec as a block transform, and let training bend it.

A random start spends its first hours learning what principal components of image blocks know.
Here every stride-2 layer of the encoder begins as the PCA of 2x2 patches of its input, and the
decoder as the transposed bases. The four layers together are an orthonormal transform of 16x16
blocks that keeps M of 768 components.

Shapes: B crops, C channels of a layer's input, K components kept, H W its height and width.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models import FactorizedPrior
from lic.trainers.config import TrainConfig
from lic.trainers.data import RandomCrops

# Rows and columns of a 5x5 kernel (stride 2, padding 2) that see inputs 2o and 2o + 1.
TAPS = slice(2, 4)
# Hidden values get this many standard deviations of head room above zero, so that ReLU passes them.
HEAD_ROOM = 4.0
# One quantisation step in grey levels that suits lambda 0.013; it goes with 1 / sqrt(lambda).
STEP_AT_0013 = 24.0


class _Layer(NamedTuple):
    basis: Tensor  # (K, C, 2, 2), orthonormal rows
    mean: Tensor  # (C, 2, 2), of the patches
    offset: Tensor  # (K,), head room added to each component


@torch.no_grad()
def pca_start(model: FactorizedPrior, crops: Tensor, *, lmbda: float, noise: float = 0.1) -> None:
    """Initialise both transforms and the densities' widths from crops (B, 3, H, W) in [0, 1].

    Taps that the block transform does not use get `noise` times the framework's random start.

    Raises:
        ConfigError: an activation other than ReLU, for which the head room would be wrong, or a
            single hidden channel, which the constants need.
    """
    if model.config.N < 2:
        raise ConfigError(f"--start pca needs N of 2 or more, found {model.config.N}")
    activations = {model.config.encoder_activation, model.config.decoder_activation}
    if activations != {"relu"}:
        raise ConfigError(
            f"--start pca needs ReLU on both sides, found {', '.join(sorted(activations))}; "
            "use --start random"
        )
    encoder = [m for m in model.g_a if isinstance(m, nn.Conv2d)]
    decoder = [m for m in model.g_s if isinstance(m, nn.ConvTranspose2d)]
    step = STEP_AT_0013 / 255 * (0.013 / lmbda) ** 0.5
    layers: list[_Layer] = []
    features = crops
    for position, conv in enumerate(encoder):
        last = position == len(encoder) - 1
        width = conv.out_channels if last else model.config.N - 1
        # Only the channels that carry components count; the others are random at this point.
        known = features[:, : layers[-1].basis.shape[0]] if layers else features
        layer = _principal_components(known, width, head_room=0.0 if last else HEAD_ROOM)
        _fill_encoder(conv, layer, 1 / step if last else 1.0, noise)
        layers.append(layer)
        features = conv(features) if last else torch.relu(conv(features))
    for position, (deconv, layer) in enumerate(zip(decoder, reversed(layers), strict=True)):
        first, last = position == 0, position == len(decoder) - 1
        _fill_decoder(deconv, layer, step if first else 1.0, noise, first=first, last=last)
    model.entropy_bottleneck.init_scales(features.std(dim=(0, 2, 3)))


def _principal_components(x: Tensor, width: int, *, head_room: float) -> _Layer:
    """Return the leading components of the 2x2 patches of x (B, C, H, W)."""
    channels = x.shape[1]
    patches = nn.functional.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
    rows = patches.reshape(-1, 4 * channels).double()
    mean = rows.mean(dim=0)
    covariance = torch.cov(rows.T)
    values, vectors = torch.linalg.eigh(covariance)
    keep = min(width, 4 * channels)
    order = torch.argsort(values, descending=True)[:keep]
    deviations = values[order].clamp(min=0).sqrt()
    return _Layer(
        vectors[:, order].T.reshape(keep, channels, 2, 2).to(x.dtype),
        mean.reshape(channels, 2, 2).to(x.dtype),
        (head_room * deviations).to(x.dtype),
    )


def _fill_encoder(conv: nn.Conv2d, layer: _Layer, gain: float, noise: float) -> None:
    keep, channels = layer.basis.shape[:2]
    conv.weight.mul_(noise)
    conv.weight[:keep, :, :, :] = 0
    conv.weight[:keep, :channels, TAPS, TAPS] = gain * layer.basis
    bias = cast(Tensor, conv.bias)
    bias.zero_()
    bias[:keep] = gain * (layer.offset - (layer.basis * layer.mean).sum(dim=(1, 2, 3)))


def _fill_decoder(
    deconv: nn.ConvTranspose2d,
    layer: _Layer,
    gain: float,
    noise: float,
    *,
    first: bool,
    last: bool,
) -> None:
    """Fill one transposed convolution with the transposed basis.

    Head room and patch means differ between the four output phases, which no bias can undo: in
    every hidden layer the last channel is held at 1, and its outgoing taps carry the constants.
    """
    keep, channels = layer.basis.shape[:2]
    constant = layer.mean - torch.einsum("kcij,k->cij", layer.basis, layer.offset)
    deconv.weight.mul_(noise)
    deconv.weight[:, :channels] = 0
    deconv.weight[:keep, :channels, TAPS, TAPS] = gain * layer.basis
    bias = cast(Tensor, deconv.bias)
    bias.zero_()
    if first:
        bias[:channels] = constant.mean(dim=(1, 2))
    else:
        deconv.weight[-1, :channels, TAPS, TAPS] = constant
    if not last:
        deconv.weight[:, -1] = 0
        bias[-1] = 1


def fit_densities(
    model: FactorizedPrior, crops: Tensor, *, steps: int = 300, lr: float = 0.02
) -> float:
    """Fit the entropy bottleneck alone to the latents of crops; returns bits per pixel."""
    bottleneck = model.entropy_bottleneck
    with torch.no_grad():
        y = model.analyze(crops)
    densities = [p for p in bottleneck.parameters() if p is not bottleneck.quantiles]
    optimizer = torch.optim.Adam(densities, lr=lr)
    pixels = crops.shape[0] * crops.shape[2] * crops.shape[3]
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        _, likelihoods = bottleneck(y, training=True)
        loss = -torch.log2(likelihoods).sum() / pixels
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


def prepare(
    model: FactorizedPrior, crops: RandomCrops, config: TrainConfig, *, fresh: bool
) -> None:
    """Give a model the start that the config asks for, or fit a warm one's densities.

    A model that comes from another run keeps its transforms; only its entropy model is fitted.
    """
    wide = crops.wider(crop=192, batch=16).batch(0)
    if fresh and config.start == "pca":
        pca_start(model, wide, lmbda=config.lmbda)
    if not fresh or config.start == "pca":
        fit_densities(model, wide)
