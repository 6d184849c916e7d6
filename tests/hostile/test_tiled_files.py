"""Damaged and forged files of several tiles: a named error, or what their HEAD says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.bundle import Bundle
from lic.codec.container import LicFile, list_chunks, parse, serialize
from lic.codec.decoding import decompress
from lic.codec.errors import BitstreamError, LicError, NumericsError
from lic.codec.image_io import Picture
from lic.codec.pipeline import Codec


@pytest.fixture
def codec(tiny_bundle: Path, tiled: None) -> Codec:  # noqa: ARG001
    return Codec(Bundle.open(tiny_bundle), backend="onnx", threads=1)


@pytest.fixture
def data(codec: Codec, large_photo: NDArray[np.uint8]) -> bytes:
    """A file of 3 x 2 tiles."""
    return codec.compress(Picture(pixels=large_photo), tile=288).data


def tile_chunks(data: bytes) -> tuple[bytes, list[bytes]]:
    """Return what stands before the tiles, and their chunks."""
    tiles = [data[c.offset : c.end] for c in list_chunks(data) if c.name == "TILE"]
    return data[: len(data) - sum(map(len, tiles))], tiles


def decode(codec: Codec, data: bytes) -> NDArray[np.uint8]:
    return decompress(data, find=lambda *_: codec).picture.pixels


def no_network(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("a network ran")

    for name in ("blank", "synthesize"):
        monkeypatch.setattr(codec.backend, name, run)


def test_a_file_cut_between_or_within_tiles_is_refused_before_a_network_runs(
    codec: Codec, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, tiles = tile_chunks(data)
    no_network(codec, monkeypatch)
    for count in range(len(tiles)):
        whole = front + b"".join(tiles[:count])
        with pytest.raises(BitstreamError, match=f"found {count} tiles, expected 6"):
            decode(codec, whole)
        for more in (1, 8, 12, len(tiles[count]) - 1):
            with pytest.raises(BitstreamError):
                decode(codec, whole + tiles[count][:more])


def test_a_missing_tile_or_one_twice_is_refused_before_a_network_runs(
    codec: Codec, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, tiles = tile_chunks(data)
    no_network(codec, monkeypatch)
    for missing in range(len(tiles)):
        rest = tiles[:missing] + tiles[missing + 1 :]
        with pytest.raises(BitstreamError, match="found 5 tiles"):
            decode(codec, front + b"".join(rest))
        with pytest.raises(BitstreamError, match="occurs twice"):
            decode(codec, front + b"".join([*rest, rest[0]]))


def test_the_order_of_tiles_in_the_file_does_not_matter(codec: Codec, data: bytes) -> None:
    front, tiles = tile_chunks(data)
    shuffled = front + b"".join(tiles[::-1])
    np.testing.assert_array_equal(decode(codec, shuffled), decode(codec, data))


def exchanged(file: LicFile, a: int, b: int) -> LicFile:
    tiles = list(file.tiles)
    tiles[a], tiles[b] = replace(tiles[b], index=a), replace(tiles[a], index=b)
    return replace(file, tiles=tuple(tiles))


def test_exchanged_indexes_are_damage(codec: Codec, data: bytes) -> None:
    front, tiles = tile_chunks(data)
    for a, b in ((0, 1), (1, 4)):
        swapped = list(tiles)
        swapped[a] = tiles[a][:8] + tiles[b][8:12] + tiles[a][12:]
        swapped[b] = tiles[b][:8] + tiles[a][8:12] + tiles[b][12:]
        with pytest.raises(BitstreamError, match="CRC"):
            decode(codec, front + b"".join(swapped))


def test_exchanged_tiles_with_forged_checksums_fit_only_a_place_of_their_size(
    codec: Codec, data: bytes
) -> None:
    """Tiles 0, 1 and 2 code 272, 288 and 204 columns: other numbers of symbols.

    One of the same size fits: checksums that are forged as well protect from nothing.
    """
    for a, b in ((0, 1), (1, 2), (3, 5)):
        with pytest.raises((BitstreamError, NumericsError), match=f"tile {a} "):
            decode(codec, serialize(exchanged(parse(data), a, b)))


def test_every_forged_grid_ends_in_an_error(codec: Codec, data: bytes) -> None:
    """Another overlap or tile side changes what tiles code, and with it their symbols."""
    file = parse(data)
    for values in ({"overlap": 0}, {"overlap": 48}, {"tile_width": 304}, {"tile_height": 304}):
        header = replace(file.header, **values)  # type: ignore[arg-type]
        assert header.tile_count == 6
        with pytest.raises(LicError, match="tile"):
            decode(codec, serialize(replace(file, header=header)))


def test_random_damage_never_shows_a_picture(codec: Codec, data: bytes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        with pytest.raises(LicError):
            decode(codec, bytes(damaged))


def test_forged_streams_are_noticed_in_every_tile(codec: Codec, data: bytes) -> None:
    file = parse(data)
    rng = np.random.default_rng(0)
    for index in range(6):
        for _ in range(10):
            stream = bytearray(file.tiles[index].streams[0])
            stream[int(rng.integers(len(stream)))] ^= 1 << int(rng.integers(8))
            streams = (bytes(stream), *file.tiles[index].streams[1:])
            tiles = list(file.tiles)
            tiles[index] = replace(tiles[index], streams=streams)
            with pytest.raises((BitstreamError, NumericsError), match=f"tile {index} "):
                codec.decompress(replace(file, tiles=tuple(tiles)))
