import copy
import io
import pickle
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from lic.codec import pillow_plugin
from lic.codec.codec_cache import SHARED
from lic.codec.decoding import decompress
from lic.codec.errors import LicError, ModelMismatchError
from lic.codec.image_io import Picture, read_picture, upright
from lic.codec.lossless import compress_lossless
from lic.codec.pillow_plugin import LicImageFile
from lic.codec.pipeline import Codec, open_codec
from tests.codec.profiles import cmyk_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def image(photo: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(photo)


@pytest.fixture(scope="module")
def data(photo: NDArray[np.uint8]) -> bytes:
    """A .lic file of `image`."""
    return open_codec().compress(Picture(pixels=photo)).data


def saved(image: Image.Image, **options: Any) -> bytes:
    output = io.BytesIO()
    image.save(output, format="LIC", **options)
    return output.getvalue()


def opened(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data))


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "Maker"
    return exif


def forge(data: bytes, width: int, height: int) -> bytes:
    """The file with another size in its header, and the checksum to it."""
    head = bytearray(data[12:48])
    head[8:16] = struct.pack("<II", width, height)
    return data[:12] + bytes(head) + struct.pack("<I", zlib.crc32(head)) + data[52:]


# Opening


def test_a_file_opens_as_any_other_picture(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "photo.LIC"
    path.write_bytes(data)
    with Image.open(path) as image:
        assert isinstance(image, LicImageFile)
        assert (image.format, image.size, image.mode) == ("LIC", (144, 96), "RGB")
        assert image.get_format_mimetype() == "image/x-lic"
        assert np.array_equal(np.asarray(image), decompress(data).picture.pixels)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_mode_says_what_is_there(photo: NDArray[np.uint8], channels: int, alpha: bool) -> None:
    picture = Picture(pixels=photo[..., :channels], alpha=photo[..., 1] if alpha else None)
    for encoded in (open_codec().compress(picture), compress_lossless(picture)):
        image = opened(encoded.data)
        assert image.mode == {1: "L", 3: "RGB"}[channels] + ("A" if alpha else "")
        assert image.info["lossless"] == (encoded.header.rate_point == 0)
        assert np.array_equal(np.asarray(image), decompress(encoded.data).picture.samples)


class Counted(io.BytesIO):
    """A stream that counts the bytes that are read from it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        self.count += len(found)
        return found


def test_opening_reads_the_metadata_and_nothing_else(
    photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, photo.shape[:2], dtype=np.uint8)
    picture = Picture(pixels=photo, alpha=noise, icc=bytes(1000), exif=b"II*\0", xmp=XMP)
    data = compress_lossless(picture).data
    assert len(data) > 30_000
    monkeypatch.setattr(pillow_plugin, "decompress", None)
    stream = Counted(data)
    # What other formats read to find that it is not theirs is their affair.
    assert Image.open(stream, formats=["LIC"]).info["icc_profile"] == bytes(1000)
    assert stream.count < 2000


def test_metadata_is_where_programs_look_for_it(photo: NDArray[np.uint8]) -> None:
    codec = open_codec()
    exif = exif_with(6).tobytes()
    picture = Picture(pixels=photo, icc=SRGB, exif=exif[6:], xmp=XMP, orientation=6)
    image = opened(codec.compress(picture).data)
    assert image.info["icc_profile"] == SRGB
    assert image.info["exif"] == exif
    assert image.info["xmp"] == XMP
    assert image.getexif()[ORIENTATION] == 6
    assert image.info["rate_point"] == codec.bundle.manifest.rate_point
    assert image.info["fingerprint"] == codec.bundle.file_fingerprint.hex()
    assert "model" not in image.info


def test_a_foreign_model_is_named(tiny_bundle: Path, photo: NDArray[np.uint8]) -> None:
    data = saved(Image.fromarray(photo), bundle=tiny_bundle)
    assert opened(data).info["model"] == "tiny-relu q1"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_header_decides_which_way_up(photo: NDArray[np.uint8], orientation: int) -> None:
    """Whatever EXIF and XMP say, or where there is neither."""
    for exif in (None, exif_with(3).tobytes()[6:]):
        picture = Picture(pixels=photo, exif=exif, xmp=XMP, orientation=orientation)
        data = compress_lossless(picture).data
        image = opened(data)
        assert image.getexif().get(ORIENTATION, 1) == orientation
        shown = ImageOps.exif_transpose(image)
        assert np.array_equal(np.asarray(shown), upright(decompress(data).picture).pixels)


def test_other_files_are_not_lics() -> None:
    with pytest.raises(SyntaxError, match="not a"):
        LicImageFile(io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(100)))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"\x89LI" + bytes(100)), formats=["LIC"])
    with pytest.raises(OSError, match="text mode"):
        Image.open(io.BytesIO(b"\x89LIC\n\x1a\n" + bytes(100)))


@pytest.mark.parametrize("size", [(2**16, 2**15), (2**31, 1), (2**18, 2**18), (2**32 - 1,) * 2])
def test_a_forged_size_is_pillows_bomb_in_milliseconds(data: bytes, size: tuple[int, int]) -> None:
    forged = forge(data, *size)
    # With nothing behind the header, too: the size is looked at first.
    for stream in (io.BytesIO(forged), io.BytesIO(forged[:52])):
        Image.preinit()
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(Image.DecompressionBombError):
            Image.open(stream)
        spent = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert spent < 0.05
        assert peak < 100_000


def test_pillows_limit_is_the_users(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 144 * 96 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        opened(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    huge = opened(forge(data, 2**16, 2**15))
    assert huge.size == (2**16, 2**15)
    with pytest.raises(Image.DecompressionBombError, match="of the format"):
        opened(forge(data, 2**31, 1))


# Loading


def test_pixels_are_decoded_once_and_only_when_wanted(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bytes] = []

    def watched(data: bytes, **options: Any) -> Any:
        calls.append(data)
        return decompress(data, **options)

    monkeypatch.setattr(pillow_plugin, "decompress", watched)
    path = tmp_path / "a.lic"
    path.write_bytes(data)
    image = Image.open(path)
    assert calls == []
    image.getpixel((0, 0))
    image.load()
    assert image.fp is None
    path.unlink()
    assert image.resize((8, 8)).size == (8, 8)
    assert calls == [data]


def test_copies_and_pickles(data: bytes) -> None:
    pixels = np.asarray(opened(data))
    for make in (
        Image.Image.copy, copy.copy, copy.deepcopy, lambda image: pickle.loads(pickle.dumps(image))
    ):  # fmt: skip
        other = make(opened(data))
        assert np.array_equal(np.asarray(other), pixels)
        assert other.info["rate_point"] == 3


def test_a_parser_may_be_fed_in_parts(data: bytes) -> None:
    parser = ImageFile.Parser()
    for start in range(0, len(data), 1000):
        parser.feed(data[start : start + 1000])
    assert np.array_equal(np.asarray(parser.close()), np.asarray(opened(data)))


@pytest.mark.parametrize("truncated_too", [False, True])
def test_damage_and_truncation_are_an_oserror_and_no_picture(
    photo: NDArray[np.uint8], truncated_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_too)
    picture = Picture(pixels=photo[:12, :10], icc=b"profile", exif=b"II*\0")
    file = open_codec().compress(picture).data
    damaged = [file[:length] for length in range(len(file))]
    for bit in range(len(file) * 8):
        flipped = bytearray(file)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for bad in damaged:
        with pytest.raises(OSError) as failure:
            opened(bad).load()
        assert len(str(failure.value)) > 15
    assert opened(file).load() is not None


def test_verify_needs_no_model_and_finds_every_damage(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pillow_plugin, "decompress", None)
    opened(data).verify()
    broken = bytearray(data)
    broken[-20] ^= 1
    for bad in (data[:-1], bytes(broken)):
        image = opened(bad)
        with pytest.raises(OSError, match="chunk TILE"):
            image.verify()
    verified = opened(data)
    verified.verify()
    with pytest.raises(RuntimeError, match="directly after open"):
        verified.verify()


def test_messages_name_the_file_and_the_error_behind(
    tiny_bundle: Path, image: Image.Image, tmp_path: Path
) -> None:
    path = tmp_path / "a.lic"
    image.save(path, bundle=tiny_bundle, lossless=False)
    SHARED.clear()
    with (
        Image.open(path) as foreign,
        pytest.raises(OSError, match=r"a\.lic: the file was made with model \w{16}") as failure,
    ):
        foreign.load()
    assert isinstance(failure.value.__cause__, ModelMismatchError)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(OSError, match=r"a\.lic: file truncated"):
        Image.open(path)


# Saving


def test_quality_is_a_rate_point(image: Image.Image, photo: NDArray[np.uint8]) -> None:
    for quality in (1, np.int64(4)):
        expected = open_codec(rate_point=int(quality)).compress(Picture(pixels=photo)).data
        assert saved(image, quality=quality) == expected
    assert saved(image) == saved(image, quality=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 75}, "quality is 75: .* has no rate point 75; it has 1, 2, 3, 4"),
        ({"quality": "high"}, "quality is 'high'; expected a rate point"),
        ({"quality": 2.5}, "quality is 2.5; expected a rate point"),
        ({"quality": True}, "quality is True; expected a rate point"),
        ({"lossless": True, "quality": 3}, "lossless=True takes no quality"),
        ({"lossless": True, "bundle": "lite"}, "lossless=True takes no bundle"),
        ({"lossless": "yes"}, "lossless is 'yes'; expected True, False or None"),
        ({"exif": "text", "xmp": 5}, "xmp is of type int; expected bytes"),
        ({"save_all": True}, "a .lic file holds one picture; leave out save_all"),
        ({"append_images": [Image.new("L", (1, 1))]}, "a .lic file holds one picture"),
    ],
)
def test_options_that_cannot_work_are_a_valueerror_and_leave_no_file(
    image: Image.Image, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        image.save(tmp_path / "a.lic", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_is_named_or_its_path_given(
    image: Image.Image, tiny_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    expected = open_codec(str(tiny_bundle)).compress(Picture(pixels=photo)).data
    assert saved(image, bundle=tiny_bundle) == saved(image, bundle=str(tiny_bundle)) == expected
    name = "bmshj2018-factorized-relu-128-192"
    expected = open_codec(name, 1).compress(Picture(pixels=photo)).data
    assert saved(image, bundle=name, quality=1) == expected
    with pytest.raises(OSError, match="no bundle 'unheard-of'"):
        saved(image, bundle="unheard-of")


def test_lossless_is_asked_for_or_chosen(image: Image.Image) -> None:
    assert opened(saved(image)).info["lossless"] is False
    exact = opened(saved(image, lossless=True))
    assert exact.info["lossless"] is True
    assert exact.tobytes() == image.tobytes()
    drawing = Image.new("RGB", (200, 100), "navy")
    assert opened(saved(drawing)).info["lossless"] is True
    assert opened(saved(drawing, lossless=False)).info["lossless"] is False


def palette(image: Image.Image) -> Image.Image:
    converted = image.quantize(16)
    converted.info["transparency"] = 3
    return converted


def cmyk(image: Image.Image) -> Image.Image:
    converted = image.convert("CMYK")
    converted.info["icc_profile"] = cmyk_profile()
    return converted


def gray16(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("convert", "format"),
    [
        (lambda image: image.convert("1"), "PNG"),
        (lambda image: image.convert("LA").rotate(10), "PNG"),
        (lambda image: image.convert("RGBA").rotate(10), "PNG"),
        (lambda image: image.convert("RGBA"), "PNG"),
        (palette, "PNG"),
        (cmyk, "TIFF"),
        (gray16, "PNG"),
    ],
)
def test_every_mode_is_coded_as_a_file_of_it_is(
    image: Image.Image, convert: Callable[[Image.Image], Image.Image], format: str
) -> None:
    image = convert(image)
    stream = io.BytesIO()
    image.save(stream, format=format, icc_profile=image.info.get("icc_profile"))
    picture = read_picture(stream)
    here = decompress(saved(image, lossless=True)).picture
    assert np.array_equal(here.samples, picture.samples)
    assert (here.bit_depth, here.icc) == (picture.bit_depth, None)
    with Image.open(stream) as source:
        expected = replace(picture, exif=None, xmp=None)
        assert saved(source) == open_codec().compress(expected, lossless=None).data


def test_ycbcr_is_coded_as_rgb(image: Image.Image) -> None:
    converted = image.convert("YCbCr")
    assert opened(saved(converted, lossless=True)).tobytes() == converted.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["F", "I", "HSV", "CMYK"])
def test_samples_without_a_clear_meaning_are_an_oserror(mode: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="convert"):
        Image.new(mode, (20, 20)).save(tmp_path / "a.lic")
    assert list(tmp_path.iterdir()) == []


def test_metadata_is_written_when_given_and_profiles_are_kept(image: Image.Image) -> None:
    image = image.copy()
    image.info |= {"icc_profile": SRGB, "exif": exif_with(3).tobytes(), "xmp": b"old"}
    plain = opened(saved(image))
    assert plain.info["icc_profile"] == SRGB
    assert not {"exif", "xmp"} & plain.info.keys()
    for exif in (exif_with(6), exif_with(6).tobytes()):
        given = opened(saved(image, exif=exif, xmp=XMP.decode(), icc_profile=None))
        assert given.info["exif"] == exif_with(6).tobytes()
        assert given.info["xmp"] == XMP
        assert "icc_profile" not in given.info
    assert decompress(saved(image, exif=exif_with(6))).picture.orientation == 6
    assert saved(image, exif=Image.Exif(), xmp=b"") == saved(image)


class WriteOnly(io.RawIOBase):
    """A stream that can neither seek nor be read."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        return len(data)


class ReadOnly(io.BytesIO):
    """A stream that cannot seek."""

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation

    def seekable(self) -> bool:
        return False


def test_streams_of_every_kind(image: Image.Image, data: bytes) -> None:
    target: Any = WriteOnly()
    image.save(target, format="LIC", lossless=False)
    assert b"".join(target.parts) == data
    assert np.array_equal(np.asarray(Image.open(ReadOnly(data))), np.asarray(opened(data)))
    stream: IO[bytes] = io.BytesIO(data)
    Image.open(stream).load()
    assert not stream.closed


def test_a_picture_is_saved_over_its_own_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.lic"
    path.write_bytes(data)
    with Image.open(path) as image:
        image.save(path, quality=1)
    with Image.open(path) as image:
        assert image.info["rate_point"] == 1


# The process


def test_settings_count_from_the_next_picture_on(
    image: Image.Image, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def watched(self: Codec, bundle: Any, **options: Any) -> None:
        seen.append(options)
        construct(self, bundle, **options)

    construct = Codec.__init__
    monkeypatch.setattr(Codec, "__init__", watched)
    SHARED.clear()
    opened(data).load()
    monkeypatch.setattr(pillow_plugin, "THREADS", 1)
    opened(data).load()
    saved(image)
    monkeypatch.setattr(pillow_plugin, "BACKEND", "torch")
    saved(image)
    assert [(s["backend"], s["device"], s["threads"]) for s in seen] == [
        ("auto", "cpu", 0), ("auto", "cpu", 1), ("torch", "cpu", 1)
    ]  # fmt: skip
    monkeypatch.setattr(pillow_plugin, "BACKEND", "abacus")
    for use in (lambda: saved(image), opened(data).load):
        with pytest.raises(ValueError, match="backend is 'abacus'") as failure:
            use()
        assert isinstance(failure.value.__cause__, LicError)


def test_many_threads_open_load_and_save_at_once(
    image: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each its own pictures, all with one codec of each model."""
    monkeypatch.setattr(pillow_plugin, "THREADS", 1)
    pictures = [image.rotate(3 * i) for i in range(8)]
    expected = [saved(picture, quality=1 + i % 2) for i, picture in enumerate(pictures)]
    pixels = [opened(file).tobytes() for file in expected]
    SHARED.clear()
    together = threading.Barrier(8)

    def work(i: int) -> None:
        together.wait()
        for _ in range(2):
            file = saved(pictures[i], quality=1 + i % 2)
            assert file == expected[i]
            assert opened(file).tobytes() == pixels[i]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_a_forked_process_opens_pictures_as_well(data: bytes, tmp_path: Path) -> None:
    """As workers of a data loader do, whatever other threads were at when they were forked."""
    (tmp_path / "a.lic").write_bytes(data)
    code = """
import os, threading, weakref
from PIL import Image
import lic.codec.pillow_plugin as plugin
from lic.codec.codec_cache import SHARED
from lic.codec.pipeline import Codec

plugin.THREADS = 2
Image.open("a.lic").load()
before = weakref.ref(SHARED.encoder(**plugin._engine()))

def open_slowly(self, *arguments, **options):
    if threading.current_thread() is not threading.main_thread():
        opening.set()
        done.wait()
    construct(self, *arguments, **options)

opening, done = threading.Event(), threading.Event()
construct, Codec.__init__ = Codec.__init__, open_slowly
plugin.THREADS = 3
thread = threading.Thread(target=Image.open("a.lic").load)
thread.start()
opening.wait()
child = os.fork()
if not child:
    for plugin.THREADS in (2, 3):
        Image.open("a.lic").load()
    # To free a session would wait for threads that are not there.
    assert before() not in (None, SHARED.encoder(**{**plugin._engine(), "threads": 2}))
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
done.set()
thread.join()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=30)
