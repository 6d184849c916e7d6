"""Pillow reads and writes .lic files once this module is imported.

    from PIL import Image
    import lic.codec.pillow_plugin

    Image.open("photo.png").save("photo.lic", quality=2)
    Image.open("photo.lic").show()

`codec/PILLOW.md` tells of all options. What Pillow cannot pass to `Image.open` is set here, for
the whole process, and counts from the next picture on: BACKEND, DEVICE, THREADS.
"""

import logging
import operator
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from PIL import Image, ImageFile

from lic.codec.codec_cache import SHARED
from lic.codec.container import (
    HEADER_BYTES,
    SIGNATURE,
    Coder,
    Header,
    Limits,
    Metadata,
    Model,
    parse,
    parse_header,
    read_metadata,
)
from lic.codec.decoding import decompress
from lic.codec.errors import ConfigError, LicError, LimitError
from lic.codec.image_io import agreeing_metadata, picture_from_image
from lic.codec.image_io.exif import EXIF_PREFIX
from lic.codec.lossless import compress_lossless
from lic.codec.pipeline import Codec
from lic.codec.results import Encoded

if TYPE_CHECKING:
    from PIL._imaging import PixelAccess

FORMAT: Final = "LIC"

BACKEND: str = "auto"
"""The engine: "auto", "onnx" or "torch"."""
DEVICE: str = "cpu"
"""Where it computes, as `lic compress --device` takes it."""
THREADS: int = 0
"""Threads of one operator; 0 leaves the choice to the engine."""

# Whether a picture is too large to open is Pillow's decision: Image.MAX_IMAGE_PIXELS.
_ANY_SIZE: Final = Limits(max_pixels=0)
_MODES: Final = {(1, False): "L", (1, True): "LA", (3, False): "RGB", (3, True): "RGBA"}
_ONE_PICTURE: Final = (
    "a .lic file holds one picture; leave out save_all and append_images, and save each frame alone"
)

_log = logging.getLogger(__name__)


class LicImageFile(ImageFile.ImageFile):
    """A .lic file whose metadata is known, and whose pixels are decoded when they are wanted."""

    format = FORMAT
    format_description = "lic, learned image compression"

    def _open(self) -> None:
        assert self.fp is not None
        start = self.fp.tell()
        head = self.fp.read(HEADER_BYTES)
        if not _accept(head):
            raise SyntaxError("not a .lic file")
        with _pillow_errors(self.filename):
            header = _header(head)
            self._size = header.width, header.height
            self._mode = _MODES[header.colour, False]
            if _too_large(header):
                # Image.open says so next; what else such a file holds does not matter.
                return
            metadata = read_metadata(self.fp, start)
        self._mode = _MODES[header.colour, metadata.has_alpha]
        self.info.update(_info(header, metadata))
        self.tile = [ImageFile._Tile(FORMAT, (0, 0, *self.size), start, ())]

    def load(self) -> "PixelAccess | None":
        """Decode the pixels, once.

        Raises:
            OSError: damaged, truncated, or the model is not installed.
            ValueError: a setting of this module that cannot work.
        """
        # A copy that comes out of a pickle has pixels, but no name in every version of Pillow.
        with _pillow_errors(self.filename if self.tile else ""):
            return super().load()

    def load_seek(self, pos: int) -> None:
        """Go to where the file begins; that this is here keeps Pillow from feeding parts of it."""
        assert self.fp is not None
        self.fp.seek(pos)

    def verify(self) -> None:
        """Check every byte against its checksum, without a model; afterwards open the file anew.

        Raises:
            OSError: damaged or truncated.
        """
        if self.fp is None or not self.tile:
            raise RuntimeError("verify must be called directly after open")
        with _pillow_errors(self.filename):
            self.fp.seek(self.tile[0].offset)
            parse(self.fp.read(), _ANY_SIZE)
        super().verify()


class _Decoder(ImageFile.PyDecoder):
    """Decodes a whole file, from where it begins."""

    _pulls_fd = True

    def decode(self, buffer: object) -> tuple[int, int]:
        del buffer
        assert self.fd is not None
        decoded = decompress(self.fd.read(), find=_decoder, limits=_ANY_SIZE)
        _tell(decoded.notes)
        self.set_as_raw(decoded.picture.samples.tobytes())
        return -1, 0


def _accept(prefix: bytes) -> bool:
    # The rest of the signature tells of damage in transfer, which has a message of its own.
    return prefix.startswith(SIGNATURE[:4])


