"""What can be compared: every codec as the same few calls, from pixels to a whole file and back.

Shapes: H W pixels, C channels.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lic.codec.backends import engine
from lic.codec.benchmark.machine import cpu_name
from lic.codec.bundle import Bundle
from lic.codec.container import Model
from lic.codec.decoding import decompress
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.image_io import Picture
from lic.codec.pipeline import Codec
from lic.codec.quantisation_step import check_step

Pixels = NDArray[np.uint8]


class System(Protocol):
    """A codec with the settings to measure. It can be pickled, for other processes."""

    @property
    def name(self) -> str:
        """What a table calls it."""
        ...

    @property
    def kind(self) -> Literal["lic", "classic"]:
        """A codec of lic, or a classic one."""
        ...

    @property
    def settings(self) -> tuple[str, ...]:
        """From few bits to many."""
        ...

    @property
    def details(self) -> dict[str, Any]:
        """What fixes its output, for people: plain values that JSON holds."""
        ...

    def identity(self, setting: str) -> dict[str, Any]:
        """Return all that decides a file's bytes and its pixels, for the cache's keys."""
        ...

    def open(self) -> None:
        """Load what would otherwise fail with the first picture.

        Raises:
            ConfigError: it cannot run here.
        """
        ...

    def code(self, pixels: Pixels, setting: str) -> bytes:
        """Return the whole file of pixels (H, W, C)."""
        ...

    def decode(self, data: bytes, channels: int = 3) -> Pixels:
        """Return pixels (H, W, C) of a file."""
        ...


@dataclass(kw_only=True)
class LicSystem:
    """Bundles of a family on one backend.

    The settings are their rate points, as "3", and where it is not 1 the step: "3@1.5".

    Attributes:
        name: what a table calls it.
        bundles: by rate point.
        steps: quantisation steps that each is measured in, from large to small.
        backend, device, precision: see `lic.codec.pipeline.Codec`.
        threads: of one operator; their number may change sums, so it is never the engine's choice.
    """

    name: str
    bundles: tuple[Bundle, ...]
    steps: tuple[float, ...] = (1.0,)
    backend: str = "auto"
    device: str = "cpu"
    threads: int = 1
    precision: str = "float32"
    kind: Literal["lic"] = "lic"
    _open: dict[str, Codec] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    @property
    def settings(self) -> tuple[str, ...]:
        """Rate points, each in its steps."""
        return tuple(
            str(bundle.manifest.rate_point) + (f"@{step:g}" if step != 1 else "")
            for bundle in self.bundles
            for step in self.steps
        )

    @property
    def details(self) -> dict[str, Any]:
        """What fixes its output."""
        engines = dict.fromkeys(engine(b, self.backend, self.device) for b in self.bundles)
        return {
            "backend": ", ".join(engines),
            "device": self.device,
            "threads": self.threads,
            "precision": self.precision,
            "library": ", ".join(_library(name) for name in engines),
            "fingerprints": {
                str(b.manifest.rate_point): b.file_fingerprint.hex() for b in self.bundles
            },
        }

    def identity(self, setting: str) -> dict[str, Any]:
        """Return all that decides a file's bytes and its pixels.

        The fingerprint is that of the decoder alone, so the manifest stands in, which has a hash of
        every file; files of embedded bundles lack the model's name, and are shorter for it.
        """
        bundle = self._bundle(setting)
        backend = engine(bundle, self.backend, self.device)
        return {
            "manifest": hashlib.sha256(bundle.manifest.to_bytes()).hexdigest(),
            "step": self._step(setting),
            "embedded": bundle.embedded,
            "backend": backend,
            "library": _library(backend),
            "device": self.device,
            "threads": self.threads,
            "precision": self.precision,
            # Networks round as the processor's instructions do.
            "cpu": cpu_name(),
        }

    def open(self) -> None:
        """Load the first bundle.

        Raises:
            ConfigError: the backend, device or precision is not there, or the model has no such
                step.
            ModelMismatchError: the bundle was changed.
        """
        codec = self._codec(self.settings[0])
        for step in self.steps:
            check_step(codec.bundle, codec.backend, step)

    def code(self, pixels: Pixels, setting: str) -> bytes:
        """Return the .lic file of pixels (H, W, C), coded by the model in any case."""
        return self._codec(setting).compress(Picture(pixels=pixels), step=self._step(setting)).data

    def decode(self, data: bytes, channels: int = 3) -> Pixels:
        """Return pixels (H, W, C) of a file that this system wrote."""
        pixels = decompress(data, find=self._find).picture.pixels
        assert pixels.shape[2] == channels, "a file holds as many channels as were coded"
        return pixels

    def _step(self, setting: str) -> float:
        return self.steps[self.settings.index(setting) % len(self.steps)]

    def _bundle(self, setting: str) -> Bundle:
        return self.bundles[self.settings.index(setting) // len(self.steps)]

    def _codec(self, setting: str) -> Codec:
        """Return the codec of a setting; one at a time, which bounds the memory."""
        point = setting.partition("@")[0]
        if point not in self._open:
            self._open.clear()
            self._open[point] = Codec(
                self._bundle(setting),
                backend=self.backend,
                device=self.device,
                threads=self.threads,
                precision=self.precision,
            )
        return self._open[point]

    def _find(self, fingerprint: bytes, hint: Model | None) -> Codec:
        for bundle in self.bundles:
            if fingerprint in bundle.fingerprints.values():
                return self._codec(self.settings[self.bundles.index(bundle) * len(self.steps)])
        raise ModelMismatchError(f"the file was made with {hint}, which is none of {self.name}")


def lic_systems(
    families: Sequence[Sequence[Bundle]],
    backends: Sequence[str] = ("auto",),
    *,
    given: Sequence[str] = (),
    steps: Sequence[float] = (1.0,),
    device: str = "cpu",
    threads: int = 1,
    precision: str = "float32",
) -> list[LicSystem]:
    """Return every family of bundles on every backend, under names that tell them apart.

    Args:
        families: each by rate point.
        backends: of `lic.codec.pipeline.Codec`.
        given: what each family was asked for by, which a name says where two have the same; by
            default the path, which of a run's bundle is another one each time.
        steps: see `LicSystem`.
        device: see `LicSystem`.
        threads: see `LicSystem`.
        precision: see `LicSystem`.

    Raises:
        ConfigError: no such backend, or a family twice.
    """
    found = [
        LicSystem(
            name=bundles[0].manifest.name,
            bundles=tuple(bundles),
            steps=tuple(sorted(set(steps), reverse=True)),
            backend=backend,
            device=device,
            threads=threads,
            precision=precision,
        )
        for bundles in families
        for backend in backends
    ]
    if len(backends) > 1:
        counts = Counter(system.name for system in found)
        found = [replace(s, name=_by_backend(s)) if counts[s.name] > 1 else s for s in found]
    told = given or [str(bundles[0].path.parent) for bundles in families]
    names = tell_apart([s.name for s in found], [each for each in told for _ in backends])
    found = [replace(s, name=name) for s, name in zip(found, names, strict=True)]
    check_names(found)
    return found


def tell_apart(names: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return names; those that are there more than once say what they were asked for by."""
    counts = Counter(names)
    return [
        f"{name} of {asked}" if counts[name] > 1 else name
        for name, asked in zip(names, given, strict=True)
    ]


def check_names(systems: Sequence[System]) -> None:
    """Refuse systems of the same name.

    Raises:
        ConfigError: names one.
    """
    for name, count in Counter(system.name for system in systems).items():
        if count > 1:
            raise ConfigError(f"{name} is named {count} times; once is enough")


def _by_backend(system: LicSystem) -> str:
    return f"{system.name} ({engine(system.bundles[0], system.backend, system.device)})"


def _library(backend: str) -> str:
    """Return the engine's package and version."""
    names = {"torch": ("torch",)}.get(
        backend, ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn")
    )
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return names[0]
