import io
import random
import re
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lic.codec.container import (
    HEADER_BYTES,
    MAX_PAYLOAD,
    SIGNATURE,
    Coder,
    Header,
    LicFile,
    Limits,
    Model,
    Tile,
    list_chunks,
    parse,
    parse_header,
    read_metadata,
    serialize,
)
from lic.codec.errors import BitstreamError, LicError, LimitError
from lic.codec.image_io import decode_lossless

FORMAT = Path(__file__).parents[2] / "codec" / "FORMAT.md"


def chunk(kind: bytes, payload: bytes) -> bytes:
    crc = zlib.crc32(kind + payload)
    return struct.pack("<I", len(payload)) + kind + payload + struct.pack("<I", crc)


def simple_file() -> LicFile:
    header = Header(width=768, height=512, colour=3, fingerprint=b"abcdefgh")
    return LicFile(header=header, tiles=(Tile(index=0, symbols_crc=7, streams=(b"stream",)),))


def full_file() -> LicFile:
    header = Header(
        width=1000,
        height=700,
        colour=1,
        bit_depth=16,
        orientation=6,
        rate_point=4,
        tile_width=512,
        tile_height=256,
        overlap=64,
        fingerprint=bytes(range(8)),
        minor=3,
    )
    tiles = tuple(
        Tile(
            index=i,
            symbols_crc=2**32 - 1 - i,
            streams=(b"", bytes([i]) * 300, b"x"),
            tables=51 * i,
        )
        for i in range(6)
    )
    return LicFile(
        header=header,
        tiles=tiles,
        model=Model(name="bmshj2018-factorized, ReLU", source="https://example.org/é"),
        icc=b"icc",
        exif=b"",
        xmp=b"<x/>",
        alpha=b"png",
        meta={"encoder": "lic 0.1.0", "empty": ""},
    )


@pytest.mark.parametrize("file", [simple_file(), full_file()], ids=["simple", "full"])
def test_a_file_comes_back_as_it_was(file: LicFile) -> None:
    data = serialize(file)
    assert parse(data) == file
    assert serialize(parse(data)) == data
    assert parse_header(data[:HEADER_BYTES]) == file.header


def test_size_of_a_file_without_metadata() -> None:
    data = serialize(simple_file())
    assert len(data) - len(b"stream") == 8 + 12 + 32 + 12 + 9 + 1


def test_numbers_on_the_wire_are_frozen() -> None:
    assert {coder.name: coder.value for coder in Coder} == {"LOSSLESS": 0, "RANS": 1, "CONTEXTS": 2}
    assert serialize(full_file())[:HEADER_BYTES].hex() == (
        "894c49430d0a1a0a" + "20000000" + "48454144"
        "01030000" + "e8030000" + "bc020000" + "01100604" + "2000" + "1000" + "08" + "01" + "0000"
        "0001020304050607" + "5af78b25"
    )


def test_the_document_shows_a_real_file() -> None:
    dump = re.search(r"```hexdump\n(.*?)```", FORMAT.read_text(encoding="utf-8"), re.DOTALL)
    assert dump
    data = bytes.fromhex("".join(line[8:56] for line in dump[1].splitlines()))
    file = parse(data)
    assert serialize(file) == data
    pixels = decode_lossless(file.tiles[0].streams[0], width=2, height=1, channels=1)
    np.testing.assert_array_equal(pixels[..., 0], [[0, 255]])


def test_the_document_names_every_limit() -> None:
    text = FORMAT.read_text(encoding="utf-8")
    for kind in MAX_PAYLOAD:
        assert f"`{kind.decode()}`" in text


def test_chunks_are_listed_with_their_places() -> None:
    data = serialize(full_file())
    chunks = list_chunks(data)
    names = [chunk.name for chunk in chunks]
    assert names == ["HEAD", "modl", "iccp", "exif", "xmp_", "alph", "meta"] + ["TILE"] * 6
    assert chunks[-1].end == len(data)
    assert data[chunks[2].payload] == b"icc"


