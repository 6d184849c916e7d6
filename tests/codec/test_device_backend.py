"""A codec whose networks are functions of somebody else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError, NumericsError
from lic.codec.image_io import Picture
from lic.codec.pipeline import Codec

Floats = NDArray[np.float32]


def functions(bundle: Bundle) -> tuple[Any, Any]:
    """Return the networks of a bundle as an engine of its own runs them, on symbols."""
    backend: Any = Codec(bundle, backend="onnx").backend

    def encode(x: Floats) -> NDArray[np.int32]:
        symbols: NDArray[np.int32] = np.rint(backend._encode(x)).astype(np.int32)
        return symbols

    return encode, lambda symbols: backend._decode(symbols.astype(np.float32))


def test_files_are_those_of_any_backend(tiny_bundle: Path, photo: NDArray[np.uint8]) -> None:
    bundle = Bundle.open(tiny_bundle)
    encode, decode = functions(bundle)
    codec, usual = Codec(bundle, encode=encode, decode=decode), Codec(bundle, backend="onnx")
    file = codec.compress(Picture(pixels=photo)).data
    assert file == usual.compress(Picture(pixels=photo)).data
    mine, theirs = (each.decompress(parse(file)).picture.pixels for each in (codec, usual))
    assert np.array_equal(mine, theirs)


def test_floats_are_rounded_to_even_and_pictures_clipped(
    tiny_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    encode, decode = functions(bundle)
    seen: list[NDArray[np.int32]] = []

    def halves(x: Floats) -> Floats:
        y = np.zeros(encode(x).shape, np.float32)
        y[0, 0], y[0, 1] = 0.5, 1.5
        return y

    def outside(symbols: NDArray[np.int32]) -> Floats:
        seen.append(symbols)
        x_hat: Floats = 3 * decode(symbols) - 1
        return x_hat

    codec = Codec(bundle, encode=halves, decode=outside)
    file = codec.compress(Picture(pixels=photo)).data
    pixels = codec.decompress(parse(file)).picture.pixels
    assert pixels.shape == photo.shape
    (symbols,) = seen
    assert np.all(symbols[0, 0] == 0) and np.all(symbols[0, 1] == 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 40000.0])
def test_what_cannot_be_coded_is_refused(
    tiny_bundle: Path, photo: NDArray[np.uint8], value: float
) -> None:
    bundle = Bundle.open(tiny_bundle)
    encode, _ = functions(bundle)

    def broken(x: Floats) -> Floats:
        y: Floats = encode(x).astype(np.float32)
        y[0, 3, 1, 2] = value
        return y

    with pytest.raises(NumericsError, match=r"the value at \[3, 1, 2\] is NaN, infinite or"):
        Codec(bundle, encode=broken).compress(Picture(pixels=photo))


def test_wrong_shapes_and_missing_functions_are_told(
    tiny_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    encode, _ = functions(bundle)
    one_way = Codec(bundle, encode=encode)
    file = one_way.compress(Picture(pixels=photo)).data
    with pytest.raises(ConfigError, match="opened without decode="):
        one_way.decompress(parse(file))
    with pytest.raises(ConfigError, match=r"decode gave an array of shape .*; expected \(1, 3, "):
        Codec(bundle, decode=lambda s: s[:, :3].astype(np.float32)).decompress(parse(file))
    with pytest.raises(ConfigError, match=r"encode gave an array of shape .*; expected \(1, 12, "):
        Codec(bundle, encode=lambda x: x).compress(Picture(pixels=photo))


def test_models_with_a_context_cannot(tiny_hpcm_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="only bmshj2018-factorized can have its networks"):
        Codec(Bundle.open(tiny_hpcm_bundle), encode=lambda x: x)
