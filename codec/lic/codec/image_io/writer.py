"""Arrays and metadata to picture files, through Pillow."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lic.codec.errors import OutputError
from lic.codec.image_io.exif import EXIF_PREFIX, EXIF_SUBDIRECTORIES, descriptive_tags
from lic.codec.image_io.picture import Picture, tag_orientation, upright

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
    kept = upright(kept) if bake_orientation else tag_orientation(kept)
    notes = list(kept.notes)
    options = _OPTIONS[kind](kept, notes)
    output = io.BytesIO()
    try:
        Image.fromarray(kept.samples).save(output, format=kind, **options)
    # Encoders refuse sizes and metadata with exceptions of any type.
    except Exception as error:
        size = f"{kept.width} x {kept.height}"
        raise OutputError(f"{kind} cannot hold this picture ({size}): {error}") from error
    return output.getvalue(), tuple(notes)


def _without_unsupported(picture: Picture, kind: str) -> Picture:
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


def _png_options(picture: Picture, notes: list[str]) -> _Options:
    options: _Options = _present(icc_profile=picture.icc, exif=picture.exif)
    if picture.xmp is not None:
        try:
            text = PngInfo()
            text.add_itxt("XML:com.adobe.xmp", picture.xmp.decode())
            options["pnginfo"] = text
        except UnicodeDecodeError:
            notes.append("XMP dropped: it is not UTF-8")
    return options


def _jpeg_options(picture: Picture, notes: list[str]) -> _Options:
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


def _webp_options(picture: Picture, notes: list[str]) -> _Options:
    del notes
    blobs = _present(icc_profile=picture.icc, exif=picture.exif, xmp=picture.xmp)
    # exact: colours under full transparency are part of the picture.
    return {"lossless": True, "exact": True} | blobs


def _tiff_options(picture: Picture, notes: list[str]) -> _Options:
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


def _no_options(picture: Picture, notes: list[str]) -> _Options:
    del picture, notes
    return {}


def _present(**blobs: bytes | None) -> _Options:
    return {name: blob for name, blob in blobs.items() if blob is not None}


_OPTIONS: Final[dict[str, Callable[[Picture, list[str]], _Options]]] = {
    "PNG": _png_options,
    "JPEG": _jpeg_options,
    "WEBP": _webp_options,
    "TIFF": _tiff_options,
    "BMP": _no_options,
    "PPM": _no_options,
}
