"""Sizes of HPCM (arXiv 2507.19125)."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lic.codec.errors import ConfigError

Placement = Literal["upstream", "corrected"]


@dataclass(frozen=True, kw_only=True)
class HPCMConfig:
    """Widths and depths.

    Attributes:
        widths: channels of the transforms at 1/2, 1/4 and 1/8 of the picture, multiples of 4.
        blocks: residual blocks there.
        M: latent channels, a multiple of 8.
        N: hyper-latent channels, a multiple of 4.
        prior_s1_s2: blocks before and after the adaptive product, for s1 and s2.
        prior_s3: the same for s3.
        heads: of the window attention; 0 leaves attention out and carries the parameters
            themselves on as context (PhiContext).
        placement: where the hyper parameters of s2 stand: "upstream" as published weights need it,
            "corrected" at the sites that they belong to, for models trained so.

    Raises:
        ConfigError: a value that the structure does not allow.
    """

    widths: tuple[int, int, int] = (96, 192, 384)
    blocks: tuple[int, int, int] = (2, 2, 4)
    M: int = 320
    N: int = 256
    prior_s1_s2: tuple[int, int] = (2, 1)
    prior_s3: tuple[int, int] = (3, 2)
    heads: int = 32
    placement: Placement = "upstream"

    def __post_init__(self) -> None:
        for name, length in (("widths", 3), ("blocks", 3), ("prior_s1_s2", 2), ("prior_s3", 2)):
            value = getattr(self, name)
            low = 4 if name == "widths" else 0
            if not _whole_numbers(value, length, low):
                raise ConfigError(f"{name} is {value!r}; expected {length} numbers from {low} up")
            object.__setattr__(self, name, tuple(value))
        if any(width % 4 for width in self.widths):
            raise ConfigError(f"widths is {self.widths}; expected multiples of 4")
        for name, unit in (("M", 8), ("N", 4)):
            value = getattr(self, name)
            if type(value) is not int or not unit <= value <= 4096 or value % unit:
                raise ConfigError(f"{name} is {value!r}; expected a multiple of {unit} up to 4096")
        if (
            type(self.heads) is not int
            or self.heads < 0
            or (self.heads and 2 * self.M % self.heads)
        ):
            raise ConfigError(f"heads is {self.heads!r}; expected 0 or a divisor of {2 * self.M}")
        if self.placement not in get_args(Placement):
            raise ConfigError(
                f"placement is {self.placement!r}; expected {' or '.join(get_args(Placement))}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _whole_numbers(values: object, length: int, low: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == length
        and all(type(value) is int and low <= value <= 4096 for value in values)
    )


# Base, Large and Phi as published; tiny, with the same structure, for tests and small devices.
SIZES: dict[str, HPCMConfig] = {
    "base": HPCMConfig(),
    "large": HPCMConfig(blocks=(2, 2, 8), prior_s1_s2=(2, 2), prior_s3=(4, 3)),
    "phi": HPCMConfig(heads=0),
    "tiny": HPCMConfig(
        widths=(32, 48, 64),
        blocks=(1, 1, 2),
        M=64,
        N=32,
        prior_s1_s2=(1, 1),
        prior_s3=(2, 1),
        heads=8,
    ),
}


def hpcm_config(size: str, placement: Placement = "upstream") -> HPCMConfig:
    """Return the config of "base", "large", "phi" or "tiny".

    Raises:
        ConfigError: no such size.
    """
    if size not in SIZES:
        raise ConfigError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    return HPCMConfig(**{**SIZES[size].to_dict(), "placement": placement})
