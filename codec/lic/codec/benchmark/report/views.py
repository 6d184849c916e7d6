"""Chosen pictures for the page's viewer: originals and what systems make of them.

Pictures are embedded without loss, so that differences are the codecs' and not the page's.
Shapes: H W pixels, C channels.
"""

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lic.codec.benchmark.classic import Pixels
from lic.codec.benchmark.datasets import read_plain
from lic.codec.benchmark.report.content import Section
from lic.codec.benchmark.report.reconstruct import Reconstruct
from lic.codec.benchmark.schema import Curve, DatasetPicture, Row
from lic.codec.errors import ConfigError, ImageError, LicError
from lic.codec.image_io import Picture

USUAL_VIEWS = 3
# Larger pictures are cropped, never scaled: scaling hides what a codec did.
LARGEST_SIDE = 1024
# Base64 adds a third. Browsers take more, mail and repositories do not.
MOST_BYTES = 40_000_000


@dataclass(frozen=True, kw_only=True)
class Version:
    """What a system made of a picture.

    Attributes:
        system, setting: which.
        row: what was measured.
        uri: the picture; empty where it could not be coded again.
        note: what to know: another file than the measured one, or why there is none.
    """

    system: str
    setting: str
    row: Row
    uri: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class View:
    """A picture, and what systems make of it.

    Attributes:
        section: label of its section.
        picture: its name.
        width, height: of what is embedded.
        crop: (left, top) of a cropped one.
        uri: the original.
        versions: by system.
    """

    section: str
    picture: str
    width: int
    height: int
    crop: tuple[int, int] | None
    uri: str
    versions: tuple[Version, ...]


def make_views(
    sections: Sequence[Section],
    folder: Path,
    names: Sequence[str],
    reconstruct: Reconstruct,
    *,
    rate: float | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[View]:
    """Code pictures again: each system at the setting whose file is nearest to one rate.

    Args:
        sections: where the pictures were measured.
        folder: where they lie.
        names: which; none are the first three.
        reconstruct: codes one.
        rate: bits per pixel; None takes the middle setting of the first system.
        progress: called after every picture.

    Raises:
        ConfigError: no such picture, another file of that name, or too much to embed.
        ImageError: a picture cannot be read.
    """
    found = [_find(sections, name) for name in names] or _first(sections, folder)
    views: list[View] = []
    for section, entry in found:
        views.append(_view(section, entry, folder, reconstruct, rate))
        progress()
        total = sum(len(v.uri) + sum(len(each.uri) for each in v.versions) for v in views)
        if total > MOST_BYTES:
            raise ConfigError(
                f"--view: the first {len(views)} pictures take {total / 1e6:.0f} MB of the page; "
                f"expected at most {MOST_BYTES / 1e6:.0f}; name fewer"
            )
    return views


def _find(sections: Sequence[Section], name: str) -> tuple[Section, DatasetPicture]:
    for section in sections:
        for entry in section.dataset.pictures:
            if name in (entry.name, Path(entry.name).stem):
                return section, entry
    known = [entry.name for section in sections for entry in section.dataset.pictures]
    told = ", ".join(known[:8]) + (f" and {len(known) - 8} more" if len(known) > 8 else "")
    raise ConfigError(f"--view {name}: the results have no such picture; they have {told}")


def _first(sections: Sequence[Section], folder: Path) -> list[tuple[Section, DatasetPicture]]:
    for section in sections:
        there = [p for p in section.dataset.pictures if (folder / p.name).is_file()]
        if there:
            return [(section, picture) for picture in there[:USUAL_VIEWS]]
    raise ConfigError(f"--pictures {folder}: holds none of the results' pictures")


def _view(
    section: Section,
    entry: DatasetPicture,
    folder: Path,
    reconstruct: Reconstruct,
    rate: float | None,
) -> View:
    picture = _read(folder / entry.name, entry)
    box = _crop(picture.width, picture.height)
    left, top, right, bottom = box
    versions = []
    wanted = _rate_of(section, entry.name) if rate is None else rate
    for curve in section.measured:
        nearest = _nearest(curve, entry.name, wanted)
        if nearest is not None:
            setting, row = nearest
            versions.append(_version(curve, setting, row, picture, box, reconstruct))
    return View(
        section=section.label,
        picture=entry.name,
        width=right - left,
        height=bottom - top,
        crop=None if (right, bottom) == (picture.width, picture.height) else (left, top),
        uri=_uri(picture.pixels, box),
        versions=tuple(versions),
    )


def _read(path: Path, entry: DatasetPicture) -> Picture:
    """Read a picture, if it is the one that was measured."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    if digest != entry.sha256:
        raise ConfigError(
            f"{path}: has SHA-256 {digest[:12]}...; the results were measured on "
            f"{entry.sha256[:12]}...; name the folder of those pictures"
        )
    return read_plain(path)


def _crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the middle, at most LARGEST_SIDE each way."""
    w, h = min(width, LARGEST_SIDE), min(height, LARGEST_SIDE)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _rate_of(section: Section, picture: str) -> float | None:
    """Return the rate of the first system's middle setting on a picture."""
    for curve in section.measured:
        rates = sorted(row.bpp for _, row in _rows(curve, picture) if row.bpp is not None)
        if rates:
            return rates[len(rates) // 2]
    return None


def _rows(curve: Curve, picture: str) -> list[tuple[str, Row]]:
    return [(p.setting, row) for p in curve.points for row in p.rows if row.picture == picture]


def _nearest(curve: Curve, picture: str, rate: float | None) -> tuple[str, Row] | None:
    there = [(s, row, row.bpp) for s, row in _rows(curve, picture) if row.bpp]
    if not there or rate is None:
        return None
    # The ratio counts: 0.1 and 0.4 bpp are as far from 0.2 as from each other's middle.
    setting, row, _ = min(there, key=lambda each: abs(np.log(each[2] / rate)))
    return setting, row


def _version(
    curve: Curve,
    setting: str,
    row: Row,
    picture: Picture,
    box: tuple[int, int, int, int],
    reconstruct: Reconstruct,
) -> Version:
    """Code a picture again; a system that cannot is told about, and the others go on."""
    version = Version(system=curve.system, setting=setting, row=row)
    try:
        found = reconstruct(curve, setting, picture)
    except (LicError, ValueError) as error:
        return replace(version, note=f"cannot be shown: {error}")
    same = row.sha256 in (None, found.sha256)
    note = "" if same else "coded anew for this page: not byte for byte the file that was measured"
    return replace(version, uri=_uri(found.pixels, box), note=note)


def _uri(pixels: Pixels, box: tuple[int, int, int, int]) -> str:
    shown = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(shown)).convert("RGB").crop(box)
    image.save(buffer, "WEBP", lossless=True, quality=60, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
