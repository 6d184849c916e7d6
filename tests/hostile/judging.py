"""What became of a mutated file: refused by name, the same picture, another valid file, or a fault.

A file that was damaged must be refused or give its seed's picture. One that was forged, every
checksum mended, may also be another valid file; then its symbols must be those whose CRC-32 it
states, by a computation of its own, and its streams exactly what a writer writes for them.
"""

import io
import time
import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lic.codec.container import (
    Coder,
    Header,
    LicFile,
    list_chunks,
    parse,
    parse_header,
    read_metadata,
)
from lic.codec.decoding import decompress
from lic.codec.entropy import Writer
from lic.codec.errors import (
    BitstreamError,
    LicError,
    LimitError,
    ModelMismatchError,
    NumericsError,
)
from lic.codec.image_io import upright
from lic.codec.image_io.lossless import FREE_PIXELS, MAX_PIXELS_PER_BYTE
from lic.codec.regions import Region
from lic.codec.results import Decoded
from lic.codec.tiling import places
from tests.hostile.kinds import Kinds
from tests.hostile.mutate import Mutated

SAME, ANOTHER = "same picture", "another valid file"
WRONG, ESCAPED, HANG, MEMORY, DIED = "wrong symbols", "crash", "hang", "memory", "process died"
# What `decompress` says that it raises; any other exception is a crash.
DOCUMENTED: Final = (BitstreamError, LimitError, ModelMismatchError, NumericsError)
FAULTS: Final = (WRONG, ESCAPED, HANG, MEMORY, DIED)

# CPU seconds for each pixel that HEAD claims, beyond one second. Measured: 5e-9 for symbols, 5e-8
# for an embedded WebP, 1e-6 for small models with a context in ONNX Runtime on one thread.
SECONDS_PER_PIXEL: Final = {False: 1e-7, True: 5e-6}
GRACE: Final = 1.0
# Bytes for each pixel, and what a file of n bytes can claim at most (FORMAT.md, section 8): 4096 a
# byte where it embeds a picture, less where a model's symbols take bits.
BYTES_PER_PIXEL: Final = {False: 40, True: 4096}
FREE_BYTES: Final = {False: 2**26, True: 2**29}
# Contexts may make all symbols of a tile cheap, so that memory for them is reserved for every pixel
# claimed, two bytes for each of up to 192 channels at every 256th; it is touched only as they are
# decoded.
RESERVED_BYTES_PER_PIXEL: Final = 2


