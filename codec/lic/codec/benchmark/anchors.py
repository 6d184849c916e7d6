"""Published curves, shipped with their sources: what stands in a plot without being run.

Rates are as published: those of learned models are coded streams or estimates, without a file's
header.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lic.codec.benchmark.schema import Curve, Dataset, Point
from lic.codec.errors import ConfigError

FOLDER = Path(__file__).parent / "anchors"
MEASURED = ("bpp", "psnr", "ms_ssim")


def published_datasets() -> list[str]:
    """Return the data sets that there are published curves of, by the names of `Dataset`."""
    return sorted(_files())


def published(dataset: str) -> tuple[Curve, ...]:
    """Return the published curves of a data set, case aside.

    Raises:
        ConfigError: there are none of it; says of which there are.
    """
    for name, values in _files().items():
        if name.casefold() == dataset.casefold():
            return tuple(_curve(each) for each in values)
    raise ConfigError(
        f"there are no published curves of {dataset!r}; there are of {', '.join(_files())}"
    )


def published_beside(dataset: Dataset) -> tuple[Curve, ...]:
    """Return what was published for a measured set; nothing for one not known by checksum.

    Published numbers are means over whole sets: beside a part of one they would mislead.
    """
    whole = dataset.known and dataset.name.casefold() in map(str.casefold, _files())
    return published(dataset.name) if whole else ()


def published_curve(dataset: str, system: str) -> Curve:
    """Return a published curve by its name, case aside.

    Raises:
        ConfigError: there is no such curve of this data set; says which there are.
    """
    curves = published(dataset)
    for curve in curves:
        if curve.system.casefold() == system.casefold():
            return curve
    known = "; ".join(curve.system for curve in curves)
    raise ConfigError(f"there is no published curve {system!r} of {dataset}; there are {known}")


def points_of(columns: Mapping[str, Sequence[float]]) -> tuple[Point, ...]:
    """Return points without rows, by rate, from one list of numbers for each kind of mean.

    Their settings are numbers from 1: publications rarely say which they took.
    """
    order = sorted(range(len(columns["bpp"])), key=lambda i: columns["bpp"][i])
    return tuple(
        Point(
            setting=str(number),
            mean={name: float(values[i]) for name, values in columns.items()},
        )
        for number, i in enumerate(order, start=1)
    )


@cache
def _files() -> dict[str, list[dict[str, Any]]]:
    found = (json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json")))
    return {values["dataset"]: values["curves"] for values in found}


def _curve(values: dict[str, Any]) -> Curve:
    columns = {name: values[name] for name in MEASURED if name in values}
    return Curve(
        system=values["system"],
        kind="published",
        points=points_of(columns),
        source=values["source"],
    )
