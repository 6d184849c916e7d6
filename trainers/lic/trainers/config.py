"""The options of a training run."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from lic.codec.errors import ConfigError

Start = Literal["pca", "random"]
Optimizer = Literal["adam", "soap"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the rate-distortion loop; every field is an option of `lic train`.

    `init` names the model that the run goes on from, for the record; empty for a fresh start.

    Raises:
        ConfigError: a value that cannot work; the message names the option.
    """

    lmbda: float = 0.013
    steps: int = 20_000
    batch: int = 8
    crop: int = 128
    lr: float = 1e-3
    entropy_lr: float = 3e-3
    final_lr_fraction: float = 0.01
    warmup_steps: int = 100
    optimizer: Optimizer = "soap"
    start: Start = "pca"
    max_grad_norm: float = 1.0
    ema: float = 0.999
    checkpoint_every: int = 500
    log_every: int = 100
    seed: int = 0
    init: str = ""

    def __post_init__(self) -> None:
        for name, default in ((field.name, field.default) for field in fields(self)):
            value = getattr(self, name)
            if isinstance(default, float):
                number = isinstance(value, int | float) and not isinstance(value, bool)
                self._require(name, number and math.isfinite(value), "a finite number")
            elif isinstance(default, int):
                self._require(name, type(value) is int, "a whole number")
            else:
                self._require(name, isinstance(value, str), "text")
        for name in ("lmbda", "lr", "entropy_lr"):
            self._require(name, getattr(self, name) > 0, "a number above 0")
        for name in ("steps", "batch", "checkpoint_every", "log_every"):
            self._require(name, getattr(self, name) >= 1, "1 or more")
        for name in ("warmup_steps", "max_grad_norm", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require(
            "crop", self.crop >= 16 and self.crop % 16 == 0, "a multiple of 16 from 16 up"
        )
        self._require("ema", 0 <= self.ema < 1, "0 (off) to below 1")
        self._require("final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "0 to 1")
        self._require("optimizer", self.optimizer in get_args(Optimizer), "adam or soap")
        self._require("start", self.start in get_args(Start), "pca or random")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is {getattr(self, name)!r}; expected {expected}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)
