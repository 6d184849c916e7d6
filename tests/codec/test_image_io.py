import io
import random
import struct
import threading
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from lic.codec.errors import ConfigError, ImageError, LicError, LimitError, OutputError
from lic.codec.image_io import (
    Picture,
    apply_metadata_policy,
    encode_picture,
    orient,
    read_picture,
    tag_orientation,
    upright,
    write_picture,
)
from lic.codec.image_io.exif import minimal_exif, read_orientation, with_orientation
from tests.codec.profiles import cmyk_profile

Pixels = NDArray[np.uint8]

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" a="\xc3\xa9"/></x:xmpmeta>'
HOLDS_METADATA = ("png", "jpeg", "webp", "tiff")


def colours(height: int = 20, width: int = 30, channels: int = 3) -> Pixels:
    y, x = np.mgrid[:height, :width]
    planes = [x * 7 % 256, y * 11 % 256, (x + y) * 5 % 256]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def make_exif(orientation: int = 6) -> bytes:
    """EXIF with a maker, an orientation, a subdirectory, and a thumbnail behind it all."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x0112] = orientation
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05"}
    return exif.tobytes().removeprefix(b"Exif\0\0") + b"\xff\xd8thumbnail\xff\xd9"


def save(image: Image.Image, format: str, **options: Any) -> io.BytesIO:
    output = io.BytesIO()
    image.save(output, format=format, **options)
    return output


def full_picture(orientation: int = 6) -> Picture:
    return Picture(
        pixels=colours(),
        alpha=colours()[..., 0],
        orientation=orientation,
        icc=SRGB,
        exif=make_exif(orientation),
        xmp=XMP,
    )


def seen(data: bytes) -> Pixels:
    """The pixels that a viewer shows which honours EXIF."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


# Reading


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000"])
def test_lossless_formats_are_read_exactly(format: str) -> None:
    pixels = colours() if format != "GIF" else colours() // 128 * 255
    options = {"lossless": True} if format == "WEBP" else {}
    picture = read_picture(save(Image.fromarray(pixels), format, **options))
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.alpha is None and picture.bit_depth == 8 and picture.orientation == 1
    assert (picture.width, picture.height, picture.channels) == (30, 20, 3)


def test_gray_stays_gray() -> None:
    gray = colours(channels=1)
    for format in ("PNG", "JPEG", "TIFF", "PPM"):
        picture = read_picture(save(Image.fromarray(gray[..., 0]), format))
        assert picture.pixels.shape == (20, 30, 1) and picture.notes == ()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_rounded(format: str) -> None:
    samples = np.array([[0, 128, 129, 385, 386, 32767, 65406, 65407, 65535]], np.uint16)
    picture = read_picture(save(Image.fromarray(samples), format))
    expected = np.floor(samples / 257 + 0.5)
    np.testing.assert_array_equal(picture.pixels[..., 0], expected)
    assert picture.bit_depth == 16
    assert picture.notes == ("16-bit input coded as 8 bit",)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> io.BytesIO:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        body = kind + payload
        return struct.pack(">I", len(payload)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *(chunk(e[:4], e[4:]) for e in extra)]
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_16_bit_colour_is_admitted() -> None:
    row = b"\0" + struct.pack(">6H", 0x1234, 0xFFFF, 0, 0x8000, 0x00FF, 0xAB00)
    picture = read_picture(png(2, 1, 16, 2, row))
    assert picture.pixels.shape == (1, 2, 3) and picture.bit_depth == 16
    assert "16-bit input coded as 8 bit" in picture.notes


def test_16_bit_gray_with_alpha_stays_gray() -> None:
    row = b"\0" + struct.pack(">4H", 0x1200, 0xFFFF, 0x8000, 0)
    picture = read_picture(png(2, 1, 16, 4, row))
    np.testing.assert_array_equal(picture.pixels[..., 0], [[0x12, 0x80]])
    np.testing.assert_array_equal(picture.alpha, [[255, 0]])
    assert picture.bit_depth == 16


@pytest.mark.parametrize(
    ("depth", "row", "expected"),
    [(1, 0b01000000, [0, 255]), (2, 0b01100000, [85, 170]), (4, 0x3F, [51, 255])],
)
def test_few_bits_are_spread_and_a_transparent_level_becomes_alpha(
    depth: int, row: int, expected: list[int]
) -> None:
    key = (row >> (8 - depth)) & (2**depth - 1)
    source = png(2, 1, depth, 0, bytes([0, row]), b"tRNS" + struct.pack(">H", key))
    picture = read_picture(source)
    np.testing.assert_array_equal(picture.pixels[..., 0], [expected])
    np.testing.assert_array_equal(picture.alpha, [[0, 255]])
    assert picture.bit_depth == depth


