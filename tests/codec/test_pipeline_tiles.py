"""Pictures in tiles: no seam, no garbage, no more memory than one tile takes."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec import Picture, decompress
from lic.codec.architectures import ARCHITECTURES, Tiling
from lic.codec.bundle import Bundle
from lic.codec.container import LicFile, Tile, parse, serialize
from lic.codec.entropy import Writer
from lic.codec.errors import BitstreamError, ConfigError, LimitError, NumericsError
from lic.codec.latents import FactorizedSteps, State, checked_symbols
from lic.codec.pipeline import Codec
from lic.codec.tiling import places

TILE = 288
OWNED = 256


@pytest.fixture
def codec(tiny_bundle: Path, tiled: None) -> Codec:  # noqa: ARG001
    return Codec(Bundle.open(tiny_bundle), backend="onnx", threads=1)


def decoded(codec: Codec, data: bytes) -> NDArray[np.uint8]:
    return decompress(data, find=lambda *_: codec).picture.pixels


class Blocks:
    """An engine that keeps the means of 16 x 16 blocks: memory is the pipeline's alone."""

    name, device, provider = "blocks", "cpu", "numpy"
    notes: tuple[str, ...] = ()
    channels = 12

    def __init__(self) -> None:
        self.steps: Any = FactorizedSteps(self.channels)
        self.sizes: list[tuple[int, int]] = []

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Nothing is to be loaded."""

    def analyze(self, x: NDArray[np.float32]) -> State:
        _, _, height, width = x.shape
        self.sizes.append((height, width))
        means = x.reshape(3, height // 16, 16, width // 16, 16).mean(axis=(2, 4))
        symbols = np.zeros((self.channels, height // 16, width // 16), np.int32)
        symbols[:3] = np.rint(means * 255)
        return checked_symbols(symbols, "y")

    def blank(self, height: int, width: int) -> State:
        return self.channels, height // 16, width // 16

    def synthesize(self, state: State) -> NDArray[np.float32]:
        means: NDArray[np.float32] = state[:3].astype(np.float32) / np.float32(255)
        return means.repeat(16, axis=1).repeat(16, axis=2)[None]


@pytest.fixture
def blocks(codec: Codec) -> Codec:
    codec.backend = Blocks()
    return codec


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_show_what_one_piece_shows(
    codec: Codec, large_photo: NDArray[np.uint8], channels: int
) -> None:
    """Their errors are alike near borders and elsewhere: no seam can be seen."""
    pixels = large_photo[:, :, :channels]
    whole = decoded(codec, codec.compress(Picture(pixels=pixels)).data)
    encoded = codec.compress(Picture(pixels=pixels), tile=TILE)
    assert (encoded.header.tile_width, encoded.header.tile_height) == (OWNED, OWNED)
    assert (encoded.header.overlap, encoded.header.tile_count) == (16, 6)
    tiles = decoded(codec, encoded.data)
    assert tiles.shape == pixels.shape
    gap = np.abs(tiles.astype(np.float32) - whole)
    assert gap.mean() < 0.5
    near = np.zeros(pixels.shape[:2], bool)
    for border in (OWNED, 2 * OWNED):
        near[:, border - 16 : border + 16] = True
        near[border - 16 : border + 16] = True
    # Eight px beyond the ramp the networks do not see that the picture was cut.
    error = np.abs(tiles.astype(np.float32) - pixels).mean(axis=2)
    before = np.abs(whole.astype(np.float32) - pixels).mean(axis=2)
    assert error[near].mean() < 1.05 * before[near].mean()
    assert error[~near].mean() < 1.01 * before[~near].mean()


def test_no_step_at_the_borders(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    """The step across a border is that of the picture, as it is in one piece."""
    data = codec.compress(Picture(pixels=large_photo), tile=TILE).data
    tiles = decoded(codec, data).astype(np.float32)
    whole = decoded(codec, codec.compress(Picture(pixels=large_photo)).data).astype(np.float32)
    for border in (OWNED, OWNED - 16, OWNED + 16, 2 * OWNED):
        ours = np.abs(tiles[:, border] - tiles[:, border - 1]).mean()
        theirs = np.abs(whole[:, border] - whole[:, border - 1]).mean()
        assert ours < 1.1 * theirs + 0.1


def test_files_in_tiles_cost_little_more(codec: Codec, large_photo: NDArray[np.uint8]) -> None:
    one = len(codec.compress(Picture(pixels=large_photo)).data)
    six = len(codec.compress(Picture(pixels=large_photo), tile=TILE).data)
    area = sum(p.height * p.width for p in places(_header(codec, large_photo)))
    assert one < six < 1.05 * one * area / large_photo[..., 0].size + 6 * 30


def _header(codec: Codec, pixels: NDArray[np.uint8]) -> Any:
    return codec.compress(Picture(pixels=pixels), tile=TILE).header


def test_tiles_of_latents_do_not_overlap(
    codec: Codec, large_photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that say so were not written by a lic, and how to blend them is nowhere said."""
    data = codec.compress(Picture(pixels=large_photo), tile=TILE).data
    name = codec.bundle.manifest.architecture
    plain = replace(ARCHITECTURES[name], tiling=Tiling.LATENTS)
    monkeypatch.setitem(ARCHITECTURES, name, plain)
    with pytest.raises(BitstreamError, match="tiles overlap by 16 px, expected 0"):
        decoded(Codec(codec.bundle, backend="onnx", threads=1), data)


