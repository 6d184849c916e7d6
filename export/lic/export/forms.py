"""Other forms of the same networks, for devices that lack or mistreat an operator.

k5 s2 p2 output_padding 1 is the transposed convolution of every bmshj2018 decoder. It fails to
build for some NPUs, and int8 engines often have no kernel for transposed convolutions at all. The
forms keep the weights: k6 gives the same bits, the others the same sums in another order.

    form              a transposed convolution becomes
    k5                itself
    k6                one of 6x6, its last row and column zero, without output_padding
    subpixel          a 3x3 convolution to 4 C channels and PixelShuffle
    shuffle           the same, PixelShuffle as reshape, transpose, reshape, for NPUs that send
                      DepthToSpace to the CPU
    subpixel-reshape  the same with a block's pixels before the channels, for engines that hold
                      channels innermost
    blocks            as subpixel-reshape; pictures leave in blocks of 4x4 pixels, and the
                      encoder takes them in blocks of 2x2: for int8 on CPUs, whose kernels are slow
                      where a convolution has as few channels as a picture

Shapes: N batch, C input channels, K output channels, H W rows and columns of the tensor at hand,
b side of a block of output pixels.
"""

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.errors import ConfigError
from lic.codec.models.bmshj2018 import FactorizedPrior
from lic.codec.models.graphs import Analysis, Synthesis

Form = Literal["k5", "k6", "subpixel", "shuffle", "subpixel-reshape", "blocks"]
FORMS: tuple[Form, ...] = get_args(Form)
# Convolutions from or to this many channels count as taking or giving pictures.
PICTURE_CHANNELS = 4


