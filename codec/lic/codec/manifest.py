"""What a bundle says of itself: manifest.json, which names every other file with its hash."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from lic.codec.architectures import ARCHITECTURES
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.tiling import Padding

FORMAT = 1
# Plain names only: on no platform does one of these lead out of the bundle's folder.
FILE_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        name: family name, the same for all rate points.
        rate_point: 1 to 255; a larger number means more bits.
        architecture: key of `lic.codec.models.MODELS`.
        config: the architecture's options.
        stride: networks take pictures whose sides are multiples of it.
        lmbda: Lagrange multiplier of the training loss, None where unknown.
        metric: distortion that was trained for, "mse" or "ms-ssim".
        training: provenance, free form.
        source: where to get the bundle.
        graphs: per graph its file, and per input and output the axes' names.
        fingerprint: 16 hexadecimal digits over all that decides decoding.
        contexts: 16 more over that and the contexts, "" without any.
        files: size and SHA-256 of every other file.
    """

    name: str
    rate_point: int
    architecture: str
    config: dict[str, Any]
    stride: int
    lmbda: float | None = None
    metric: str = "mse"
    training: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    graphs: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    contexts: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.rate_point <= 255:
            raise ConfigError(f"rate_point is {self.rate_point}; expected 1 to 255")
        if self.architecture not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            raise ConfigError(f"architecture is {self.architecture!r}; expected one of {known}")

    @property
    def padding(self) -> Padding:
        """How pictures grow to what the networks take; as in the model's paper or as its code."""
        return Padding(multiple=self.stride, centred=self.config.get("placement") == "upstream")

    def to_bytes(self) -> bytes:
        """Return the file's bytes; its last entry is a hash over all others."""
        values: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        values["sha256"] = canonical_hash(values)
        return (json.dumps(values, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ModelMismatchError: changed, incomplete, or of an unknown format.
        """
        try:
            values = json.loads(data)
            stated = values.pop("sha256")
            version = values.pop("format")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise ModelMismatchError(f"{where}: not a bundle's manifest ({error!r})") from None
        if version != FORMAT:
            raise ModelMismatchError(
                f"{where}: bundle format {version!r}, this lic knows {FORMAT}; update lic"
            )
        if stated != canonical_hash({"format": version, **values}):
            raise ModelMismatchError(
                f"{where}: was changed after the bundle was made (its hash does not fit); "
                "get the bundle again"
            )
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            odd = ", ".join(sorted(set(values) ^ names))
            raise ModelMismatchError(f"{where}: unknown or missing entries: {odd}")
        _check_kinds(values, where)
        try:
            return cls(**values)
        except ConfigError as error:
            raise ModelMismatchError(f"{where}: {error}; update lic") from None


# What JSON may hold where; the hash shows damage, not the intentions of whoever wrote the file.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "rate_point": int,
    "architecture": str,
    "config": dict,
    "stride": int,
    "lmbda": (int, float, type(None)),
    "metric": str,
    "training": dict,
    "source": str,
    "graphs": dict,
    "fingerprint": str,
    "contexts": str,
    "files": dict,
}


def _check_kinds(values: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest whose entries are not what the code that uses them takes for granted."""
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind) or isinstance(values[name], bool):
            raise ModelMismatchError(f"{where}: {name} is {values[name]!r}")
    if not re.fullmatch("[0-9a-f]{16}", values["fingerprint"]):
        raise ModelMismatchError(f"{where}: fingerprint is {values['fingerprint']!r}")
    if not re.fullmatch("([0-9a-f]{16})?", values["contexts"]):
        raise ModelMismatchError(f"{where}: contexts is {values['contexts']!r}")
    if not 1 <= values["stride"] <= 4096:
        raise ModelMismatchError(f"{where}: stride is {values['stride']}")
    for name, entry in values["files"].items():
        if not re.fullmatch(FILE_NAME, name):
            raise ModelMismatchError(f"{where}: file name {name!r} could leave the bundle")
        size = entry.get("bytes") if isinstance(entry, dict) else None
        if type(size) is not int or size < 0 or not isinstance(entry.get("sha256"), str):
            raise ModelMismatchError(f"{where}: the entry of {name} is {entry!r}")


def canonical_hash(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of values as JSON whose bytes depend on nothing else."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
