"""Results as CompressAI's tools read and write them: one JSON object a curve.

    {"name": ..., "description": ..., "results": {"bpp": [...], "psnr-rgb": [...], ...}}

Files that CompressAI publishes have these keys; older ones, of classic codecs, say "psnr" and
"ms-ssim", and some have "meta" besides. All numbers are means over a data set.
"""

import json
import math
from typing import Any

from lic.codec.benchmark.anchors import points_of
from lic.codec.benchmark.schema import Curve
from lic.codec.errors import ConfigError

# The first name of a number is the one that is written.
KEYS = {
    "bpp": ("bpp",),
    "psnr": ("psnr-rgb", "psnr"),
    "ms_ssim": ("ms-ssim-rgb", "ms-ssim"),
}


def import_curve(data: bytes, where: str) -> tuple[Curve, tuple[str, ...], str]:
    """Return a file's curve, the keys of its results that nothing here reads, and its data set.

    The data set is "" where the file does not tell.

    Raises:
        ConfigError: not such a file; says what is wrong.
    """
    try:
        values = json.loads(data)
        name, results = values["name"], values["results"]
        found = {key: list(results[key]) for key in results}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where}: is not a results file of CompressAI ({error!r})") from None
    columns: dict[str, list[float]] = {}
    for ours, theirs in KEYS.items():
        for key in theirs:
            if key in found and ours not in columns:
                most = 1.0 if ours == "ms_ssim" else math.inf
                columns[ours] = _numbers(found.pop(key), f"{where}: {key}", most)
    if "bpp" not in columns or len(columns) < 2:
        raise ConfigError(
            f"{where}: has {', '.join(results) or 'nothing'}; expected bpp and psnr-rgb or "
            "ms-ssim-rgb"
        )
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} of {ours}" for ours, column in columns.items())
        raise ConfigError(f"{where}: has {lengths}; expected as many of each")
    description = _text(values, "description")
    curve = Curve(
        system=str(name),
        kind="published",
        points=points_of(columns),
        source=description or where,
    )
    meta = values.get("meta")
    return curve, tuple(found), _text(meta, "dataset") if isinstance(meta, dict) else ""


def export_curve(curve: Curve) -> bytes:
    """Return the file of a curve: its means, where every point has them.

    Raises:
        ConfigError: it has no points, or a point without rate.
    """
    columns = {
        theirs[0]: [point.mean.get(ours) for point in curve.points] for ours, theirs in KEYS.items()
    }
    whole = {key: values for key, values in columns.items() if values and None not in values}
    if "bpp" not in whole:
        raise ConfigError(f"{curve.system}: has points without mean bpp; nothing to export")
    description = curve.source or "; ".join(
        f"{name}: {value}" for name, value in curve.details.items()
    )
    file = {"name": curve.system, "description": description, "results": whole}
    return (json.dumps(file, indent=2, allow_nan=False) + "\n").encode()


def _text(values: dict[str, Any], key: str) -> str:
    return value if isinstance(value := values.get(key), str) else ""


def _numbers(values: list[Any], where: str, most: float) -> list[float]:
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 <= value <= most and value < math.inf):
            limit = f" to {most:g}" if most < math.inf else ""
            raise ConfigError(f"{where} has {value!r}; expected finite numbers from 0{limit}")
    return [float(value) for value in values]
