"""What lic compress is told of a size or a quality to come to, and what it tells of it."""

import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.rate_control import Controlled, Target

Bpp = Annotated[
    float | None,
    typer.Option("--target-bpp", help="Come to these bits per pixel of the whole file."),
]
Size = Annotated[
    str | None,
    typer.Option("--target-size", help="Come to this many bytes, such as 100k, 1.5M or 64Ki."),
]
Psnr = Annotated[float | None, typer.Option("--target-psnr", help="Come to this PSNR in dB.")]
MsSsim = Annotated[
    float | None, typer.Option("--target-ms-ssim", help="Come to this MS-SSIM, such as 0.97.")
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Never above a target's size, never below its quality."),
]

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(text: str) -> int:
    """Return bytes of a number with a unit.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower(), re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if not size:
        raise ConfigError(
            f"--target-size is {text!r}; expected bytes, such as 50000, 100k, 1.5M or 64Ki"
        )
    return size


def target_of(
    bpp: float | None, size: str | None, psnr: float | None, ms_ssim: float | None, strict: bool
) -> "Target | None":
    """Return what was asked for.

    Raises:
        ConfigError: two targets, one that no file has, or --strict without any.
    """
    from lic.codec.rate_control import Target

    asked: dict[str, float | None] = {
        "bpp": bpp,
        "size": None if size is None else parse_size(size),
        "psnr": psnr,
        "ms-ssim": ms_ssim,
    }
    given = {kind: value for kind, value in asked.items() if value is not None}
    if len(given) > 1:
        named = ", ".join(f"--target-{kind}" for kind in given)
        raise ConfigError(f"found {named}; a file can come to one target only")
    if not given:
        if strict:
            raise ConfigError("--strict needs a target: --target-bpp, -size, -psnr or -ms-ssim")
        return None
    ((kind, value),) = given.items()
    named_kind: Any = kind
    return Target(kind=named_kind, value=value, strict=strict)


def values_of(found: "Controlled") -> dict[str, Any]:
    """Return what JSON tells of a target; null stands for an infinite PSNR."""
    target = found.target
    return {
        "target": {"kind": target.kind, "value": target.value, "strict": target.strict},
        "reached": round(found.reached, 6) if math.isfinite(found.reached) else None,
        "trials": found.trials,
    }


def text_of(found: "Controlled") -> str:
    """Return what people are told of a target."""
    reached = found.target.told(found.reached)
    wanted = found.target.told(found.target.value)
    return f"; {reached} of {wanted} wanted, {found.trials} trials"
