"""Large pictures are read and written by and by, and become the files that they always became."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.errors import ImageError, OutputError
from lic.codec.image_io import (
    LazyPicture,
    Picture,
    PictureInParts,
    encode_picture,
    open_picture,
    orient,
    read_picture,
    write_parts,
)
from lic.codec.image_io.large import RawPixels

AREAS = [
    (slice(0, 96), slice(0, 144)),
    (slice(10, 11), slice(140, 160)),
    (slice(90, 200), slice(0, 3)),
]


def stored(pixels: NDArray[np.uint8], mode: str, kind: str, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("RGB", "PPM"), ("L", "PPM"), ("RGB", "JPEG"),
     ("L", "JPEG"), ("RGB", "TIFF"), ("RGB", "WEBP"), ("RGB", "BMP")],
)  # fmt: skip
def test_areas_are_those_of_the_whole_picture(
    photo: NDArray[np.uint8], mode: str, kind: str
) -> None:
    file = stored(photo, mode, kind)
    expected = read_picture(file)
    with open_picture(file, lazy_above=1) as picture:
        assert isinstance(picture, LazyPicture)
        assert (picture.height, picture.width) == (96, 144)
        assert picture.channels == expected.channels
        for area in AREAS:
            np.testing.assert_array_equal(picture.source[area], expected.pixels[area])
        np.testing.assert_array_equal(picture.pixels, expected.pixels)
        assert picture.notes == expected.notes and picture.bit_depth == expected.bit_depth


def test_alpha_and_metadata_come_along(photo: NDArray[np.uint8]) -> None:
    alpha = np.arange(96 * 144, dtype=np.uint32).reshape(96, 144) % 256
    samples = np.concatenate([photo, alpha[..., None].astype(np.uint8)], axis=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = stored(samples, "RGBA", "PNG", icc_profile=b"profile", exif=exif)
    expected = read_picture(file)
    with open_picture(file, lazy_above=1) as picture:
        assert isinstance(picture, LazyPicture)
        assert expected.alpha is not None and picture.alpha is not None
        np.testing.assert_array_equal(picture.alpha, expected.alpha)
        assert (picture.icc, picture.exif, picture.orientation) == (b"profile", expected.exif, 6)


@pytest.mark.parametrize(("mode", "kind"), [("P", "PNG"), ("LA", "PNG"), ("1", "PPM")])
def test_other_samples_are_read_at_once(photo: NDArray[np.uint8], mode: str, kind: str) -> None:
    file = stored(photo, mode, kind)
    expected = read_picture(file)
    with open_picture(file, lazy_above=1) as picture:
        assert isinstance(picture, Picture)
        np.testing.assert_array_equal(picture.pixels, expected.pixels)
        assert picture.notes == expected.notes and picture.bit_depth == expected.bit_depth


def test_deep_samples_are_read_at_once() -> None:
    deep = io.BytesIO(b"P5\n3 2\n65535\n" + bytes(range(12)))
    with open_picture(deep, lazy_above=1) as picture:
        assert isinstance(picture, Picture) and picture.bit_depth == 16


def test_small_pictures_are_read_at_once(photo: NDArray[np.uint8]) -> None:
    with open_picture(stored(photo, "RGB", "PNG")) as picture:
        assert isinstance(picture, Picture)


def test_a_ppm_that_is_too_short_is_refused(photo: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    path.write_bytes(stored(photo, "RGB", "PPM").getvalue()[:-1])
    with (
        pytest.raises(ImageError, match=r"a\.ppm: truncated: found 41471 .* expected 41472"),
        open_picture(path, lazy_above=1),
    ):
        pass


def test_a_ppm_that_is_cut_meanwhile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    path.write_bytes(bytes(100))
    with path.open("r+b") as file:
        pixels = RawPixels(file, 0, (10, 10, 1))
        file.truncate(50)
        with pytest.raises(ImageError, match="shorter"):
            pixels[slice(0, 10), slice(0, 10)]


def in_parts(picture: Picture, rows: int = 40, columns: int = 50) -> PictureInParts:
    """Return a picture that comes in parts of so many px."""
    parts = []
    for top in range(0, picture.height, rows):
        for left in range(0, picture.width, columns):
            bottom, right = min(top + rows, picture.height), min(left + columns, picture.width)
            area = slice(top, bottom), slice(left, right)
            parts.append((area, picture.pixels[area]))
    return PictureInParts(
        size=(picture.height, picture.width, picture.channels),
        parts=iter(parts),
        alpha=picture.alpha,
        orientation=picture.orientation,
        icc=picture.icc,
        exif=picture.exif,
    )


@pytest.mark.parametrize("format", ["png", "ppm", "tiff", "webp", "jpg", "bmp"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bake", [True, False])
def test_parts_make_the_file_that_the_whole_makes(
    photo: NDArray[np.uint8], format: str, orientation: int, bake: bool
) -> None:
    alpha = np.tile(np.arange(144, dtype=np.uint8), (96, 1))
    for picture in (
        Picture(pixels=photo, alpha=alpha, orientation=orientation, icc=b"profile"),
        Picture(pixels=photo[..., :1], orientation=orientation),
    ):
        expected, notes = encode_picture(picture, format, bake_orientation=bake)
        file = io.BytesIO()
        written = write_parts(in_parts(picture), file, format, bake_orientation=bake)
        assert file.getvalue() == expected
        assert written == (len(expected), notes)
        if format == "png" and bake:
            again = read_picture(io.BytesIO(expected))
            np.testing.assert_array_equal(again.pixels, orient(picture.pixels, orientation))


class Pipe(io.RawIOBase):
    """A file that takes bytes and nothing else."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.data += data
        return len(data)


def test_a_ppm_goes_into_a_pipe_band_by_band(photo: NDArray[np.uint8]) -> None:
    picture = in_parts(Picture(pixels=photo))
    pipe = Pipe()
    seen = []

    def watched() -> Any:
        for area, pixels in picture.parts:
            seen.append((area[0].start, len(pipe.data)))
            yield area, pixels

    parts = PictureInParts(size=picture.size, parts=watched())
    written = write_parts(parts, pipe, "ppm")  # type: ignore[arg-type]
    assert pipe.data == encode_picture(Picture(pixels=photo), "ppm")[0]
    assert written.size == len(pipe.data)
    # The second row of parts comes when the first is out.
    assert next(count for row, count in seen if row == 40) >= 40 * 144 * 3


class Full(io.BytesIO):
    """A disk without room."""

    def write(self, _: Any, /) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("format", ["png", "ppm", "jpg"])
def test_a_full_disk_is_no_fault_of_the_picture(photo: NDArray[np.uint8], format: str) -> None:
    with pytest.raises(OSError, match="No space left"):
        write_parts(in_parts(Picture(pixels=photo)), Full(), format)


def test_unknown_formats_are_refused_before_anything_is_decoded() -> None:
    def parts() -> Any:
        raise AssertionError("decoded in vain")
        yield

    with pytest.raises(OutputError, match="cannot write pictures as 'gif'"):
        write_parts(PictureInParts(size=(1, 1, 1), parts=parts()), io.BytesIO(), "gif")
