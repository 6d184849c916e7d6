"""Tiles of latents: what is decoded is what one piece gives, and no more is held than a band."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec import Picture, decompress
from lic.codec.backends import base
from lic.codec.backends.base import FactorizedBackend
from lic.codec.bundle import Bundle
from lic.codec.container import Coder, LicFile, parse
from lic.codec.errors import BitstreamError, ConfigError, LicError, NumericsError
from lic.codec.image_io import PixelSource
from lic.codec.library import family
from lic.codec.pipeline import Codec
from lic.codec.stages import Stages
from lic.codec.tiling import TILE_PIXELS, from_network, places, plan_latents, to_levels
from tests.codec.test_backends import gain_backend
from tests.codec.test_pipeline_tiles import changed
from tests.hostile.stand_ins import with_contexts

TILE = 256


@pytest.fixture
def codec(tiny_bundle: Path) -> Codec:
    return Codec(Bundle.open(tiny_bundle), backend="onnx", threads=1)


def narrow(monkeypatch: pytest.MonkeyPatch, latents: int = 300) -> None:
    """Have networks see so many latents at once."""
    monkeypatch.setattr(base, "ANALYSIS_PIXELS", latents * 256)
    monkeypatch.setattr(base, "SYNTHESIS_PIXELS", latents * 256)


def symbols(codec: Codec, file: LicFile) -> NDArray[np.int16]:
    """Return the symbols (M, h, w) of all tiles, each in its place."""
    header = file.header
    shape = -(-header.height // 16), -(-header.width // 16)
    found = np.full((len(codec.bundle.tables.of_set(0)), *shape), 99, np.int16)
    for place, tile in zip(places(header), file.tiles, strict=True):
        sides = (place.rows, place.columns)
        rows, columns = (slice(side.start // 16, -(-side.stop // 16)) for side in sides)
        found[:, rows, columns] = codec.read_symbols(header, place, tile)
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("tile", "count"), [(256, 6), (272, 6), (512, 2), (4096, 1)])
def test_tiles_hold_the_symbols_and_show_the_pixels_of_one_piece(
    codec: Codec,
    large_photo: NDArray[np.uint8],
    channels: int,
    tile: int,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = Picture(pixels=large_photo[..., :channels])
    one = parse(codec.compress(picture).data)
    narrow(monkeypatch)
    file = parse(codec.compress(picture, tile=tile).data)
    assert (one.header.tile_count, file.header.tile_count) == (1, count)
    assert file.header.overlap == 0
    gap = symbols(codec, file).astype(int) - symbols(codec, one)
    assert np.abs(gap).max() <= 1 and np.count_nonzero(gap) <= gap.size / 5000
    shown = codec.decompress(file).picture.pixels
    monkeypatch.undo()
    # The same symbols in one piece, as far as the encoder's rounding allows.
    x_hat = codec.backend.synthesize(symbols(codec, file))
    whole = to_levels(from_network(x_hat, channels))[:500, :700]
    off = np.abs(shown.astype(np.float32) - whole)
    assert off.max() <= 1 and np.count_nonzero(off) <= off.size / 10000


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize("size", ["lite", "128-192"])
def test_embedded_models_show_no_tiles(
    size: str, backend: str, large_photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(family(f"bmshj2018-factorized-relu-{size}")[2], backend=backend, threads=1)
    picture = Picture(pixels=large_photo[:330, :420])
    one = codec.decompress(parse(codec.compress(picture, step=1.25).data)).picture.pixels
    narrow(monkeypatch)
    file = parse(codec.compress(picture, step=1.25, tile=TILE).data)
    assert file.header.tile_count == 4
    gap = np.abs(codec.decompress(file).picture.pixels.astype(int) - one)
    # A symbol that falls the other way changes some pixels by more than rounding.
    assert np.count_nonzero(gap > 1) <= gap.size / 500 and gap.max() <= 12


def test_contexts_begin_anew_in_every_tile(
    tiny_bundle: Path, tmp_path: Path, large_photo: NDArray[np.uint8]
) -> None:
    bundle = with_contexts(Bundle.open(tiny_bundle), tmp_path / "contexts")
    codec = Codec(bundle, backend="onnx", threads=1)
    file = parse(codec.compress(Picture(pixels=large_photo), tile=TILE).data)
    assert file.header.coder is Coder.CONTEXTS and file.header.tile_count == 6
    plain = Codec(bundle, backend="onnx", threads=1, contexts=False)
    expected = plain.compress(Picture(pixels=large_photo), tile=TILE)
    np.testing.assert_array_equal(
        codec.decompress(file).picture.pixels,
        plain.decompress(parse(expected.data)).picture.pixels,
    )


def test_an_encoder_that_must_see_all_has_tiles_as_well(
    tiny_bundle: Path, large_photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate looks at the whole picture: its latents are the same however they are cut."""
    bundle = Bundle.open(tiny_bundle)
    codec = Codec(bundle, backend="onnx")
    codec.backend = gain_backend(bundle, monkeypatch, eca=True)
    picture = Picture(pixels=large_photo)
    one = parse(codec.compress(picture).data)
    narrow(monkeypatch)
    file = parse(codec.compress(picture, tile=TILE).data)
    assert np.unique(symbols(codec, one)).size > 3, "too little to prove it"
    np.testing.assert_array_equal(symbols(codec, file), symbols(codec, one))
    gap = codec.decompress(file).picture.pixels.astype(int) - codec.decompress(one).picture.pixels
    assert np.abs(gap).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "tile", "expected"),
    [
        (2048, 2048, None, (0, 0)),
        (2049, 2048, None, (1024, 1024)),
        (16, TILE_PIXELS // 16 + 1, None, (1024, 1024)),
        (300, 200, 256, (256, 256)),
        (256, 200, 256, (0, 0)),
    ],
)
def test_large_pictures_are_cut_by_themselves(
    height: int, width: int, tile: int | None, expected: tuple[int, int]
) -> None:
    assert plan_latents(height, width, tile) == (*expected, 0)


