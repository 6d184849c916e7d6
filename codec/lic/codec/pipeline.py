"""Picture -> backend -> entropy coder -> container, and back.

Shapes: H W pixels, C channels, M latent channels, h w latent rows and columns.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec import latent_tiles, overlapping_tiles
from lic.codec.architectures import ARCHITECTURES, Tiling
from lic.codec.backends import Backend, open_backend
from lic.codec.backends.base import FactorizedBackend
from lic.codec.backends.device_backend import Decode, DeviceBackend, Encode
from lic.codec.bundle import Bundle
from lic.codec.coding import Coding, Counted, other_symbols
from lic.codec.container import Header, LicFile, Model, Tile
from lic.codec.entropy import SymbolCoder
from lic.codec.errors import BitstreamError, ConfigError, LimitError
from lic.codec.image_io import (
    Described,
    LazyPicture,
    Picture,
    PixelSource,
    encode_lossless,
)
from lic.codec.latents import State, quantise, walk
from lic.codec.library import select
from lic.codec.lossless import compress_lossless, finish_lossless, has_a_chance, lossless_header
from lic.codec.quantisation_step import check_any_step, check_header_step, check_step
from lic.codec.regions import Area, Region, relative, whole
from lic.codec.results import Decoded, Encoded, finish, restore
from lic.codec.stages import Stages, stage
from lic.codec.tiling import (
    LARGEST_TILE_PIXELS,
    Grid,
    Place,
    check_latent_tile,
    check_tile,
    naming,
    places,
    plan,
    plan_latents,
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
        picture: Picture | LazyPicture,
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
            tile: side in px of the tiles that are coded one by one, with what they overlap if they
                do; None does so with large pictures.
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
        tiles = tuple(
            self.code_tile(header, place, latents, stages)
            for place, latents in self.analyze_tiles(header, picture.source, stages)
        )
        if lossless is None and has_a_chance(picture.source):
            with stages.measure("lossless trial"):
                payload = encode_lossless(picture.pixels)
            if len(payload) < sum(len(stream) for each in tiles for stream in each.streams):
                note = "stored losslessly, which takes fewer bytes than the model's stream"
                picture = replace(picture, notes=(*picture.notes, note))
                return finish_lossless(picture, payload, stages)
        return self.finish(picture, header, tiles, stages)

    def header(self, picture: Described, tile: int | None = None, step: float = 1.0) -> Header:
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
        self, picture: Described, header: Header, tiles: tuple[Tile, ...], stages: Stages
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
        if self._tiling is Tiling.LATENTS:
            check_latent_tile(tile)
        else:
            check_tile(tile, self._padding.multiple)

    @property
    def coding_stage(self) -> str:
        """What the time of the walk through the symbols is called in `stages`, but for the coder's.

        "context" is that of the networks that select tables and what surrounds them. Where there
        are none, all is "entropy", as the coder's own time always is.
        """
        return "context" if len(self.backend.steps.groups) > 1 else "entropy"

    @property
    def _tiling(self) -> Tiling:
        return ARCHITECTURES[self.bundle.manifest.architecture].tiling

    @property
    def _factorized(self) -> FactorizedBackend:
        assert isinstance(self.backend, FactorizedBackend), "only its tiles are of latents"
        return self.backend

    def _plan(self, picture: Described, tile: int | None) -> Grid:
        if self._tiling is Tiling.LATENTS:
            return plan_latents(picture.height, picture.width, tile)
        return plan(picture.height, picture.width, self._padding.multiple, tile)

    def analyze_tiles(
        self, header: Header, pixels: PixelSource, stages: Stages
    ) -> Iterator[tuple[Place, State]]:
        """Yield what `code_tile` codes of each tile: a factorized prior's latents, or the state.

        Raises:
            NumericsError: a latent is not finite or too large to code.
        """
        if self._tiling is Tiling.LATENTS:
            return latent_tiles.analyses(self._factorized, header, pixels, stages)
        return overlapping_tiles.analyses(self.backend, header, pixels, self._padding, stages)

    def symbols(self, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
        """Return a factorized prior's symbols (M, h, w) of pixels (H, W, C) in one piece.

        Raises:
            ConfigError: another model.
            NumericsError: a latent is not finite or too large to code.
        """
        if not isinstance(self.backend, FactorizedBackend):
            raise ConfigError(f"{self.bundle.label} is no factorized prior")
        symbols: NDArray[np.int16] = self.backend.analyze(to_network(pixels, self._padding))
        return symbols

    def code_tile(self, header: Header, place: Place, latents: State, stages: Stages) -> Tile:
        """Return the tile of what `analyze_tiles` gave; a factorized prior's can be coded again.

        Raises:
            NumericsError: a latent is not finite or too large to code.
        """
        with naming(place, header):
            state = latents
            if self._tiling is Tiling.LATENTS:
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

    def decompress(self, file: LicFile, region: Region | None = None) -> Decoded:
        """Decode a file that was made with this model, or a part of its picture.

        Args:
            file: with all tiles, or with those `wanted` for the region.
            region: None decodes the whole picture.

        Raises:
            BitstreamError: the stream is damaged.
            ConfigError: the region is not within the picture.
            LimitError: a tile is larger than this model's memory should be asked to hold.
            NumericsError: the stream is intact but gave other symbols than the encoder's, or the
                network gave pixels that are not finite.
        """
        stages = Stages()
        area = region.area(file.header) if region else whole(file.header)
        pixels = np.empty((0, 0, file.header.colour), np.uint8)
        for part, levels in self.parts(file, area, stages):
            # Not before: a header can claim any size, its tiles' symbols cannot.
            if not pixels.size:
                rows, columns = (side.stop - side.start for side in area)
                pixels = np.empty((rows, columns, file.header.colour), np.uint8)
            pixels[tuple(relative(*both) for both in zip(part, area, strict=True))] = levels
        decoded = restore(file, pixels, area, stages)
        return replace(decoded, notes=(*decoded.notes, *self.backend.notes))

    def parts(
        self, file: LicFile, area: Area, stages: Stages
    ) -> Iterator[tuple[Area, NDArray[np.uint8]]]:
        """Yield parts of an area of the picture with their pixels (a, b, C) as they get done.

        Only what of them is still needed is in memory. Rows of parts come from top to bottom.
        Arguments and errors are those of `decompress`; the area is of the picture as stored, and
        `stages` takes the times.
        """
        header = file.header
        self.check_sizes(header)
        if header.step != 1:
            check_any_step(self.backend)
        tiles = {tile.index: tile for tile in file.tiles}
        places = self.wanted(header, area)
        self._check_streams(header, places, tiles)

        def read(place: Place) -> State:
            with naming(place, header), stages.measure(self.coding_stage):
                return self.read_symbols(header, place, tiles[place.index])

        if self._tiling is Tiling.LATENTS:
            yield from latent_tiles.areas(self._factorized, header, area, read, stages)
        else:
            yield from overlapping_tiles.areas(
                self.backend, header, area, self._padding, read, stages
            )

    def wanted(self, header: Header, area: Area) -> list[Place]:
        """Return the tiles that an area of the picture as stored hangs on, in order."""
        if self._tiling is Tiling.LATENTS:
            return latent_tiles.wanted(self._factorized, header, area)
        return overlapping_tiles.wanted(header, area)

    def check_sizes(self, header: Header) -> None:
        """Refuse what `plan` never makes: a few bytes could ask for any memory and time.

        Raises:
            BitstreamError: a quantisation step of a model that has none, or an overlap of tiles of
                latents.
            LimitError: a tile is larger than this model's memory should be asked to hold.
        """
        self.coding.check(header)
        check_header_step(self.bundle, header)
        if self._tiling is Tiling.LATENTS:
            if header.overlap:
                raise BitstreamError(
                    f"chunk HEAD at byte 8: tiles overlap by {header.overlap} px, expected 0 of "
                    f"{self.bundle.manifest.architecture}"
                )
            return
        for place in places(header):
            height, width = self._padding.padded(place.height), self._padding.padded(place.width)
            if height * width > LARGEST_TILE_PIXELS:
                raise LimitError(
                    f"tile {place.index} takes {height} x {width} pixels, the limit for "
                    f"{self.bundle.manifest.architecture} is {LARGEST_TILE_PIXELS}"
                )

    def _check_streams(
        self, header: Header, places: Iterable[Place], tiles: Mapping[int, Tile]
    ) -> None:
        """Refuse tiles whose streams are too short for what HEAD claims, before a network runs.

        Raises:
            BitstreamError: says which tile.
        """
        for place in places:
            height, width = self._padding.padded(place.height), self._padding.padded(place.width)
            # The first group's tables are those of its channels: nothing is computed for them.
            _, indexes = self.backend.steps.propose(0, self.backend.blank(height, width))
            with naming(place, header):
                self.coding.reader(header, tiles[place.index]).expect(indexes)

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
        counted = Counted(watch(reader))
        try:
            state, crc = walk(self.backend.steps, blank, counted)
            with stage("entropy"):
                reader.finish()
        except BitstreamError as error:
            # The chunk's CRC was right. A decoder that selects other tables than the encoder
            # loses track, and is rarely still on its feet when the stream ends. The first group's
            # tables, though, are those of its channels, on every device.
            if counted.groups and len(self.backend.steps.groups) > 1:
                raise other_symbols(str(error)) from None
            raise
        if crc != tile.symbols_crc:
            raise other_symbols(f"CRC-32 {crc:08x}, the encoder's {tile.symbols_crc:08x}")
        return state


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
