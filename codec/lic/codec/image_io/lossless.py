"""Small lossless pictures inside a .lic file: the payload of coder 0, and alpha planes.

Two forms are valid: a PNG of IHDR, IDAT, and IEND only, and a WebP of one VP8L chunk only. No room
is left for text, profiles, animation, or anything else that could inflate or contradict HEAD.
"""

# Shapes: H W pixels as stored, C channels (1 gray, 3 RGB).

import io
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lic.codec.errors import BitstreamError
from lic.codec.image_io.reader import open_unlimited

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS: Final = (b"IHDR", b"IDAT", b"IEND")
_PNG_COLOUR: Final = {1: 0, 3: 2}
_WEBP_MAX_SIDE: Final = 16383
_VP8L_SIGNATURE: Final = 0x2F
_INFLATE_STEP: Final = 2**16

# A WebP of one colour has some 40 bytes at any size, and its decoder takes 18 bytes of memory for
# every pixel. DEFLATE ends at 1032 to one, so that no PNG comes near this.
MAX_PIXELS_PER_BYTE: Final = 2**12
FREE_PIXELS: Final = 2**20
"""Embedded pictures have at most FREE_PIXELS + MAX_PIXELS_PER_BYTE * bytes of them."""


def encode_lossless(pixels: NDArray[np.uint8]) -> bytes:
    """Return the smaller of a PNG and a lossless WebP of pixels (H, W, C)."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    candidates = [_png(image)]
    if max(image.size) <= _WEBP_MAX_SIDE:
        output = io.BytesIO()
        image.save(output, format="WEBP", lossless=True, quality=90, method=4)
        webp = output.getvalue()
        if pixels.shape[0] * pixels.shape[1] <= _most_pixels(webp):
            candidates.append(webp)
    return min(candidates, key=len)


def decode_lossless(data: bytes, *, width: int, height: int, channels: int) -> NDArray[np.uint8]:
    """Return pixels (height, width, channels) of an embedded picture.

    Raises:
        BitstreamError: Damaged, of another size than HEAD says, or with more in it than pixels.
    """
    packed = None
    if data.startswith(_PNG_SIGNATURE):
        kind = "PNG"
        found, packed = _read_png(data, channels)
    elif data.startswith(b"RIFF"):
        kind, found = "WEBP", _webp_size(data)
    else:
        raise BitstreamError(f"embedded picture: {data[:8].hex(' ')} starts neither PNG nor WebP")
    if found != (width, height):
        raise BitstreamError(
            f"embedded picture: {found[0]} x {found[1]} pixels, expected {width} x {height}"
        )
    if width * height > _most_pixels(data):
        raise BitstreamError(
            f"embedded picture: {len(data)} bytes for {width} x {height} pixels; expected at most "
            f"{_most_pixels(data)} pixels of so few"
        )
    if packed is not None:
        _check_samples(packed, height * (1 + width * channels))
    try:
        samples = _samples(data, kind)
    except MemoryError:
        raise
    # Pillow's decoders let nearly every exception escape on damaged data.
    except Exception as error:
        raise BitstreamError(f"embedded {kind} is damaged: {error}") from error
    return np.array(samples.reshape(height, width, -1)[..., :channels])


def _samples(data: bytes, kind: str) -> NDArray[np.uint8]:
    """Return a picture's samples; what Pillow made them from is free again."""
    image = open_unlimited(io.BytesIO(data), [kind])
    if kind == "WEBP" and image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image)


def _most_pixels(data: bytes) -> int:
    return FREE_PIXELS + MAX_PIXELS_PER_BYTE * len(data)


def encode_alpha(alpha: NDArray[np.uint8]) -> bytes:
    """Return an alpha plane (H, W) as a gray PNG."""
    return _png(Image.fromarray(alpha))


def decode_alpha(data: bytes, *, width: int, height: int) -> NDArray[np.uint8]:
    """Return an alpha plane (height, width).

    Raises:
        BitstreamError: Damaged, no gray PNG, or of another size than HEAD says.
    """
    if not data.startswith(_PNG_SIGNATURE):
        raise BitstreamError(f"alpha plane: {data[:8].hex(' ')} does not start a PNG")
    return decode_lossless(data, width=width, height=height, channels=1)[..., 0]


def _png(image: Image.Image) -> bytes:
    output = io.BytesIO()
    image.save(output, format="PNG", optimize=True)
    return output.getvalue()


def _read_png(data: bytes, channels: int) -> tuple[tuple[int, int], list[bytes]]:
    """Return size and compressed rows after checking that a PNG is of the plain kind."""
    offset = len(_PNG_SIGNATURE)
    kinds: list[bytes] = []
    packed: list[bytes] = []
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind not in _PNG_CHUNKS:
            raise BitstreamError(f"embedded PNG: chunk {kind!r} is not allowed")
        if kind == b"IHDR" and (kinds or length != 13):
            raise BitstreamError("embedded PNG: broken IHDR")
        if kind == b"IDAT":
            packed.append(data[offset + 8 : offset + 8 + length])
        kinds.append(kind)
        offset += 12 + length
    if offset != len(data) or kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND":
        raise BitstreamError("embedded PNG: truncated, or bytes after its end")
    width, height, *form = struct.unpack_from(">IIBBBBB", data, len(_PNG_SIGNATURE) + 8)
    if form != [8, _PNG_COLOUR[channels], 0, 0, 0]:
        raise BitstreamError(f"embedded PNG: depth, colour, methods {form} do not match HEAD")
    return (width, height), packed


def _check_samples(packed: list[bytes], expected: int) -> None:
    """Refuse rows that inflate to another size: Pillow fills up and cuts off without a word."""
    inflater = zlib.decompressobj()
    found = 0
    try:
        for part in packed:
            while part and found <= expected:
                found += len(inflater.decompress(part, _INFLATE_STEP))
                part = inflater.unconsumed_tail
    except zlib.error as error:
        raise BitstreamError(f"embedded PNG is damaged: {error}") from error
    if found != expected or not inflater.eof or inflater.unused_data:
        raise BitstreamError(f"embedded PNG is damaged: expected {expected} bytes of rows")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height after checking that a WebP is of the plain lossless kind."""
    if len(data) < 25:
        raise BitstreamError(f"embedded WebP: {len(data)} bytes are too few")
    size, form, chunk, length, signature, bits = struct.unpack_from("<4xI4s4sIBI", data)
    if (form, chunk, signature) != (b"WEBP", b"VP8L", _VP8L_SIGNATURE):
        raise BitstreamError("embedded WebP: not of the plain lossless kind")
    if size + 8 != len(data) or length + length % 2 + 20 != len(data):
        raise BitstreamError("embedded WebP: truncated, or bytes after its end")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
