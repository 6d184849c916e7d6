"""Time as an attack: a small file that claims much is refused before much is done for it."""

import io
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lic.codec.bundle import EMBEDDED, Bundle
from lic.codec.container import Coder, Header, LicFile, Tile, parse, serialize
from lic.codec.decoding import decompress
from lic.codec.entropy import PRECISION, ContextWriter, Reader, Tables, Writer
from lic.codec.entropy import rans as rans_module
from lic.codec.errors import BitstreamError, LicError, LimitError
from lic.codec.image_io import Picture, decode_lossless, encode_lossless, read_picture
from lic.codec.image_io.lossless import FREE_PIXELS, MAX_PIXELS_PER_BYTE
from lic.codec.library import select
from lic.codec.pipeline import Codec
from tests.hostile.stand_ins import PARTS, context_bundle, stand_in, with_contexts

LARGEST = (2**18, 2**10), (2**14, 2**14), (2**10, 2**18)
CLAIMS = [
    *((size, (0, 0)) for size in LARGEST),
    (LARGEST[1], (4096, 4096)),
    (LARGEST[0], (256, 256)),
]


def no_network(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> Codec:
    def run(*_: object) -> None:
        raise AssertionError("a network ran")

    monkeypatch.setattr(codec.backend, "synthesize", run)
    if not hasattr(codec.backend.steps, "_indexes"):
        monkeypatch.setattr(codec.backend.steps, "_begin", run)
    return codec


MODELS = "bmshj2018-factorized", "contexts", "any-contexts", *PARTS
EMBEDDED_MODELS = sorted(EMBEDDED.glob("[!.]*/[!.]*"))


@pytest.fixture(params=MODELS)
def small(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    photo: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Codec, LicFile]:
    """A codec without networks, and a file of 96 x 144 pixels for it."""
    if request.param in PARTS:
        codec = stand_in(context_bundle(request.param, tmp_path / "1"))
        file = parse(codec.compress(Picture(pixels=photo)).data)
    else:
        bundle = select()
        if request.param == "any-contexts":
            bundle = with_contexts(bundle, tmp_path / "1")
        writer = Codec(bundle, threads=1, contexts=request.param != "bmshj2018-factorized")
        file = parse(writer.compress(Picture(pixels=photo)).data)
        codec = stand_in(bundle)
    return no_network(codec, monkeypatch), file


@pytest.mark.parametrize(("size", "grid"), CLAIMS)
def test_a_small_file_that_claims_2_to_the_28_pixels_is_refused_at_once(
    small: tuple[Codec, LicFile], size: tuple[int, int], grid: tuple[int, int]
) -> None:
    """Every tile is there, with right checksums, and as long as that of a small picture.

    Contexts may make all symbols cheap: it is while they are decoded that words run out, and memory
    for a tile's symbols is reserved, though not touched.
    """
    codec, file = small
    contexts = codec.bundle.contexts if file.header.coder is Coder.CONTEXTS else None
    pixels = min(size[0] * size[1], grid[0] * grid[1] or size[0] * size[1])
    reserved = pixels // 256 * 2 * len(contexts) if contexts else 0
    header = replace(
        file.header, width=size[0], height=size[1], tile_width=grid[0], tile_height=grid[1]
    )
    streams = file.tiles[0].streams
    if header.tile_count > 64:
        streams = (streams[0][:16],)
    tiles = tuple(
        replace(file.tiles[0], index=i, streams=streams) for i in range(header.tile_count)
    )
    data = serialize(replace(file, header=header, tiles=tiles))
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises((BitstreamError, LimitError)):
            decompress(data, find=lambda *_: codec)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000 + 20 * len(data) + reserved
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 2


@pytest.mark.parametrize("small", [m for m in MODELS if m != "contexts"], indirect=True)
def test_one_long_tile_does_not_help_the_short_ones(
    small: tuple[Codec, LicFile],
) -> None:
    """Networks must not run for the first tile of a picture whose others cannot be decoded."""
    codec, file = small
    header = replace(file.header, width=4096, height=256, tile_width=256, tile_height=256)
    long = tuple(stream * 40 for stream in file.tiles[0].streams)
    short = (file.tiles[0].streams[0][:16],)
    tiles = tuple(
        Tile(index=i, symbols_crc=0, streams=short if i == 9 else long) for i in range(16)
    )
    with pytest.raises(BitstreamError, match=r"tile 9 \(row 0, column 9\): 0 bytes"):
        decompress(serialize(replace(file, header=header, tiles=tiles)), find=lambda *_: codec)


def table(*freqs: int, offset: int = 0) -> Tables:
    cdf = np.concatenate([[0], np.cumsum(freqs)])[None]
    return Tables(
        quantized_cdf=cdf, cdf_length=np.array([len(freqs) + 1]), offset=np.array([offset])
    )


@pytest.mark.parametrize("frequent", [16383, 16380, 16000, 12000, 8192, 3000, 100, 1])
@pytest.mark.parametrize("count", [70_000, 400_000])
def test_the_shortest_stream_that_a_writer_can_write_is_read(frequent: int, count: int) -> None:
    others = (16384 - frequent) // 2
    parts = [others, frequent, 16384 - frequent - others]
    tables = table(*(freq for freq in parts if freq))
    cheapest = int(np.diff(tables.quantized_cdf[0].astype(int))[:-1].argmax())
    for symbol in {0, cheapest, len(tables.quantized_cdf[0]) - 3}:
        symbols = np.full((1, count), symbol, np.int16)
        indexes = np.broadcast_to(np.zeros((1, 1), np.uint16), symbols.shape)
        writer = Writer(tables)
        writer.code(symbols, indexes)
        streams = writer.finish()
        reader = Reader(tables, streams)
        reader.expect(indexes)
        np.testing.assert_array_equal(reader.code(None, indexes), symbols)
        reader.finish()


def test_what_certainly_takes_bits_is_less_than_any_symbol_takes() -> None:
    """For every frequency and every state: the arithmetic behind the constant."""
    freq = np.arange(1, 2**PRECISION, dtype=np.float64)
    worst = np.inf
    # Of all states with the same quotient the one after which most is left.
    for quotient in [*range(4, 300), 2**10, 2**14, 2**18 - 1]:
        before = np.log2(2.0**PRECISION * quotient + freq - 1)
        after = np.log2(np.maximum(freq * (quotient + 1) - 1, freq * quotient))
        worst = min(worst, ((before - after) / (PRECISION - np.log2(freq))).min())
    # States that want a word are at least 4, and a word that comes makes at most 5/4 of that.
    gained = (16 + np.log2(5 / 4)) / 16
    assert rans_module._CERTAIN < worst / gained
    assert worst > 0.79


@settings(max_examples=60, derandomize=True, database=None)
@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=40),
    st.integers(1, 3000),
    st.integers(0, 2**32 - 1),
)
def test_no_writers_stream_is_refused(freqs: list[int], count: int, seed: int) -> None:
    total = sum(freqs)
    scaled = [max(1, freq * 16000 // total) for freq in freqs]
    tables = table(*scaled, 2**PRECISION - sum(scaled), offset=-3)
    rng = np.random.default_rng(seed)
    symbols = rng.integers(-5, len(freqs) + 1, (1, count)).astype(np.int16)
    symbols[0, rng.random(count) < 0.8] = int(np.argmax(scaled)) - 3
    indexes = np.broadcast_to(np.zeros((1, 1), np.uint16), symbols.shape)
    writer = Writer(tables)
    writer.code(symbols, indexes)
    Reader(tables, writer.finish()).expect(indexes)


@pytest.mark.parametrize(
    "path", EMBEDDED_MODELS, ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_of_the_embedded_models_tables_no_half_megabyte_claims_2_to_the_28_pixels(
    path: Path,
) -> None:
    bundle = Bundle.open(path)
    for number in range(bundle.tables.sets):
        tables = bundle.tables.of_set(number)
        channels = np.arange(len(tables), dtype=np.uint16)[:, None]
        indexes = np.broadcast_to(channels, (len(tables), 2**20))
        with pytest.raises(BitstreamError, match=r"499984 bytes .* are left for \d+ symbols"):
            Reader(tables, (b"\xff" * 500_000,)).expect(indexes)


@pytest.mark.parametrize(
    "path", EMBEDDED_MODELS, ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_of_their_contexts_no_60_kilobytes_hold_2_to_the_28_pixels_of_nothing(
    path: Path,
) -> None:
    """All symbols zero, the cheapest latents that are known; of a sixteenth of the picture."""
    contexts = Bundle.open(path).contexts
    assert contexts
    symbols = np.zeros((len(contexts), 256, 256), np.int16)
    indexes = np.broadcast_to(np.zeros(1, np.uint16), symbols.shape)
    writer = ContextWriter(contexts)
    writer.code(symbols, indexes)
    assert len(writer.finish()[0]) > 60_000 / 16


def solid_webp(width: int, height: int) -> bytes:
    """Return a WebP of one colour, whose size is all that differs from one of 8 x 8."""
    webp = bytearray(encode_lossless(np.full((8, 8, 3), 255, np.uint8)))
    assert webp[12:16] == b"VP8L"
    (bits,) = struct.unpack_from("<I", webp, 21)
    struct.pack_into("<I", webp, 21, bits & ~(2**28 - 1) | width - 1 | (height - 1) << 14)
    return bytes(webp)


def lossless_file(width: int, height: int, payload: bytes) -> bytes:
    header = Header(width=width, height=height, colour=3, coder=Coder.LOSSLESS)
    tile = Tile(index=0, symbols_crc=0, streams=(payload,))
    return serialize(LicFile(header=header, tiles=(tile,)))


def test_a_hundred_bytes_of_webp_do_not_become_gigabytes() -> None:
    data = lossless_file(16383, 16383, solid_webp(16383, 16383))
    assert len(data) < 200
    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError, match="38 bytes for 16383 x 16383 pixels"):
            decompress(data)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_the_largest_picture_of_so_few_bytes_decodes_and_one_row_more_does_not() -> None:
    rows = (FREE_PIXELS + 38 * MAX_PIXELS_PER_BYTE) // 2048
    for height in (rows, rows + 1):
        payload = solid_webp(2048, height)
        assert len(payload) == 38
        try:
            found = decode_lossless(payload, width=2048, height=height, channels=3)
        except LicError:
            assert height > rows
        else:
            assert height == rows and found.min() == 255


def test_a_large_picture_of_one_colour_is_stored_in_a_form_that_decodes() -> None:
    pixels = np.full((1400, 1400, 1), 7, np.uint8)
    payload = encode_lossless(pixels)
    assert payload.startswith(b"\x89PNG")
    np.testing.assert_array_equal(
        decode_lossless(payload, width=1400, height=1400, channels=1), pixels
    )


def test_too_little_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the machine that is at fault then, and exit code 6 says so."""
    picture = encode_lossless(np.zeros((4, 4, 3), np.uint8))

    def none_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("lic.codec.image_io.lossless.open_unlimited", none_left)
    with pytest.raises(MemoryError):
        decode_lossless(picture, width=4, height=4, channels=3)
    monkeypatch.setattr("lic.codec.image_io.reader.open_image", none_left)
    with pytest.raises(MemoryError):
        read_picture(io.BytesIO(picture))