@pytest.mark.parametrize("file", [simple_file(), full_file()], ids=["simple", "full"])
def test_metadata_is_read_without_the_rest(file: LicFile) -> None:
    data = b"before" + serialize(file)
    first_tile = data.index(b"TILE") + 4
    metadata = read_metadata(io.BytesIO(data[:first_tile]), start=6)
    whole = parse(data[6:])
    assert (metadata.model, metadata.icc) == (whole.model, whole.icc)
    assert (metadata.exif, metadata.xmp) == (whole.exif, whole.xmp)
    assert metadata.has_alpha == (whole.alpha is not None)
    for length in range(6 + HEADER_BYTES, first_tile):
        with pytest.raises(BitstreamError):
            read_metadata(io.BytesIO(data[:length]), start=6)


def test_every_bit_flip_in_metadata_is_reported() -> None:
    data = serialize(full_file())
    for chunk in list_chunks(data)[1:5]:
        for bit in range(8 * chunk.payload.start, 8 * chunk.end):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BitstreamError, match=f"chunk {chunk.name} at byte"):
                read_metadata(io.BytesIO(damaged))


@pytest.mark.parametrize("kind", [b"iccp", b"alph", b"tidx"])
def test_metadata_obeys_the_formats_rules(kind: bytes) -> None:
    head = serialize(simple_file())[:HEADER_BYTES]
    for bad, error in (
        (chunk(kind, b"") * 2, BitstreamError),
        (chunk(b"priv", b"") * 1001, LimitError),
        (chunk(b"PRIV", b""), BitstreamError),
        (head[8:], BitstreamError),
    ):
        with pytest.raises(error):
            read_metadata(io.BytesIO(head + bad + chunk(b"TILE", b"")))


def test_every_truncation_is_reported() -> None:
    data = serialize(full_file())
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            parse(data[:length])


def test_every_bit_flip_is_reported() -> None:
    data = serialize(full_file())
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((BitstreamError, LimitError)):
            parse(bytes(damaged))


def test_messages_say_where() -> None:
    data = bytearray(serialize(simple_file()))
    data[-5] ^= 1
    with pytest.raises(BitstreamError, match=r"chunk TILE at byte 52: CRC is \w+, expected \w+"):
        parse(bytes(data))
    with pytest.raises(BitstreamError, match=r"truncated at byte 52: found 0 tiles, expected 1"):
        parse(bytes(data[:52]))
    with pytest.raises(BitstreamError, match=r"not a \.lic file: it starts with ff d8"):
        parse(b"\xff\xd8\xff\xe0" + bytes(60))
    with pytest.raises(BitstreamError, match="text mode"):
        parse(bytes(data).replace(b"\r\n", b"\n"))


HEAD_CASES = {
    "major": ({0: 2}, "format version 2"),
    "flag": ({2: 4}, "unknown flags 0x0004"),
    "high flag": ({3: 0x80}, "unknown flags 0x8000"),
    "no width": ({4: 0, 5: 0}, "width is 0"),
    "wide": ({6: 5}, "width .* is more than"),
    "colour": ({12: 2}, "colour is 2"),
    "no depth": ({13: 0}, "bit depth is 0"),
    "depth": ({13: 17}, "bit depth is 17"),
    "orientation": ({14: 9}, "orientation is 9"),
    "one tile side": ({16: 32}, "tile height is 0"),
    "small tiles": ({16: 15, 18: 16}, "tile width is 240"),
    "large tiles": ({16: 1, 17: 1, 18: 16}, "tile width is 4112"),
    "overlap of one tile": ({20: 1}, "overlap of a single tile is 8"),
    "overlap": ({16: 16, 18: 16, 20: 17}, "overlap is 136, expected 0..128"),
    "coder": ({21: 3}, "unknown coder 3"),
    "step of one": ({22: 0, 23: 16}, "step is 4096, expected 0, which is how a step of 1"),
    "small step": ({22: 255, 23: 3}, r"step is 0.249756, expected 0.25..4 in units of 1 / 4096"),
    "least step": ({22: 1}, r"step is 0.000244"),
    "large step": ({22: 1, 23: 64}, r"step is 4.00024, expected 0.25..4"),
    "largest step": ({22: 255, 23: 255}, r"step is 15.9998"),
    "lossless with a step": ({21: 0, 23: 8, **dict.fromkeys(range(24, 32), 0)}, "step is 0.5, but"),
    "lossless with a model": ({21: 0}, "no model"),
}


