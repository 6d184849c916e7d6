"""What `lic bench` writes: JSON with a format, a version and stable keys.

A file says what was measured, with what, and the command that does it again. Nothing that was not
measured stands in it as a number: it is null. A new key with a default keeps the version, anything
else raises it.

Rate and distortion depend on codecs, not on the clock: `RdResults` holds no times, and is the same
however often the measurement was interrupted. Times are in `SpeedResults`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from lic.codec.errors import ConfigError

FORMAT = "lic-bench"
VERSION = 1
Kind = Literal["rd", "speed"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured.

    Attributes:
        cpu: model name, as the operating system tells it.
        cores: that the process may use.
        memory: bytes.
        system: operating system, release and architecture.
        accelerators: names of GPUs and NPUs that were used.
        versions: of Python and of every library that codes or computes, by name.
    """

    cpu: str
    cores: int
    memory: int | None
    system: str
    accelerators: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DatasetPicture:
    """A picture of a data set.

    Attributes:
        name: path within the data set, with slashes.
        sha256: of its file.
        width, height: of its pixels, upright; 0 where the picture cannot be read.
    """

    name: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The pictures, in order of their names.

    Attributes:
        name: "Kodak" or another known set where all checksums say so, else the folder's name.
        known: the checksums say so.
        remark: what is odd, such as a known picture in another size.
    """

    name: str
    known: bool
    pictures: tuple[DatasetPicture, ...]
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture at one point: a whole file, decoded again.

    Attributes:
        picture: its name.
        bytes: of the file.
        bpp: 8 bytes / (width height).
        psnr: of RGB in dB, mean squared error over all three; None for identical pictures, whose
            PSNR is infinite: no cap stands in for it.
        psnr_y: of luma as JPEG has it (BT.601, full range, not rounded), in dB; None as psnr.
        ms_ssim: of RGB, 0 to 1; None for pictures that are too small for it. In dB it is
            -10 log10(1 - ms_ssim), and of a mean likewise, as published curves have it.
        lpips: where it is installed.
        sha256: of the file.
        error: why there are no numbers; all of them are None then.
    """

    picture: str
    bytes: int | None = None
    bpp: float | None = None
    psnr: float | None = None
    psnr_y: float | None = None
    ms_ssim: float | None = None
    lpips: float | None = None
    sha256: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A system at one setting.

    Attributes:
        setting: rate point or quality, as its command takes it.
        rows: by picture, in the data set's order; empty for published points.
        mean: of the rows' numbers, by their names. It is over all pictures of the data set that
            can be read, or None where a row of them lacks the number: means over different
            pictures do not compare.
    """

    setting: str
    rows: tuple[Row, ...] = ()
    mean: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A system at several settings, from few bits to many.

    Attributes:
        system: its name, unique in a file, such as "bmshj2018-factorized-relu-lite" or "JPEG".
        kind: a codec of lic, a classic one, or published numbers that were not measured here.
        details: what fixes its output: backend, device, precision, fingerprints by setting, library
            and version, options.
        source: of published numbers.
    """

    system: str
    kind: Literal["lic", "classic", "published"]
    points: tuple[Point, ...]
    details: dict[str, Any] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds over runs."""

    median: float
    p90: float
    p95: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class DirectionTimes:
    """Compressing or decompressing one picture of a file, or a batch.

    Attributes:
        wall, cpu: of the whole, read and write included; cpu of all threads.
        stages: wall, by name, in order.
        mpx_per_s: megapixels a second of the median wall time.
        energy: joules a run, None where no counter could be read.
    """

    wall: Times
    cpu: Times
    stages: dict[str, Times]
    mpx_per_s: float
    energy: float | None = None


@dataclass(frozen=True, kw_only=True)
class SpeedRun:
    """A system on a backend with one size of pictures.

    Attributes:
        system: as in `Curve`, without what tells engines apart there.
        setting: as in `Point`.
        fingerprint: of the model; "" for classic codecs.
        backend: "torch", "onnx" or a classic codec's library.
        device: that was asked for.
        provider: that really computed, as the engine tells it.
        fallbacks: operators or whole graphs that ran elsewhere than asked, in words.
        precision: of the networks.
        threads: of computation; 0: the engine's choice.
        picture: which one, "synthetic" for a made one.
        width, height, batch: of what was coded.
        bytes: of a file.
        runs, warmup: counted and not counted.
        cold_start: milliseconds from a fresh process to the first file, imports included.
        peak_memory: bytes, of a process that does only this.
        kmac_per_pixel: thousands of multiply-accumulates a pixel, by direction.
        parameters: of the networks, both directions.
        peak_device_memory: bytes that the engine held on a GPU, where it tells.
        energy_counters: what `energy` adds up, such as "package-0".
        error: why there are no numbers.
    """

    system: str
    setting: str
    backend: str
    device: str
    provider: str = ""
    fallbacks: tuple[str, ...] = ()
    precision: str = "float32"
    threads: int = 0
    picture: str = ""
    width: int = 0
    height: int = 0
    batch: int = 1
    bytes: int | None = None
    runs: int = 0
    warmup: int = 0
    encode: DirectionTimes | None = None
    decode: DirectionTimes | None = None
    cold_start: float | None = None
    peak_memory: int | None = None
    kmac_per_pixel: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    peak_device_memory: int | None = None
    energy_counters: tuple[str, ...] = ()
    fingerprint: str = ""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class RdResults:
    """Rate and distortion of systems on one data set."""

    command: str
    machine: Machine
    dataset: Dataset
    curves: tuple[Curve, ...]

    def to_bytes(self) -> bytes:
        """Return the file."""
        return _to_bytes("rd", self)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Read a file.

        Raises:
            ConfigError: not such a file, of another version, or damaged; says what is wrong.
        """
        return _from_bytes("rd", cls, data, where)


