"""Picture files to arrays and metadata, through Pillow."""

# Shapes: H W pixels as stored, C channels (1 gray, 3 RGB).

import contextlib
import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from lic.codec.errors import ImageError, LicError, LimitError
from lic.codec.image_io.exif import EXIF_PREFIX, descriptive_tags, read_orientation
from lic.codec.image_io.large import ImagePixels, RawPixels
from lic.codec.image_io.picture import LazyPicture, Picture

# Pillow knows more: some formats run other programs (EPS), some accept nearly any bytes (TGA).
READABLE: Final = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "PPM", "GIF", "JPEG2000", "QOI"),
)

READABLE_SUFFIXES: Final = frozenset(
    ".png .jpg .jpeg .jpe .jfif .mpo .webp .avif .tif .tiff .bmp .dib .ppm .pgm .pbm .pnm .gif "
    ".jp2 .j2k .jpx .qoi".split()
)
"""What names of files of these formats end in, in lower case; for picking them out of folders."""

_GRAY_MODES: Final = frozenset({"1", "L", "LA", "La"})
_COLOUR_MODES: Final = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"})
_GRAY16_MODES: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

_Planes = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]

LAZY_PIXELS: Final = 2**22
"""Pictures above this are read by and by where they can be."""

_open_lock = threading.Lock()
_limit_lock = threading.Lock()


def read_picture(
    source: Path | BinaryIO, *, max_pixels: int = 2**28, name: str | None = None
) -> Picture:
    """Read a picture file; of several pictures in it, the first.

    Args:
        source: A path, or an open file; one that cannot seek is read to its end first.
        max_pixels: Largest width x height; 0 lifts the limit.
        name: What messages call the source; by default its path.

    Raises:
        ImageError: Missing, damaged, truncated, or no picture that lic can code.
        LimitError: More than `max_pixels`; no pixel was decoded.
    """
    with open_picture(source, max_pixels=max_pixels, name=name, lazy_above=None) as picture:
        assert isinstance(picture, Picture), "nothing is lazy"
        return picture


@contextlib.contextmanager
def open_picture(
    source: Path | BinaryIO,
    *,
    max_pixels: int = 2**28,
    name: str | None = None,
    lazy_above: int | None = LAZY_PIXELS,
) -> Iterator[Picture | LazyPicture]:
    """Read a picture file as `read_picture` does, a large one by and by: while this is open.

    Of an 8-bit PPM or PGM nothing stays in memory then; of other formats what Pillow takes, if
    the samples are 8-bit gray, RGB or RGBA, and an array as elsewhere if they are not.

    Args:
        source: As for `read_picture`.
        max_pixels: As for `read_picture`.
        name: As for `read_picture`.
        lazy_above: Pixels from which on a picture is large; None: none is.

    Raises:
        ImageError: As for `read_picture`.
        LimitError: As for `read_picture`.
    """
    name = name or (str(source) if isinstance(source, Path) else "input")
    with contextlib.ExitStack() as stack:
        with _image_errors(name):
            stream = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            if not stream.seekable():
                stream = io.BytesIO(stream.read())
            image = open_image(stream, READABLE)
            _check_size(image, max_pixels)
            if lazy_above is None or image.width * image.height <= lazy_above:
                picture: Picture | LazyPicture = picture_from_image(image)
            else:
                picture = _large_picture(image, stream)
        yield picture


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Say of which source something is wrong, whatever Pillow says."""
    try:
        yield
    except LicError as error:
        raise type(error)(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not a picture that lic reads ({', '.join(READABLE)})") from error
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    except MemoryError:
        raise
    # Pillow's decoders let nearly every exception escape on damaged files.
    except Exception as error:
        raise ImageError(f"{name}: damaged picture ({type(error).__name__}: {error})") from error


def _large_picture(image: Image.Image, stream: BinaryIO) -> Picture | LazyPicture:
    """Return a picture that is read by and by where its samples are of a kind that can be."""
    raw = _raw_offset(image)
    if raw is not None:
        shape = (image.height, image.width, 1 if image.mode == "L" else 3)
        return LazyPicture(source=RawPixels(stream, raw, shape))
    rawmode, maximum = _sample_layout(image)
    image.load()
    plain = image.mode in ("L", "RGB") and not image.has_transparency_data
    if not plain and (image.mode != "RGBA" or rawmode.startswith("LA")):
        return picture_from_image(image, layout=(rawmode, maximum))
    facts = _facts(image, rawmode, maximum, None)
    alpha = None if plain else np.asarray(image.getchannel("A"))
    return LazyPicture(source=ImagePixels(image), **_with_alpha(facts, alpha))


def _raw_offset(image: Image.Image) -> int | None:
    """Return where the pixels of an 8-bit PPM or PGM lie, as they are; None of other files."""
    tiles = image.tile if image.format == "PPM" and isinstance(image, ImageFile.ImageFile) else []
    if len(tiles) != 1 or image.mode not in ("L", "RGB"):
        return None
    codec, _, offset, args = tiles[0]
    mode = args[0] if isinstance(args, tuple) else args
    return offset if codec == "raw" and mode == image.mode else None


def open_image(stream: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """Return a lazy image as `open_unlimited` does, and keep Pillow's warnings to ourselves."""
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_unlimited(stream, formats)


