"""Published curves of known data sets, as far as they are installed.

Files are {system: {"bpp": [...], "psnr_db": [...], "ms_ssim": [...], "source": "..."}}, one for
each data set, called as it is: kodak.json, clic2020-professional.json.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lic.codec.benchmark.schema import Curve, Dataset, Point
from lic.codec.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "anchors"
_KEYS = {"psnr_db": "psnr", "ms_ssim": "ms_ssim"}


def published(dataset: Dataset, folder: Path = FOLDER) -> tuple[Curve, ...]:
    """Return what was published for a data set; nothing for one that is not known by checksum.

    Published numbers are means over whole sets: beside a part of one they would mislead.

    Raises:
        ConfigError: the file of this set is damaged.
    """
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', dataset.name.lower()).strip('-')}.json"
    if not (dataset.known and path.is_file()):
        return ()
    try:
        found: dict[str, Mapping[str, Any]] = json.loads(path.read_text())
        return tuple(_curve(name, values) for name, values in found.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is not a file of published curves ({error!r})") from None


def _curve(system: str, values: Mapping[str, Any]) -> Curve:
    columns = {"bpp": values["bpp"]} | {
        key: values[name] for name, key in _KEYS.items() if name in values
    }
    means = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    means.sort(key=lambda mean: mean["bpp"])
    points = tuple(Point(setting=str(i), mean=mean) for i, mean in enumerate(means, start=1))
    source = str(values.get("source", ""))
    return Curve(system=system, kind="published", points=points, source=source)
