"""Published curves of known data sets, as far as they are installed.

Files are {"dataset": "Kodak", "curves": [{"system": ..., "source": ..., "bpp": [...],
"psnr": [...], "ms_ssim": [...]}, ...]}, one for each data set.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lic.codec.benchmark.schema import Curve, Dataset, Point
from lic.codec.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "anchors"
_MEANS = ("bpp", "psnr", "ms_ssim")


def published(dataset: Dataset, folder: Path = FOLDER) -> tuple[Curve, ...]:
    """Return what was published for a data set; nothing for one that is not known by checksum.

    Published numbers are means over whole sets: beside a part of one they would mislead.

    Raises:
        ConfigError: a file is damaged.
    """
    for path in sorted(folder.glob("*.json")) if dataset.known else ():
        try:
            values = json.loads(path.read_text())
            if values["dataset"].casefold() == dataset.name.casefold():
                return tuple(_curve(each) for each in values["curves"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: is not a file of published curves ({error!r})") from None
    return ()


def _curve(values: Mapping[str, Any]) -> Curve:
    columns = {key: values[key] for key in _MEANS if key in values}
    means = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    means.sort(key=lambda mean: mean["bpp"])
    points = tuple(Point(setting=str(i), mean=mean) for i, mean in enumerate(means, start=1))
    source = str(values.get("source", ""))
    return Curve(system=values["system"], kind="published", points=points, source=source)
