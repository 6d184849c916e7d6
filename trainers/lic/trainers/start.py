"""Start a strided convolutional codec as a block transform, and let training bend it.

A random start spends its first hours learning what principal components of image blocks know.
Here every stride-2 layer of the encoder begins as the PCA of 2x2 patches of its input, and the
decoder as the transposed bases; the non-linearities begin as near to the identity as they can. The
four layers together are an orthonormal transform of 16x16 blocks that keeps M of 768 components.

Shapes: B crops, C channels of a layer's input, K components kept, H W its height and width.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models import ScaleHyperprior, bits
from lic.codec.models.blocks import GDN
from lic.codec.models.gdnish import DecoderBlock, EncoderBlock
from lic.trainers.config import TrainConfig
from lic.trainers.models import Balle2018
from lic.trainers.replacement import pairs

# Rows and columns of a 5x5 kernel (stride 2, padding 2) that see inputs 2o and 2o + 1.
TAPS = slice(2, 4)
# Hidden values get this many standard deviations of head room above zero, so that ReLU passes them.
HEAD_ROOM = 4.0
# One quantisation step in grey levels that suits lambda 0.013; it goes with 1 / sqrt(lambda).
STEP_AT_0013 = 24.0
# What GDN begins to learn from, as a share of beta: at nought gamma has no gradient.
GAMMA = 1e-2


class Crops(Protocol):
    """Batches of crops for statistics, uint8 (B, 3, S, S)."""

    def batch(self, step: int) -> Tensor:
        """Return the crops of a step."""


class WiderCrops(Protocol):
    """Training data that can also give larger crops."""

    def wider(self, *, crop: int, batch: int) -> Crops:
        """Return batches of other sizes from the same photos."""


class _Layer(NamedTuple):
    """One layer of the block transform, of inputs on the scale of pixels."""

    basis: Tensor  # (K, C, 2, 2), orthonormal rows
    mean: Tensor  # (C, 2, 2), of the patches
    room: Tensor  # (K,), standard deviations: ReLU needs HEAD_ROOM of them above zero


@torch.no_grad()
def pca_start(model: Balle2018, crops: Tensor, *, lmbda: float, noise: float = 0.1) -> None:
    """Initialise both transforms and the entropy model's widths from crops (B, 3, H, W) in [0, 1].

    Taps that the block transform does not use get `noise` times the framework's random start.

    Raises:
        ConfigError: a single hidden channel in a decoder with ReLU, which needs one for constants.
    """
    config = model.config
    relu = config.decoder_activation == "relu"
    if relu and config.N < 2:
        raise ConfigError(f"--start pca needs N of 2 or more with ReLU, found {config.N}")
    step = STEP_AT_0013 / 255 * (0.013 / lmbda) ** 0.5
    layers, y = _start_encoder(model, crops, config.N - 1 if relu else config.N, step, noise)
    _start_decoder(model, layers, y, step, noise)
    _start_entropy(model, y)


def _start_encoder(
    model: Balle2018, x: Tensor, width: int, step: float, noise: float
) -> tuple[list[_Layer], Tensor]:
    """Fill g_a for hidden layers of `width` components; returns them, and the latents of x."""
    layers: list[_Layer] = []
    room = HEAD_ROOM if model.config.encoder_activation == "relu" else 0.0
    unit, before = _unit(model.config.encoder_activation, step), 1.0
    for conv, act in pairs(model.g_a):
        conv = cast(nn.Conv2d, conv)
        # Only the channels that carry components count; the others are random at this point.
        known = x[:, : layers[-1].basis.shape[0]] if layers else x
        layer = _principal_components(known * before, width if act else conv.out_channels)
        offset = room * layer.room if act else torch.zeros_like(layer.room)
        after = unit if act else step
        _fill_encoder(conv, layer, offset, before, after, noise)
        layers.append(layer)
        x, before = conv(x), after
        if act:
            x = make_linear(act, x)
    return layers, x


def _start_decoder(
    model: Balle2018,
    layers: list[_Layer],
    y: Tensor,
    step: float,
    noise: float,
) -> None:
    """Fill g_s with the transposed bases, from latents y on."""
    rooms = [float(kind == "relu") * HEAD_ROOM for kind in _kinds(model)]
    unit, gone_in = _unit(model.config.decoder_activation, step), step
    for position, (deconv, act) in enumerate(pairs(model.g_s)):
        number = len(layers) - 1 - position
        layer = layers[number]
        # What the patches' means say of the encoder's head room becomes the decoder's own.
        before = layers[number - 1].room if number else torch.zeros(3)
        mean = layer.mean + ((rooms[1] - rooms[0]) * before.to(layer.mean))[:, None, None]
        offset = rooms[1] * layer.room if position else torch.zeros_like(layer.room)
        constant = mean - torch.einsum("kcij,k->cij", layer.basis, offset)
        comes_out = unit if act else 1.0
        _fill_decoder(
            cast(nn.ConvTranspose2d, deconv), layer, constant / comes_out, gone_in / comes_out,
            noise, held=bool(rooms[1]), first=not position, last=act is None,
        )  # fmt: skip
        y, gone_in = deconv(y), comes_out
        if act:
            y = make_linear(act, y)


def _start_entropy(model: Balle2018, y: Tensor) -> None:
    deviations = y.std(dim=(0, 2, 3))
    if isinstance(model, ScaleHyperprior):
        # Scales are the channels' own whatever z says, and z is what random weights make of y.
        cast(Tensor, cast(nn.Conv2d, model.h_s[-2]).bias).copy_(deviations)
        deviations = model.h_a(torch.abs(y)).std(dim=(0, 2, 3))
    model.entropy_bottleneck.init_scales(deviations)


def _unit(activation: str, step: float) -> float:
    """Return what a hidden value of 1 is on the scale of pixels.

    GDN divides by beta + gamma x^2, and gamma is learned in steps of the learning rate whatever the
    scale of x: with values far below 1 it would take ten thousands of them to do anything.
    """
    return step if activation in ("gdn", "igdn1") else 1.0


def _kinds(model: Balle2018) -> tuple[str, str]:
    return model.config.encoder_activation, model.config.decoder_activation


@torch.no_grad()
def make_linear(act: nn.Module, x: Tensor) -> Tensor:
    """Make a non-linearity as near to the identity on x (B, C, H, W) as it can be; returns act(x).

    ReLU is what it is: whoever fills the layer before it gives it head room.
    """
    if isinstance(act, GDN):
        act.beta.copy_(act.beta_reparam.init(torch.ones_like(act.beta)))
        size = torch.abs(x) if act.simplified else x * x
        mean = size.mean(dim=(0, 2, 3)).clamp(min=1e-3)
        act.gamma.copy_(act.gamma_reparam.init(torch.diag(GAMMA / mean)))
    elif isinstance(act, EncoderBlock | DecoderBlock):
        act.make_identity(x.abs().amax(dim=(0, 2, 3)))
    result: Tensor = act(x)
    return result


def _principal_components(x: Tensor, width: int) -> _Layer:
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
        deviations.to(x.dtype),
    )


def _fill_encoder(
    conv: nn.Conv2d, layer: _Layer, offset: Tensor, before: float, after: float, noise: float
) -> None:
    """Fill one convolution; a value of 1 is `before` on the scale of pixels, and `after` behind."""
    keep, channels = layer.basis.shape[:2]
    conv.weight.mul_(noise)
    conv.weight[:keep, :, :, :] = 0
    conv.weight[:keep, :channels, TAPS, TAPS] = before / after * layer.basis
    bias = cast(Tensor, conv.bias)
    bias.zero_()
    bias[:keep] = (offset - (layer.basis * layer.mean).sum(dim=(1, 2, 3))) / after


def _fill_decoder(
    deconv: nn.ConvTranspose2d,
    layer: _Layer,
    constant: Tensor,
    gain: float,
    noise: float,
    *,
    held: bool,
    first: bool,
    last: bool,
) -> None:
    """Fill one transposed convolution with the transposed basis and constants (C, 2, 2).

    With head room, constants differ between the four output phases, which no bias can undo: the
    last channel of every hidden layer is then `held` at 1, and its outgoing taps carry them.
    """
    keep, channels = layer.basis.shape[:2]
    deconv.weight.mul_(noise)
    deconv.weight[:, :channels] = 0
    deconv.weight[:keep, :channels, TAPS, TAPS] = gain * layer.basis
    bias = cast(Tensor, deconv.bias)
    bias.zero_()
    if held and not first:
        deconv.weight[-1, :channels, TAPS, TAPS] = constant
    else:
        bias[:channels] = constant.mean(dim=(1, 2))
    if held and not last:
        deconv.weight[:, -1] = 0
        bias[-1] = 1


def fit_densities(
    model: Balle2018,
    crops: Tensor,
    *,
    steps: int = 300,
    lr: float = 0.02,
    network_lr: float = 1e-3,
) -> float:
    """Fit the entropy model alone to the latents of crops (B, 3, H, W); returns bits per pixel.

    That is the bottleneck, and with a hyperprior the networks between it and the latents. What
    does not require gradients stays as it is.
    """
    bottleneck = model.entropy_bottleneck
    networks = [model.h_a, model.h_s] if isinstance(model, ScaleHyperprior) else []
    # The quantiles are solved for when tables are made.
    densities = [p for p in bottleneck.parameters() if p is not bottleneck.quantiles]
    groups = [
        {"params": [p for p in densities if p.requires_grad], "lr": lr},
        {
            "params": [p for net in networks for p in net.parameters() if p.requires_grad],
            "lr": network_lr,
        },
    ]
    optimizer = torch.optim.Adam(groups) if any(g["params"] for g in groups) else None
    with torch.no_grad():
        y = model.analyze(model.extend(crops))
    pixels = crops.shape[0] * crops.shape[2] * crops.shape[3]
    was_training = model.training
    model.train()
    loss = torch.zeros(())
    for _ in range(steps if optimizer else 1):
        loss = bits(model.code(y)[1]) / pixels
        if optimizer:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    model.train(was_training)
    return float(loss.detach())


def sample(data: WiderCrops) -> Tensor:
    """Return the crops (16, 3, 192, 192) in [0, 1] that statistics are taken of."""
    return data.wider(crop=192, batch=16).batch(0).float() / 255


def prepare(
    model: Balle2018,
    data: WiderCrops,
    config: TrainConfig,
    *,
    fresh: bool,
    say: Callable[[str], object] = lambda _: None,
) -> None:
    """Give a model the start that the config asks for, or fit a warm one's densities.

    A model that comes from another run keeps its transforms; only its entropy model is fitted, as
    far as it may learn: a scope is applied before.
    """
    pca = fresh and config.model.start == "pca"
    if fresh and not pca:
        return
    crops = sample(data).to(next(model.parameters()).device)
    if pca:
        say("starting as a block transform of the photos' principal components")
        pca_start(model, crops, lmbda=config.loss.lmbda)
    say("fitting the entropy model to the photos")
    fit_densities(model, crops)