@pytest.mark.parametrize(("change", "message"), HEAD_CASES.values(), ids=HEAD_CASES)
def test_a_wrong_header_with_a_right_crc(change: dict[int, int], message: str) -> None:
    data = serialize(simple_file())
    head = bytearray(data[16:48])
    for offset, value in change.items():
        head[offset] = value
    with pytest.raises((BitstreamError, LimitError), match=message):
        parse(SIGNATURE + chunk(b"HEAD", bytes(head)) + data[52:])


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_header_of_another_size_is_refused(size: int) -> None:
    head = (b"\1" + bytes(40))[:size]
    with pytest.raises(BitstreamError, match="chunk HEAD"):
        parse(SIGNATURE + chunk(b"HEAD", head))


def pieces(file: LicFile) -> tuple[bytes, bytes]:
    data = serialize(file)
    return data[:HEADER_BYTES], data[HEADER_BYTES:]


def test_head_must_be_first_and_alone() -> None:
    head, tiles = pieces(simple_file())
    for data in (head + head[8:] + tiles, SIGNATURE + tiles + head[8:]):
        with pytest.raises(BitstreamError, match="HEAD"):
            parse(data)


def test_unknown_chunks_follow_their_letter_case() -> None:
    head, tiles = pieces(simple_file())
    file = parse(head + chunk(b"priv", b"data") + chunk(b"priv", b"") + tiles)
    assert file.warnings == (
        "skipped unknown chunk priv at byte 52",
        "skipped unknown chunk priv at byte 68",
    )
    assert replace(file, warnings=()) == simple_file()
    with pytest.raises(BitstreamError, match="chunk NEWS at byte 52: unknown"):
        parse(head + chunk(b"NEWS", b"") + tiles)
    for kind in (b"\x1b[2J", b"1abc", b"ab c"):
        with pytest.raises(BitstreamError, match="is no chunk type"):
            parse(head + chunk(kind, b"") + tiles)


@pytest.mark.parametrize("kind", [kind for kind in MAX_PAYLOAD])
def test_known_ancillary_chunks_occur_once_before_the_tiles(kind: bytes) -> None:
    head, tiles = pieces(simple_file())
    one = chunk(kind, b"a\0b\0")
    parse(head + one + tiles)
    with pytest.raises(BitstreamError, match="only once"):
        parse(head + one + one + tiles)
    with pytest.raises(BitstreamError, match="before the first TILE"):
        parse(head + tiles + one)


@pytest.mark.parametrize("kind", [b"modl", b"iccp", b"exif", b"xmp_", b"meta"])
def test_oversized_metadata_is_refused_both_ways(kind: bytes) -> None:
    head, tiles = pieces(simple_file())
    payload = bytes(MAX_PAYLOAD[kind] + 1)
    with pytest.raises(LimitError, match=kind.decode()):
        parse(head + chunk(kind, payload) + tiles)
    with pytest.raises(LimitError, match="iccp"):
        serialize(replace(simple_file(), icc=bytes(MAX_PAYLOAD[b"iccp"] + 1)))


def test_too_many_chunks_are_refused() -> None:
    head, tiles = pieces(simple_file())
    parse(head + chunk(b"priv", b"") * 1000 + tiles)
    with pytest.raises(LimitError, match="more than 1000"):
        parse(head + chunk(b"priv", b"") * 1001 + tiles)


