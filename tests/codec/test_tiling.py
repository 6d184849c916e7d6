from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lic.codec.container import Header, LicFile, Limits, Tile, parse, serialize
from lic.codec.errors import ConfigError
from lic.codec.tiling import OVERLAP, TILE_PIXELS, Grid, Padding, Place, Seams, places, plan

PADDINGS = (Padding(multiple=64), Padding(multiple=64, centred=True))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 64), (63, 65), (64, 64), (100, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_gives_multiples_and_crop_takes_it_back(
    padding: Padding, size: tuple[int, int], channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    padded = padding.pad(pixels)
    assert padded.dtype == np.uint8
    assert padded.shape[:2] == (padding.padded(size[0]), padding.padded(size[1]))
    assert padded.shape[0] % 64 == padded.shape[1] % 64 == 0
    assert padded.shape[0] - size[0] < 64 and padded.shape[1] - size[1] < 64
    planes = padded.transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(padding.crop(planes, *size), pixels.transpose(2, 0, 1))


def test_padding_repeats_the_border() -> None:
    pixels = np.array([[1, 2], [3, 4]], np.uint8)[..., None]
    np.testing.assert_array_equal(
        Padding(multiple=4).pad(pixels)[..., 0],
        [[1, 2, 2, 2], [3, 4, 4, 4], [3, 4, 4, 4], [3, 4, 4, 4]],
    )


def test_centred_padding_is_black_and_its_odd_pixel_comes_last() -> None:
    pixels = np.array([[1], [2]], np.uint8)[..., None]
    np.testing.assert_array_equal(
        Padding(multiple=4, centred=True).pad(pixels)[..., 0],
        [[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0]],
    )


def test_black_never_lies_between_tiles() -> None:
    pixels = np.array([[1], [2]], np.uint8)[..., None]
    np.testing.assert_array_equal(
        Padding(multiple=4, centred=True).pad(pixels, alone=False)[..., 0],
        [[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]],
    )


def test_centred_padding_is_that_of_the_published_script() -> None:
    """The formulas of HPCM's test.py, in its own terms."""
    for height, width in product((1, 2, 255, 256, 257, 511), repeat=2):
        pixels = np.full((height, width, 1), 9, np.uint8)
        padded = Padding(multiple=256, centred=True).pad(pixels)
        full_height, full_width = (height + 255) // 256 * 256, (width + 255) // 256 * 256
        left, top = (full_width - width) // 2, (full_height - height) // 2
        right, bottom = full_width - width - left, full_height - height - top
        expected = np.pad(pixels, ((top, bottom), (left, right), (0, 0)))
        np.testing.assert_array_equal(padded, expected)


def header(height: int, width: int, grid: Grid, colour: int = 3) -> Header:
    return Header(width=width, height=height, colour=colour, **grid._asdict())


def lengths(height: int, width: int, grid: Grid) -> list[tuple[int, int]]:
    return [(p.height, p.width) for p in places(header(height, width, grid))]


@pytest.mark.parametrize("multiple", [64, 256])
@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (2048, 2048), (1024, 4096), (4096, 1024), (1, 4096), (2001, 1999), (3000, 1000)],
)
def test_pictures_that_a_model_can_hold_are_one_tile(
    height: int, width: int, multiple: int
) -> None:
    assert plan(height, width, multiple) == Grid(0, 0, 0)


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 4097), (4097, 1), (2048, 2049), (2049, 2048), (1024 + 1, 4096)],
)
def test_one_pixel_more_makes_tiles(height: int, width: int) -> None:
    grid = plan(height, width, 256)
    assert grid.overlap == OVERLAP
    assert len(lengths(height, width, grid)) == 2


sides = st.integers(1, 6000) | st.sampled_from([4096, 4097, 40_000, 2**18])


@given(sides, sides, st.sampled_from([16, 64, 128, 256]))
@example(2**18, 1, 256)
@example(1, 2**18, 64)
@example(40_000, 50, 256)
@example(4097, 4097, 256)
@example(1000, 3000, 256)
@example(2**18, 2**18, 256)
def test_every_plan_is_one_that_the_format_and_the_model_accept(
    height: int, width: int, multiple: int
) -> None:
    grid = plan(height, width, multiple)
    head = header(height, width, grid)
    whole = Grid() == grid
    if not whole:
        assert grid.overlap == OVERLAP
        assert all(256 <= side <= 4096 and side % 16 == 0 for side in grid[:2])
        inner = [
            (grid.tile_width, head.tiles_across > 1),
            (grid.tile_height, head.tiles_down > 1),
        ]
        assert all((side + 2 * OVERLAP) % multiple == 0 for side, cut in inner if cut)
        assert head.tile_count > 1
    padding = Padding(multiple=multiple)
    if head.tile_count < 5000:
        for place in places(head):
            assert padding.padded(place.height) * padding.padded(place.width) <= TILE_PIXELS
            assert max(place.height, place.width) <= 4096
        tiles = tuple(Tile(index=i, symbols_crc=0, streams=(b"",)) for i in range(head.tile_count))
        data = serialize(LicFile(header=head, tiles=tiles))
        assert parse(data, Limits(max_pixels=0)).header == head


