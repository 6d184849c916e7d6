"""Arrays and metadata to picture files, through Pillow."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lic.codec.errors import OutputError
from lic.codec.image_io.exif import EXIF_PREFIX, EXIF_SUBDIRECTORIES, descriptive_tags
from lic.codec.image_io.picture import (
    Described,
    Picture,
    PictureInParts,
    in_one_part,
    tag_orientation,
    turned_parts,
)

# Every suffix on the right of a name that can be written, and Pillow's name of the format.
WRITABLE: Final = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
}

_JPEG_SEGMENT_BYTES: Final = 65533
_XMP_PREFIX_BYTES: Final = len(b"http://ns.adobe.com/xap/1.0/\0")
_XMP_TAG: Final = 0x02BC

_Options = dict[str, Any]


def write_picture(
    picture: Picture,
    target: Path | BinaryIO,
    *,
    format: str | None = None,
    bake_orientation: bool = True,
) -> tuple[str, ...]:
    """Write a picture file and return notes on what the format could not hold.

    The file is complete in memory before `target` is touched. An existing file is replaced.

    Args:
        picture: What to write.
        target: A path, or a file open for writing.
        format: A suffix such as "png"; by default that of the path.
        bake_orientation: Apply the orientation to the pixels; otherwise write it as an EXIF tag,
            where the format has EXIF. Never both.

    Raises:
        OutputError: Unknown format, a picture that the format cannot hold, or a failed write.
    """
    suffix = format if format is not None else target.suffix if isinstance(target, Path) else ""
    data, notes = encode_picture(picture, suffix, bake_orientation=bake_orientation)
    try:
        if isinstance(target, Path):
            target.write_bytes(data)
        else:
            target.write(data)
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror or error}") from error
    return notes


def encode_picture(
    picture: Picture, format: str, *, bake_orientation: bool = True
) -> tuple[bytes, tuple[str, ...]]:
    """Return a picture file and notes on what it could not hold; see `write_picture`."""
    output = io.BytesIO()
    written = write_parts(in_one_part(picture), output, format, bake_orientation=bake_orientation)
    return output.getvalue(), written.notes


class Written(NamedTuple):
    """Bytes of a picture file, and notes on what it could not hold."""

    size: int
    notes: tuple[str, ...]


def write_parts(
    picture: PictureInParts, target: BinaryIO, format: str, *, bake_orientation: bool = True
) -> Written:
    """Write a picture file as its parts come, into an empty file.

    PPM and PGM are written part by part, without seeking, unless the picture must be turned for
    them; for other formats Pillow holds the picture, 4 bytes a pixel (gray: 1), and the target
    must be able to seek.

    Raises:
        OutputError: Unknown format, or a picture that the format cannot hold.
        OSError: The target cannot be written to.
    """
    kind = WRITABLE.get("." + format.lower().removeprefix("."))
    if kind is None:
        known = " ".join(sorted(WRITABLE))
        raise OutputError(
            f"cannot write pictures as {format or 'a file without suffix'!r}: {known}"
        )
    kept = _without_unsupported(replace(picture, notes=()), kind)
    if not bake_orientation and kind in ("BMP", "PPM") and kept.orientation != 1:
        kept = replace(kept, notes=(*kept.notes, f"{kind} holds no orientation: pixels turned"))
        bake_orientation = True
    kept = turned_parts(kept) if bake_orientation else tag_orientation(kept)
    notes = list(kept.notes)
    options = _OPTIONS[kind](kept, notes)
    if kind == "PPM" and picture.orientation in (1, 2):
        return Written(_write_raw(kept, target), tuple(notes))
    image = _assembled(kept)
    try:
        # Through a file's number Pillow would write by itself, and not tell what went wrong.
        image.save(cast(BinaryIO, _Unnumbered(target)), format=kind, **options)
    # Encoders refuse sizes and metadata with exceptions of any type.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        size = f"{kept.width} x {kept.height}"
        raise OutputError(f"{kind} cannot hold this picture ({size}): {error}") from error
    return Written(target.seek(0, io.SEEK_END), tuple(notes))


class _Unnumbered:
    """A file without a number, as far as its users can see."""

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.seek, self.tell = file.write, file.seek, file.tell
        self.read, self.flush = file.read, file.flush


def _write_raw(picture: PictureInParts, target: BinaryIO) -> int:
    """Write a PPM or PGM, and return its bytes; a row of parts is in memory at a time."""
    height, width, channels = picture.size
    head = b"P%d\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height)
    target.write(head)
    band = np.empty((0, width, channels), np.uint8)
    filled = 0
    for (rows, columns), pixels in picture.parts:
        if not filled:
            band = np.empty((rows.stop - rows.start, width, channels), np.uint8)
        band[:, columns] = pixels
        filled += columns.stop - columns.start
        if filled == width:
            target.write(band.data)
            filled = 0
    return len(head) + height * width * channels


def _assembled(picture: PictureInParts) -> Image.Image:
    """Return Pillow's image of all parts, with alpha."""
    image = None
    for (rows, columns), pixels in picture.parts:
        samples = pixels
        if picture.alpha is not None:
            samples = np.concatenate([pixels, picture.alpha[rows, columns, None]], axis=2)
        # (H, W, 1) is no gray picture to Pillow.
        part = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
        if part.size == (picture.width, picture.height):
            return part
        if image is None:
            image = Image.new(part.mode, (picture.width, picture.height))
        image.paste(part, (columns.start, rows.start))
    assert image is not None, "a picture has a part"
    return image


