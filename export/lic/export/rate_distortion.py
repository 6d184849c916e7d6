"""What a codec's graphs cost on pictures: bits by its integer tables, and the error of x_hat.

Shapes: N batch, M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lic.codec.bundle import DECODER, ENCODER
from lic.codec.entropy import Meter, Tables, cheapest_set
from lic.codec.errors import ConfigError, ExportError
from lic.codec.latents import UNCODABLE, checked_symbols
from lic.export.graph_check import run, session


class _Through:
    """A coder that writes nothing."""

    def code(self, symbols: NDArray[Any] | None, indexes: NDArray[Any]) -> NDArray[np.int16]:  # noqa: ARG002
        assert symbols is not None, "nothing is read here"
        return np.asarray(symbols, np.int16)


def symbols_of(encoder: Any, x: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return the symbols (N, M, h, w) of a picture; a session that leaves rounding outside will do.

    Raises:
        NumericsError: NaN, infinite, or beyond 16 bits.
    """
    steps = np.rint(run(encoder, x).astype(np.float64))
    # As the graph itself marks what cannot be coded, and NaN, which compares with nothing.
    marked = np.where(np.abs(steps) <= UNCODABLE, steps, UNCODABLE)
    return checked_symbols(marked.astype(np.int32), "y")


def x_hat_of(decoder: Any, symbols: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return x_hat (N, 3, H, W) in [0, 1] of symbols (N, M, h, w)."""
    floating = decoder.get_inputs()[0].type == "tensor(float)"
    x_hat = run(decoder, symbols.astype(np.float32 if floating else np.int32))
    clipped: NDArray[np.float32] = x_hat.clip(0, 1)
    return clipped


def symbol_bits(symbols: NDArray[np.int16], tables: Tables) -> float:
    """Return the ideal code length in bits of symbols (N, M, h, w), table by channel."""
    tables = tables.of_set(cheapest_set(tables, symbols.swapaxes(0, 1)))
    channels = np.arange(symbols.shape[1], dtype=np.uint16)[:, None, None]
    meter = Meter(_Through(), tables)
    meter.code(symbols, np.broadcast_to(channels, symbols.shape))
    return meter.bits[0]


class Loss:
    """bpp + lambda 255^2 MSE over pictures, of an encoder's or a decoder's graph.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        encoder, decoder: the float graphs; the other side of the one that is asked about.
        tables: of the model, in each set one for each latent channel.
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
        self.symbols = [symbols_of(running, x) for running in [session(encoder)] for x in pictures]
        self._decoder = session(decoder)
        self._tables = tables
        self._lmbda = lmbda
        self._pixels = sum(x[:, 0].size for x in pictures)

    def of_encoder(self, encoder: onnx.ModelProto) -> float:
        """Return the loss with another encoder and the float decoder."""
        running = session(encoder)
        symbols = [symbols_of(running, x) for x in self.pictures]
        return self._total(symbols, [x_hat_of(self._decoder, s) for s in symbols])

    def of_decoder(self, decoder: onnx.ModelProto) -> float:
        """Return the loss with the float encoder and another decoder."""
        running = session(decoder)
        return self._total(self.symbols, [x_hat_of(running, s) for s in self.symbols])

    def _total(
        self, symbols: Sequence[NDArray[np.int16]], x_hat: Sequence[NDArray[np.float32]]
    ) -> float:
        bits = sum(symbol_bits(s, self._tables) for s in symbols)
        pairs = zip(self.pictures, x_hat, strict=True)
        error = sum(float(np.square(x - y, dtype=np.float64).sum()) for x, y in pairs)
        # Three channels for a pixel.
        return (bits + self._lmbda * 255**2 * error / 3) / self._pixels


def check_distortion(
    label: str,
    picture: NDArray[np.float32],
    floats: Mapping[str, onnx.ModelProto],
    graphs: Mapping[str, onnx.ModelProto],
) -> None:
    """Code a picture (1, 3, H, W) with graphs, by file name, and compare with float graphs.

    A guard against graphs that compute something else, no measure of quality.

    Raises:
        ExportError: it comes back with an error that has nothing to do with that of float32.
    """
    errors = []
    for each in (floats, graphs):
        symbols = symbols_of(session(each[ENCODER]), picture)
        x_hat = x_hat_of(session(each[DECODER]), symbols)
        errors.append(255**2 * float(np.square(x_hat - picture, dtype=np.float64).mean()))
    check_errors(label, *errors)


def check_errors(label: str, expected: float, found: float) -> None:
    """Refuse a mean squared error (levels of 8 bits) that float32 (`expected`) does not explain.

    Raises:
        ExportError: 6 dB more, and two levels.
    """
    if not found <= 4 * expected + 4:
        raise ExportError(
            f"{label}: a calibration picture comes back with a mean squared error of {found:.1f}, "
            f"in float32 {expected:.1f}; calibrate with more pictures or another method"
        )