@dataclass(frozen=True, kw_only=True)
class SpeedResults:
    """Times of systems on one machine."""

    command: str
    machine: Machine
    runs: tuple[SpeedRun, ...]

    def to_bytes(self) -> bytes:
        """Return the file."""
        return _to_bytes("speed", self)

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Read a file.

        Raises:
            ConfigError: not such a file, of another version, or damaged; says what is wrong.
        """
        return _from_bytes("speed", cls, data, where)


Results = RdResults | SpeedResults


def read_results(data: bytes, where: str) -> Results:
    """Read a file of either kind.

    Raises:
        ConfigError: neither.
    """
    kind = _parsed(data, where).get("kind")
    if kind == "rd":
        return RdResults.from_bytes(data, where)
    if kind == "speed":
        return SpeedResults.from_bytes(data, where)
    raise ConfigError(f'{where}: kind is {kind!r}; expected "rd" or "speed"')


def _to_bytes(kind: Kind, results: Any) -> bytes:
    values = {"format": FORMAT, "version": VERSION, "kind": kind, **asdict(results)}
    return (json.dumps(values, indent=1, allow_nan=False) + "\n").encode()


def _finite(text: str) -> float:
    """Return a number that JSON can hold, which 1e999, NaN and Infinity are not."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def from_plain(cls: type[T], values: Any, where: str) -> T:
    """Return an object of one of the classes above from what `asdict` gave.

    Raises:
        ConfigError: a value of another type, a missing or an unknown one.
    """
    made: T = _build(cls, values, where)
    return made


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(data, parse_constant=_finite, parse_float=_finite)
        found = values["format"], values["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where}: is not what lic bench writes ({error!r})") from None
    if found != (FORMAT, VERSION) or type(found[1]) is not int:
        raise ConfigError(
            f"{where}: is {found[0]!r} version {found[1]!r}; expected {FORMAT!r} version {VERSION}"
        )
    assert isinstance(values, dict), "only these have such keys"
    return values


def _from_bytes(kind: Kind, cls: type[T], data: bytes, where: str) -> T:
    values = _parsed(data, where)
    if values.get("kind") != kind:
        raise ConfigError(f"{where}: kind is {values.get('kind')!r}; expected {kind!r}")
    rest = {name: v for name, v in values.items() if name not in ("format", "version", "kind")}
    return from_plain(cls, rest, where)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Return a value as an annotation says, from what JSON gave."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin is UnionType:
        if value is None and NoneType in arguments:
            return None
        (only,) = [each for each in arguments if each is not NoneType]
        return _build(only, value, where)
    if origin is tuple and _is_list(value):
        return tuple(_build(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {k: _build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    plain = kind in (str, int, float, bool) and type(value) is kind
    if kind is Any or plain:
        return value
    raise ConfigError(f"{where}: is {str(value)[:60]!r}; expected {_called(kind)}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _called(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(repr(each) for each in get_args(kind))
    return {tuple: "a list", dict: "an object"}.get(get_origin(kind), getattr(kind, "__name__", ""))


def _dataclass(cls: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: is {str(value)[:60]!r}; expected an object")
    hints = get_type_hints(cls)
    odd = sorted(set(value) - set(hints))
    if odd:
        raise ConfigError(f"{where}: has {odd[0]!r}, which nothing reads; is it of a newer lic?")
    made = {}
    for each in fields(cls):
        if each.name in value:
            made[each.name] = _build(hints[each.name], value[each.name], f"{where}.{each.name}")
        elif each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{where}: lacks {each.name!r}")
    return cls(**made)
