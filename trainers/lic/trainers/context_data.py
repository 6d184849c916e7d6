"""Symbols of pictures, for fitting contexts; and what contexts save of them.

Shapes: H W pixels; M channels, h w rows and columns of latents.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lic.codec.entropy import Contexts, ContextWriter, Tables, Writer, cheapest_set
from lic.codec.errors import ImageError, LicError
from lic.codec.image_io import read_picture, upright
from lic.codec.pipeline import Codec

# Of a large photo its middle does: more pictures tell more than more of one.
_MOST_SIDE = 1024
# Every so-manieth picture measures what the others gave.
HELD_OUT = 10


def symbols_of(codec: Codec, paths: Sequence[Path]) -> Iterator[NDArray[np.int16]]:
    """Yield the symbols (M, h, w) of each picture that can be read.

    Raises:
        ImageError: none of them can be.
    """
    problem = "there are none"
    some = False
    for path in paths:
        try:
            pixels = upright(read_picture(path)).pixels
        except (LicError, OSError) as error:
            problem = str(error)
            continue
        some = True
        yield codec.symbols(_middle(pixels))
    if not some:
        raise ImageError(f"no picture could be read ({problem})")


def _middle(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, left = (max(0, side - _MOST_SIDE) // 2 for side in pixels.shape[:2])
    return pixels[top : top + _MOST_SIDE, left : left + _MOST_SIDE]


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Bytes of streams of some pictures.

    Attributes:
        plain: with one table a channel, of the set that suits each picture best.
        contexts: with contexts.
    """

    plain: int
    contexts: int

    @property
    def percent(self) -> float:
        """What contexts save."""
        return 100 * (1 - self.contexts / self.plain)


def saving(latents: Sequence[NDArray[np.int16]], tables: Tables, contexts: Contexts) -> Saving:
    """Return how long the streams of symbols (M, h, w) become."""
    plain = chosen = 0
    for symbols in latents:
        channels = np.arange(len(symbols), dtype=np.uint16)[:, None, None]
        indexes = np.broadcast_to(channels, symbols.shape)
        own = tables.of_set(cheapest_set(tables, symbols))
        writers = Writer(own), ContextWriter(contexts)
        sizes = []
        for writer in writers:
            writer.code(symbols, indexes)
            sizes.append(sum(map(len, writer.finish())))
        plain += sizes[0]
        chosen += sizes[1]
    return Saving(plain=plain, contexts=chosen)
