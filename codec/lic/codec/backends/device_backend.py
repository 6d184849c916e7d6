"""Networks that somebody else runs, such as an NPU; everything around them is lic's.

Shapes: as in `base`.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lic.codec.architectures import FACTORIZED
from lic.codec.backends.base import FactorizedBackend
from lic.codec.bundle import Bundle
from lic.codec.errors import ConfigError

Encode = Callable[[NDArray[np.float32]], NDArray[np.floating] | NDArray[np.integer]]
Decode = Callable[[NDArray[np.int32]], NDArray[np.floating]]


class DeviceBackend(FactorizedBackend):
    """A factorized prior whose networks are functions of symbols, which have a step of 1.

    Args:
        bundle: the model, for its tables; it needs no graphs.
        encode: x (1, 3, H, W) in [0, 1] -> symbols (1, M, h, w), or the floats that round to them
            (y less the medians, as --external-round leaves them).
        decode: symbols (1, M, h, w) -> x_hat (1, 3, H, W); what lies outside [0, 1] is clipped.

    Raises:
        ConfigError: a model with a context, whose networks go on from what was coded.
    """

    name = "device"
    device = "device"
    provider = ""
    notes: tuple[str, ...] = ()
    any_step = False

    def __init__(
        self, bundle: Bundle, encode: Encode | None = None, decode: Decode | None = None
    ) -> None:
        if bundle.manifest.architecture != FACTORIZED:
            raise ConfigError(
                f"{bundle.label}: only {FACTORIZED} can have its networks elsewhere; what other "
                "models decode goes through them again and again"
            )
        super().__init__(bundle)
        self._encoder, self._decoder = encode, decode

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Refuse a direction that there is no function for.

        Raises:
            ConfigError: says which.
        """
        for wanted, function, name in (
            (encoder, self._encoder, "encode"),
            (decoder, self._decoder, "decode"),
        ):
            if wanted and function is None:
                raise ConfigError(f"this codec was opened without {name}=; give it the function")

    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.floating]:
        self.load(encoder=True)
        assert self._encoder
        found = np.asarray(self._encoder(np.ascontiguousarray(x)))
        self._check("encode", found, (1, *self.blank(*x.shape[2:])))
        # Of two equally near integers the even one, as lic does; before digits are lost.
        return np.rint(found.astype(np.float64))

    def _decode(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        self.load(decoder=True)
        assert self._decoder
        found = np.asarray(self._decoder(y_hat.astype(np.int32)))
        height, width = (side * self.stride for side in y_hat.shape[2:])
        self._check("decode", found, (1, 3, height, width))
        return found.astype(np.float32).clip(0, 1)

    @staticmethod
    def _check(name: str, found: NDArray[np.generic], shape: tuple[int, ...]) -> None:
        if found.shape != shape:
            raise ConfigError(f"{name} gave an array of shape {found.shape}; expected {shape}")