def test_large_pictures_become_tiles_by_themselves(blocks: Codec) -> None:
    encoded = blocks.compress(Picture(pixels=np.full((30, 4112, 1), 77, np.uint8)))
    assert encoded.header.tile_count == 2
    assert (decoded(blocks, encoded.data) == 77).all()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 700), (37, 1), (63, 65), (255, 257), (321, 319), (320, 640)]
)
def test_odd_sizes_with_either_padding(blocks: Codec, size: tuple[int, int], centred: bool) -> None:
    """A flat picture stays flat: what is cropped is what was padded, and no tile sees black."""
    config = {"placement": "upstream"} if centred else {}
    blocks.bundle.manifest = replace(blocks.bundle.manifest, stride=64, config=config)
    codec = Codec(blocks.bundle, backend="onnx")
    codec.backend = engine = Blocks()
    pixels = np.full((*size, 3), 200, np.uint8)
    data = codec.compress(Picture(pixels=pixels), tile=320).data
    assert all(height % 64 == width % 64 == 0 for height, width in engine.sizes)
    back = decoded(codec, data)
    assert back.shape == pixels.shape
    if centred and max(size) <= 320:
        # Blocks that reach into the black border are darker.
        assert (back[15:-15, 15:-15] == 200).all()
    else:
        assert (back == 200).all()


def test_what_is_inside_the_picture_is_not_padded(blocks: Codec) -> None:
    blocks.bundle.manifest = replace(blocks.bundle.manifest, stride=64)
    codec = Codec(blocks.bundle, backend="onnx")
    codec.backend = engine = Blocks()
    codec.compress(Picture(pixels=np.zeros((900, 900, 1), np.uint8)), tile=320)
    assert len(engine.sizes) == 16
    assert engine.sizes[5] == (320, 320)
    assert max(engine.sizes) == (320, 320)


def test_tiles_that_cannot_be_are_refused(codec: Codec, photo: NDArray[np.uint8]) -> None:
    picture = Picture(pixels=photo)
    with pytest.raises(ConfigError, match=r"--tile is 250; .*multiples of 16 from 288 to 4096"):
        codec.compress(picture, tile=250)
    with pytest.raises(ConfigError, match="leave out --tile"):
        codec.compress(picture, lossless=True, tile=TILE)


def test_a_lossless_winner_has_no_tiles(codec: Codec) -> None:
    flat = Picture(pixels=np.zeros((300, 600, 3), np.uint8))
    header = codec.compress(flat, lossless=None, tile=TILE).header
    assert (header.coder, header.tile_count, header.overlap) == (0, 1, 0)


def changed(file: LicFile, index: int, **values: Any) -> LicFile:
    tiles = list(file.tiles)
    tiles[index] = replace(tiles[index], **values)
    return replace(file, tiles=tuple(tiles))


def test_a_wrong_tile_is_named_and_gives_no_picture(
    codec: Codec, large_photo: NDArray[np.uint8]
) -> None:
    file = parse(codec.compress(Picture(pixels=large_photo), tile=TILE).data)
    with pytest.raises(NumericsError, match=r"tile 4 \(row 1, column 1\): the stream is intact"):
        codec.decompress(changed(file, 4, symbols_crc=1))
    streams = file.tiles[4].streams
    with pytest.raises(BitstreamError, match=r"tile 4 \(row 1, column 1\): "):
        codec.decompress(changed(file, 4, streams=(streams[0][:-2], *streams[1:])))
    np.testing.assert_array_equal(
        codec.decompress(file).picture.pixels, decoded(codec, serialize(file))
    )