def open_unlimited(stream: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """Return `Image.open`'s lazy image without Pillow's own limit on pixels.

    The caller holds the size against its limit before it loads. Pillow's limit is a global that
    protects other threads: its check is left out, and it is lifted only where the reader of a
    format has a check of its own.

    Raises:
        UnidentifiedImageError: Of none of the formats, or its header is damaged.
    """
    Image.init()
    try:
        return _first_that_opens(stream, formats)
    except Image.DecompressionBombError:
        with _limit_lock:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return _first_that_opens(stream, formats)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _first_that_opens(stream: BinaryIO, formats: Sequence[str]) -> Image.Image:
    stream.seek(0)
    prefix = stream.read(16)
    for name in formats:
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        # What `Image.open`, too, takes as "not of this format".
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            accepted = accept is None or accept(prefix)
            # A text says why this Pillow cannot open such files.
            if not accepted or isinstance(accepted, str):
                continue
            stream.seek(0)
            return factory(stream, "")
    raise UnidentifiedImageError("cannot identify image file")


def _check_size(image: Image.Image, max_pixels: int) -> None:
    pixels = image.width * image.height
    if not pixels:
        raise ImageError(f"picture of {image.width} x {image.height} pixels")
    if max_pixels and pixels > max_pixels:
        raise LimitError(
            f"{image.width} x {image.height} is {pixels} pixels, the limit is {max_pixels}"
        )


def picture_from_image(
    image: Image.Image,
    *,
    metadata: Mapping[str, object] | None = None,
    layout: tuple[str, int] | None = None,
) -> Picture:
    """Return a picture of a Pillow image, of one that holds several, the current.

    Args:
        image: Loaded if it is not yet.
        metadata: `icc_profile`, `exif` and `xmp` as bytes, in place of those of the image.
        layout: Of the samples in the file, where the image was loaded before; see `_sample_layout`.

    Raises:
        ImageError: Its samples are of a kind that lic cannot code.
    """
    rawmode, maximum = layout or _sample_layout(image)
    # Metadata may stand behind the pixels (PNG) or be changed by loading them (TIFF).
    image.load()
    facts = _facts(image, rawmode, maximum, metadata)
    if image.mode == "CMYK":
        image, facts["icc"] = _cmyk_to_srgb(image, facts["icc"]), None
        facts["notes"] += ("CMYK converted to sRGB through its profile",)
    pixels, alpha = _planes(image, rawmode)
    return Picture(pixels=pixels, **_with_alpha(facts, alpha))


def _facts(
    image: Image.Image, rawmode: str, maximum: int, metadata: Mapping[str, object] | None
) -> dict[str, Any]:
    """Return the fields of `Described` but for alpha."""
    notes = []
    if getattr(image, "is_animated", False):
        which = f"picture {image.tell() + 1}" if image.tell() else "the first"
        notes.append(f"the file holds several pictures: only {which} was taken")
    depth = _source_depth(image, rawmode, maximum)
    if depth > 8:
        notes.append(f"{depth}-bit input coded as 8 bit")
    blobs = _metadata(image, notes) if metadata is None else metadata
    icc, exif, xmp = (_bytes(blobs.get(key)) for key in ("icc_profile", "exif", "xmp"))
    exif = exif.removeprefix(EXIF_PREFIX) or None if exif else None
    return {
        "bit_depth": depth,
        "orientation": (read_orientation(exif) if exif else None) or 1,
        "icc": icc,
        "exif": exif,
        "xmp": xmp,
        "notes": tuple(notes),
    }


def _with_alpha(facts: dict[str, Any], alpha: NDArray[np.uint8] | None) -> dict[str, Any]:
    if alpha is not None and alpha.min() == 255:
        note = "alpha channel dropped: it is opaque everywhere"
        return {**facts, "notes": (*facts["notes"], note)}
    return {**facts, "alpha": alpha}


def _bytes(blob: object) -> bytes | None:
    return blob if isinstance(blob, bytes) and blob else None


def _sample_layout(image: Image.Image) -> tuple[str, int]:
    """Return Pillow's name for the samples in the file and their maximum (0 if not stated)."""
    tiles = getattr(image, "tile", None)
    args: Any = tiles[0][3] if tiles else ""
    fields = args if isinstance(args, tuple) else (args,)
    rawmode = fields[0] if fields and isinstance(fields[0], str) else ""
    maximum = fields[1] if image.format == "PPM" and len(fields) > 1 else 0
    return rawmode, maximum if isinstance(maximum, int) else 0


def _source_depth(image: Image.Image, rawmode: str, maximum: int) -> int:
    if image.mode == "1":
        return 1
    if maximum > 0:
        return min(maximum.bit_length(), 16)
    if image.mode.startswith("I"):
        return 16
    # Elsewhere the number in a raw mode counts bits per pixel, or bits of an index.
    if image.format in ("PNG", "TIFF") and not image.mode.startswith("P"):
        bits = re.search(r";(\d+)", rawmode)
        return min(int(bits[1]), 16) if bits else 8
    return 8


def _cmyk_to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc is None:
        raise ImageError(
            "CMYK without a colour profile has no defined colours; convert it to RGB first"
        )
    # A Pillow may be built without LittleCMS.
    from PIL import ImageCms

    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    return cast(Image.Image, converted)


def _planes(image: Image.Image, rawmode: str) -> _Planes:
    """Return pixels (H, W, C) and alpha (H, W)."""
    if image.mode in _GRAY16_MODES or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _planes_from_gray16(image)
    if image.mode not in _GRAY_MODES | _COLOUR_MODES:
        raise ImageError(
            f"samples of kind {image.mode} are not supported; convert to 8-bit gray or RGB first"
        )
    # Pillow opens 16-bit gray with alpha as RGBA.
    if image.mode in _GRAY_MODES or rawmode.startswith("LA"):
        return _planes_from_gray(image, rawmode)
    if image.has_transparency_data:
        samples = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(samples[..., :3]), np.ascontiguousarray(samples[..., 3])
    return np.array(image.convert("RGB")), None


def _planes_from_gray(image: Image.Image, rawmode: str) -> _Planes:
    if image.mode in ("LA", "La", "RGBA"):
        gray, *_, alpha = (image.convert("LA") if image.mode == "La" else image).split()
        return np.array(gray)[..., None], np.array(alpha)
    pixels = np.array(image.convert("L"))
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return pixels[..., None], None
    bits = 1 if image.mode == "1" else int(rawmode[2:]) if rawmode in ("L;2", "L;4") else 8
    transparent = pixels == key * 255 // (2**bits - 1)
    return pixels[..., None], np.where(transparent, 0, 255).astype(np.uint8)


def _planes_from_gray16(image: Image.Image) -> _Planes:
    samples = np.asarray(image).astype(np.uint32)
    key = image.info.get("transparency")
    alpha = np.where(samples == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
    pixels = ((samples * 255 + 32767) // 65535).astype(np.uint8)
    return pixels[..., None], alpha


def _metadata(image: Image.Image, notes: list[str]) -> dict[str, object]:
    found: dict[str, object] = {key: image.info.get(key) for key in ("icc_profile", "xmp")}
    return {**found, "exif": _exif(image, notes)}


def _exif(image: Image.Image, notes: list[str]) -> object:
    if image.format == "TIFF":
        return _exif_of_tiff(image, notes)
    legacy = image.info.get("Raw profile type exif")
    if "exif" not in image.info and isinstance(legacy, str):
        # ImageMagick's way before PNG had a chunk for EXIF: name, length, hex digits by line.
        with contextlib.suppress(ValueError):
            return bytes.fromhex("".join(legacy.split("\n")[3:]))
    return image.info.get("exif")


def _exif_of_tiff(image: Image.Image, notes: list[str]) -> bytes | None:
    try:
        tags = descriptive_tags(image.getexif())
        return tags.tobytes() if len(tags) else None
    # Pillow raises what it likes on odd tags; losing them is better than losing the picture.
    except Exception as error:
        notes.append(f"TIFF tags dropped: {error}")
        return None
