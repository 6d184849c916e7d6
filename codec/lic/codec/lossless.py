"""Pictures that are stored losslessly, without a model.

Shapes: H W pixels, C channels.
"""

import numpy as np

from lic.codec.container import Coder, Header, Tile
from lic.codec.image_io import Described, LazyPicture, Picture, PixelSource, encode_lossless
from lic.codec.results import Encoded, finish
from lic.codec.stages import Stages

# A lossless payload can beat the learned stream on tiny pictures and on drawings of few colours;
# trying it on every photo would cost more time than the codec itself.
TRY_LOSSLESS_PIXELS = 64 * 64
TRY_LOSSLESS_COLOURS = 256


def compress_lossless(picture: Picture | LazyPicture) -> Encoded:
    """Store a picture's 8-bit pixels losslessly; needs no model."""
    stages = Stages()
    with stages.measure("container"):
        payload = encode_lossless(picture.pixels)
    return finish_lossless(picture, payload, stages)


def has_a_chance(pixels: PixelSource) -> bool:
    """Return whether pixels (H, W, C) are few, or of few colours."""
    height, width, channels = pixels.shape
    if height * width <= TRY_LOSSLESS_PIXELS:
        return True
    weights = 256 ** np.arange(channels, dtype=np.int32)
    across, down = max(1, width // 128), max(1, height // 128)
    sample = np.concatenate(
        [pixels[row : row + 1, 0:width][:, ::across] for row in range(0, height, down)]
    )
    return np.unique(sample @ weights).size <= TRY_LOSSLESS_COLOURS


def lossless_header(picture: Described) -> Header:
    """Return the HEAD of a picture that is stored so; of others, what does not tell of coding."""
    return Header(
        width=picture.width,
        height=picture.height,
        colour=picture.channels,
        bit_depth=picture.bit_depth,
        orientation=picture.orientation,
        coder=Coder.LOSSLESS,
    )


def finish_lossless(picture: Described, payload: bytes, stages: Stages) -> Encoded:
    """Put a payload of `encode_lossless` into a file."""
    tile = Tile(index=0, symbols_crc=0, streams=(payload,))
    return finish(picture, lossless_header(picture), (tile,), None, stages)
