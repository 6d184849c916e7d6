"""GDN-ish: gain blocks of operators that NPUs run, in place of GDN.

Convolutions, depthwise ones, clipping to [0, 6], products, sums and at most one global average: no
square, root or division (deployment of GDN falls back to the CPU for those). Both blocks begin as
the identity, so that whatever a transform was before stays what it is.

Shapes: N batch, C channels, t expansion, H W height and width of the tensor at hand.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.errors import ConfigError

# How large an input the identity of a fresh block passes, to either side.
REACH = 6.0
# Where a gain starts, away from the ends of its range, in shares of it: at an end nothing learns.
_EDGE = 0.05
# Neighbouring channels that a gate looks at, odd.
GATE_TAPS = 5
# What a gate's convolution gives where the gain is one: the middle of ReLU6.
UNIT = 3.0


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Options of a block, as a part of its model's config."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Return what `to_dict` gave.

        Raises:
            ConfigError: no such fields, or values that cannot work.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict) or not set(values) <= set(known):
            raise ConfigError(
                f"options of a GDN-ish block are {values!r}; expected {', '.join(known)}"
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class EncoderGain(_Options):
    """Options of `EncoderBlock`.

    Attributes:
        t: expansion of the first 1x1.
        kdw: side of the depthwise kernel, odd.
        eca: gate channels by the whole picture's averages. The encoder is not local then: a large
            picture goes through it in one piece.
        residual: add the input.

    Raises:
        ConfigError: a value that cannot work; the message names the option.
    """

    t: int = 2
    kdw: int = 3
    eca: bool = False
    residual: bool = True

    def __post_init__(self) -> None:
        _check_whole("enc_t", self.t, 16)
        _check_kernel("enc_kdw", self.kdw)
        _check_flag("enc_eca", self.eca)
        _check_flag("enc_residual", self.residual)


@dataclass(frozen=True, kw_only=True)
class DecoderGain(_Options):
    """Options of `DecoderBlock`.

    Attributes:
        k: side of the depthwise kernel, odd.
        gmin: smallest gain.
        gmax: largest gain.
        residual: add the input, which is one more in the gain.

    Raises:
        ConfigError: a value that cannot work; the message names the option.
    """

    k: int = 3
    gmin: float = 0.0
    gmax: float = 4.0
    residual: bool = False

    def __post_init__(self) -> None:
        _check_kernel("dec_k", self.k)
        for name in ("gmin", "gmax"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not -64 <= value <= 64:
                raise ConfigError(f"dec_{name} is {value!r}; expected a number from -64 to 64")
            # 4 and 4.0 are one config, and must be one fingerprint.
            object.__setattr__(self, name, float(value))
        if not self.gmin < self.gmax:
            raise ConfigError(f"dec_gmin is {self.gmin}; expected below dec_gmax, {self.gmax}")
        _check_flag("dec_residual", self.residual)


def _check_whole(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise ConfigError(f"{name} is {value!r}; expected 1 to {most}")


def _check_kernel(name: str, value: object) -> None:
    if type(value) is not int or not 1 <= value <= 15 or value % 2 == 0:
        raise ConfigError(f"{name} is {value!r}; expected an odd number from 1 to 15")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected true or false")


class ChannelGate(nn.Module):
    """Products of channels with gains in [0, 2] that follow from averages over the picture.

    A channel's gain sees the averages of itself and its neighbours through one small kernel that
    all channels share (as in ECA-Net, arXiv 1910.03151; squashed by a clip in place of a sigmoid).
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, GATE_TAPS))
        self.bias = nn.Parameter(torch.full((1,), UNIT))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W) with every channel times its gain."""
        means = F.adaptive_avg_pool2d(x, 1).flatten(2).transpose(1, 2)
        steps = F.conv1d(means, self.weight, self.bias, padding=GATE_TAPS // 2)
        return x * gate_gain(steps).transpose(1, 2)[..., None]

    def as_matrix(self, channels: int) -> tuple[Tensor, Tensor]:
        """Return weight (C, C, 1, 1) and bias (C,) of the 1x1 convolution that it does."""
        offsets = torch.arange(channels) - torch.arange(channels)[:, None] + GATE_TAPS // 2
        inside = (offsets >= 0) & (offsets < GATE_TAPS)
        taps = self.weight.detach().flatten()[offsets.clamp(0, GATE_TAPS - 1)]
        return (taps * inside)[:, :, None, None], self.bias.detach().expand(channels).clone()


def gate_gain(steps: Tensor) -> Tensor:
    """Return the gains of a gate's convolution: a hard sigmoid times 2, its shift in the bias."""
    return F.relu6(steps) * (1 / UNIT)


