"""Where the time of a model with a context goes: `python -m lic.codec.benchmark.split BUNDLE`.

Compresses a picture to a whole file in memory and decompresses it again, several times, and splits
the wall time into what the networks take, part by part, and everything else: masks, index lookup,
copies, entropy coder, container. Also counts the networks' multiply-accumulates. With --decode-on
it tells of every file whether another device decodes it to the encoder's symbols.

Networks are timed by hooks around modules. On a GPU each hook waits for the device, so that the
parts are true; the totals are then a little higher than without.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lic.codec.benchmark.datasets import read_plain
from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError, NumericsError
from lic.codec.image_io import Picture
from lic.codec.pipeline import Codec
from lic.codec.results import Decoded, Encoded

# Networks by the attribute of the model that holds them; the rest is not network.
PARTS = (
    "g_a",
    "h_a",
    "h_s",
    "y_spatial_prior_adaptor_list_s1",
    "y_spatial_prior_adaptor_list_s2",
    "y_spatial_prior_adaptor_list_s3",
    "y_spatial_prior_s1_s2",
    "y_spatial_prior_s3",
    "attn_s1",
    "attn_s2",
    "attn_s3",
    "context_net",
    "g_s",
)


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Medians over the runs of one direction; of several runs, parts add up only nearly.

    Attributes:
        wall: milliseconds of the whole call.
        mpx_per_s: millions of the picture's pixels per second of `wall`.
        cpu: milliseconds of all cores.
        networks: milliseconds of wall time by part.
        entropy: of `other`, what the entropy coder itself takes.
        other: milliseconds that are no network's; `share` is their part of `wall`, in percent.
    """

    wall: float
    mpx_per_s: float
    cpu: float
    networks: dict[str, float]
    entropy: float
    other: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A file on another device; `error` says why its symbols were not the encoder's, if so."""

    device: str
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured for one picture; `crossing` is None where no other device was asked."""

    model: str
    device: str
    precision: str
    threads: int
    width: int
    height: int
    bpp: float
    compress: Direction
    decompress: Direction
    kmac_per_pixel: dict[str, float]
    crossing: Crossing | None


class _Clock:
    """Adds up wall time by name; on a GPU after waiting for the device."""

    def __init__(self, device: str) -> None:
        self.spent: dict[str, float] = {}
        self._device = device

    def now(self) -> float:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def add(self, name: str, since: float) -> None:
        self.spent[name] = self.spent.get(name, 0.0) + 1000 * (self.now() - since)

    def take(self) -> dict[str, float]:
        spent, self.spent = self.spent, {}
        return spent


@contextmanager
def _hooks(model: Any, clock: _Clock) -> Iterator[None]:
    """Time the networks of a model by their part."""
    handles = []
    started: dict[str, float] = {}

    def watch(name: str, module: Any) -> None:
        def before(*_: Any) -> None:
            started[name] = clock.now()

        def after(*_: Any) -> None:
            clock.add(name, started[name])

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    for name in PARTS:
        module = getattr(model, name, None)
        if module is None:
            continue
        # A list of layers is never called itself.
        for layer in module if type(module).__name__ == "ModuleList" else [module]:
            watch(name, layer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure(
    bundle: Bundle,
    pictures: Iterable[Picture],
    repeat: int,
    *,
    device: str = "cpu",
    threads: int = 0,
    precision: str = "float32",
    decode_on: str | None = None,
) -> Iterator[Report]:
    """Yield the split for pictures; one run of each direction goes before and does not count.

    Args:
        bundle: a model with a context.
        pictures: what to code.
        repeat: runs that count.
        device: of `Codec`.
        threads: of `Codec`.
        precision: of `Codec`.
        decode_on: another device, on which every file is decoded once, in float32.

    Raises:
        ConfigError: the model has no networks between its symbols, or a device is not there.
    """
    codec = Codec(bundle, backend="torch", device=device, threads=threads, precision=precision)
    model = getattr(codec.backend, "model", None)
    if model is None:
        raise ConfigError(f"{bundle.label} is no model with a context; take `lic eval`")
    other = Codec(bundle, backend="torch", device=decode_on) if decode_on else None
    macs = kmac_per_pixel(model)
    for picture in pictures:
        yield _report(codec, model, picture, repeat, precision, macs, other)


def _report(
    codec: Codec,
    model: Any,
    picture: Picture,
    repeat: int,
    precision: str,
    macs: dict[str, float],
    other: Codec | None,
) -> Report:
    import torch

    clock = _Clock(codec.backend.device)
    data = codec.compress(picture).data
    codec.decompress(parse(data))
    pixels = picture.width * picture.height
    with _hooks(model, clock):
        compress = _direction(lambda: codec.compress(picture), clock, repeat, pixels)
        decompress = _direction(lambda: codec.decompress(parse(data)), clock, repeat, pixels)
    return Report(
        model=codec.bundle.label,
        device=codec.backend.device,
        precision=precision,
        threads=torch.get_num_threads(),
        width=picture.width,
        height=picture.height,
        bpp=len(data) * 8 / pixels,
        compress=compress,
        decompress=decompress,
        kmac_per_pixel=macs,
        crossing=_cross(data, other) if other else None,
    )


def _cross(data: bytes, codec: Codec) -> Crossing:
    try:
        codec.decompress(parse(data))
    except NumericsError as error:
        return Crossing(device=codec.backend.device, error=f"{type(error).__name__}: {error}")
    return Crossing(device=codec.backend.device, error=None)


def _direction(
    call: Callable[[], Encoded | Decoded], clock: _Clock, repeat: int, pixels: int
) -> Direction:
    runs: list[dict[str, float]] = []
    for _ in range(repeat):
        clock.take()
        since, cpu = clock.now(), time.process_time()
        stages = call().stages
        wall = 1000 * (clock.now() - since)
        spent = clock.take()
        other = wall - sum(spent.values())
        spent |= {"wall": wall, "cpu": 1000 * (time.process_time() - cpu), "other": other}
        spent["entropy"] = stages["entropy"]
        spent["share"] = 100 * spent["other"] / wall
        runs.append(spent)
    middle = {name: round(median(run[name] for run in runs), 3) for name in runs[0]}
    own = {name: middle.pop(name) for name in ("wall", "cpu", "entropy", "other", "share")}
    return Direction(networks=middle, mpx_per_s=round(pixels / own["wall"] / 1000, 4), **own)


def kmac_per_pixel(model: Any) -> dict[str, float]:
    """Return thousands of multiply-accumulates per pixel of a forward pass, by part, and in total.

    `model` has parameters that want no gradients, as every backend has.

    "published" counts what published figures do: HPCM's attention after its last step, which
    nothing uses and lic leaves out.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = model.stride
    device = next(model.parameters()).device
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 3, side, side, device=device))
    pixels = 1000 * side**2
    root = f"{type(model).__name__}."
    counts = {
        name.removeprefix(root): sum(flops.values()) / 2 / pixels
        for name, flops in counter.get_flop_counts().items()
    }
    # A list of layers is never called, and so not counted, itself.
    parts = {
        part: counts.get(part)
        or sum(v for name, v in counts.items() if name.rpartition(".")[0] == part)
        for part in PARTS
        if hasattr(model, part)
    }
    total = sum(counter.get_flop_counts()["Global"].values()) / 2 / pixels
    published = total + parts.get("attn_s3", 0.0) / 5
    rounded = {name: round(value, 2) for name, value in parts.items()}
    return rounded | {"total": round(total, 2), "published": round(published, 2)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report, or with --json one object."""
    parser = argparse.ArgumentParser(prog="python -m lic.codec.benchmark.split")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", help="float32 or bfloat16")
    parser.add_argument("--decode-on", metavar="DEVICE", help="decode every file there, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    reports = measure(
        Bundle.open(options.bundle),
        map(read_plain, options.pictures),
        options.repeat,
        device=options.device,
        threads=options.threads,
        precision=options.precision,
        decode_on=options.decode_on,
    )
    crossings: list[Crossing] = []
    for path, report in zip(options.pictures, reports, strict=True):
        if options.json:
            sys.stdout.write(json.dumps({"picture": path.name, **asdict(report)}) + "\n")
        else:
            _print(path.name, report)
        sys.stdout.flush()
        if report.crossing:
            crossings.append(report.crossing)
    if crossings:
        good = sum(crossing.error is None for crossing in crossings)
        # Beside JSON objects this line would be one that is none.
        (sys.stderr if options.json else sys.stdout).write(
            f"{good} of {len(crossings)} files of {report.device} decode on "
            f"{crossings[-1].device}\n"
        )


def _print(name: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report.model}, {name} {report.width}x{report.height}, {report.bpp:.3f} bpp, "
        f"{report.device}, {report.precision}, {report.threads} threads; ms of wall time"
    )
    for heading in ("part", "compress", "decompress", "kMAC/px"):
        table.add_column(heading, justify="left" if heading == "part" else "right")

    def row(
        part: str,
        of: Callable[[Direction], float],
        kmac: str = "",
        unit: str = "",
        digits: int = 1,
    ) -> None:
        cells = (f"{of(d):.{digits}f}{unit}" for d in (report.compress, report.decompress))
        table.add_row(part, *cells, kmac)

    for part in PARTS:
        if part in report.kmac_per_pixel:
            row(part, lambda d, p=part: d.networks.get(p, 0.0), f"{report.kmac_per_pixel[part]}")  # type: ignore[misc]
    row("everything else", lambda d: d.other)
    row("  of it entropy coder", lambda d: d.entropy)
    row("  share of all", lambda d: d.share, unit=" %")
    row("all", lambda d: d.wall, f"{report.kmac_per_pixel['total']}")
    row("all, CPU time", lambda d: d.cpu, f"(published: {report.kmac_per_pixel['published']})")
    row("Mpx/s", lambda d: d.mpx_per_s, digits=3)
    Console().print(table)
    if report.crossing:
        said = report.crossing.error or "the encoder's symbols"
        sys.stdout.write(f"{name} on {report.crossing.device}: {said}\n")


if __name__ == "__main__":
    main()
