"""A damaged file ends in a documented error every time, and leaves nothing behind."""

import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.cli.app import run
from lic.codec.container import Coder, parse, serialize
from lic.codec.decoding import decompress
from lic.codec.errors import BitstreamError, LicError
from lic.codec.image_io import Picture
from lic.codec.library import select
from lic.codec.pipeline import Codec
from lic.codec.results import Decoded

HEADER_BYTES = 52


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(select())


@pytest.fixture(scope="module", params=["rans", "lossless"])
def file(request: pytest.FixtureRequest, codec: Codec, photo: NDArray[np.uint8]) -> bytes:
    picture = Picture(pixels=photo[:12, :10], icc=b"profile", exif=b"II*\0")
    return codec.compress(picture, lossless=request.param == "lossless").data


def attempt(data: bytes, codec: Codec) -> Decoded | LicError:
    """Decode; any other exception than lic's own fails the test by itself."""
    try:
        return decompress(data, find=lambda *_: codec)
    except LicError as error:
        assert len(str(error)) > 15
        return error


def test_the_command_refuses_every_truncation_and_every_header_bit(
    file: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "a.lic", tmp_path / "a.png"
    damaged = [file[:length] for length in range(len(file))]
    for bit in range(HEADER_BYTES * 8):
        flipped = bytearray(file)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        source.write_bytes(data)
        code = run(["decompress", str(source), "-o", str(target)])
        err = capsys.readouterr().err
        assert code == 4, (code, err)
        assert err.startswith("lic: error: ") and "Traceback" not in err
        assert sorted(tmp_path.iterdir()) == [source]


def test_every_single_bit_is_covered_by_a_checksum(file: bytes, codec: Codec) -> None:
    for bit in range(len(file) * 8):
        flipped = bytearray(file)
        flipped[bit // 8] ^= 1 << bit % 8
        assert isinstance(attempt(bytes(flipped), codec), LicError), bit


def test_forged_checksums_still_end_in_an_error_or_a_picture(file: bytes, codec: Codec) -> None:
    """An attacker mends every CRC; a decoder may show what HEAD then says, or refuse."""
    start = time.monotonic()
    outcomes = {"picture": 0, "error": 0}
    for bit in range(16 * 8, (HEADER_BYTES - 4) * 8):
        forged = bytearray(file)
        forged[bit // 8] ^= 1 << bit % 8
        forged[48:52] = struct.pack("<I", zlib.crc32(bytes(forged[12:48])))
        result = attempt(bytes(forged), codec)
        outcomes["error" if isinstance(result, LicError) else "picture"] += 1
    assert outcomes["error"] > 100
    assert time.monotonic() - start < 60


def test_forged_streams_are_noticed_by_the_symbols_checksum(
    codec: Codec, photo: NDArray[np.uint8]
) -> None:
    data = codec.compress(Picture(pixels=photo)).data
    whole = parse(data)
    stream = whole.tiles[0].streams[0]
    rng = np.random.default_rng(0)
    for _ in range(300):
        forged = bytearray(stream)
        forged[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
        tile = replace(whole.tiles[0], streams=(bytes(forged), *whole.tiles[0].streams[1:]))
        assert isinstance(attempt(serialize(replace(whole, tiles=(tile,))), codec), LicError)


def test_a_small_file_cannot_claim_a_huge_picture(codec: Codec, photo: NDArray[np.uint8]) -> None:
    """The stream of 96x144 pixels does not suffice for 16384x16384: refused before the network."""
    whole = parse(codec.compress(Picture(pixels=photo)).data)
    header = replace(whole.header, width=2**14, height=2**14)
    start = time.monotonic()
    with pytest.raises(BitstreamError):
        decompress(serialize(replace(whole, header=header)), find=lambda *_: codec)
    assert time.monotonic() - start < 10


def test_the_codec_stays_usable_after_damage(codec: Codec, photo: NDArray[np.uint8]) -> None:
    data = codec.compress(Picture(pixels=photo)).data
    before = decompress(data, find=lambda *_: codec).picture.pixels
    for length in range(0, len(data), 37):
        assert isinstance(attempt(data[:length], codec), LicError)
    np.testing.assert_array_equal(decompress(data, find=lambda *_: codec).picture.pixels, before)


def test_every_forged_step_and_set_ends_in_an_error_or_a_picture(file: bytes, codec: Codec) -> None:
    """Both with right checksums: what the file says is then what the decoder has to believe."""
    known = parse(file)
    shown = 0
    for number in range(0, 2**16, 257):
        head = bytearray(file[16:48])
        head[22:24] = struct.pack("<H", number)
        crc = zlib.crc32(b"HEAD" + head)
        found = attempt(file[:16] + bytes(head) + struct.pack("<I", crc) + file[52:], codec)
        allowed = number == 0 or (1024 <= number <= 16384 and number != 4096)
        if not allowed or (known.header.coder is Coder.LOSSLESS and number):
            assert isinstance(found, BitstreamError) and "step is" in str(found)
        else:
            assert isinstance(found, Decoded)
            shown += 1
    for tables in range(256):
        forged = replace(known, tiles=(replace(known.tiles[0], tables=tables),))
        if known.header.coder is Coder.LOSSLESS and tables:
            with pytest.raises(BitstreamError, match="a set of tables"):
                serialize(forged)
            continue
        found = attempt(serialize(forged), codec)
        assert isinstance(found, Decoded) == (tables == known.tiles[0].tables)
    assert shown
