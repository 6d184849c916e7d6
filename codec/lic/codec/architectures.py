"""Facts of the architectures that hold without their code, and without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lic.codec.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What must be known of an architecture without its code.

    Attributes:
        decoding: tensors whose names start so decide what a decoder computes.
        tiled: large pictures are coded tile by tile. Networks that only see symbols need none: in
            strips they give the same as in one piece.
    """

    decoding: tuple[str, ...]
    tiled: bool


FACTORIZED = "bmshj2018-factorized"
ARCHITECTURES: dict[str, Architecture] = {
    FACTORIZED: Architecture(decoding=("g_s.", "entropy_bottleneck.quantiles"), tiled=False),
    "bmshj2018-hyperprior": Architecture(
        decoding=(
            "g_s.",
            "h_s.",
            "entropy_bottleneck.quantiles",
            "gaussian_conditional.scale_table",
        ),
        tiled=True,
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
        tiled=True,
    ),
}


class Margins(NamedTuple):
    """Rows of latents around a strip that its own depend on; None: on the whole picture."""

    encoder: int | None
    decoder: int


def strip_margins(config: Mapping[str, Any]) -> Margins:
    """Return the margins of bmshj2018's transforms: four layers of 5x5 at stride 2 on each side.

    Args:
        config: of a bundle, whose options nobody may have looked at.

    Raises:
        ConfigError: options of GDN-ish blocks that no model has.
    """
    encoder: int | None = None
    gain = _gain(config, "encoder_gain")
    beside = _beside(gain, "kdw")
    if not gain.get("eca", False):
        # In pixels: each layer, and the depthwise kernel behind it on a grid twice as coarse.
        reach = sum(2 * 2**layer for layer in range(4)) + beside * (2 + 4 + 8)
        encoder = -(-reach // 16)
    beside = _beside(_gain(config, "decoder_gain"), "k")
    # Backwards through the decoder: n rows at the output of a layer need n / 2 + 1 of its input.
    decoder = 1
    for _ in range(3):
        decoder = -(-(decoder + beside + 2) // 2)
    return Margins(encoder, decoder)


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
