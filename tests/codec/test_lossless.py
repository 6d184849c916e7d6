import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.errors import BitstreamError
from lic.codec.image_io import decode_alpha, decode_lossless, encode_alpha, encode_lossless

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, channels: int) -> Pixels:
    rng = np.random.default_rng(height)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def decode(data: bytes, like: Pixels) -> Pixels:
    height, width, channels = like.shape
    return decode_lossless(data, width=width, height=height, channels=channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 1), (300, 401), (1, 16383), (17000, 1)])
def test_pixels_come_back(size: tuple[int, int], channels: int) -> None:
    for pixels in (noise(*size, channels), np.zeros((*size, channels), np.uint8)):
        data = encode_lossless(pixels)
        np.testing.assert_array_equal(decode(data, pixels), pixels)
        if min(size) == 1:
            np.testing.assert_array_equal(
                decode_alpha(encode_alpha(pixels[..., 0]), width=size[1], height=size[0]),
                pixels[..., 0],
            )


def saved(pixels: Pixels, format: str, **options: Any) -> bytes:
    output = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.save(output, format=format, **options)
    return output.getvalue()


def test_the_smaller_form_is_taken() -> None:
    pixels = noise(40, 60, 3) // 32
    png = saved(pixels, "PNG", optimize=True)
    assert len(encode_lossless(pixels)) <= len(png)
    np.testing.assert_array_equal(decode(png, pixels), pixels)


@pytest.mark.parametrize(("width", "height"), [(31, 20), (30, 21), (2**18, 2**18), (20, 30)])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_another_size_than_in_head_is_refused(width: int, height: int, format: str) -> None:
    data = saved(noise(20, 30, 3), format, lossless=True)
    with pytest.raises(BitstreamError, match=f"30 x 20 pixels, expected {width} x {height}"):
        decode_lossless(data, width=width, height=height, channels=3)


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    body = kind + payload
    return struct.pack(">I", len(payload)) + body + struct.pack(">I", zlib.crc32(body))


def insert(png: bytes, kind: bytes, payload: bytes) -> bytes:
    """Put a chunk behind IHDR."""
    return png[:33] + png_chunk(kind, payload) + png[33:]


RGB = noise(20, 30, 3)
PNG = saved(RGB, "PNG")
WEBP = saved(RGB, "WEBP", lossless=True)
BOMB = zlib.compress(bytes(2**26))

WRONG_FORM = {
    "text": insert(PNG, b"zTXt", b"key\0\0" + BOMB),
    "profile": insert(PNG, b"iCCP", b"name\0\0" + BOMB),
    "animation": insert(PNG, b"acTL", struct.pack(">II", 2**31, 0)),
    "transparency": insert(PNG, b"tRNS", bytes(6)),
    "two headers": insert(PNG, b"IHDR", PNG[16:29]),
    "no end": PNG[:-12],
    "tail": PNG + b"x",
    "long chunk": PNG[:33] + b"\xff\xff\xff\xff" + PNG[37:],
    "gray": saved(noise(20, 30, 1), "PNG"),
    "alpha": saved(noise(20, 30, 4), "PNG"),
    "16 bit": PNG[:24] + b"\x10" + PNG[25:],
    "interlaced": PNG[:28] + b"\1" + PNG[29:],
    "lossy": saved(RGB, "WEBP"),
    "extended": saved(RGB, "WEBP", lossless=True, exif=b"II*\0"),
    "webp tail": WEBP + b"x",
    "webp short": WEBP[:20],
    "jpeg": saved(RGB, "JPEG"),
    "nothing": b"",
}


@pytest.mark.parametrize("data", WRONG_FORM.values(), ids=WRONG_FORM)
def test_anything_but_plain_pixels_is_refused(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError, match="embedded"):
            decode(data, RGB)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_alpha_plane_is_a_gray_png() -> None:
    for data in (WEBP, b"", b"GIF89a"):
        with pytest.raises(BitstreamError, match="alpha plane"):
            decode_alpha(data, width=30, height=20)
    with pytest.raises(BitstreamError, match="do not match"):
        decode_alpha(PNG, width=30, height=20)


def test_a_png_with_too_few_or_too_many_samples() -> None:
    head = PNG[:33]
    end = png_chunk(b"IEND", b"")
    rows = bytes(91 * 20)
    wrong = {
        "few": [zlib.compress(rows[:-1])],
        "many": [zlib.compress(rows + b"\0")],
        "none": [],
        "unfinished": [zlib.compress(rows)[:-5]],
        "rest": [zlib.compress(rows) + b"rest"],
        "another chunk": [zlib.compress(rows), b"rest"],
        "endless": [BOMB],
    }
    tracemalloc.start()
    try:
        for parts in wrong.values():
            body = b"".join(png_chunk(b"IDAT", part) for part in parts)
            with pytest.raises(BitstreamError, match="embedded PNG is damaged: expected 1820"):
                decode(head + body + end, RGB)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    whole = zlib.compress(rows)
    body = png_chunk(b"IDAT", whole[:9]) + png_chunk(b"IDAT", b"") + png_chunk(b"IDAT", whole[9:])
    np.testing.assert_array_equal(decode(head + body + end, RGB), 0 * RGB)


@pytest.mark.parametrize("data", [PNG, WEBP], ids=["png", "webp"])
def test_truncation_and_bit_flips_raise_nothing_else(data: bytes) -> None:
    for length in range(0, len(data), 7):
        with pytest.raises(BitstreamError):
            decode(data[:length], RGB)
    for bit in range(0, 8 * len(data), 13):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            decode(bytes(damaged), RGB)
        except BitstreamError:
            pass