@dataclass(frozen=True)
class Allowed:
    """What decoding a file may take: CPU seconds, and bytes of memory."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Verdict:
    """An outcome, what there is to say about it, and the CPU seconds that it took."""

    outcome: str
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Content:
    """All of a file that decides its picture.

    Attributes:
        symbols, crcs: of each tile; none of a lossless picture.
        pixels: their CRC, 0 where a stand-in made them, all black.
        alpha: its CRC.
    """

    header: Header
    symbols: tuple[bytes, ...]
    crcs: tuple[int, ...]
    pixels: int
    alpha: int


class Recorder:
    """A coder that passes everything through to a reader and writes it again."""

    def __init__(self, reader: Any, writer: Writer) -> None:
        self.symbols: list[bytes] = []
        self._reader, self._writer = reader, writer

    def code(
        self, symbols: NDArray[np.integer[Any]] | None, indexes: NDArray[np.integer[Any]]
    ) -> NDArray[np.int16]:
        """Return the next group."""
        found: NDArray[np.int16] = self._reader.code(symbols, indexes)
        self.symbols.append(np.ascontiguousarray(found, dtype="<i2").tobytes())
        self._writer.code(found, indexes)
        return found


# The side of the part of each picture that is decoded alone, in px.
CORNER = 40


class UnsoundError(Exception):
    """A file was decoded that no writer writes."""


class Judge:
    """Decodes mutated files of the seeds and compares them with these."""

    def __init__(self, kinds: Kinds, *, network: bool = False) -> None:
        self._kinds = kinds
        self._network = network
        self._contents: dict[str, Content] = {}
        self._chunks = set[bytes]().union(*(_chunks(seed.data) for seed in kinds.seeds))
        for seed in kinds.seeds:
            self._contents[seed.name] = self._content(seed.data)

    def allowed(self, data: bytes) -> Allowed:
        """Return what a file's claims and its length entitle it to."""
        try:
            header = parse_header(data)
        except LicError:
            return Allowed(GRACE, FREE_BYTES[self._network])
        claimed = header.width * header.height
        pixels = min(claimed, FREE_PIXELS + MAX_PIXELS_PER_BYTE * len(data))
        memory = FREE_BYTES[self._network] + BYTES_PER_PIXEL[self._network] * pixels
        if header.coder is Coder.CONTEXTS:
            memory += RESERVED_BYTES_PER_PIXEL * claimed
        return Allowed(GRACE + SECONDS_PER_PIXEL[self._network] * claimed, memory)

    def judge(self, mutated: Mutated) -> Verdict:
        """Return what became of a file; never raises but for what ends the process."""
        start = time.process_time()
        try:
            outcome, detail = self._outcome(mutated)
        except MemoryError as error:
            outcome, detail = MEMORY, str(error)
        except Exception as error:
            outcome, detail = ESCAPED, f"{type(error).__name__}: {error}"
        seconds = time.process_time() - start
        allowed = self.allowed(mutated.data).seconds
        if seconds > allowed and outcome not in FAULTS:
            return Verdict(HANG, f"{seconds:.1f} s, allowed {allowed:.1f} ({outcome})", seconds)
        return Verdict(outcome, detail, seconds)

    def _outcome(self, mutated: Mutated) -> tuple[str, str]:
        try:
            content = self._content(mutated.data)
        except DOCUMENTED as error:
            return type(error).__name__, ""
        except UnsoundError as error:
            return WRONG, str(error)
        known = self._contents[mutated.seed.name]
        if content == known:
            return SAME, ""
        if not mutated.forged:
            # Two files spliced where chunks end: no checksum spans a file, as none does in PNG.
            if _chunks(mutated.data) <= self._chunks:
                return ANOTHER, ""
            return WRONG, "damage went unnoticed and changed the picture"
        claim_the_same = (content.header, content.crcs) == (known.header, known.crcs)
        if (
            known.crcs
            and claim_the_same
            and (content.symbols != known.symbols or content.pixels != known.pixels)
        ):
            return WRONG, "other symbols or pixels under the header and the CRCs of the seed"
        return ANOTHER, ""

    def _content(self, data: bytes) -> Content:
        """Decode, and look again at what was decoded.

        Raises:
            LicError: refused.
            UnsoundError: decoded, and should not have been.
        """
        metadata = _metadata(data)
        corner = self._corner(data)
        decoded = decompress(data, find=self._kinds.find)
        file = parse(data)
        self._check_corner(corner, decoded)
        if metadata != (file.model, file.icc, file.exif, file.xmp, file.alpha is not None):
            raise UnsoundError("metadata read alone are others than those of the whole file")
        pixels, alpha = _digests(decoded)
        if file.header.coder is Coder.LOSSLESS:
            return Content(file.header, (), (), pixels, alpha)
        crcs = tuple(tile.symbols_crc for tile in file.tiles)
        return Content(
            file.header, self._symbols(file), crcs, pixels if self._network else 0, alpha
        )

    def _corner(self, data: bytes) -> NDArray[np.uint8] | None:
        """Return the last pixels of a file as they are seen, decoded alone; None if refused."""
        try:
            header = parse_header(data)
            width, height = header.width, header.height
            if header.orientation >= 5:
                width, height = height, width
            region = Region(
                max(0, width - CORNER), max(0, height - CORNER), min(CORNER, width),
                min(CORNER, height),
            )  # fmt: skip
            decoded = decompress(data, find=self._kinds.find, region=region)
        except DOCUMENTED:
            return None
        return upright(decoded.picture).samples

    def _check_corner(self, corner: NDArray[np.uint8] | None, decoded: Decoded) -> None:
        """Hold it against the whole picture; what is refused alone is refused with the rest.

        Raises:
            UnsoundError: it is another.
        """
        whole = upright(decoded.picture).samples
        expected = whole[-CORNER:, -CORNER:]
        if corner is None or corner.shape != expected.shape:
            raise UnsoundError("a part of a picture that decodes is refused, or of another size")
        if np.abs(corner.astype(np.int16) - expected).max() > int(self._network):
            raise UnsoundError("a part of a picture, decoded alone, differs from the whole")

    def _symbols(self, file: LicFile) -> tuple[bytes, ...]:
        codec = self._kinds.find(file.header.fingerprint)
        found = []
        for place, tile in zip(places(file.header), file.tiles, strict=True):
            writer = codec.coding.writer(file.header, tile.tables)
            recorders: list[Recorder] = []

            def watch(
                reader: Any, writer: Writer = writer, made: list[Recorder] = recorders
            ) -> Recorder:
                made.append(Recorder(reader, writer))
                return made[-1]

            codec.read_symbols(file.header, place, tile, watch)
            symbols = b"".join(recorders[0].symbols)
            if zlib.crc32(symbols) != tile.symbols_crc:
                raise UnsoundError(f"tile {tile.index}: symbols of another CRC than the file's")
            if writer.finish() != tile.streams:
                raise UnsoundError(f"tile {tile.index}: streams that no writer writes")
            found.append(symbols)
        return tuple(found)


def _metadata(data: bytes) -> tuple[object, ...] | None:
    """Return what there is before the tiles, read without them; None where that is refused."""
    try:
        parse_header(data)
        found = read_metadata(io.BytesIO(data))
    except (BitstreamError, LimitError):
        return None
    return found.model, found.icc, found.exif, found.xmp, found.has_alpha


def _chunks(data: bytes) -> set[bytes]:
    return {data[chunk.offset : chunk.end] for chunk in list_chunks(data)}


def _digests(decoded: Decoded) -> tuple[int, int]:
    picture = decoded.picture
    alpha = b"" if picture.alpha is None else b"alpha" + picture.alpha.tobytes()
    return zlib.crc32(picture.pixels.tobytes()), zlib.crc32(alpha)
