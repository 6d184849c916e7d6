"""What a codec's graphs cost on pictures: bits by its integer tables, and the error of x_hat.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lic.codec.entropy import Meter, Tables
from lic.codec.errors import ConfigError
from lic.codec.latents import checked_symbols
from lic.export.calibration import run, session


class _Through:
    """A coder that writes nothing."""

    def code(self, symbols: NDArray[Any] | None, indexes: NDArray[Any]) -> NDArray[np.int16]:  # noqa: ARG002
        assert symbols is not None, "nothing is read here"
        return np.asarray(symbols, np.int16)


def symbol_bits(symbols: NDArray[np.integer[Any]], tables: Tables) -> float:
    """Return the ideal code length in bits of symbols (N, M, h, w), table by channel.

    Raises:
        NumericsError: a symbol that cannot be coded.
    """
    checked = checked_symbols(symbols.astype(np.int32), "y")
    channels = np.arange(checked.shape[1], dtype=np.uint16)[:, None, None]
    meter = Meter(_Through(), tables)
    meter.code(checked, np.broadcast_to(channels, checked.shape))
    return meter.bits[0]


class Loss:
    """bpp + lambda 255^2 MSE over pictures, of an encoder's or a decoder's graph.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        encoder, decoder: the float graphs; the other side of the one that is asked about.
        tables: of the model, one for each latent channel.
        lmbda: Lagrange multiplier, as in training.

    Raises:
        ConfigError: no lambda above 0.
    """

    def __init__(
        self,
        pictures: Sequence[NDArray[np.float32]],
        encoder: onnx.ModelProto,
        decoder: onnx.ModelProto,
        tables: Tables,
        lmbda: float | None,
    ) -> None:
        if lmbda is None or not lmbda > 0:
            raise ConfigError(
                f"lambda is {lmbda}: ranges cannot be chosen by rate and distortion; take another "
                "method, or name the lambda that the model was trained with"
            )
        self.pictures = pictures
        self.symbols = [run(running, x) for running in [session(encoder)] for x in pictures]
        self._decoder = session(decoder)
        self._tables = tables
        self._lmbda = lmbda
        self._pixels = sum(x[:, 0].size for x in pictures)

    def of_encoder(self, encoder: onnx.ModelProto) -> float:
        """Return the loss with another encoder and the float decoder."""
        running = session(encoder)
        symbols = [run(running, x) for x in self.pictures]
        return self._total(symbols, [run(self._decoder, s) for s in symbols])

    def of_decoder(self, decoder: onnx.ModelProto) -> float:
        """Return the loss with the float encoder and another decoder."""
        running = session(decoder)
        return self._total(self.symbols, [run(running, s) for s in self.symbols])

    def _total(
        self, symbols: Sequence[NDArray[np.int32]], x_hat: Sequence[NDArray[np.float32]]
    ) -> float:
        bits = sum(symbol_bits(s, self._tables) for s in symbols)
        pairs = zip(self.pictures, x_hat, strict=True)
        error = sum(float(np.square(x - y, dtype=np.float64).sum()) for x, y in pairs)
        # Three channels for a pixel.
        return (bits + self._lmbda * 255**2 * error / 3) / self._pixels
