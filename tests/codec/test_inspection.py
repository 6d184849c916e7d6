"""What a file's bits are spent on, part by part."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.bundle import Bundle
from lic.codec.container import LicFile, parse
from lic.codec.errors import BitstreamError, LimitError, NumericsError
from lic.codec.image_io import Picture
from lic.codec.inspection import bits_by_part
from lic.codec.pipeline import Codec

Pixels = NDArray[np.uint8]
# Of the coder, for every tile: its four lanes.
LANES = 128


def stream_bits(file: LicFile) -> int:
    return sum(8 * sum(map(len, tile.streams)) - LANES for tile in file.tiles)


@pytest.fixture(scope="module")
def hpcm(tiny_hpcm_bundle: Path) -> Codec:
    return Codec(Bundle.open(tiny_hpcm_bundle))


@pytest.fixture(scope="module")
def hpcm_file(hpcm: Codec, large_photo: Pixels) -> bytes:
    """Two tiles of a photo."""
    picture = Picture(pixels=np.ascontiguousarray(large_photo[:200, :600]))
    return hpcm.compress(picture, tile=512).data


def test_parts_of_hpcm_over_all_tiles(hpcm: Codec, hpcm_file: bytes) -> None:
    file = parse(hpcm_file)
    assert len(file.tiles) == 2
    parts = bits_by_part(hpcm, file)
    assert list(parts) == ["z", "s1", "s2", "s3"]
    total = sum(parts.values())
    assert abs(stream_bits(file) - total) < 0.002 * total + 64
    # In this model symbols cost about the same everywhere: 1/16, 3/16 and 3/4 of y.
    shares = [parts[name] / (total - parts["z"]) for name in ("s1", "s2", "s3")]
    assert shares == pytest.approx([1 / 16, 3 / 16, 3 / 4], rel=0.3)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_the_factorized_prior_has_one_part(tiny_bundle: Path, photo: Pixels, backend: str) -> None:
    codec = Codec(Bundle.open(tiny_bundle), backend=backend)
    file = parse(codec.compress(Picture(pixels=photo)).data)
    parts = bits_by_part(codec, file)
    assert list(parts) == ["y"]
    assert abs(stream_bits(file) - parts["y"]) < 0.002 * parts["y"] + 64


def test_no_picture_is_made(hpcm: Codec, hpcm_file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpcm.backend, "synthesize", None)
    assert bits_by_part(hpcm, parse(hpcm_file))


def test_a_tile_of_other_symbols_is_named(hpcm: Codec, hpcm_file: bytes) -> None:
    file = parse(hpcm_file)
    odd = replace(file.tiles[1], symbols_crc=file.tiles[1].symbols_crc ^ 1)
    with pytest.raises(NumericsError, match=r"^tile 1 \(row 0, column 1\): "):
        bits_by_part(hpcm, replace(file, tiles=(file.tiles[0], odd)))


def test_what_decoding_refuses_is_refused(
    tiny_bundle: Path, hpcm: Codec, hpcm_file: bytes, photo: Pixels
) -> None:
    file = parse(hpcm_file)
    huge = replace(file.header, width=9000, height=9000, tile_width=0, tile_height=0, overlap=0)
    with pytest.raises(LimitError, match="tile 0"):
        bits_by_part(hpcm, replace(file, header=huge, tiles=file.tiles[:1]))
    codec = Codec(Bundle.open(tiny_bundle))
    file = parse(codec.compress(Picture(pixels=photo)).data)
    cut = replace(file.tiles[0], streams=(file.tiles[0].streams[0][:-40],))
    with pytest.raises(BitstreamError, match="ends too early"):
        bits_by_part(codec, replace(file, tiles=(cut,)))
