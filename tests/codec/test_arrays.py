import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lic.codec
from lic.codec import Limits, Picture, decode, encode, open_codec
from lic.codec.errors import ConfigError, ImageError, LimitError, ModelMismatchError
from lic.codec.image_io import orient
from lic.codec.lossless import compress_lossless


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_every_kind_of_array_comes_back(photo: NDArray[np.uint8], channels: int | None) -> None:
    # Every second column: an array need not be contiguous.
    four = np.concatenate([photo, photo[..., :1]], axis=2)[:, ::2]
    pixels = four[..., 0] if channels is None else four[..., :channels]
    expected = pixels[..., 0] if channels == 1 else pixels
    exact = decode(encode(pixels, lossless=True))
    assert exact.dtype == np.uint8 and exact.shape == expected.shape
    assert np.array_equal(exact, expected)
    lossy = decode(encode(pixels, lossless=False))
    assert lossy.shape == expected.shape
    assert 0 < np.abs(lossy.astype(int) - expected).mean() < 8


def test_a_file_is_that_of_the_codec(photo: NDArray[np.uint8], tiny_bundle: Path) -> None:
    picture = Picture(pixels=photo)
    assert encode(photo, rate_point=2) == open_codec(rate_point=2).compress(picture).data
    data = encode(photo, model=str(tiny_bundle), backend="torch", threads=1)
    assert data == open_codec(str(tiny_bundle), backend="torch").compress(picture).data
    drawing = np.zeros((80, 90, 3), np.uint8)
    drawing[::7, ::3] = 200
    assert encode(drawing) == compress_lossless(Picture(pixels=drawing)).data


def test_opaque_alpha_stays(photo: NDArray[np.uint8]) -> None:
    opaque = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    assert decode(encode(opaque)).shape == opaque.shape


def test_pixels_are_decoded_the_right_way_up(photo: NDArray[np.uint8]) -> None:
    data = compress_lossless(Picture(pixels=photo, orientation=6)).data
    assert np.array_equal(decode(data), orient(photo, 6))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "samples are float32; expected uint8"),
        (np.zeros((4, 4), np.uint16), "samples are uint16; expected uint8"),
        (np.zeros((4, 4), bool), "samples are bool; expected uint8"),
        (np.zeros((3, 4, 4), np.uint8)[None], r"shape is \(1, 3, 4, 4\); expected \(H, W\)"),
        (np.zeros((4, 4, 5), np.uint8), r"shape is \(4, 4, 5\)"),
        (np.zeros(16, np.uint8), r"shape is \(16,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape is \(0, 4, 3\)"),
        ([[1, 2], [3, 4]], "samples are int64; expected uint8"),
    ],
)
def test_other_arrays_are_refused(array: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        encode(array)


def test_errors_are_lics(photo: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError, match="lossless=True takes no model and no rate point"):
        encode(photo, lossless=True, rate_point=1)
    with pytest.raises(ConfigError, match="has no rate point 9"):
        encode(photo, rate_point=9)
    with pytest.raises(LimitError):
        decode(encode(photo), limits=Limits(max_pixels=100))
    data = encode(photo)
    unknown = data[:36] + struct.pack("<Q", 7) + data[44:]
    with pytest.raises(lic.codec.BitstreamError):
        decode(unknown)
    with pytest.raises(ModelMismatchError):
        encode(photo, model="unheard-of")


def test_any_bytes_will_do(photo: NDArray[np.uint8]) -> None:
    data = encode(photo)
    for other in (bytearray(data), memoryview(data)):
        assert np.array_equal(decode(other), decode(data))
