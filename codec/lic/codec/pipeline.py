"""Picture -> backend -> entropy coder -> container, and back.

Shapes: H W pixels, C channels, M latent channels, h w latent rows and columns.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.backends import Backend, open_backend
from lic.codec.bundle import Bundle
from lic.codec.container import Coder, Header, LicFile, Limits, Model, Tile, parse, serialize
from lic.codec.entropy import Reader, Writer
from lic.codec.errors import BitstreamError, NumericsError
from lic.codec.image_io import (
    Picture,
    decode_alpha,
    decode_lossless,
    encode_alpha,
    encode_lossless,
)
from lic.codec.latents import walk
from lic.codec.library import for_fingerprint, select
from lic.codec.tiling import crop, pad_to_multiple

# A lossless payload can beat the learned stream on tiny pictures and on drawings of few colours;
# trying it on every photo would cost more time than the codec itself.
TRY_LOSSLESS_PIXELS = 64 * 64
TRY_LOSSLESS_COLOURS = 256


@dataclass
class Stages:
    """Milliseconds of wall time per stage, in order."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1000
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A finished .lic file in memory.

    Attributes:
        data: the whole file.
        header: its HEAD.
        stages: milliseconds of convert, transform, entropy and container.
        notes: what the reader of the file should know, such as a lost bit depth.
    """

    data: bytes
    header: Header
    stages: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A decoded picture, and the milliseconds of container, entropy, transform and convert."""

    picture: Picture
    stages: dict[str, float]
    notes: tuple[str, ...] = ()


class Codec:
    """A bundle on a backend, ready for any number of pictures.

    Args:
        bundle: the model.
        backend: "auto", "onnx" or "torch".
        device: see the backends.
        threads: of one operator; 0 leaves the choice to the engine.

    Raises:
        ConfigError: the backend or device is not there.
        ModelMismatchError: the bundle was changed.
    """

    def __init__(
        self, bundle: Bundle, *, backend: str = "auto", device: str = "cpu", threads: int = 0
    ) -> None:
        self.bundle = bundle
        self.backend: Backend = open_backend(bundle, backend, device=device, threads=threads)
        self._tables = bundle.tables

    def compress(self, picture: Picture, *, lossless: bool | None = False) -> Encoded:
        """Code a picture.

        Args:
            picture: pixels and the metadata to keep.
            lossless: True stores the pixels losslessly, False codes them with the model, None
                takes whichever is smaller where the first has a chance.

        Raises:
            NumericsError: the network gave latents that cannot be coded.
        """
        if lossless:
            return compress_lossless(picture)
        stages = Stages()
        streams, crc = self._code(picture.pixels, stages)
        if lossless is None and _lossless_has_a_chance(picture.pixels):
            with stages.measure("lossless trial"):
                payload = encode_lossless(picture.pixels)
            if len(payload) < sum(map(len, streams)):
                note = "stored losslessly, which takes fewer bytes than the model's stream"
                picture = replace(picture, notes=(*picture.notes, note))
                return _finish(picture, _lossless_header(picture), (payload,), 0, None, stages)
        header = replace(
            _lossless_header(picture),
            rate_point=self.bundle.manifest.rate_point,
            coder=Coder.RANS,
            fingerprint=self.bundle.fingerprint,
        )
        # The name helps to find a missing bundle; lic's own need no finding, and 47 bytes are a
        # percent of a small file.
        model = None
        if not self.bundle.embedded:
            model = Model(name=self.bundle.label, source=self.bundle.manifest.source)
        encoded = _finish(picture, header, streams, crc, model, stages)
        return replace(encoded, notes=(*encoded.notes, *self.backend.notes))

    def _code(self, pixels: NDArray[np.uint8], stages: Stages) -> tuple[tuple[bytes, ...], int]:
        """Return the entropy streams of pixels (H, W, C) and the symbols' CRC."""
        with stages.measure("convert"):
            x = to_network(pixels, self.bundle.manifest.stride)
        with stages.measure("transform"):
            state = self.backend.analyze(x)
        with stages.measure("entropy"):
            writer = Writer(self._tables)
            _, crc = walk(self.backend.steps, state, writer)
            return writer.finish(), crc

    def decompress(self, file: LicFile) -> Decoded:
        """Decode a file that was made with this model.

        Raises:
            BitstreamError: the stream is damaged.
            NumericsError: the stream is intact but gave other symbols than the encoder's.
        """
        stages = Stages()
        pixels = self._decode(file.header, file.tiles[0], stages)
        decoded = _restore(file, pixels, stages)
        return replace(decoded, notes=(*decoded.notes, *self.backend.notes))

    def _decode(self, header: Header, tile: Tile, stages: Stages) -> NDArray[np.uint8]:
        stride = self.bundle.manifest.stride
        height, width = (
            header.height + -header.height % stride,
            header.width + -header.width % stride,
        )
        with stages.measure("entropy"):
            reader = Reader(self._tables, tile.streams)
            state, crc = walk(self.backend.steps, self.backend.blank(height, width), reader)
            reader.finish()
            if crc != tile.symbols_crc:
                raise NumericsError(
                    f"tile {tile.index}: the stream is intact but gave other symbols (CRC-32 "
                    f"{crc:08x}, the encoder's {tile.symbols_crc:08x}): this device computes other "
                    "entropy parameters than the encoder's; decode with the encoder's backend on "
                    "the same kind of device"
                )
        with stages.measure("transform"):
            x_hat = self.backend.synthesize(state)
        with stages.measure("convert"):
            return crop(from_network(x_hat, header.colour), header.height, header.width)


