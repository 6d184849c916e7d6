"""Systems that fail in ways that real ones do; processes of tests import them."""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lic.codec.benchmark.classic import Classic
from lic.codec.errors import ConfigError, NumericsError

Pixels = NDArray[np.uint8]


@dataclass(kw_only=True)
class Odd:
    """JPEG, but pictures whose first sample is `victim` end as `how` says.

    Attributes:
        log: every coding appends a line to it.
        delay: seconds that a coding takes.
    """

    name: str = "odd"
    settings: tuple[str, ...] = ("10", "50")
    how: str = ""
    victim: int = -1
    log: Path | None = None
    delay: float = 0.0
    kind: Literal["classic"] = "classic"
    details: dict[str, Any] = field(default_factory=dict)

    def identity(self, setting: str) -> dict[str, Any]:
        return {"odd": self.name, "setting": setting}

    def open(self) -> None:
        if self.how == "cannot open":
            raise ConfigError("odd cannot run here")

    def code(self, pixels: Pixels, setting: str) -> bytes:
        if self.log:
            with self.log.open("a") as file:
                file.write(f"{setting} {pixels[0, 0, 0]}\n")
        time.sleep(self.delay)
        if pixels[0, 0, 0] == self.victim:
            self._end()
        return Classic(key="jpeg").code(pixels, setting)

    def decode(self, data: bytes, channels: int = 3) -> Pixels:
        if self.how == "same":
            return np.zeros((200, 170, 3), np.uint8)
        pixels = Classic(key="jpeg").decode(data, channels)
        return pixels[1:] if self.how == "smaller" else pixels

    def _end(self) -> None:
        match self.how:
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                sys.exit(3)
            case "os exit":
                os._exit(5)
            case "lic":
                raise NumericsError("other symbols")
            case "memory":
                raise MemoryError
            case "bug":
                raise KeyError("x")


def half(number: int) -> float:
    """Work of a test; 13 ends the process, 0 raises."""
    if number == 13:
        os._exit(1)
    return number / 2 if number else 1 / 0


def asleep(_: int) -> None:
    """Work that takes longer than any test."""
    time.sleep(600)