class EncoderBlock(nn.Module):
    """1x1 expansion, ReLU6, depthwise, ReLU6, 1x1 projection; gate and residual as asked for."""

    options: Tensor

    def __init__(self, channels: int, gain: EncoderGain) -> None:
        super().__init__()
        self.gain = gain
        hidden = gain.t * channels
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, gain.kdw, padding=gain.kdw // 2, groups=hidden)
        self.project = nn.Conv2d(hidden, channels, 1)
        self.gate = ChannelGate() if gain.eca else None
        # What shapes do not tell: a state dict alone says which network it belongs to.
        self.register_buffer("options", torch.tensor([float(gain.residual)]))
        self.make_identity(torch.full((channels,), REACH))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, as x (N, C, H, W)."""
        y: Tensor = self.project(self.hidden(x))
        if self.gate is not None:
            y = self.gate(y)
        return x + y if self.gain.residual else y

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the projection sees, (N, t C, H, W)."""
        return F.relu6(self.depthwise(F.relu6(self.expand(x))))

    @torch.no_grad()
    def make_identity(self, reach: Tensor) -> None:
        """Set all weights so that inputs pass unchanged that are at most reach (C,) in size.

        Hidden channels are the inputs' positive and negative parts, with kinks at several sizes
        where there are more than two for each; one alone is the input moved to the middle of the
        range. With a residual the projection begins at nought and they only wait.
        """
        t, channels = self.gain.t, len(reach)
        slope = (6.0 if t > 1 else 3.0) / reach.clamp(min=1e-3)
        self.expand.weight.zero_()
        self.depthwise.weight.zero_()
        self.project.weight.zero_()
        for conv in (self.expand, self.depthwise, self.project):
            cast(Tensor, conv.bias).zero_()
        middle = self.gain.kdw // 2
        self.depthwise.weight[:, 0, middle, middle] = 1
        own = torch.arange(channels)
        for copy in range(t):
            rows = copy * channels + own
            self.expand.weight[rows, own, 0, 0] = (-slope) if copy % 2 else slope
            kink = 3.0 if t == 1 else -6.0 * (copy // 2) / ((t + 1) // 2)
            cast(Tensor, self.expand.bias)[rows] = kink
        if not self.gain.residual:
            self.project.weight[own, own, 0, 0] = 1 / slope
            if t > 1:
                self.project.weight[own, channels + own, 0, 0] = -1 / slope
            else:
                cast(Tensor, self.project.bias).copy_(-3 / slope)
        if self.gate is not None:
            self.gate.weight.zero_()
            self.gate.bias.fill_(UNIT)


class DecoderBlock(nn.Module):
    """x times a gain in [gmin, gmax]: depthwise, ReLU6, 1x1, and a hard sigmoid made of ReLU6.

    The first ReLU6 costs nothing behind a convolution. Without it the gain would be a clipped
    linear function, which knows x from -x and cannot follow sizes, as the gain of GDN does.
    A residual is one more in the gain; the hard sigmoid's shift is in the bias of the 1x1.

    Attributes:
        low: gain where the 1x1 convolution gives nought or less.
        slope: of the gain from there on; it ends where the convolution gives 6.
    """

    options: Tensor

    def __init__(self, channels: int, gain: DecoderGain) -> None:
        super().__init__()
        self.gain = gain
        self.low = gain.gmin + float(gain.residual)
        self.slope = (gain.gmax - gain.gmin) / 6
        self.depthwise = nn.Conv2d(channels, channels, gain.k, padding=gain.k // 2, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        # As in the encoder's block.
        residual = float(gain.residual)
        self.register_buffer("options", torch.tensor([gain.gmin, gain.gmax, residual]))
        self.make_identity(torch.full((channels,), REACH))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, as x (N, C, H, W)."""
        gains = F.relu6(self.pointwise(self.hidden(x))) * self.slope
        return x * (gains + self.low) if self.low else x * gains

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the 1x1 convolution sees, (N, C, H, W)."""
        return F.relu6(self.depthwise(x))

    @torch.no_grad()
    def make_identity(self, reach: Tensor) -> None:
        """Make the gain one, or as near to it as the range allows; all of it can learn.

        Of the inputs the gain will see parts of one sign, for every second channel the negative
        one, up to reach (C,).
        """
        middle = self.gain.k // 2
        slope = 6 / reach.clamp(min=1e-3)
        slope[1::2] *= -1
        self.depthwise.weight.zero_()
        self.depthwise.weight[:, 0, middle, middle] = slope
        cast(Tensor, self.depthwise.bias).zero_()
        self.pointwise.weight.zero_()
        share = (1 - self.low) / (6 * self.slope)
        cast(Tensor, self.pointwise.bias).fill_(6 * min(max(share, _EDGE), 1 - _EDGE))


def encoder_gain_of(state: Mapping[str, Tensor], name: str) -> EncoderGain:
    """Return the options of the encoder block `name` of a state dict.

    Raises:
        ConfigError: tensors that belong to no such block.
    """
    expand, depthwise, options = _shapes(state, name, ("expand.weight", "depthwise.weight"), 1)
    return EncoderGain(
        t=expand[0] // max(1, expand[1]),
        kdw=depthwise[2],
        eca=f"{name}.gate.weight" in state,
        residual=bool(options[0]),
    )


def decoder_gain_of(state: Mapping[str, Tensor], name: str) -> DecoderGain:
    """Return the options of the decoder block `name` of a state dict.

    Raises:
        ConfigError: tensors that belong to no such block.
    """
    depthwise, _, options = _shapes(state, name, ("depthwise.weight", "pointwise.weight"), 3)
    return DecoderGain(k=depthwise[2], gmin=options[0], gmax=options[1], residual=bool(options[2]))


def _shapes(
    state: Mapping[str, Tensor], name: str, wanted: tuple[str, str], count: int
) -> tuple[list[int], list[int], list[float]]:
    """Return the shapes of two 4-D tensors and the values of the options."""
    tensors = [state.get(f"{name}.{part}") for part in (*wanted, "options")]
    one, two, options = tensors
    if (
        one is None or two is None or options is None
        or one.ndim != 4 or two.ndim != 4 or options.shape != (count,)
    ):  # fmt: skip
        expected = " and ".join(f"{name}.{part}" for part in wanted)
        raise ConfigError(f"no GDN-ish block: expected {expected} and {count} {name}.options")
    # The shortest decimal that is this float32: 0.1 was stored as 0.100000001.
    values = [float(str(value)) for value in options.float().numpy()]
    return list(one.shape), list(two.shape), values
