"""The HEAD chunk: what a reader knows before it reads anything else."""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from lic.codec.errors import BitstreamError, LimitError

MAJOR: Final = 1
KNOWN_FLAGS: Final = 0
MAX_SIDE: Final = 2**18
MIN_TILE_SIDE: Final = 256
MAX_TILE_SIDE: Final = 4096
TILE_UNIT: Final = 16
OVERLAP_UNIT: Final = 8
STEP_UNIT: Final = 4096
"""Quantisation steps are whole numbers of 1 / STEP_UNIT."""
MIN_STEP: Final = 0.25
MAX_STEP: Final = 4.0

_HEAD: Final = struct.Struct("<BBHIIBBBBHHBBH8s")
_NO_FINGERPRINT: Final = bytes(8)


class Coder(IntEnum):
    """How the streams of a tile are coded. Numbers on the wire: append only."""

    LOSSLESS = 0
    RANS = 1
    CONTEXTS = 2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reader accepts beyond the fixed limits of the format.

    Attributes:
        max_pixels: Largest width x height; 0 lifts the limit (sides stay below `MAX_SIDE`).
    """

    max_pixels: int = 2**28


@dataclass(frozen=True, kw_only=True)
class Header:
    """The HEAD chunk.

    Attributes:
        width: Pixels as stored, before `orientation` is applied.
        height: Pixels as stored.
        colour: 1 gray, 3 RGB: also the number of channels.
        bit_depth: Bits per sample of the source picture, 1..16 (pixels decode to 8 bits).
        orientation: 1..8, numbered as in EXIF.
        rate_point: Which rate point of the model the file was made with.
        tile_width: Pixels between the left edges of two tiles, a multiple of 16; 0 is one tile.
        tile_height: Pixels between the top edges of two tiles; 0 exactly if `tile_width` is 0.
        overlap: Pixels by which tiles reach into their neighbours, a multiple of 8.
        coder: How streams are coded.
        step: What latents were divided by before they were rounded, 0.25 to 4 in units of
            1 / `STEP_UNIT`; 1.0 is that of the training.
        fingerprint: 8 bytes that select the model; zeros for `Coder.LOSSLESS`.
        major: Format version; a reader refuses any but its own.
        minor: Grows with additions that older readers may ignore.
        flags: No flag is defined yet.
    """

    width: int
    height: int
    colour: int
    bit_depth: int = 8
    orientation: int = 1
    rate_point: int = 0
    tile_width: int = 0
    tile_height: int = 0
    overlap: int = 0
    coder: Coder = Coder.RANS
    step: float = 1.0
    fingerprint: bytes = _NO_FINGERPRINT
    major: int = MAJOR
    minor: int = 0
    flags: int = 0

    @property
    def tiles_across(self) -> int:
        """Columns of the tile grid."""
        return -(-self.width // self.tile_width) if self.tile_width else 1

    @property
    def tiles_down(self) -> int:
        """Rows of the tile grid."""
        return -(-self.height // self.tile_height) if self.tile_height else 1

    @property
    def tile_count(self) -> int:
        """How many TILE chunks the file must have."""
        return self.tiles_across * self.tiles_down


def pack_head(header: Header) -> bytes:
    """Return the payload of HEAD; `check_header` must have passed."""
    return _HEAD.pack(
        header.major,
        header.minor,
        header.flags,
        header.width,
        header.height,
        header.colour,
        header.bit_depth,
        header.orientation,
        header.rate_point,
        header.tile_width // TILE_UNIT,
        header.tile_height // TILE_UNIT,
        header.overlap // OVERLAP_UNIT,
        header.coder,
        0 if header.step == 1 else round(header.step * STEP_UNIT),
        header.fingerprint,
    )


def unpack_head(payload: bytes, limits: Limits) -> Header:
    """Return the header from the payload of HEAD.

    Raises:
        BitstreamError: From an unknown version, or a value that the format does not allow.
        LimitError: The picture is larger than `limits` or the format allow.
    """
    # The version comes first: another one may have another size.
    major = payload[0] if payload else 0
    if major != MAJOR:
        raise _fault(f"format version {major}, expected {MAJOR}; a newer lic may read it")
    if len(payload) != _HEAD.size:
        raise _fault(f"{len(payload)} bytes long, expected {_HEAD.size}")
    fields = _HEAD.unpack(payload)
    (_, minor, flags, width, height, colour, depth, orientation, rate_point) = fields[:9]
    tile_width, tile_height, overlap, coder, step, fingerprint = fields[9:]
    if step == STEP_UNIT:
        raise _fault(f"step is {step}, expected 0, which is how a step of 1 is written")
    if coder not in tuple(Coder):
        raise _fault(f"unknown coder {coder}; a newer lic may read it")
    header = Header(
        width=width,
        height=height,
        colour=colour,
        bit_depth=depth,
        orientation=orientation,
        rate_point=rate_point,
        tile_width=tile_width * TILE_UNIT,
        tile_height=tile_height * TILE_UNIT,
        overlap=overlap * OVERLAP_UNIT,
        coder=Coder(coder),
        step=step / STEP_UNIT if step else 1.0,
        fingerprint=fingerprint,
        minor=minor,
        flags=flags,
    )
    check_header(header, limits)
    return header


def check_header(header: Header, limits: Limits) -> None:
    """Hold a header, read or to be written, against the rules of the format.

    Raises:
        BitstreamError: A value that the format does not allow.
        LimitError: The picture is larger than `limits` or the format allow.
    """
    _check_range("format version", header.major, MAJOR, MAJOR)
    _check_range("minor version", header.minor, 0, 255)
    if header.flags & ~KNOWN_FLAGS:
        raise _fault(f"unknown flags {header.flags & ~KNOWN_FLAGS:#06x}; a newer lic may read it")
    for name, side in (("width", header.width), ("height", header.height)):
        if side > MAX_SIDE:
            raise LimitError(f"{name} {side} is more than the {MAX_SIDE} pixels of the format")
        _check_range(name, side, 1, MAX_SIDE)
    pixels = header.width * header.height
    if limits.max_pixels and pixels > limits.max_pixels:
        raise LimitError(
            f"{header.width} x {header.height} is {pixels} pixels, the limit is {limits.max_pixels}"
        )
    if header.colour not in (1, 3):
        raise _fault(f"colour is {header.colour}, expected 1 (gray) or 3 (RGB)")
    _check_range("bit depth", header.bit_depth, 1, 16)
    _check_range("orientation", header.orientation, 1, 8)
    _check_range("rate point", header.rate_point, 0, 255)
    if len(header.fingerprint) != 8:
        raise _fault(f"fingerprint {header.fingerprint!r} is not 8 bytes")
    _check_grid(header)
    _check_step(header.step)
    if header.coder is Coder.LOSSLESS:
        _check_lossless(header)


def _fault(text: str) -> BitstreamError:
    return BitstreamError(f"chunk HEAD at byte 8: {text}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        expected = f"{low}..{high}" if low < high else f"{low}"
        raise _fault(f"{name} is {value}, expected {expected}")


def _check_grid(header: Header) -> None:
    width, height = header.tile_width, header.tile_height
    if width == height == 0:
        _check_range("overlap of a single tile", header.overlap, 0, 0)
        return
    _check_range("tile width", width, MIN_TILE_SIDE, MAX_TILE_SIDE)
    _check_range("tile height", height, MIN_TILE_SIDE, MAX_TILE_SIDE)
    _check_range("overlap", header.overlap, 0, min(width, height) // 2)
    if width % TILE_UNIT or height % TILE_UNIT or header.overlap % OVERLAP_UNIT:
        raise _fault(
            f"tiles of {width} x {height} overlapping by {header.overlap} are not "
            f"whole units of {TILE_UNIT} and {OVERLAP_UNIT} pixels"
        )


def _check_step(step: float) -> None:
    if not MIN_STEP <= step <= MAX_STEP or step * STEP_UNIT % 1:
        raise _fault(
            f"step is {step:g}, expected {MIN_STEP:g}..{MAX_STEP:g} in units of 1 / {STEP_UNIT}"
        )


def _check_lossless(header: Header) -> None:
    if header.tile_width or header.rate_point or header.fingerprint != _NO_FINGERPRINT:
        raise _fault("an embedded lossless picture has one tile, rate point 0, and no model")
    if header.step != 1:
        raise _fault(f"step is {header.step:g}, but an embedded lossless picture has none")