def _header(head: bytes) -> Header:
    try:
        return parse_header(head, _ANY_SIZE)
    except LimitError as error:
        raise Image.DecompressionBombError(str(error)) from error


def _too_large(header: Header) -> bool:
    limit = Image.MAX_IMAGE_PIXELS
    return limit is not None and header.width * header.height > 2 * limit


def _info(header: Header, metadata: Metadata) -> dict[str | tuple[int, int], Any]:
    exif, xmp, notes = agreeing_metadata(header.orientation, metadata.exif, metadata.xmp)
    _tell(notes)
    found: dict[str | tuple[int, int], Any] = {
        "icc_profile": metadata.icc,
        "exif": EXIF_PREFIX + exif if exif else None,
        "xmp": xmp,
        "lossless": header.coder is Coder.LOSSLESS,
    }
    if header.coder is not Coder.LOSSLESS:
        found["rate_point"] = header.rate_point
        found["fingerprint"] = header.fingerprint.hex()
        found["model"] = metadata.model.name if metadata.model else None
    return {key: value for key, value in found.items() if value is not None}


def _decoder(fingerprint: bytes, hint: Model | None) -> Codec:
    return SHARED.decoder(fingerprint, hint, **_engine())


def _engine() -> dict[str, Any]:
    return {"backend": BACKEND, "device": DEVICE, "threads": THREADS}


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    with _pillow_errors(filename):
        encoded = _encode(im, im.encoderinfo)
    _tell(encoded.notes)
    fp.write(encoded.data)


def _encode(im: Image.Image, options: Mapping[str, Any]) -> Encoded:
    if options.get("append_images"):
        raise ConfigError(_ONE_PICTURE)
    lossless = options.get("lossless")
    if lossless not in (True, False, None):
        raise ConfigError(f"lossless is {lossless!r}; expected True, False or None")
    codec = None if lossless else _encoder(options.get("bundle"), options.get("quality"))
    tile = options.get("tile")
    for name in ("bundle", "quality", "tile") if lossless else ():
        if options.get(name) is not None:
            raise ConfigError(f"lossless=True takes no {name}; leave one of them out")
    picture = picture_from_image(im, metadata=_metadata(im, options))
    if codec is None:
        return compress_lossless(picture)
    return codec.compress(picture, lossless=lossless, tile=tile)


def _encoder(bundle: str | os.PathLike[str] | None, quality: Any) -> Codec:
    if quality is not None:
        # numpy's integers are welcome, True is not.
        if isinstance(quality, bool) or not hasattr(quality, "__index__"):
            raise ConfigError(
                f"quality is {quality!r}; expected a rate point of the model, an int from 1 "
                "(smallest)"
            )
        quality = operator.index(quality)
    name = None if bundle is None else os.fspath(bundle)
    try:
        return SHARED.encoder(name, quality, **_engine())
    except ConfigError as error:
        if quality is None:
            raise
        raise ConfigError(f"quality is {quality}: {error}") from error


def _metadata(im: Image.Image, options: Mapping[str, Any]) -> dict[str, bytes | None]:
    """Return the metadata to write: as with other formats, only the profile goes without saying."""
    given = {
        "icc_profile": options.get("icc_profile", im.info.get("icc_profile")),
        "exif": options.get("exif"),
        "xmp": options.get("xmp"),
    }
    return {name: _blob(name, value) for name, value in given.items()}


def _blob(name: str, value: Any) -> bytes | None:
    if isinstance(value, Image.Exif):
        return value.tobytes() if value else None
    if isinstance(value, str):
        value = value.encode()
    if value is None or isinstance(value, bytes):
        return value
    raise ConfigError(f"{name} is of type {type(value).__name__}; expected bytes")


def _save_all(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    del im, fp, filename
    raise ValueError(_ONE_PICTURE)


def _tell(notes: tuple[str, ...]) -> None:
    for note in notes:
        _log.info("%s", note)


@contextmanager
def _pillow_errors(filename: str | bytes) -> Iterator[None]:
    """Turn lic's errors into those that programs written for Pillow expect; messages stay."""
    name = os.fsdecode(filename)
    where = f"{name}: " if name else ""
    try:
        yield
    except ConfigError as error:
        raise ValueError(f"{where}{error}") from error
    except LicError as error:
        raise OSError(f"{where}{error}") from error


Image.register_open(FORMAT, LicImageFile, _accept)
Image.register_decoder(FORMAT, _Decoder)
Image.register_save(FORMAT, _save)
Image.register_save_all(FORMAT, _save_all)
Image.register_extension(FORMAT, ".lic")
Image.register_mime(FORMAT, "image/x-lic")