def _without_unsupported(picture: PictureInParts, kind: str) -> PictureInParts:
    """Drop what a format has no place for, with a note each."""
    lost = {}
    if kind in ("JPEG", "BMP", "PPM"):
        lost["alpha"] = "alpha"
    if kind in ("BMP", "PPM"):
        lost |= {"icc": "ICC profile", "exif": "EXIF", "xmp": "XMP"}
    # WebP stores gray as RGB, which a gray profile cannot describe.
    if kind == "WEBP" and (picture.icc or b"")[16:20] == b"GRAY":
        lost["icc"] = "gray ICC profile"
    dropped = {name: text for name, text in lost.items() if getattr(picture, name) is not None}
    notes = tuple(f"{text} dropped: {kind} has no place for it" for text in dropped.values())
    return replace(picture, **dict.fromkeys(dropped), notes=picture.notes + notes)  # type: ignore[arg-type]


def _png_options(picture: Described, notes: list[str]) -> _Options:
    options: _Options = _present(icc_profile=picture.icc, exif=picture.exif)
    if picture.xmp is not None:
        try:
            text = PngInfo()
            text.add_itxt("XML:com.adobe.xmp", picture.xmp.decode())
            options["pnginfo"] = text
        except UnicodeDecodeError:
            notes.append("XMP dropped: it is not UTF-8")
    return options


def _jpeg_options(picture: Described, notes: list[str]) -> _Options:
    notes.append("JPEG is lossy: pixels were coded again at quality 95")
    exif = None if picture.exif is None else EXIF_PREFIX + picture.exif
    if exif is not None and len(exif) > _JPEG_SEGMENT_BYTES:
        exif = None
        notes.append("EXIF dropped: too long for JPEG")
    xmp = picture.xmp
    if xmp is not None and len(xmp) > _JPEG_SEGMENT_BYTES - _XMP_PREFIX_BYTES:
        xmp = None
        notes.append("XMP dropped: too long for JPEG")
    return {"quality": 95, "subsampling": 0} | _present(icc_profile=picture.icc, exif=exif, xmp=xmp)


def _webp_options(picture: Described, notes: list[str]) -> _Options:
    del notes
    blobs = _present(icc_profile=picture.icc, exif=picture.exif, xmp=picture.xmp)
    # exact: colours under full transparency are part of the picture.
    return {"lossless": True, "exact": True} | blobs


def _tiff_options(picture: Described, notes: list[str]) -> _Options:
    tags = Image.Exif()
    if picture.exif is not None:
        try:
            tags.load(EXIF_PREFIX + picture.exif)
            tags = descriptive_tags(tags)
        # Pillow raises what it likes on damaged EXIF.
        except Exception:
            tags = Image.Exif()
            notes.append("EXIF dropped: it is damaged and TIFF needs it as tags")
    if picture.orientation != 1:
        tags[0x0112] = picture.orientation
    if picture.xmp is not None:
        tags[_XMP_TAG] = picture.xmp
    # Pillow writes subdirectories only from bytes, and not through libtiff, which compresses.
    nested = any(tag in tags for tag in EXIF_SUBDIRECTORIES)
    options: _Options = {"compression": "raw" if nested else "tiff_adobe_deflate"}
    return options | {"exif": tags.tobytes()} | _present(icc_profile=picture.icc)


def _no_options(picture: Described, notes: list[str]) -> _Options:
    del picture, notes
    return {}


def _present(**blobs: bytes | None) -> _Options:
    return {name: blob for name, blob in blobs.items() if blob is not None}


_OPTIONS: Final[dict[str, Callable[[Described, list[str]], _Options]]] = {
    "PNG": _png_options,
    "JPEG": _jpeg_options,
    "WEBP": _webp_options,
    "TIFF": _tiff_options,
    "BMP": _no_options,
    "PPM": _no_options,
}