class SubPixel(nn.Module):
    """A transposed convolution k5 s2 p2 output_padding 1 as a convolution and a shuffle.

    Blocks of b x b output pixels see a window of b / 2 + 2 input pixels and lie b / 2 of them
    apart; the taps that a pixel of the block does not use are zero.

    Args:
        layer: the transposed convolution.
        block: b, 2 or more, a power of two. Above 2, H and W have to be multiples of b / 2.
        reshape: shuffle by reshape and transpose, with the pixel of a block before the channel:
            runs of K values move in one piece where channels lie innermost.
        split: shuffle by reshape and transpose, otherwise in the order of PixelShuffle.
        relu: a ReLU follows, and is taken before the shuffle: engines fuse it with a convolution.
    """

    def __init__(
        self,
        layer: nn.ConvTranspose2d,
        *,
        block: int = 2,
        reshape: bool = False,
        split: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.relu = relu
        self.block = block
        self.reshape = reshape
        self.split = split
        self.conv = nn.Conv2d(
            layer.in_channels,
            block**2 * layer.out_channels,
            block // 2 + 2,
            stride=block // 2,
            padding=1,
            bias=layer.bias is not None,
        )
        with torch.no_grad():
            self.conv.weight.copy_(self.spread_weight(layer.weight))
            if layer.bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(self.spread_channels(layer.bias))

    def spread_weight(self, weight: Tensor) -> Tensor:
        """Return the convolution's weight (b b K, C, t, t) of a transposed one's (C, K, 5, 5)."""
        taps = self.block // 2 + 2
        # Row R of a block takes tap t of its window with row R + 4 - 2 t of the kernel, if any.
        rows = torch.arange(self.block)[:, None] + 4 - 2 * torch.arange(taps)
        used = (rows >= 0) & (rows < 5)
        rows = rows.clamp(0, 4)
        spread = weight[:, :, rows[:, None, :, None], rows[None, :, None, :]]
        spread = spread * (used[:, None, :, None] & used[None, :, None, :])
        order = (2, 3, 1, 0, 4, 5) if self.reshape else (1, 2, 3, 0, 4, 5)
        return spread.permute(order).flatten(0, 2)

    def spread_channels(self, values: Tensor) -> Tensor:
        """Return values (K,) of channels for each channel of the convolution, (b b K,)."""
        if self.reshape:
            return values.repeat(self.block**2)
        return values.repeat_interleave(self.block**2)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the transposed convolution gives, (N, K, 2 H, 2 W)."""
        y: Tensor = F.relu(self.conv(x)) if self.relu else self.conv(x)
        if self.split:
            batch, _, height, width = y.shape
            y = y.reshape(batch, -1, self.block, self.block, height, width)
            y = y.permute(0, 1, 4, 2, 5, 3)
            return y.reshape(batch, -1, height * self.block, width * self.block)
        if not self.reshape:
            return F.pixel_shuffle(y, self.block)
        y = y.permute(0, 2, 3, 1)
        batch, height, width, _ = y.shape
        y = y.reshape(batch, height, width, self.block, self.block, -1).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, height * self.block, width * self.block, -1)
        return y.permute(0, 3, 1, 2)


class FromBlocks(nn.Module):
    """A convolution k5 s2 p2 as one of 3x3 over blocks of 2x2 input pixels; H and W are even."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            4 * layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None
        )
        with torch.no_grad():
            self.conv.weight.copy_(self.spread_weight(layer.weight))
            if layer.bias is not None and self.conv.bias is not None:
                self.conv.bias.copy_(layer.bias)

    def spread_weight(self, weight: Tensor) -> Tensor:
        """Return the weight (K, 4 C, 3, 3) of a convolution's (K, C, 5, 5)."""
        # Taps 2 t and 2 t + 1 fall into block t.
        return _in_blocks(F.pad(weight, (0, 1, 0, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the convolution gives, (N, K, H / 2, W / 2)."""
        y: Tensor = self.conv(_in_blocks(x))
        return y


def _in_blocks(x: Tensor) -> Tensor:
    """Return x (N, C, H, W) as (N, 4 C, H / 2, W / 2), the pixel of a block before the channel.

    PixelUnshuffle in another order, in fewer operators than its export has.
    """
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, 4 * channels, height // 2, width // 2)


def check_form(form: str) -> None:
    """Refuse a form that there is not.

    Raises:
        ConfigError: no such form.
    """
    if form not in FORMS:
        raise ConfigError(f"upsample is {form!r}; expected one of {', '.join(FORMS)}")


def with_upsampling(module: nn.Module, form: str) -> nn.Module:
    """Return a copy of a module whose transposed convolutions have another form.

    Only those of k5 s2 p2 output_padding 1 without groups change. Others, such as the k4 and k2 of
    HPCM, build everywhere and stay.

    Raises:
        ConfigError: no such form.
    """
    check_form(form)
    copied = copy.deepcopy(module)
    # Behind a layer that doubles them, sides are even.
    doubled: set[str] = set()
    for name, layer in list(copied.named_modules()):
        parent = name.rpartition(".")[0]
        if isinstance(layer, nn.ConvTranspose2d) and _doubles(layer):
            relu = _relu_behind(copied, name) if form not in ("k5", "k6") else ""
            copied.set_submodule(name, _in_form(layer, form, parent in doubled, bool(relu)))
            if relu:
                copied.set_submodule(relu, nn.Identity())
            doubled.add(parent)
        elif form == "blocks" and isinstance(layer, nn.Conv2d) and _takes_a_picture(layer):
            copied.set_submodule(name, FromBlocks(layer))
    return copied


def _relu_behind(module: nn.Module, name: str) -> str:
    """Return the name of the ReLU that follows a layer of a Sequential, or nothing."""
    parent, _, index = name.rpartition(".")
    following = f"{parent}.{int(index) + 1}".lstrip(".") if index.isdecimal() else ""
    behind = dict(module.named_modules()).get(following)
    sequence = isinstance(module.get_submodule(parent), nn.Sequential)
    return following if sequence and type(behind) is nn.ReLU else ""


def _in_form(layer: nn.ConvTranspose2d, form: str, even: bool, relu: bool) -> nn.Module:
    if form == "k5":
        return layer
    if form == "k6":
        return padded(layer)
    gives_a_picture = layer.out_channels <= PICTURE_CHANNELS
    block = 4 if form == "blocks" and even and gives_a_picture else 2
    # A picture of few channels has no runs worth moving in one piece.
    reshape = form == "subpixel-reshape" or (form == "blocks" and not gives_a_picture)
    return SubPixel(layer, block=block, reshape=reshape, split=form == "shuffle", relu=relu)


def padded(layer: nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """Return a 6x6 form, without output_padding, that gives the same bits."""
    wider = nn.ConvTranspose2d(
        layer.in_channels, layer.out_channels, 6, 2, padding=2, bias=layer.bias is not None
    )
    with torch.no_grad():
        wider.weight.copy_(F.pad(layer.weight, (0, 1, 0, 1)))
        if layer.bias is not None and wider.bias is not None:
            wider.bias.copy_(layer.bias)
    return wider.train(layer.training)


def _doubles(layer: nn.ConvTranspose2d) -> bool:
    found = (
        layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation,
        layer.groups,
    )  # fmt: skip
    return found == ((5, 5), (2, 2), (2, 2), (1, 1), (1, 1), 1)


def _takes_a_picture(layer: nn.Conv2d) -> bool:
    found = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    return (
        found == ((5, 5), (2, 2), (2, 2), (1, 1), 1)
        and layer.padding_mode == "zeros"
        and layer.in_channels <= PICTURE_CHANNELS
    )


class ExternalSynthesis(Synthesis):
    """y_hat less the medians (N, M, h, w) -> x_hat (N, 3, H, W): who calls clips it to [0, 1]."""

    def forward(self, y_hat: Tensor) -> Tensor:
        """Return x_hat, not clipped."""
        x_hat: Tensor = self.g_s(y_hat + self.medians)
        return x_hat


def external_round(model: FactorizedPrior) -> tuple[Analysis, ExternalSynthesis]:
    """Return encoder and decoder of a model without rounding, casts and clips.

    NPUs round ties differently or leave rounding and casts to the CPU. Symbols are the nearest
    integers, of two equally near ones the even; NaN and what 16 bits do not hold is to be refused.

    Raises:
        ConfigError: a model with a context, whose rounding lies between its networks.
    """
    if not isinstance(model, FactorizedPrior):
        raise ConfigError(
            f"{model.name}: rounding cannot be left outside; networks go on from what it gives"
        )
    return Analysis(model), ExternalSynthesis(model)
