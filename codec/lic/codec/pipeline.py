"""Picture -> backend -> entropy coder -> container, and back.

Shapes: H W pixels, C channels, M latent channels, h w latent rows and columns.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.architectures import ARCHITECTURES
from lic.codec.backends import Backend, open_backend
from lic.codec.backends.base import FactorizedBackend
from lic.codec.backends.device_backend import Decode, DeviceBackend, Encode
from lic.codec.bundle import Bundle
from lic.codec.coding import Coding
from lic.codec.container import Coder, Header, LicFile, Limits, Model, Tile, parse
from lic.codec.entropy import SymbolCoder
from lic.codec.errors import BitstreamError, ConfigError, LimitError, NumericsError
from lic.codec.image_io import (
    Picture,
    decode_lossless,
    encode_lossless,
)
from lic.codec.latents import State, quantise, walk
from lic.codec.library import for_fingerprint, select
from lic.codec.lossless import compress_lossless, finish_lossless, has_a_chance, lossless_header
from lic.codec.quantisation_step import check_header_step, check_step, stepped
from lic.codec.results import Decoded, Encoded, finish, restore
from lic.codec.stages import Stages, stage
from lic.codec.tiling import (
    LARGEST_TILE_PIXELS,
    Grid,
    Place,
    Seams,
    check_tile,
    from_network,
    places,
    plan,
    tile_to_network,
    to_levels,
    to_network,
)


class Codec:
    """A bundle on a backend, ready for any number of pictures.

    Args:
        bundle: the model.
        backend: "auto", "onnx" or "torch".
        device: see the backends.
        threads: of one operator; 0 leaves the choice to the engine.
        precision: "float32", or "bfloat16" for analysis and synthesis of models with a context on
            torch: meant for CUDA. What selects tables stays in float32.
        encode, decode: functions that run a factorized prior's networks elsewhere, in place of a
            backend; see `DeviceBackend`. One of them is enough for one direction.
        contexts: whether to code with the bundle's contexts, where it has any.

    Raises:
        ConfigError: the backend, device or precision is not there, or the model cannot have its
            networks elsewhere.
        ModelMismatchError: the bundle was changed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        backend: str = "auto",
        device: str = "cpu",
        threads: int = 0,
        precision: str = "float32",
        encode: Encode | None = None,
        decode: Decode | None = None,
        contexts: bool = True,
    ) -> None:
        self.bundle = bundle
        if encode or decode:
            self.backend: Backend = DeviceBackend(bundle, encode, decode)
        else:
            self.backend = open_backend(
                bundle, backend, device=device, threads=threads, precision=precision
            )
        self.coding = Coding(bundle, contexts=contexts)
        self._padding = bundle.manifest.padding

    def compress(
        self,
        picture: Picture,
        *,
        lossless: bool | None = False,
        tile: int | None = None,
        step: float = 1.0,
    ) -> Encoded:
        """Code a picture.

        Args:
            picture: pixels and the metadata to keep.
            lossless: True stores the pixels losslessly, False codes them with the model, None
                takes whichever is smaller where the first has a chance.
            tile: side in px of the tiles that are coded one by one, with what they overlap; None
                does so with pictures that are too large for the model in one piece.
            step: what a factorized prior's latents are divided by before they are rounded, 0.25 to
                4 in units of 1 / 4096; a larger one means fewer bits.

        Raises:
            ConfigError: neither this model nor a lossless picture has such tiles or steps.
            NumericsError: the network gave latents that cannot be coded.
        """
        if lossless:
            if tile is not None:
                raise ConfigError("a lossless picture has no tiles; leave out --tile")
            if step != 1:
                raise ConfigError(
                    f"step is {step:g}, but a lossless picture has none; leave it out"
                )
            return compress_lossless(picture)
        stages = Stages()
        header = self.header(picture, tile, step)
        tiles = self._encode(header, picture.pixels, stages)
        if lossless is None and has_a_chance(picture.pixels):
            with stages.measure("lossless trial"):
                payload = encode_lossless(picture.pixels)
            if len(payload) < sum(len(stream) for each in tiles for stream in each.streams):
                note = "stored losslessly, which takes fewer bytes than the model's stream"
                picture = replace(picture, notes=(*picture.notes, note))
                return finish_lossless(picture, payload, stages)
        return self.finish(picture, header, tiles, stages)

    def header(self, picture: Picture, tile: int | None = None, step: float = 1.0) -> Header:
        """Return the HEAD of a picture that `compress` would code with these options.

        Raises:
            ConfigError: the model has no such tiles or steps.
        """
        check_step(self.bundle, self.backend, step)
        coder = self.coding.coder
        return replace(
            lossless_header(picture),
            rate_point=self.bundle.manifest.rate_point,
            coder=coder,
            step=step,
            fingerprint=self.bundle.fingerprints[coder],
            **self._plan(picture, tile)._asdict(),
        )

    def finish(
        self, picture: Picture, header: Header, tiles: tuple[Tile, ...], stages: Stages
    ) -> Encoded:
        """Put coded tiles and the picture's metadata into a file."""
        # The name helps to find a missing bundle; lic's own need no finding, and 47 bytes are a
        # percent of a small file.
        model = None
        if not self.bundle.embedded:
            model = Model(name=self.bundle.label, source=self.bundle.manifest.source)
        encoded = finish(picture, header, tiles, model, stages)
        return replace(encoded, notes=(*encoded.notes, *self.backend.notes))

    def check_tile(self, tile: int) -> None:
        """Refuse a side in px that `compress` would refuse, before there is a picture.

        Raises:
            ConfigError: names the option and what it takes.
        """
        if not self._tiled:
            raise ConfigError(
                f"{self.bundle.label} codes pictures of any size in one piece; leave out --tile"
            )
        check_tile(tile, self._padding.multiple)

    @property
    def coding_stage(self) -> str:
        """What the time of the walk through the symbols is called in `stages`, but for the coder's.

        "context" is that of the networks that select tables and what surrounds them. Where there
        are none, all is "entropy", as the coder's own time always is.
        """
        return "context" if len(self.backend.steps.groups) > 1 else "entropy"

    @property
    def _tiled(self) -> bool:
        return ARCHITECTURES[self.bundle.manifest.architecture].tiled

    def _plan(self, picture: Picture, tile: int | None) -> Grid:
        if tile is not None:
            self.check_tile(tile)
        if not self._tiled:
            return Grid()
        return plan(picture.height, picture.width, self._padding.multiple, tile)

    def _encode(
        self, header: Header, pixels: NDArray[np.uint8], stages: Stages
    ) -> tuple[Tile, ...]:
        """Return the tiles of pixels (H, W, C)."""
        tiles = []
        for place in places(header):
            with naming(place, header):
                latents = self.analyze_tile(place, pixels, stages)
                tiles.append(self.code_tile(header, place, latents, stages))
        return tuple(tiles)

    def analyze_tile(self, place: Place, pixels: NDArray[np.uint8], stages: Stages) -> State:
        """Return what `code_tile` codes of a tile: a factorized prior's latents, or the state."""
        with stages.measure("convert"):
            x = tile_to_network(pixels, place, self._padding)
        with stages.measure("transform"):
            if isinstance(self.backend, FactorizedBackend):
                return self.backend.latents(x)
            return self.backend.analyze(x)

    def symbols(self, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Return a factorized prior's symbols (M, h, w) of pixels (H, W, C) in one piece.

        Raises:
            ConfigError: another model.
            NumericsError: a latent is not finite or too large to code.
        """
        if not isinstance(self.backend, FactorizedBackend):
            raise ConfigError(f"{self.bundle.label} is no factorized prior")
        return quantise(self.backend.latents(to_network(pixels, self._padding)))

    def code_tile(self, header: Header, place: Place, latents: State, stages: Stages) -> Tile:
        """Return the tile of what `analyze_tile` gave; a factorized prior's can be coded again.

        Raises:
            NumericsError: a latent is not finite or too large to code.
        """
        state = latents
        if isinstance(self.backend, FactorizedBackend):
            with stages.measure("transform"):
                state = quantise(latents, header.step)
        with stages.measure(self.coding_stage):
            factorized = isinstance(self.backend, FactorizedBackend)
            number = self.coding.tables_for(header, state) if factorized else 0
            writer = self.coding.writer(header, number)
            _, crc = walk(self.backend.steps, state, writer)
            with stage("entropy"):
                streams = writer.finish()
            return Tile(index=place.index, symbols_crc=crc, streams=streams, tables=number)

    def decompress(self, file: LicFile) -> Decoded:
        """Decode a file that was made with this model.

        Raises:
            BitstreamError: the stream is damaged.
            LimitError: a tile is larger than this model's memory should be asked to hold.
            NumericsError: the stream is intact but gave other symbols than the encoder's, or the
                network gave pixels that are not finite.
        """
        stages = Stages()
        self.check_sizes(file.header)
        self._check_streams(file)
        pixels = self._decode(file.header, file.tiles, stages)
        decoded = restore(file, pixels, stages)
        return replace(decoded, notes=(*decoded.notes, *self.backend.notes))

    def check_sizes(self, header: Header) -> None:
        """Refuse what `plan` never makes: a few bytes could ask for any memory and time.

        Raises:
            BitstreamError: a quantisation step of a model that has none.
            LimitError: a tile is larger than this model's memory should be asked to hold.
        """
        self.coding.check(header)
        check_header_step(self.bundle, header)
        for place in places(header) if self._tiled else ():
            height, width = self._padding.padded(place.height), self._padding.padded(place.width)
            if height * width > LARGEST_TILE_PIXELS:
                raise LimitError(
                    f"tile {place.index} takes {height} x {width} pixels, the limit for "
                    f"{self.bundle.manifest.architecture} is {LARGEST_TILE_PIXELS}"
                )

    def _check_streams(self, file: LicFile) -> None:
        """Refuse tiles whose streams are too short for what HEAD claims, before a network runs.

        Raises:
            BitstreamError: says which tile.
        """
        for place, tile in zip(places(file.header), file.tiles, strict=True):
            height, width = self._padding.padded(place.height), self._padding.padded(place.width)
            # The first group's tables are those of its channels: nothing is computed for them.
            _, indexes = self.backend.steps.propose(0, self.backend.blank(height, width))
            with naming(place, file.header):
                self.coding.reader(file.header, tile).expect(indexes)

    def _decode(self, header: Header, tiles: tuple[Tile, ...], stages: Stages) -> NDArray[np.uint8]:
        """Return pixels (H, W, C) from the tiles of a picture."""
        pixels = np.empty((0, 0, header.colour), np.uint8)
        seams = Seams(header.overlap)
        for place, tile in zip(places(header), tiles, strict=True):
            with naming(place, header):
                with stages.measure(self.coding_stage):
                    state = self.read_symbols(header, place, tile)
                # Not before: a header can claim any size, its tiles' symbols cannot.
                if place.index == 0:
                    pixels = np.empty((header.height, header.width, header.colour), np.uint8)
                self._write_pixels(pixels, place, state, header.step, seams, stages)
                # It may lie in the device's memory, which the next tile needs.
                del state
        return pixels

    def read_symbols(
        self,
        header: Header,
        place: Place,
        tile: Tile,
        watch: Callable[[SymbolCoder], SymbolCoder] = lambda reader: reader,
    ) -> State:
        """Return the state with all symbols of a tile known; no picture is made.

        Args:
            header: of the file, which `check_sizes` has passed.
            place: of the tile.
            tile: the symbols' streams.
            watch: returns a coder that passes everything through to the one that it is given.

        Raises:
            BitstreamError: the stream is damaged.
            NumericsError: the stream is intact but gave other symbols than the encoder's.
        """
        height, width = self._padding.padded(place.height), self._padding.padded(place.width)
        blank = self.backend.blank(height, width)
        reader = self.coding.reader(header, tile)
        counted = _Counted(watch(reader))
        try:
            state, crc = walk(self.backend.steps, blank, counted)
            with stage("entropy"):
                reader.finish()
        except BitstreamError as error:
            # The chunk's CRC was right. A decoder that selects other tables than the encoder
            # loses track, and is rarely still on its feet when the stream ends. The first group's
            # tables, though, are those of its channels, on every device.
            if counted.groups and len(self.backend.steps.groups) > 1:
                raise _other_symbols(str(error)) from None
            raise
        if crc != tile.symbols_crc:
            raise _other_symbols(f"CRC-32 {crc:08x}, the encoder's {tile.symbols_crc:08x}")
        return state

    def _write_pixels(
        self,
        pixels: NDArray[np.uint8],
        place: Place,
        state: State,
        step: float,
        seams: Seams,
        stages: Stages,
    ) -> None:
        """Write what a tile makes final into the picture's pixels (H, W, C)."""
        with stages.measure("transform"):
            if step == 1:
                x_hat = self.backend.synthesize(state)
            else:
                x_hat = stepped(self.backend).synthesize(state, step)
            if not np.isfinite(x_hat).all():
                raise NumericsError(
                    "the synthesis gave pixels that are NaN or infinite; the network's weights or "
                    "precision are at fault (half precision overflows like this)"
                )
        with stages.measure("convert"):
            planes = from_network(x_hat, pixels.shape[2])
            planes = self._padding.crop(planes, place.height, place.width)
            area, final = seams.join(place, planes)
            pixels[area] = to_levels(final)


class _Counted:
    """A coder that passes everything through to another and counts the groups that came back."""

    def __init__(self, coder: SymbolCoder) -> None:
        self.groups = 0
        self._coder = coder

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        known = self._coder.code(symbols, indexes)
        self.groups += 1
        return known


@contextmanager
def naming(place: Place, header: Header) -> Iterator[None]:
    """Say in which of several tiles something is wrong."""
    try:
        yield
    except (BitstreamError, NumericsError) as error:
        if header.tile_count == 1:
            raise
        where = f"tile {place.index} (row {place.row}, column {place.column})"
        raise type(error)(f"{where}: {error}") from error


def _other_symbols(how: str) -> NumericsError:
    return NumericsError(
        f"the stream is intact but gave other symbols ({how}): this device computes other entropy "
        "parameters than the encoder's; decode with the encoder's backend on the same kind of "
        "device"
    )


def open_codec(model: str | None = None, rate_point: int | None = None, **options: Any) -> Codec:
    """Return the codec of an installed model or a bundle's path.

    Args:
        model: family name or path; None is lic's default model.
        rate_point: None takes the middle one.
        **options: of `Codec`: `backend`, `device`, `threads`, `precision`, `encode`, `decode`,
            `contexts`.

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
        LimitError: larger than `limits`, or a tile larger than its model, allow.
        ModelMismatchError: no installed model has the file's fingerprint.
        NumericsError: this device gives other symbols than the encoder's.
    """
    stages = Stages()
    with stages.measure("container"):
        file = parse(data, limits)
    if file.header.coder is Coder.LOSSLESS:
        with stages.measure("entropy"):
            pixels = decode_lossless(
                file.tiles[0].streams[0],
                width=file.header.width,
                height=file.header.height,
                channels=file.header.colour,
            )
        return restore(file, pixels, stages)
    codec = (find or _installed)(file.header.fingerprint, file.model)
    decoded = codec.decompress(file)
    stages.add(decoded.stages)
    return replace(decoded, stages=stages.milliseconds)


def _installed(fingerprint: bytes, hint: Model | None) -> Codec:
    return Codec(for_fingerprint(fingerprint, hint))