def test_tiles_may_come_in_any_order_but_each_once() -> None:
    data = serialize(full_file())
    tiles = [data[c.offset : c.end] for c in list_chunks(data) if c.name == "TILE"]
    front = data[: len(data) - sum(map(len, tiles))]
    shuffled = random.Random(0).sample(tiles, len(tiles))
    assert parse(front + b"".join(shuffled)) == full_file()
    with pytest.raises(BitstreamError, match="tile 0 occurs twice"):
        parse(front + b"".join([*tiles[:5], tiles[0]]))
    with pytest.raises(BitstreamError, match="more tiles than the 6"):
        parse(data + tiles[5])
    with pytest.raises(BitstreamError, match="found 5 tiles, expected 6"):
        parse(front + b"".join(tiles[:5]))


def tile(index: int, crc: int, count: int, rest: bytes) -> bytes:
    return chunk(b"TILE", struct.pack("<IIB", index, crc, count) + rest)


TILE_CASES = {
    "index": (tile(1, 0, 1, b"\0"), "tile 1, expected 0..0"),
    "no stream": (tile(0, 0, 0, b""), "0 streams, expected 1..255"),
    "no length": (tile(0, 0, 1, b""), "no valid stream length"),
    "endless length": (tile(0, 0, 1, b"\xff" * 9), "no valid stream length"),
    "padded length": (tile(0, 0, 1, b"\x81\0x"), "no valid stream length"),
    "long stream": (tile(0, 0, 1, b"\x05abc"), "streams of 5 bytes, but 3 are there"),
    "short stream": (tile(0, 0, 2, b"\1\1abc"), "streams of 2 bytes, but 3 are there"),
    "tiny": (chunk(b"TILE", bytes(8)), "8 bytes long, expected at least 9"),
}


@pytest.mark.parametrize(("data", "message"), TILE_CASES.values(), ids=TILE_CASES)
def test_a_wrong_tile_with_a_right_crc(data: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=f"chunk TILE at byte 52: .*{message}"):
        parse(pieces(simple_file())[0] + data)


def test_trailing_bytes_are_a_warning() -> None:
    data = serialize(simple_file())
    for trailing in (b"\0", bytes(100), data):
        file = parse(data + trailing)
        assert file.warnings == (f"{len(trailing)} bytes after the last tile, at byte {len(data)}",)


@pytest.mark.parametrize(
    ("kind", "payload", "message"),
    [
        (b"modl", b"name", "zero byte"),
        (b"modl", b"name\0", "1 strings"),
        (b"modl", b"\xff\0x\0", "not UTF-8"),
        (b"modl", b"\x1b[31m\0x\0", "control characters"),
        (b"meta", b"key\0", "pairs"),
        (b"meta", b"a\0b\0a\0c\0", "pairs"),
    ],
)
def test_text_that_is_not_safe_to_show(kind: bytes, payload: bytes, message: str) -> None:
    head, tiles = pieces(simple_file())
    with pytest.raises(BitstreamError, match=message):
        parse(head + chunk(kind, payload) + tiles)


def test_limits_on_pixels() -> None:
    header = Header(width=2**18, height=2**11, colour=3)
    data = serialize(replace(simple_file(), header=header))
    with pytest.raises(LimitError, match="536870912 pixels, the limit is 268435456"):
        parse(data)
    assert parse(data, Limits(max_pixels=0)).header == header
    with pytest.raises(LimitError, match="limit is 1000"):
        parse_header(serialize(simple_file()), Limits(max_pixels=1000))
    with pytest.raises(LimitError, match="262145"):
        serialize(replace(simple_file(), header=replace(header, width=2**18 + 1)))


def test_the_writer_refuses_what_no_reader_accepts() -> None:
    file = simple_file()
    lossless = Header(width=1, height=1, colour=1, coder=Coder.LOSSLESS)
    picture = Tile(index=0, symbols_crc=0, streams=(b"x",))
    wrong = [
        replace(file, tiles=()),
        replace(file, tiles=(replace(file.tiles[0], index=1),)),
        replace(file, tiles=(replace(file.tiles[0], streams=()),)),
        replace(file, header=replace(file.header, tile_width=264, tile_height=264)),
        replace(file, header=replace(file.header, fingerprint=b"short")),
        replace(file, header=lossless, tiles=(Tile(index=0, symbols_crc=0, streams=(b"", b"")),)),
        replace(file, header=lossless, tiles=(replace(picture, symbols_crc=1),)),
        replace(file, header=replace(file.header, step=0.1)),
        replace(file, header=replace(file.header, step=1 + 1 / 8192)),
        replace(file, header=replace(lossless, step=0.5)),
        replace(file, tiles=(replace(file.tiles[0], tables=256),)),
        replace(file, header=lossless, tiles=(replace(picture, tables=1),)),
        replace(file, model=Model(name="new\nline")),
    ]
    for each in wrong:
        with pytest.raises(BitstreamError):
            serialize(each)


