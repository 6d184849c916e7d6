"""Regions: what is decoded alone is what the whole picture shows there."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec import Picture, Region, decode, decompress
from lic.codec.backends import base
from lic.codec.bundle import Bundle
from lic.codec.container import LicFile, list_chunks, parse, read_part, serialize
from lic.codec.decoding import decompress_parts
from lic.codec.errors import BitstreamError, ConfigError, LimitError, NumericsError
from lic.codec.image_io import stored_area, turned_area, upright
from lic.codec.image_io.picture import orient
from lic.codec.lossless import compress_lossless
from lic.codec.pipeline import Codec
from tests.hostile.stand_ins import context_bundle, stand_in


@pytest.fixture
def codec(tiny_bundle: Path) -> Codec:
    return Codec(Bundle.open(tiny_bundle), backend="onnx", threads=1)


def regions(height: int, width: int, count: int = 12) -> Iterator[Region]:
    """Yield regions of a picture: all of it, its corners, a pixel, and others."""
    yield Region(0, 0, width, height)
    yield Region(width - 1, height - 1, 1, 1)
    yield Region(0, height - 30, 20, 30)
    rng = np.random.default_rng(height * width)
    for _ in range(count):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        yield Region(
            x, y, int(rng.integers(1, width - x + 1)), int(rng.integers(1, height - y + 1))
        )


def shown(codec: Codec | None, data: bytes, region: Region | None) -> NDArray[np.uint8]:
    def find(*_: object) -> Codec:
        assert codec, "a lossless file needs no model"
        return codec

    return upright(decompress(data, find=find, region=region).picture).samples


def check(codec: Codec | None, data: bytes) -> None:
    """Hold all kinds of regions of a file against its whole picture."""
    whole = shown(codec, data, None)
    for region in regions(*whole.shape[:2]):
        x, y, width, height = region
        found = shown(codec, data, region)
        expected = whole[y : y + height, x : x + width]
        assert found.shape == expected.shape, region
        gap = np.abs(found.astype(int) - expected)
        # A network that sees another area rounds otherwise, by some 1e-6 of the range.
        assert gap.max() <= 1 and np.count_nonzero(gap) <= 2 + gap.size / 5000, region


def test_areas_turn_there_and_back() -> None:
    pixels = np.arange(35, dtype=np.uint8).reshape(5, 7, 1)
    area = slice(1, 4), slice(2, 6)
    for orientation in range(1, 9):
        turned = turned_area(area, 5, 7, orientation)
        np.testing.assert_array_equal(
            orient(pixels, orientation)[turned], orient(pixels[area], orientation)
        )
        assert stored_area(turned, 5, 7, orientation) == area


@pytest.mark.parametrize("tile", [None, 256])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_of_a_factorized_prior(
    codec: Codec,
    large_photo: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    tile: int | None,
    orientation: int,
) -> None:
    monkeypatch.setattr(base, "SYNTHESIS_PIXELS", 300 * 256)
    alpha = np.linspace(0, 255, 330 * 420).astype(np.uint8).reshape(330, 420)
    picture = Picture(pixels=large_photo[:330, :420], alpha=alpha, orientation=orientation)
    check(codec, codec.compress(picture, tile=tile).data)


def test_regions_of_gray(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    check(codec, codec.compress(Picture(pixels=large_photo[:, :, :1]), tile=256).data)


def test_regions_of_torch(tiny_bundle: Path, large_photo: NDArray[np.uint8]) -> None:
    codec = Codec(Bundle.open(tiny_bundle), backend="torch", threads=1)
    check(codec, codec.compress(Picture(pixels=large_photo), tile=256).data)


@pytest.mark.usefixtures("tiled")
def test_regions_of_tiles_that_overlap(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    """They are blended with the same neighbours, and equal to the last bit."""
    data = codec.compress(Picture(pixels=large_photo, orientation=6), tile=288).data
    whole = shown(codec, data, None)
    for region in regions(*whole.shape[:2]):
        x, y, width, height = region
        expected = whole[y : y + height, x : x + width]
        np.testing.assert_array_equal(shown(codec, data, region), expected)


def test_regions_of_hpcm(tiny_hpcm_bundle: Path, large_photo: NDArray[np.uint8]) -> None:
    codec = Codec(Bundle.open(tiny_hpcm_bundle), backend="torch", threads=1)
    data = codec.compress(Picture(pixels=large_photo), tile=512).data
    whole = shown(codec, data, None)
    for region in (Region(470, 10, 40, 30), Region(5, 460, 10, 40), Region(0, 0, 9, 9)):
        x, y, width, height = region
        expected = whole[y : y + height, x : x + width]
        np.testing.assert_array_equal(shown(codec, data, region), expected)


@pytest.mark.parametrize("architecture", ["bmshj2018-hyperprior", "hpcm"])
def test_only_tiles_that_know_the_region_are_decoded(
    architecture: str, tmp_path: Path, large_photo: NDArray[np.uint8]
) -> None:
    codec = stand_in(context_bundle(architecture, tmp_path / "model"))
    tile = 320 if architecture != "hpcm" else 512
    file = parse(codec.compress(Picture(pixels=large_photo), tile=tile).data)
    # The last tile is damaged, and nobody who does not want it minds.
    tiles = (*file.tiles[:-1], replace(file.tiles[-1], symbols_crc=1))
    data = serialize(replace(file, tiles=tiles))
    assert shown(codec, data, Region(0, 0, 200, 100)).shape == (100, 200, 3)
    with pytest.raises(NumericsError, match="tile"):
        shown(codec, data, Region(690, 490, 5, 5))


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_of_lossless_files(photo: NDArray[np.uint8], channels: int) -> None:
    picture = Picture(pixels=photo[:, :, :channels], orientation=8)
    check(None, compress_lossless(picture).data)


class Counted(io.BytesIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def test_a_region_reads_what_it_needs(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    picture = Picture(pixels=large_photo, icc=b"profile" * 9, exif=b"II*\0" + bytes(40))
    data = codec.compress(picture, tile=256).data
    stream = Counted(data)
    decoded = decompress_parts(stream, find=lambda *_: codec, region=Region(300, 20, 90, 40))
    ((_, pixels),) = decoded.picture.parts
    assert pixels.shape == (40, 90, 3)
    assert decoded.picture.icc == picture.icc and decoded.picture.exif == picture.exif
    (tile,) = [c for c in list_chunks(data) if c.type == b"TILE"][1:2]
    assert tile.length < stream.count < tile.length + 600


def test_damage_elsewhere_does_not_matter(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    data = bytearray(codec.compress(Picture(pixels=large_photo), tile=256).data)
    last = [c for c in list_chunks(bytes(data)) if c.type == b"TILE"][-1]
    data[last.payload.stop - 1] ^= 1
    assert shown(codec, bytes(data), Region(0, 0, 50, 50)).shape == (50, 50, 3)
    with pytest.raises(BitstreamError, match="CRC is"):
        shown(codec, bytes(data), Region(650, 450, 50, 50))


def _tiles(file: LicFile, *indexes: int) -> bytes:
    """Return a file with tiles of these indexes, none of which is held against the grid."""
    whole = serialize(file)
    chunks = [chunk for chunk in list_chunks(whole) if chunk.type == b"TILE"]
    return whole[: chunks[0].offset] + b"".join(
        whole[chunks[index].offset : chunks[index].end] for index in indexes
    )


def test_tiles_in_any_order_and_none_twice(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    file = parse(codec.compress(Picture(pixels=large_photo), tile=256).data)
    expected = shown(codec, serialize(file), Region(10, 10, 300, 300))
    found = shown(codec, _tiles(file, 5, 3, 4, 0, 2, 1), Region(10, 10, 300, 300))
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(BitstreamError, match="tile 0 occurs twice"):
        shown(codec, _tiles(file, 0, 0, 1, 2, 3, 4), Region(10, 10, 30, 30))
    with pytest.raises(BitstreamError, match="truncated"):
        shown(codec, _tiles(file, 0, 1, 2), Region(10, 10, 30, 30))


def test_every_truncation_is_found(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    data = codec.compress(Picture(pixels=large_photo[:20, :300], icc=b"abc"), tile=256).data
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            read_part(io.BytesIO(data[:length]), lambda *_: [0])


@pytest.mark.parametrize(
    "region", [(0, 0, 0, 5), (0, 0, 5, -5), (-1, 0, 5, 5), (0, 499, 5, 2), (695, 0, 6, 2),
               (700, 0, 1, 1), (2**62, 0, 1, 1)],
)  # fmt: skip
def test_regions_beyond_the_picture_are_refused(
    codec: Codec, large_photo: NDArray[np.uint8], region: tuple[int, int, int, int]
) -> None:
    """Of a picture that lies on its side the sides are those that are seen."""
    picture = Picture(pixels=np.ascontiguousarray(large_photo.swapaxes(0, 1)), orientation=5)
    data = codec.compress(picture, tile=256).data
    with pytest.raises(ConfigError, match="not within the picture of 700 x 500 px"):
        decompress(data, find=lambda *_: codec, region=Region(*region))


def test_a_region_of_a_picture_that_is_too_large_is_refused(
    codec: Codec, large_photo: NDArray[np.uint8]
) -> None:
    """The limit is on pictures; whoever wants a part of a larger one lifts it."""
    from lic.codec import Limits

    data = codec.compress(Picture(pixels=large_photo), tile=256).data
    small = Limits(max_pixels=1000)
    with pytest.raises(LimitError):
        decompress(data, find=lambda *_: codec, region=Region(0, 0, 5, 5), limits=small)


def test_regions_as_arrays(large_photo: NDArray[np.uint8]) -> None:
    from lic.codec import encode

    data = encode(large_photo)
    np.testing.assert_array_equal(decode(data, region=(30, 40, 50, 60)).shape, (60, 50, 3))
