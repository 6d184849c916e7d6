"""What one process measures; light, as that process imports it before its cold start ends."""

import platform
from dataclasses import dataclass
from typing import Literal, Self

from lic.codec.benchmark.schema import SpeedRun
from lic.codec.errors import ConfigError

SYNTHETIC = "synthetic"
# As ONNX Runtime calls it, in full and in short.
_QNN = ("qnn", "QNNExecutionProvider")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A system on a backend with one size of pictures.

    Attributes:
        kind: a codec of lic, or a classic one.
        system: as in `SpeedRun`.
        setting: rate point or quality.
        path: of the bundle; of a classic codec what --codec says, with its options.
        fingerprint: of the bundle.
        picture: its name.
        height, width: of it, 0 where it cannot be read.
        batch: pictures that are coded at the same time.
        backend, device, threads, precision, runs, warmup: as in `SpeedRun`.
    """

    kind: Literal["lic", "classic"]
    system: str
    setting: str
    path: str = ""
    fingerprint: str = ""
    backend: str
    device: str = "cpu"
    threads: int = 0
    precision: str = "float32"
    picture: str = SYNTHETIC
    height: int
    width: int
    batch: int = 1
    runs: int
    warmup: int

    def __post_init__(self) -> None:
        for name, least in (("height", 0), ("width", 0), ("batch", 1), ("runs", 1), ("warmup", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; expected at least {least}")

    @classmethod
    def of(cls, values: dict[str, object]) -> Self:
        """Return what `dataclasses.asdict` took apart."""
        return cls(**values)  # type: ignore[arg-type]

    def row(self, error: str | None = None) -> SpeedRun:
        """Return the row without any numbers."""
        return SpeedRun(
            system=self.system,
            setting=self.setting,
            fingerprint=self.fingerprint,
            backend=self.backend,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            picture=self.picture,
            width=self.width,
            height=self.height,
            batch=self.batch,
            runs=self.runs,
            warmup=self.warmup,
            error=error,
        )

    def is_of(self, row: SpeedRun) -> bool:
        """Return whether a row tells of this."""
        mine = self.row()
        # Graphs say themselves what they compute in, classic codecs say nothing.
        asked = self.backend != "torch" or self.precision == row.precision
        return asked and all(getattr(mine, name) == getattr(row, name) for name in _IDENTITY)


_IDENTITY = (
    *("system", "setting", "fingerprint", "backend", "device", "threads", "picture"),
    *("width", "height", "batch", "runs", "warmup"),
)


def check_measurable(device: str) -> None:
    """Refuse what gives no measurement of a device.

    Raises:
        ConfigError: Qualcomm's provider emulates its NPU on this machine.
    """
    machine = platform.machine().lower()
    if device in _QNN and machine not in ("arm64", "aarch64"):
        raise ConfigError(
            f"device {device!r} is emulated on {machine}: its times say nothing of the NPU and are "
            "not measured; run the benchmark on the device (for what an NPU would run: "
            "'lic export check')"
        )