def test_a_tile_of_latents_that_cannot_be_coded_is_named(
    blocks: Codec, large_photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    analyze = blocks.backend.analyze
    count = iter(range(6))

    def broken(x: NDArray[np.float32]) -> State:
        if next(count) == 5:
            raise NumericsError("latent tensor y: the value at [0, 0] is NaN")
        return analyze(x)

    monkeypatch.setattr(blocks.backend, "analyze", broken)
    with pytest.raises(NumericsError, match=r"tile 5 \(row 1, column 2\): latent tensor y"):
        blocks.compress(Picture(pixels=large_photo), tile=TILE)


def test_a_few_bytes_cannot_ask_for_a_tile_beyond_all_memory(blocks: Codec) -> None:
    """A probable symbol costs next to nothing, so streams alone bound no network's work."""
    file = parse(blocks.compress(Picture(pixels=np.zeros((16, 16, 1), np.uint8))).data)
    header = replace(file.header, width=2**14, height=2**14)
    with pytest.raises(LimitError, match=r"tile 0 takes 16384 x 16384 pixels, the limit"):
        blocks.decompress(replace(file, header=header))


def test_times_are_those_of_all_tiles(blocks: Codec, large_photo: NDArray[np.uint8]) -> None:
    encoded = blocks.compress(Picture(pixels=large_photo), tile=TILE)
    assert list(encoded.stages) == ["convert", "pad", "transform", "entropy", "container"]
    stages = decompress(encoded.data, find=lambda *_: blocks).stages
    assert list(stages) == ["container", "entropy", "transform", "convert"]
    assert all(spent > 0 for spent in stages.values())


def test_memory_is_that_of_one_tile(blocks: Codec) -> None:
    """Beyond the picture and the file, four times the height takes no more."""

    def peaks(height: int) -> tuple[int, int]:
        pixels = np.full((height, 2000, 3), 9, np.uint8)
        pixels[::7] = 200
        tracemalloc.start()
        try:
            data = blocks.compress(Picture(pixels=pixels), tile=512).data
            encoding = tracemalloc.get_traced_memory()[1]
            tracemalloc.reset_peak()
            decoded(blocks, data)
            decoding = tracemalloc.get_traced_memory()[1] - pixels.nbytes
        finally:
            tracemalloc.stop()
        return encoding - 3 * len(data), decoding - 3 * len(data)

    short, tall = peaks(1000), peaks(4000)
    tile = 512 * 512 * 3 * 4
    for less, more in zip(short, tall, strict=True):
        assert more < 1.05 * less + 2**18
        assert more < 4 * tile


def test_the_same_tiles_whatever_was_coded_before(
    codec: Codec, large_photo: NDArray[np.uint8]
) -> None:
    """Tiles are independent: each is the file of its own coded area."""
    file = parse(codec.compress(Picture(pixels=large_photo), tile=TILE).data)
    for place in places(file.header):
        area = np.ascontiguousarray(large_photo[place.rows.outer, place.columns.outer])
        alone = parse(codec.compress(Picture(pixels=area)).data).tiles[0]
        assert replace(alone, index=place.index) == file.tiles[place.index]


def test_a_picture_of_forged_tiles_is_checked_tile_by_tile(blocks: Codec) -> None:
    """Every tile's symbols are counted from its own place in the grid."""
    file = parse(blocks.compress(Picture(pixels=np.zeros((300, 300, 1), np.uint8)), tile=288).data)
    writer = Writer(blocks.bundle.tables)
    symbols = np.zeros((12, 18 * 18), np.int16)
    writer.code(symbols, np.broadcast_to(np.arange(12, dtype=np.uint16)[:, None], symbols.shape))
    large = Tile(index=3, symbols_crc=file.tiles[3].symbols_crc, streams=writer.finish())
    assert file.header.tile_count == 4
    with pytest.raises((BitstreamError, NumericsError), match="tile 3"):
        blocks.decompress(replace(file, tiles=(*file.tiles[:3], large)))