def test_claims_cost_no_memory() -> None:
    grid = Header(width=2**18, height=2**18, colour=3, tile_width=256, tile_height=256)
    one = Header(width=2**18, height=2**18, colour=3)
    data = serialize(replace(simple_file(), header=one))
    head = data[:28] + b"\x10\0\x10\0" + data[32:48]
    assert grid.tile_count == 2**20
    claims = [
        data[:52] + struct.pack("<I4s", 2**32 - 1, b"iccp"),
        SIGNATURE + struct.pack("<I4s", 2**32 - 1, b"HEAD") + data[16:],
        SIGNATURE + chunk(b"HEAD", data[16:32] + b"\x10\0\x10\0" + data[36:48]) + data[52:],
        data[:52] + tile(0, 0, 255, b"\xff\xff\xff\xff\x0f" * 255),
        head,
    ]
    tracemalloc.start()
    try:
        for claim in claims:
            with pytest.raises(LicError):
                parse(claim, Limits(max_pixels=0))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


kinds = st.sampled_from([b"HEAD", b"TILE", b"XXXX", b"priv", *MAX_PAYLOAD]) | st.binary(
    min_size=4, max_size=4
)
heads = st.builds(
    lambda *fields: struct.pack("<BBHIIBBBBHHBBH8s", *fields),
    st.sampled_from([1, 1, 1, 2]),
    st.integers(0, 255),
    st.sampled_from([0, 0, 0, 1]),
    st.integers(0, 2000) | st.integers(0, 2**32 - 1),
    st.integers(0, 2000) | st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 3, 2]),
    st.integers(1, 17),
    st.integers(1, 9),
    st.integers(0, 255),
    st.sampled_from([0, 0, 16, 1]),
    st.sampled_from([0, 0, 16, 1]),
    st.sampled_from([0, 1, 255]),
    st.integers(0, 2),
    st.sampled_from([0, 0, 0, 1]),
    st.just(bytes(8)),
)
tiles = st.builds(tile, st.integers(0, 5), st.just(0), st.integers(0, 3), st.binary(max_size=20))
chunks = st.builds(chunk, kinds, st.binary(max_size=40)) | tiles | st.binary(max_size=20)


@given(st.binary(max_size=300))
@example(b"")
@example(SIGNATURE)
def test_any_bytes_raise_nothing_but_lic_errors(data: bytes) -> None:
    for candidate in (data, SIGNATURE + data):
        for function in (parse, parse_header, list_chunks):
            try:
                function(candidate)
            except LicError:
                pass


@settings(max_examples=400)
@given(heads, st.lists(chunks, max_size=6))
def test_any_chunks_raise_nothing_but_lic_errors(head: bytes, rest: list[bytes]) -> None:
    data = SIGNATURE + chunk(b"HEAD", head) + b"".join(rest)
    try:
        file = parse(data)
    except LicError:
        return
    assert parse(serialize(file)) == replace(file, warnings=())


streams = st.lists(st.binary(max_size=200), min_size=1, max_size=5).map(tuple)


@given(streams, st.integers(0, 2**32 - 1), st.none() | st.binary(max_size=50))
def test_any_streams_come_back(parts: tuple[bytes, ...], crc: int, icc: bytes | None) -> None:
    file = replace(simple_file(), tiles=(Tile(index=0, symbols_crc=crc, streams=parts),), icc=icc)
    assert parse(serialize(file)) == file