def to_network(pixels: NDArray[np.uint8], stride: int) -> NDArray[np.float32]:
    """Return x (1, 3, H', W') in [0, 1] from pixels (H, W, C), padded to multiples of `stride`."""
    padded = pad_to_multiple(pixels, stride)
    planes = np.broadcast_to(padded.transpose(2, 0, 1), (3, *padded.shape[:2]))
    return np.multiply(planes, np.float32(1 / 255), dtype=np.float32, order="C")[None]


def from_network(x_hat: NDArray[np.float32], colour: int) -> NDArray[np.uint8]:
    """Return pixels (H', W', C) from x_hat (1, 3, H', W'); gray is the mean of the channels."""
    planes = x_hat[0].mean(axis=0, keepdims=True) if colour == 1 else x_hat[0]
    levels = np.rint(planes * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def compress_lossless(picture: Picture) -> Encoded:
    """Store a picture's 8-bit pixels losslessly; needs no model."""
    stages = Stages()
    with stages.measure("container"):
        payload = encode_lossless(picture.pixels)
    return _finish(picture, _lossless_header(picture), (payload,), 0, None, stages)


def open_codec(model: str | None = None, rate_point: int | None = None, **options: Any) -> Codec:
    """Return the codec of an installed model or a bundle's path.

    Args:
        model: family name or path; None is lic's embedded model.
        rate_point: None takes the middle one.
        **options: `backend`, `device` and `threads` of `Codec`.

    Raises:
        ModelMismatchError: no such bundle.
        ConfigError: no such rate point, backend or device.
    """
    return Codec(select(model, rate_point), **options)


def decompress(
    data: bytes,
    *,
    find: Callable[[bytes, Model | None], Codec] | None = None,
    limits: Limits | None = None,
) -> Decoded:
    """Decode a whole .lic file.

    Args:
        data: the file.
        find: returns the codec for a fingerprint and the model's readable name; not called for
            lossless files. None opens whichever installed model the file asks for.
        limits: sizes to refuse.

    Raises:
        BitstreamError: damaged or of an unknown version.
        LimitError: larger than `limits` allow.
        ModelMismatchError: no installed model has the file's fingerprint.
        NumericsError: this device gives other symbols than the encoder's.
    """
    stages = Stages()
    with stages.measure("container"):
        file = parse(data, limits)
        if file.header.tile_count != 1:
            raise BitstreamError(
                f"the picture is in {file.header.tile_count} tiles; this version of lic decodes "
                "pictures of one tile, update lic"
            )
    if file.header.coder is Coder.LOSSLESS:
        with stages.measure("entropy"):
            pixels = decode_lossless(
                file.tiles[0].streams[0],
                width=file.header.width,
                height=file.header.height,
                channels=file.header.colour,
            )
        decoded = _restore(file, pixels, stages)
    else:
        codec = (find or _installed)(file.header.fingerprint, file.model)
        decoded = codec.decompress(file)
    return replace(decoded, stages={**stages.milliseconds, **decoded.stages})


def _installed(fingerprint: bytes, hint: Model | None) -> Codec:
    return Codec(for_fingerprint(fingerprint, hint))


def _lossless_has_a_chance(pixels: NDArray[np.uint8]) -> bool:
    """Return whether pixels (H, W, C) are few, or of few colours."""
    if pixels.shape[0] * pixels.shape[1] <= TRY_LOSSLESS_PIXELS:
        return True
    weights = 256 ** np.arange(pixels.shape[2], dtype=np.int32)
    sample = pixels[:: max(1, pixels.shape[0] // 128), :: max(1, pixels.shape[1] // 128)]
    return np.unique(sample @ weights).size <= TRY_LOSSLESS_COLOURS


def _lossless_header(picture: Picture) -> Header:
    return Header(
        width=picture.width,
        height=picture.height,
        colour=picture.channels,
        bit_depth=picture.bit_depth,
        orientation=picture.orientation,
        coder=Coder.LOSSLESS,
    )


def _finish(
    picture: Picture,
    header: Header,
    streams: tuple[bytes, ...],
    crc: int,
    model: Model | None,
    stages: Stages,
) -> Encoded:
    with stages.measure("container"):
        file = LicFile(
            header=header,
            tiles=(Tile(index=0, symbols_crc=crc, streams=streams),),
            model=model,
            icc=picture.icc,
            exif=picture.exif,
            xmp=picture.xmp,
            alpha=None if picture.alpha is None else encode_alpha(picture.alpha),
        )
        data = serialize(file)
    return Encoded(data=data, header=header, stages=stages.milliseconds, notes=picture.notes)


def _restore(file: LicFile, pixels: NDArray[np.uint8], stages: Stages) -> Decoded:
    """Put the metadata back around decoded pixels."""
    header = file.header
    with stages.measure("container"):
        alpha = None
        if file.alpha is not None:
            alpha = decode_alpha(file.alpha, width=header.width, height=header.height)
    picture = Picture(
        pixels=pixels,
        alpha=alpha,
        bit_depth=header.bit_depth,
        orientation=header.orientation,
        icc=file.icc,
        exif=file.exif,
        xmp=file.xmp,
        notes=file.warnings,
    )
    return Decoded(picture=picture, stages=stages.milliseconds, notes=file.warnings)
