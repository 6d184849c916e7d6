"""Rate and distortion of systems on a data set: whole files, decoded again.

Every row is the same whenever and wherever on this machine it is measured, so rows are kept: a
measurement that was interrupted goes on where it was, and ends in the same bytes.

Shapes: H W pixels, C channels.
"""

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.benchmark.cache import Cache, key_of
from lic.codec.benchmark.datasets import OpenDataset, read_plain
from lic.codec.benchmark.machine import machine
from lic.codec.benchmark.perceptual import lpips, lpips_version
from lic.codec.benchmark.schema import Curve, Dataset, DatasetPicture, Point, RdResults, Row
from lic.codec.benchmark.systems import System, check_names
from lic.codec.errors import ImageError, LicError
from lic.codec.metrics import MS_SSIM_LEAST_SIDE, bpp, ms_ssim, psnr, psnr_y
from lic.codec.workers import Died, spread

Pixels = NDArray[np.uint8]
NUMBERS = ("bytes", "bpp", "psnr", "psnr_y", "ms_ssim", "lpips")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture at one setting of one system."""

    path: Path
    picture: DatasetPicture
    system: System
    setting: str
    with_lpips: bool


Progress = Callable[[int, int], None]


def measure(
    source: OpenDataset,
    systems: Sequence[System],
    *,
    command: str,
    jobs: int = 1,
    cache: Cache | None = None,
    with_lpips: bool = False,
    accelerators: Sequence[str] = (),
    progress: Progress = lambda *_: None,
) -> RdResults:
    """Code every picture with every system at every setting, and decode the files.

    What fails is a row that says why, and is tried again next time.

    Args:
        source: data set.
        systems: what is measured, under different names.
        command: that does this again.
        jobs: processes; 0 measures in this one.
        cache: of rows; None keeps none.
        with_lpips: measure LPIPS as well.
        accelerators: names of GPUs and NPUs that are used.
        progress: is told after every row how many are there, and of how many.

    Raises:
        ConfigError: two systems of one name, or one that cannot run here.
        OutputError: the cache cannot be written.
    """
    check_names(systems)
    work = _jobs(source, systems, with_lpips=with_lpips)
    keys = _keys(work) if cache else [""] * len(work)
    rows: list[Row | None] = [
        cache.get(key, job.picture.name) if cache else None
        for job, key in zip(work, keys, strict=True)
    ]
    missing = [number for number, row in enumerate(rows) if row is None]
    # What cannot run at all is said before anything runs.
    for system in systems:
        if any(work[number].system is system for number in missing):
            system.open()
    done = len(rows) - len(missing)
    progress(done, len(rows))
    with closing(spread(measure_row, [work[number] for number in missing], jobs)) as results:
        for place, row in results:
            number = missing[place]
            if isinstance(row, Died):
                row = Row(picture=work[number].picture.name, error=row.reason)
            rows[number] = row
            if cache and row.error is None:
                cache.put(keys[number], row)
            done += 1
            progress(done, len(rows))
    return RdResults(
        command=command,
        machine=machine(accelerators),
        dataset=source.dataset,
        curves=_curves(systems, source.dataset, [row for row in rows if row is not None]),
    )


def failures(results: RdResults) -> list[str]:
    """Return which rows have no numbers, and why."""
    return [
        # What cannot be read names the picture itself.
        f"{curve.system} at {point.setting}, {row.picture}: "
        f"{row.error.removeprefix(f'{row.picture}: ')}"
        for curve in results.curves
        for point in curve.points
        for row in point.rows
        if row.error is not None
    ]


def measure_row(job: Job) -> Row:
    """Return the row of a job; what goes wrong is said in it."""
    name = job.picture.name
    try:
        pixels = _pixels(job.path, job.picture.sha256)
        data = job.system.code(pixels, job.setting)
        decoded = job.system.decode(data, pixels.shape[2])
        return _row(name, pixels, decoded, data, with_lpips=job.with_lpips)
    except LicError as error:
        return Row(picture=name, error=str(error))
    except MemoryError:
        return Row(picture=name, error="not enough memory for this picture")
    # A library's failure belongs to its own row, whatever it raises.
    except Exception as error:
        return Row(picture=name, error=f"{type(error).__name__}: {error}")


def _row(name: str, pixels: Pixels, decoded: Pixels, data: bytes, *, with_lpips: bool) -> Row:
    height, width = pixels.shape[:2]
    large = min(height, width) >= MS_SSIM_LEAST_SIDE
    return Row(
        picture=name,
        bytes=len(data),
        bpp=bpp(len(data), width, height),
        psnr=_finite(psnr(pixels, decoded)),
        psnr_y=_finite(psnr_y(pixels, decoded)),
        ms_ssim=ms_ssim(pixels, decoded) if large else None,
        lpips=lpips(pixels, decoded) if with_lpips else None,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _finite(decibels: float) -> float | None:
    """Return None for identical pictures, as `schema.Row` has it."""
    return decibels if math.isfinite(decibels) else None


def _pixels(path: Path, sha256: str) -> Pixels:
    """Return pixels (H, W, C) of a picture.

    Raises:
        ImageError: it cannot be read, or is no longer the one that was looked at.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError(f"{path.name}: was changed while it was measured; measure again")
    return read_plain(io.BytesIO(data), path.name).pixels


def _jobs(source: OpenDataset, systems: Sequence[System], *, with_lpips: bool) -> list[Job]:
    """Return the work, a setting at a time: opening a model costs more than reading a picture."""
    return [
        Job(path=path, picture=picture, system=system, setting=setting, with_lpips=with_lpips)
        for system in systems
        for setting in system.settings
        for path, picture in zip(source.paths, source.dataset.pictures, strict=True)
    ]


def _keys(work: Sequence[Job]) -> list[str]:
    """Return the keys of the jobs' rows in the cache."""
    identities: dict[tuple[str, str], dict[str, Any]] = {}
    keys = []
    for job in work:
        place = job.system.name, job.setting
        if place not in identities:
            identities[place] = {
                "system": job.system.identity(job.setting),
                "lpips": lpips_version() if job.with_lpips else None,
            }
        keys.append(key_of({"picture": job.picture.sha256, **identities[place]}))
    return keys


def _curves(systems: Sequence[System], dataset: Dataset, rows: Sequence[Row]) -> tuple[Curve, ...]:
    """Return the curves, from rows in the order of `_jobs`."""
    curves, left = [], iter(rows)
    for system in systems:
        points = []
        for setting in system.settings:
            own = tuple(next(left) for _ in dataset.pictures)
            points.append(Point(setting=setting, rows=own, mean=_means(own, dataset)))
        curves.append(
            Curve(
                system=system.name, kind=system.kind, points=tuple(points), details=system.details
            )
        )
    return tuple(curves)


def _means(rows: Sequence[Row], dataset: Dataset) -> dict[str, float | None]:
    """Return means over the pictures that can be read; None where one of them lacks the number.

    A mean over fewer pictures would be of other pictures than the next point's or system's.
    """
    counted = [row for row, picture in zip(rows, dataset.pictures, strict=True) if picture.width]

    def mean(values: list[Any]) -> float | None:
        return None if None in values or not values else fmean(values)

    return {name: mean([getattr(row, name) for row in counted]) for name in NUMBERS}