def test_transparent_colour_becomes_alpha() -> None:
    row = b"\0" + bytes([1, 2, 3, 4, 5, 6])
    picture = read_picture(png(2, 1, 8, 2, row, b"tRNS" + struct.pack(">3H", 4, 5, 6)))
    np.testing.assert_array_equal(picture.alpha, [[255, 0]])
    row = b"\0" + struct.pack(">2H", 1000, 2000)
    picture = read_picture(png(2, 1, 16, 0, row, b"tRNS" + struct.pack(">H", 2000)))
    np.testing.assert_array_equal(picture.alpha, [[255, 0]])
    assert picture.channels == 1


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_kept_apart(mode: str, format: str) -> None:
    image = Image.fromarray(np.dstack([colours(), colours()[..., 1]])).convert(mode)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    picture = read_picture(save(image, format, **options))
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, colours()[..., 1])
    # WebP knows no gray.
    assert picture.channels == (1 if mode == "LA" and format != "WEBP" else 3)


def test_opaque_alpha_is_dropped_with_a_note() -> None:
    picture = read_picture(save(Image.fromarray(colours()).convert("RGBA"), "PNG"))
    assert picture.alpha is None
    assert picture.notes == ("alpha channel dropped: it is opaque everywhere",)


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00\x80"])
def test_palettes_are_expanded(transparency: int | bytes | None) -> None:
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([255, 0, 0, 0, 255, 0, 1, 2, 3])
    options = {} if transparency is None else {"transparency": transparency}
    picture = read_picture(save(image, "PNG", **options))
    np.testing.assert_array_equal(picture.pixels, [[[255, 0, 0], [0, 255, 0], [1, 2, 3]]])
    expected = {None: None, 1: [255, 0, 255], b"\xff\x00\x80": [255, 0, 128]}[transparency]
    found = None if picture.alpha is None else picture.alpha[0].tolist()
    assert found == expected and picture.bit_depth == 8


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_pictures_the_first_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    source = save(frames[0], format, save_all=True, append_images=frames[1:])
    picture = read_picture(source)
    assert "the file holds several pictures: only the first was taken" in picture.notes
    assert np.abs(picture.pixels[0, 0].astype(int) - [255, 0, 0]).max() < 4


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile_or_not_at_all(format: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    picture = read_picture(save(image, format, icc_profile=cmyk_profile()))
    assert picture.notes == ("CMYK converted to sRGB through its profile",)
    assert picture.icc is None and picture.channels == 3
    assert picture.pixels[8, 2].min() > 240 and picture.pixels[8, 13].max() < 15
    with pytest.raises(ImageError, match="convert it to RGB first"):
        read_picture(save(image, format))
    with pytest.raises(ImageError):
        read_picture(save(image, format, icc_profile=b"no profile at all"))


@pytest.mark.parametrize(
    "image", [Image.new("F", (2, 2)), Image.new("I", (2, 2)), Image.new("LAB", (2, 2))]
)
def test_samples_without_a_clear_meaning_are_refused(image: Image.Image) -> None:
    with pytest.raises(ImageError, match="convert to 8-bit gray or RGB first"):
        read_picture(save(image, "TIFF"))


def test_non_pictures_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("text.png", "page.eps"):
        with pytest.raises(ImageError, match=f"{name}: not a picture that lic reads"):
            read_picture(tmp_path / name)
    with pytest.raises(ImageError, match="No such file"):
        read_picture(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="directory"):
        read_picture(tmp_path)
    with pytest.raises(ImageError):
        read_picture(io.BytesIO(b""))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_truncated_and_damaged_pictures(format: str) -> None:
    data = save(Image.fromarray(colours(64, 64)), format).getvalue()
    with pytest.raises(ImageError):
        read_picture(io.BytesIO(data[: len(data) // 2]))
    rng = random.Random(format)
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 3, 30])):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read_picture(io.BytesIO(damaged), max_pixels=10**6)
        except LicError:
            pass


def test_large_claims_are_refused_before_decoding() -> None:
    source = png(100_000, 100_000, 8, 2, b"")
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match="100000 x 100000 is 10000000000 pixels"):
            read_picture(source)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(LimitError, match="the limit is 599"):
        read_picture(save(Image.fromarray(colours()), "PNG"), max_pixels=599)
    assert read_picture(save(Image.fromarray(colours()), "PNG"), max_pixels=600).width == 30