@pytest.mark.parametrize("multiple", [64, 256])
def test_tiles_along_a_side_are_alike(multiple: int) -> None:
    """As even as whole multiples allow: one multiple less would take another tile."""
    for width in (2100, 2500, 3000, 4100, 5000, 8000):
        grid = plan(2048, width, multiple)
        count = -(-width // grid.tile_width)
        assert count == 1 or -(-width // (grid.tile_width - multiple)) > count
    owned = plan(2048, 2100, multiple).tile_width
    assert min(owned, 2100 - owned) > 0.65 * max(owned, 2100 - owned)


def test_the_price_of_tiles_is_a_few_percent() -> None:
    for height, width in [(3000, 4000), (6000, 8000), (4097, 4097), (2160, 3840)]:
        coded = sum(a * b for a, b in lengths(height, width, plan(height, width, 256)))
        assert coded < 1.035 * height * width


@pytest.mark.parametrize("multiple", [16, 64, 256])
def test_a_tile_of_a_chosen_side(multiple: int) -> None:
    grid = plan(3000, 5000, multiple, tile=512)
    assert grid == Grid(480, 480, OVERLAP)
    assert max(lengths(3000, 5000, grid)) == (512, 512)
    assert plan(512, 512, multiple, tile=512) == Grid()
    assert plan(512, 513, multiple, tile=512) == Grid(480, 512, OVERLAP)
    assert plan(4096, 4096, multiple, tile=4096) == Grid()
    assert plan(40, 600, multiple, tile=512) == Grid(480, 256, OVERLAP)


@pytest.mark.parametrize(
    ("tile", "multiple"),
    [(0, 64), (-64, 64), (256, 64), (500, 16), (256, 256), (600, 256), (4128, 16), (4352, 256)],
)
def test_a_tile_of_no_use_is_refused_with_what_is(tile: int, multiple: int) -> None:
    with pytest.raises(ConfigError, match=rf"--tile is {tile}; .* multiples of {multiple} from"):
        plan(100, 100, multiple, tile=tile)


def test_a_model_that_fits_no_tile_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 4095"):
        plan(5000, 5000, 4095)


def ramps(side: int, tile: int, overlap: int) -> NDArray[np.float64]:
    """Return each tile's weight of each pixel along a side, (tiles, side), as FORMAT.md has it."""
    count = -(-side // tile)
    weights = np.zeros((count, side))
    for i in range(count):
        weights[i, i * tile : (i + 1) * tile] = 1
    for i in range(1, count):
        for p in range(i * tile - overlap, min(side, i * tile + overlap)):
            r = (p - i * tile + overlap + 0.5) / (2 * overlap)
            weights[i - 1, p], weights[i, p] = 1 - r, r
    return weights


def tile_planes(place: Place, channels: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(place.index)
    return rng.random((channels, place.height, place.width), np.float32)


def joined(head: Header) -> NDArray[np.float32]:
    """Return the picture (C, H, W) of random tiles; every pixel must be handed out once."""
    picture = np.full((head.colour, head.height, head.width), np.nan, np.float32)
    seams = Seams(head.overlap)
    for place in places(head):
        (rows, columns), final = seams.join(place, tile_planes(place, head.colour))
        assert np.isnan(picture[:, rows, columns]).all()
        picture[:, rows, columns] = final
    assert not np.isnan(picture).any()
    return picture


def by_brute_force(head: Header) -> NDArray[np.float64]:
    """Return the weighted sum of all tiles, each as large as the picture."""
    down = ramps(head.height, head.tile_height, head.overlap)
    across = ramps(head.width, head.tile_width, head.overlap)
    picture = np.zeros((head.colour, head.height, head.width))
    for place in places(head):
        whole = np.zeros_like(picture)
        whole[:, place.rows.outer, place.columns.outer] = tile_planes(place, head.colour)
        picture += whole * down[place.row][:, None] * across[place.column]
    return picture


GRIDS = [
    (700, 900, Grid(256, 256, 16)),
    (513, 520, Grid(256, 256, 16)),
    (520, 515, Grid(256, 256, 128)),
    (300, 257, Grid(256, 256, 128)),
    (600, 200, Grid(256, 272, 8)),
    (530, 530, Grid(256, 256, 0)),
    (1, 600, Grid(256, 256, 24)),
]


@pytest.mark.parametrize(("height", "width", "grid"), GRIDS)
@pytest.mark.parametrize("colour", [1, 3])
def test_seams_are_those_of_the_document(height: int, width: int, grid: Grid, colour: int) -> None:
    """Corners of four tiles, edges, overlaps up to half a tile, last tiles thinner than it."""
    head = header(height, width, grid, colour)
    np.testing.assert_allclose(joined(head), by_brute_force(head), atol=1e-6)


@given(
    st.integers(1, 900),
    st.integers(1, 900),
    st.sampled_from([256, 272, 400]),
    st.sampled_from([256, 304, 512]),
    st.integers(0, 16),
)
def test_weights_sum_to_one(height: int, width: int, across: int, down: int, units: int) -> None:
    """Where all tiles agree the picture is theirs to the last bit, for any grid."""
    head = header(height, width, Grid(across, down, 8 * units), 1)
    value = np.float32(0.7123)
    seams = Seams(head.overlap)
    picture = np.zeros((height, width), np.float32)
    for place in places(head):
        flat = np.full((1, place.height, place.width), value)
        area, final = seams.join(place, flat)
        picture[area] = final[0]
    assert (picture == value).all()
    for side, tile in ((height, down), (width, across)):
        np.testing.assert_allclose(ramps(side, tile, 8 * units).sum(axis=0), 1)


def test_one_tile_is_handed_on_as_it_is() -> None:
    head = header(30, 50, Grid())
    (place,) = places(head)
    planes = tile_planes(place, 3)
    area, final = Seams(0).join(place, planes)
    assert area == (slice(0, 30), slice(0, 50))
    assert np.shares_memory(final, planes)
    np.testing.assert_array_equal(final, tile_planes(place, 3))