@pytest.mark.parametrize("tile", [0, 240, 264, 4112])
def test_tiles_that_the_format_does_not_have_are_refused(codec: Codec, tile: int) -> None:
    picture = Picture(pixels=np.zeros((9, 9, 1), np.uint8))
    with pytest.raises(ConfigError, match=f"--tile is {tile}; .*multiples of 16 from 256 to 4096"):
        codec.compress(picture, tile=tile)


def test_a_wrong_tile_is_named_and_gives_no_picture(
    codec: Codec, large_photo: NDArray[np.uint8]
) -> None:
    file = parse(codec.compress(Picture(pixels=large_photo), tile=TILE).data)
    with pytest.raises(NumericsError, match=r"tile 4 \(row 1, column 1\): the stream is intact"):
        codec.decompress(changed(file, 4, symbols_crc=1))
    streams = file.tiles[4].streams
    with pytest.raises(BitstreamError, match=r"tile 4 \(row 1, column 1\): "):
        codec.decompress(changed(file, 4, streams=(streams[0][:-2], *streams[1:])))


@pytest.mark.parametrize(
    "grid",
    [
        {"tile_width": 512, "tile_height": 512},
        {"tile_width": 256, "tile_height": 272},
        {"tile_width": 0, "tile_height": 0},
        {"tile_width": 4096, "tile_height": 256},
        {"overlap": 8},
    ],
)
def test_a_forged_grid_gives_no_picture(
    codec: Codec, large_photo: NDArray[np.uint8], grid: dict[str, Any]
) -> None:
    """Whatever HEAD says of tiles, their symbols were counted from the true one."""
    file = parse(codec.compress(Picture(pixels=large_photo), tile=TILE).data)
    header = replace(file.header, **grid)
    tiles = file.tiles * -(-header.tile_count // len(file.tiles))
    forged = tuple(replace(t, index=i) for i, t in enumerate(tiles[: header.tile_count]))
    with pytest.raises(LicError):
        codec.decompress(replace(file, header=header, tiles=forged))


class Counting(FactorizedBackend):
    """An engine whose networks are the means of 16 x 16 blocks; it remembers what it saw."""

    name, device, provider = "counting", "cpu", "numpy"
    notes: tuple[str, ...] = ()

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.seen: list[int] = []

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Nothing is to be loaded."""

    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.floating]:
        self.seen.append(x.shape[2] * x.shape[3])
        _, _, height, width = x.shape
        means = x.reshape(3, height // 16, 16, width // 16, 16).mean(axis=(2, 4))
        y = np.zeros((1, self.channels, height // 16, width // 16), np.float32)
        y[0, :3] = means * 255
        return y

    def _decode(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        self.seen.append(y_hat.shape[2] * y_hat.shape[3] * 256)
        return (y_hat[:, :3] / np.float32(255)).repeat(16, axis=2).repeat(16, axis=3)


class Drawn:
    """Pixels (H, W, 1) that are drawn when they are asked for, and nowhere else."""

    def __init__(self, height: int, width: int) -> None:
        self.shape: tuple[int, ...] = (height, width, 1)
        self.largest = 0

    def __getitem__(self, area: tuple[slice, slice], /) -> NDArray[np.uint8]:
        rows, columns = (np.arange(n)[part] for n, part in zip(self.shape, area, strict=False))
        pixels = ((rows[:, None] // 16 * 7 + columns // 16 * 3) % 200).astype(np.uint8)
        self.largest = max(self.largest, pixels.size)
        return pixels[..., None]


def test_no_more_of_a_picture_is_in_memory_than_a_band(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight times the height takes no larger arrays, and what was handed out is let go."""
    narrow(monkeypatch, 400)
    codec.backend = engine = Counting(codec.bundle)
    source = Drawn(8192, 700)
    pixels: PixelSource = source
    header = replace(
        codec.header(Picture(pixels=np.zeros((8192, 700, 1), np.uint8)), 256), colour=1
    )
    alive: list[weakref.ref[Any]] = []

    def held() -> int:
        return sum(each() is not None for each in alive)

    tiles = []
    for place, latents in codec.analyze_tiles(header, pixels, Stages()):
        alive.append(weakref.ref(latents))
        assert held() <= 2
        tiles.append(codec.code_tile(header, place, latents, Stages()))
        del latents
    assert max(engine.seen) <= 400 * 256 and source.largest <= 400 * 256
    engine.seen.clear()
    file = LicFile(header=header, tiles=tuple(tiles))
    whole = slice(0, 8192), slice(0, 700)
    read = []
    symbols_of = codec.read_symbols

    def watched(*arguments: Any) -> Any:
        found = symbols_of(*arguments)
        read.append(arguments[1].row)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(codec, "read_symbols", watched)
    alive.clear()
    bottom = 0
    for (rows, columns), levels in codec.parts(file, whole, Stages()):
        assert held() <= 2
        # Nothing is read much before it is shown.
        assert read[-1] * 256 <= rows.stop + 256
        np.testing.assert_array_equal(levels, source[rows, columns])
        bottom = rows.stop
    assert bottom == 8192
    assert max(engine.seen) <= 400 * 256


def test_pixels_come_from_wherever_they_are(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    """Areas of a source give the file that an array gives."""
    from lic.codec.image_io import LazyPicture

    lazy = codec.compress(LazyPicture(source=large_photo), tile=TILE).data
    assert lazy == codec.compress(Picture(pixels=large_photo), tile=TILE).data
    assert decompress(lazy, find=lambda *_: codec).picture.pixels.shape == large_photo.shape