# The reader of WebP holds sizes against Pillow's limit by itself.
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_pillows_own_limit_neither_acts_nor_changes(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = save(Image.fromarray(colours()), format).getvalue()
    threads = [threading.Thread(target=read_picture, args=(io.BytesIO(data),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == 10
    assert read_picture(io.BytesIO(data)).width == 30


def test_pillows_own_limit_protects_others_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    factory, accept = Image.OPEN["PNG"]

    def watched(stream: Any, name: Any) -> Any:
        seen.append(Image.MAX_IMAGE_PIXELS)
        return factory(stream, name)

    monkeypatch.setitem(Image.OPEN, "PNG", (watched, accept))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    read_picture(save(Image.fromarray(colours()), "PNG"))
    assert seen == [10]


def test_inflated_text_and_profiles_are_refused() -> None:
    row = b"\0" + bytes(3)
    bomb = zlib.compress(bytes(2**26))
    for extra in (b"zTXtkey\0\0" + bomb, b"iCCPname\0\0" + bomb):
        tracemalloc.start()
        try:
            with pytest.raises(ImageError):
                read_picture(png(1, 1, 8, 2, row, extra))
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()


def test_a_stream_that_cannot_seek() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

    data = save(Image.fromarray(colours()), "PNG").getvalue()
    np.testing.assert_array_equal(read_picture(Pipe(data)).pixels, colours())


# Orientation and metadata


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_agrees_with_pillow(orientation: int) -> None:
    image = Image.fromarray(colours())
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(orient(colours(), orientation), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "webp", "tiff"])
@pytest.mark.parametrize("bake", [True, False])
def test_a_picture_is_seen_the_same_however_it_is_written(
    orientation: int, format: str, bake: bool
) -> None:
    picture = full_picture(orientation)
    data, _ = encode_picture(picture, format, bake_orientation=bake)
    np.testing.assert_array_equal(seen(data), orient(picture.pixels, orientation))
    again = upright(read_picture(io.BytesIO(data)))
    np.testing.assert_array_equal(again.pixels, orient(picture.pixels, orientation))
    assert again.alpha is not None and picture.alpha is not None
    np.testing.assert_array_equal(again.alpha, orient(picture.alpha, orientation))


@pytest.mark.parametrize("format", HOLDS_METADATA)
def test_metadata_survives(format: str) -> None:
    data, notes = encode_picture(full_picture(), format, bake_orientation=False)
    assert not any("dropped" in note for note in notes if "alpha" not in note)
    again = read_picture(io.BytesIO(data))
    assert again.icc == SRGB
    assert again.exif is not None and again.xmp is not None
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + again.exif)
    assert exif[0x010F] == "Maker"
    assert exif.get_ifd(0x8769)[0x9003] == "2020:01:02 03:04:05"
    if format != "tiff":
        assert again.exif == make_exif() and again.xmp == XMP and again.orientation == 6


@pytest.mark.parametrize("format", HOLDS_METADATA)
def test_metadata_dropped_is_gone(format: str) -> None:
    picture = apply_metadata_policy(full_picture(orientation=1), "none")
    again = read_picture(io.BytesIO(encode_picture(picture, format)[0]))
    assert again.icc is None and again.xmp is None
    assert format == "tiff" or again.exif is None


def test_metadata_policy() -> None:
    picture = full_picture()
    assert apply_metadata_policy(picture, "all") is picture
    some = apply_metadata_policy(picture, {"icc", "xmp"})
    assert (some.icc, some.exif, some.xmp, some.orientation) == (SRGB, None, XMP, 6)
    assert apply_metadata_policy(picture, "exif").icc is None
    with pytest.raises(ConfigError, match="unknown metadata iptc"):
        apply_metadata_policy(picture, {"iptc"})


def test_gray_profiles_stay_with_gray() -> None:
    icc = SRGB[:16] + b"GRAY" + SRGB[20:]
    picture = Picture(pixels=colours(channels=1), icc=icc)
    for format in ("png", "jpeg", "tiff"):
        again = read_picture(io.BytesIO(encode_picture(picture, format)[0]))
        assert again.icc == icc and again.channels == 1
    data, notes = encode_picture(picture, "webp")
    assert read_picture(io.BytesIO(data)).icc is None
    assert notes == ("gray ICC profile dropped: WEBP has no place for it",)


@pytest.mark.parametrize("format", ["bmp", "ppm"])
def test_formats_without_metadata_say_so(format: str) -> None:
    data, notes = encode_picture(full_picture(), format, bake_orientation=False)
    np.testing.assert_array_equal(seen(data), orient(colours(), 6))
    for lost in ("alpha", "ICC profile", "EXIF", "XMP"):
        assert f"{lost} dropped: {format.upper()} has no place for it" in notes
    assert f"{format.upper()} holds no orientation: pixels turned" in notes


def test_metadata_too_long_for_jpeg_is_dropped_with_a_note() -> None:
    picture = Picture(pixels=colours(), exif=make_exif(1) + bytes(70_000), xmp=bytes(70_000))
    data, notes = encode_picture(picture, "jpg")
    assert "EXIF dropped: too long for JPEG" in notes and "XMP dropped: too long for JPEG" in notes
    assert read_picture(io.BytesIO(data)).exif is None


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tagged", [True, False])
def test_orientation_is_patched_in_place(order: str, tagged: bool) -> None:
    entries = [struct.pack(order + "HHII", 0x010F, 2, 4, 0x41424300)]
    entries += [struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0)] * tagged
    entries += [struct.pack(order + "HHII", 0x0131, 2, 4, 0x44454600)]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    exif = mark + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries) + bytes(4) + b"x"
    assert read_orientation(exif) == (6 if tagged else None)
    patched = with_orientation(exif, 3)
    assert patched is not None and read_orientation(patched) == 3
    assert patched[8:].startswith(exif[8:]) or (tagged and len(patched) == len(exif))
    loaded = Image.Exif()
    loaded.load(b"Exif\0\0" + patched)
    assert loaded[0x0112] == 3 and set(loaded) == {0x010F, 0x0112, 0x0131}


