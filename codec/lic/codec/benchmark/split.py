"""Where the time of a model with a context goes: `python -m lic.codec.benchmark.split BUNDLE`.

Compresses a picture to a whole file in memory and decompresses it again, several times, and splits
the wall time into what the networks take, part by part, and everything else: masks, index lookup,
copies, entropy coder, container. Also counts the networks' multiply-accumulates.

Networks are timed by hooks around modules. On a GPU each hook waits for the device, so that the
parts are true; the totals are then a little higher than without.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lic.codec.benchmark.evaluate import read_plain
from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError
from lic.codec.image_io import Picture
from lic.codec.pipeline import Codec

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
    """Medians over the runs of one direction.

    Attributes:
        wall: milliseconds of the whole call.
        cpu: milliseconds of all cores.
        networks: milliseconds of wall time by part.
        entropy: of these, what the entropy coder itself takes.
        other: milliseconds that are no network's; `share` is their part of `wall`, in percent.
    """

    wall: float
    cpu: float
    networks: dict[str, float]
    entropy: float
    other: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured for one picture."""

    model: str
    device: str
    threads: int
    width: int
    height: int
    bpp: float
    compress: Direction
    decompress: Direction
    kmac_per_pixel: dict[str, float]


class _Clock:
    """Adds up wall time by name; on a GPU after waiting for the device."""

    def __init__(self, cuda: bool) -> None:
        self.spent: dict[str, float] = {}
        self._cuda = cuda

    def now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
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


@contextmanager
def _timed_coder(clock: _Clock) -> Iterator[None]:
    """Time the entropy coder's calls."""
    from lic.codec.entropy import Reader, Writer

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            since = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                clock.add("entropy", since)

        return wrapper

    kept = [(kind, name, getattr(kind, name)) for kind in (Reader, Writer) for name in _CALLS]
    for kind, name, call in kept:
        setattr(kind, name, timed(call))
    try:
        yield
    finally:
        for kind, name, call in kept:
            setattr(kind, name, call)


_CALLS = ("code", "finish")


def measure(bundle: Bundle, picture: Picture, repeat: int, **engine: Any) -> Report:
    """Return the split for a picture; one run of each direction goes before and does not count.

    Args:
        bundle: a model with a context.
        picture: what to code.
        repeat: runs that count.
        **engine: options of `Codec`.

    Raises:
        ConfigError: the model has no networks between its symbols.
    """
    import torch

    codec = Codec(bundle, backend="torch", **engine)
    model = getattr(codec.backend, "model", None)
    if model is None:
        raise ConfigError(f"{bundle.label} is no model with a context; take `lic eval`")
    clock = _Clock(codec.backend.device.startswith("cuda"))
    data = codec.compress(picture).data
    codec.decompress(parse(data))
    with _hooks(model, clock), _timed_coder(clock):
        compress = _direction(lambda: codec.compress(picture), clock, repeat)
        decompress = _direction(lambda: codec.decompress(parse(data)), clock, repeat)
    return Report(
        model=bundle.label,
        device=codec.backend.device,
        threads=torch.get_num_threads(),
        width=picture.width,
        height=picture.height,
        bpp=len(data) * 8 / (picture.width * picture.height),
        compress=compress,
        decompress=decompress,
        kmac_per_pixel=kmac_per_pixel(model),
    )


def _direction(call: Callable[[], object], clock: _Clock, repeat: int) -> Direction:
    runs: list[dict[str, float]] = []
    for _ in range(repeat):
        clock.take()
        since, cpu = clock.now(), time.process_time()
        call()
        wall = 1000 * (clock.now() - since)
        spent = clock.take()
        networks = sum(time for name, time in spent.items() if name != "entropy")
        spent |= {"wall": wall, "cpu": 1000 * (time.process_time() - cpu), "other": wall - networks}
        spent["share"] = 100 * spent["other"] / wall
        runs.append(spent)
    middle = {name: round(median(run[name] for run in runs), 3) for name in runs[0]}
    own = {name: middle.pop(name) for name in ("wall", "cpu", "entropy", "other", "share")}
    return Direction(networks=middle, **own)


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
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    bundle = Bundle.open(options.bundle)
    for path in options.pictures:
        report = measure(
            bundle,
            read_plain(path),
            options.repeat,
            device=options.device,
            threads=options.threads,
        )
        if options.json:
            sys.stdout.write(json.dumps({"picture": path.name, **asdict(report)}) + "\n")
        else:
            _print(path.name, report)


def _print(name: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report.model}, {name} {report.width}x{report.height}, {report.bpp:.3f} bpp, "
        f"{report.device}, {report.threads} threads; ms of wall time"
    )
    for heading in ("part", "compress", "decompress", "kMAC/px"):
        table.add_column(heading, justify="left" if heading == "part" else "right")

    def row(part: str, of: Callable[[Direction], float], kmac: str = "", unit: str = "") -> None:
        cells = (f"{of(d):.1f}{unit}" for d in (report.compress, report.decompress))
        table.add_row(part, *cells, kmac)

    for part in PARTS:
        if part in report.kmac_per_pixel:
            row(part, lambda d, p=part: d.networks.get(p, 0.0), f"{report.kmac_per_pixel[part]}")  # type: ignore[misc]
    row("everything else", lambda d: d.other)
    row("  of it entropy coder", lambda d: d.entropy)
    row("  share of all", lambda d: d.share, unit=" %")
    row("all", lambda d: d.wall, f"{report.kmac_per_pixel['total']}")
    row("all, CPU time", lambda d: d.cpu, f"(published: {report.kmac_per_pixel['published']})")
    Console().print(table)


if __name__ == "__main__":
    main()
