"""Facts of the architectures that hold without their code, and without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from lic.codec.errors import ConfigError


class Tiling(Enum):
    """What a tile of a large picture is.

    OVERLAPPING: an area of pixels that is coded as a picture of its own and blended with its
    neighbours; for networks that need kilobytes for every pixel.

    LATENTS: a rectangle of the whole picture's latents. The transforms see beyond its borders, so
    that no seam can be there and nothing is coded twice.
    """

    OVERLAPPING = "overlapping"
    LATENTS = "latents"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What must be known of an architecture without its code.

    Attributes:
        decoding: tensors whose names start so decide what a decoder computes.
        tiling: what the tiles of its files are.
    """

    decoding: tuple[str, ...]
    tiling: Tiling


FACTORIZED = "bmshj2018-factorized"
ARCHITECTURES: dict[str, Architecture] = {
    FACTORIZED: Architecture(
        decoding=("g_s.", "entropy_bottleneck.quantiles"), tiling=Tiling.LATENTS
    ),
    "bmshj2018-hyperprior": Architecture(
        decoding=(
            "g_s.",
            "h_s.",
            "entropy_bottleneck.quantiles",
            "gaussian_conditional.scale_table",
        ),
        tiling=Tiling.OVERLAPPING,
    ),
    "hpcm": Architecture(
        decoding=(
            "g_s.",
            "h_s.",
            "means_hyper",
            "adaptive_params_list.",
            "y_spatial_prior_",
            "attn_",
            "context_net.",
        ),
        tiling=Tiling.OVERLAPPING,
    ),
}


class Margin(NamedTuple):
    """Latents before and after a stretch of them that its own depend on, along either side."""

    before: int
    after: int


class Margins(NamedTuple):
    """What a window of latents must see around itself; None: the whole picture."""

    encoder: Margin | None
    decoder: Margin


def window_margins(config: Mapping[str, Any]) -> Margins:
    """Return the margins of bmshj2018's transforms: four layers of 5x5 at stride 2 on each side.

    A latent's pixels are centred on the first of its 16, which is why the sides differ.

    Args:
        config: of a bundle, whose options nobody may have looked at.

    Raises:
        ConfigError: options of GDN-ish blocks that no model has.
    """
    encoder = None
    gain = _gain(config, "encoder_gain")
    beside = _beside(gain, "kdw")
    if not gain.get("eca", False):
        # In pixels: each layer, and the depthwise kernel behind it on a grid twice as coarse.
        reach = sum(2 * 2**layer for layer in range(4)) + beside * (2 + 4 + 8)
        encoder = Margin(_over(reach, 16), _over(reach - 15, 16))
    # Backwards through the decoder, from 16 pixels of one latent to what they are made of. A layer
    # makes 2 i - 2 .. 2 i + 2 of its input i.
    beside = _beside(_gain(config, "decoder_gain"), "k")
    first, last = 0, 15
    for layer in range(4):
        first, last = _over(first - 2, 2), (last + 2) // 2
        if layer < 3:
            first, last = first - beside, last + beside
    return Margins(encoder, Margin(-first, last))


def _over(length: int, unit: int) -> int:
    return -(-length // unit)


def _gain(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the options of a side's blocks, empty where it has none."""
    gain = config.get(name, {})
    if not isinstance(gain, Mapping):
        raise ConfigError(f"{name} is {gain!r}; expected options")
    # Left out, they have the defaults of the blocks.
    return {"kdw": 3, "k": 3, **gain} if name in config else {}


def _beside(gain: Mapping[str, Any], name: str) -> int:
    """Return how far a block's kernel reaches to either side; none is like one of 1x1."""
    side = gain.get(name, 1)
    if type(side) is not int or not 1 <= side <= 15:
        raise ConfigError(f"{name} of a GDN-ish block is {side!r}; expected 1 to 15")
    return side // 2