BROKEN_EXIF = {
    "empty": b"",
    "short": b"II*\0",
    "noise": b"no TIFF structure",
    "far": b"II*\0" + struct.pack("<I", 2**32 - 1),
    "cut": make_exif()[:20],
    "long": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(9),
}


@pytest.mark.parametrize("exif", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
def test_broken_exif_harms_nothing(exif: bytes) -> None:
    assert read_orientation(exif) is None and with_orientation(exif, 1) is None
    picture = replace(full_picture(), exif=exif, orientation=1)
    assert upright(picture).exif == exif
    for format in (*HOLDS_METADATA, "bmp"):
        read_picture(io.BytesIO(encode_picture(picture, format)[0]))
    for turned in (
        upright(replace(picture, orientation=6)),
        tag_orientation(replace(picture, orientation=6)),
    ):
        assert turned.notes == (
            "EXIF dropped: it is damaged and its orientation cannot be corrected",
        )
    assert turned.exif == minimal_exif(6)


def test_every_damage_of_exif_is_survived() -> None:
    exif = make_exif()
    for bit in range(8 * 64):
        damaged = bytearray(exif)
        damaged[bit // 8] ^= 1 << bit % 8
        read_orientation(bytes(damaged))
        patched = with_orientation(bytes(damaged), 5)
        assert patched is None or read_orientation(patched) == 5


def test_metadata_behind_the_pixels_of_a_png_is_found() -> None:
    exif = make_exif(3)
    data = save(Image.fromarray(colours()), "PNG").getvalue()
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    assert read_picture(io.BytesIO(data[:-12] + chunk + data[-12:])).orientation == 3


# Writing


def test_the_suffix_chooses_the_format(tmp_path: Path) -> None:
    signatures = {
        "a.png": b"\x89PNG",
        "a.JPG": b"\xff\xd8",
        "a.webp": b"RIFF",
        "a.tif": b"II*\0",
        "a.bmp": b"BM",
        "a.ppm": b"P6",
    }
    for name, signature in signatures.items():
        write_picture(Picture(pixels=colours()), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(signature)
    write_picture(Picture(pixels=colours()), tmp_path / "b.jpg", format="png")
    assert (tmp_path / "b.jpg").read_bytes().startswith(b"\x89PNG")
    output = io.BytesIO()
    assert write_picture(Picture(pixels=colours()), output, format=".PNG") == ()
    np.testing.assert_array_equal(read_picture(output).pixels, colours())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    picture = Picture(pixels=colours())
    for target in (tmp_path / "a.xyz", tmp_path / "a", io.BytesIO()):
        with pytest.raises(OutputError, match="cannot write pictures as"):
            write_picture(picture, target)
    with pytest.raises(OutputError, match="No such file"):
        write_picture(picture, tmp_path / "missing" / "a.png")
    wide = Picture(pixels=np.zeros((1, 17000, 3), np.uint8))
    with pytest.raises(OutputError, match="17000 x 1"):
        write_picture(wide, tmp_path / "wide.webp")
    assert not list(tmp_path.iterdir())


def test_reading_and_writing_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("png", "jpg", "webp", "tiff", "bmp", "ppm"):
            read_picture(io.BytesIO(encode_picture(full_picture(), format)[0]))
