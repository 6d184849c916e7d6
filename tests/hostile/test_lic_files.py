"""Files that an attacker would send, each built here from its description.

Whatever reads a .lic file must refuse each of them by name, at once, and within a small memory.
"""

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

import lic.codec.pillow_plugin  # noqa: F401
from lic.codec.container import (
    SIGNATURE,
    Coder,
    Metadata,
    list_chunks,
    parse,
    parse_header,
    read_metadata,
)
from lic.codec.errors import BitstreamError, LicError, LimitError
from lic.codec.image_io import decode_alpha, decode_lossless


def chunk(kind: bytes, payload: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    crc = zlib.crc32(kind + payload)
    return struct.pack("<I", size) + kind + payload + struct.pack("<I", crc)


def head(
    width: int = 640,
    height: int = 480,
    *,
    tiles: tuple[int, int, int] = (0, 0, 0),
    coder: int = 1,
    step: int = 0,
) -> bytes:
    fields = (1, 0, 0, width, height, 3, 8, 1, 0, *tiles, coder, step, bytes(8))
    return SIGNATURE + chunk(b"HEAD", struct.pack("<BBHIIBBBBHHBBH8s", *fields))


def tile(index: int, *streams: bytes) -> bytes:
    lengths = bytes(len(stream) for stream in streams)
    return chunk(b"TILE", struct.pack("<IIB", index, 0, len(streams)) + lengths + b"".join(streams))


def png_claiming(width: int, height: int) -> bytes:
    def part(kind: bytes, payload: bytes) -> bytes:
        crc = zlib.crc32(kind + payload)
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", crc)

    form = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", form) + part(b"IDAT", rows) + part(b"IEND", b"")


HOSTILE: dict[str, tuple[bytes, type[LicError]]] = {
    "a hundred bytes claiming 268 million pixels, no tile": (
        head(2**18, 2**10) + chunk(b"meta", b"a\0" + bytes(30)),
        BitstreamError,
    ),
    "more pixels than the limit": (head(2**18, 2**18) + tile(0, b"x"), LimitError),
    "sides that overflow 32 bits when multiplied": (head(2**16, 2**16) + tile(0), LimitError),
    "sides beyond the format": (head(2**32 - 1, 2**32 - 1), LimitError),
    "four thousand tiles claimed, one sent": (
        head(2**18, 2**10, tiles=(16, 16, 0)) + tile(0, b"x"),
        BitstreamError,
    ),
    "the same tile for all": (
        head(512, 512, tiles=(16, 16, 0)) + tile(0, b"x") * 4,
        BitstreamError,
    ),
    "a step that makes latents infinite": (head(step=0xFFFF) + tile(0, b"x"), BitstreamError),
    "a step next to nothing": (head(step=1) + tile(0, b"x"), BitstreamError),
    "a second way to write a step of one": (head(step=4096) + tile(0, b"x"), BitstreamError),
    "a set of tables in place of a tile's number": (head() + tile(2**24 + 1, b"x"), BitstreamError),
    "tables of an embedded picture": (head(coder=0) + tile(2**24, b"x"), BitstreamError),
    "a profile of four gigabytes": (
        head() + chunk(b"iccp", bytes(20), length=2**32 - 1),
        BitstreamError,
    ),
    "a chunk length that wraps to the file's start": (
        head() + chunk(b"exif", b"", length=2**32 - 64) + tile(0, b"x"),
        BitstreamError,
    ),
    "a stream of 34 gigabytes": (
        head() + chunk(b"TILE", struct.pack("<IIB", 0, 0, 1) + b"\xff\xff\xff\xff\x7f"),
        BitstreamError,
    ),
    "a length that never ends": (
        head() + chunk(b"TILE", struct.pack("<IIB", 0, 0, 255) + b"\x80" * 5000),
        BitstreamError,
    ),
    "a million empty chunks": (head() + chunk(b"priv") * 1_000_000 + tile(0, b"x"), LimitError),
    "a million tiles too many": (head() + tile(0, b"x") * 1_000_000, BitstreamError),
    "terminal commands for a model's name": (
        head() + chunk(b"modl", b"\x1b]0;owned\x07\0\0") + tile(0, b"x"),
        BitstreamError,
    ),
    "terminal commands for a chunk type": (head() + chunk(b"\x1b[2J") + tile(0), BitstreamError),
    "the signature alone": (SIGNATURE, BitstreamError),
    "a header alone": (head(), BitstreamError),
    "two headers": (head() + head()[8:] + tile(0, b"x"), BitstreamError),
    "a picture of another kind": (b"\xff\xd8\xff\xe0" + bytes(500), BitstreamError),
}


@pytest.mark.parametrize(("data", "error"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_at_once(data: bytes, error: type[LicError]) -> None:
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(error) as caught:
            parse(data)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 1
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


def metadata(data: bytes) -> Metadata:
    parse_header(data)
    return read_metadata(io.BytesIO(data))


@pytest.mark.parametrize("function", [parse, parse_header, list_chunks, metadata])
@pytest.mark.parametrize("data", [data for data, _ in HOSTILE.values()], ids=HOSTILE)
def test_every_reader_survives_it(function: Callable[[bytes], object], data: bytes) -> None:
    try:
        function(data)
    except LicError:
        pass


@pytest.mark.parametrize("data", [data for data, _ in HOSTILE.values()], ids=HOSTILE)
def test_pillow_survives_it(data: bytes) -> None:
    """With the errors that programs expect of a picture file: OSError, or Pillow's own bomb."""
    # What is imported once is not the file's doing.
    Image.init()
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises((OSError, Image.DecompressionBombError)):
            Image.open(io.BytesIO(data)).load()
        # A picture within Pillow's limit has its memory before its decoder is asked.
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 1


def test_an_embedded_picture_larger_than_head_is_not_decoded() -> None:
    data = head(64, 64, coder=Coder.LOSSLESS) + tile(0, png_claiming(60_000, 60_000))
    file = parse(data)
    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError, match="60000 x 60000 pixels, expected 64 x 64"):
            decode_lossless(
                file.tiles[0].streams[0],
                width=file.header.width,
                height=file.header.height,
                channels=file.header.colour,
            )
        with pytest.raises(BitstreamError):
            decode_alpha(file.tiles[0].streams[0], width=64, height=64)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
