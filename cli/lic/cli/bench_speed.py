"""lic bench speed: time, memory and work of codecs, each configuration in its own process."""

import contextlib
import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import options, outputs
from lic.cli.console import Exit, Output
from lic.cli.measuring import bundles_of, chosen, named
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.benchmark.schema import SpeedResults, SpeedRun
    from lic.codec.benchmark.speed import Source
    from lic.codec.benchmark.speed_task import Task
    from lic.codec.bundle import Bundle

# The largest picture that lic reads unless told otherwise.
_MOST_PIXELS = options.MAX_PIXELS
_DEFAULT_SIZE = (512, 768)
# What torch calls devices; all other names are providers of ONNX Runtime.
_TORCH_DEVICES = ("cpu", "cuda", "mps", "xpu")


def speed(
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(help="Pictures, or folders of them. Default: a made one of 512x768."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help="As for 'lic bench rd': bundle's name or path, run of lic train, or checkpoint; "
            "repeatable. 'none' for none. Default: lic's default model, unless --codec is given.",
        ),
    ] = None,
    rate: Annotated[
        list[int] | None, typer.Option("-q", "--rate", help="Rate points. Default: the middle.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="onnx, torch. Default: all that are installed and the model has."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            "--provider",
            help="cpu, cuda, or a provider of ONNX Runtime: tensorrt, openvino, coreml, directml, "
            "qnn, or its full name.",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option(min=0, help="Threads of one operator; 0 = automatic.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="float32, or bfloat16 as in 'lic compress'.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="HxW", help="Code this middle of each picture, mirrored if larger."),
    ] = None,
    at_once: Annotated[
        list[int] | None,
        typer.Option("--batch", min=1, help="Pictures at a time, as -j of 'lic compress'."),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:OPTIONS]",
            help="Also jpeg, webp, avif, jpeg2000 or jpegxl, as for 'lic bench rd'; repeatable.",
        ),
    ] = None,
    qualities: Annotated[
        str,
        typer.Option(metavar="Q,Q...", help="Of the classic codecs. Default: a usual one."),
    ] = "",
    runs: Annotated[int, typer.Option(min=1, help="Runs that count.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before them that do not.")] = 2,
    limit: Annotated[float, typer.Option(min=1, help="Seconds for one row's process.")] = 600,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write every number as JSON, after each row anew."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the file of -o: keep its rows without an error."),
    ] = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure time by stage, memory, cold start and work of codecs on this machine.

    Every combination of the options is a row, measured in its own process. What fails is a row that
    says why; where all fail, the exit code is 8. Times are of whole files, from PPM and to PPM.
    """
    from lic.codec.benchmark.machine import machine
    from lic.codec.benchmark.schema import SpeedResults
    from lic.codec.benchmark.speed import accelerators, measure
    from lic.codec.benchmark.systems import tell_apart

    out = Output(as_json=as_json)
    previous = _previous(output, resume=resume, force=force)
    grid = Grid(
        sources=_sources(pictures or [], size or []),
        backends=backend or [],
        devices=device or ["cpu"],
        threads=threads or [0],
        precisions=precision or ["float32"],
        batches=at_once or [1],
        runs=runs,
        warmup=warmup,
    )
    if qualities and not codec:
        raise ConfigError("--qualities is for classic codecs; name some by --codec")
    settings = [quality.strip() for quality in qualities.split(",")] if qualities else []
    models = chosen(model, [None] if rate or not codec else [], "--model")
    if not models and not codec:
        raise ConfigError("neither a model nor a codec is left to be measured")
    if not models and (rate or backend):
        raise ConfigError("--rate and --backend are for models; leave them out, or name one by -m")
    classics = list(grid.of_codecs(chosen(codec, [], "--codec"), settings))
    here, rows = machine(), list["SpeedRun"]()
    command = shlex.join(["lic", *sys.argv[1:]])

    def results() -> "SpeedResults":
        good = [row for row in previous.runs if row.error is None] if previous else []
        runs = (*rows, *(row for row in good if row not in rows))
        return SpeedResults(command=command, machine=machine(accelerators(runs)), runs=runs)

    if previous and previous.machine.cpu != here.cpu:
        raise ConfigError(
            f"{output}: was measured on {previous.machine.cpu}, this is {here.cpu}; choose another "
            "file"
        )
    with contextlib.ExitStack() as stack:
        families = [_bundles(stack, name, rate) for name in models]
        names = tell_apart([family[0].manifest.name for family in families], named(models))
        found = zip(names, families, strict=True)
        tasks = [*(task for each in found for task in grid.of_bundles(*each)), *classics]
        for row in measure(tasks, limit=limit, previous=previous):
            rows.append(row)
            out.result(asdict(row), _line(row, len(rows), len(tasks)))
            if output:
                # After each row: an interruption loses the one under way.
                again = force or len(rows) > 1 or resume
                outputs.write_output(results().to_bytes(), output, force=again)
    if not as_json:
        from lic.cli.bench_speed_tables import print_tables

        print_tables(results(), out.out)
    if all(row.error for row in rows):
        raise typer.Exit(int(Exit.BATCH))


def _previous(output: Path | None, *, resume: bool, force: bool) -> "SpeedResults | None":
    """Return the results to go on with; without --resume the file must not exist."""
    outputs.check_target(output, force=force or resume)
    if not resume:
        return None
    if output is None:
        raise ConfigError("--resume goes on with the file of -o; name it")
    if not output.exists():
        return None
    from lic.codec.benchmark.schema import SpeedResults

    return SpeedResults.from_bytes(output.read_bytes(), str(output))


def _bundles(
    stack: contextlib.ExitStack, model: str | None, rates: list[int] | None
) -> list["Bundle"]:
    """Return the bundles of the rate points, by default the middle one as `select` takes it."""
    found = stack.enter_context(bundles_of(model, rates))
    return found if rates else [found[len(found) // 2]]


def _sources(paths: Sequence[Path], sizes: Sequence[str]) -> list["Source"]:
    """Return every picture in every size."""
    from lic.codec.benchmark.datasets import find_pictures, look_at
    from lic.codec.benchmark.speed import Source

    wanted = [_size(text) for text in sizes]
    found = []
    for file in (file for path in paths for file in find_pictures(path)):
        picture, fault = look_at(file)
        for height, width in wanted or [(picture.height, picture.width)]:
            found.append(Source(name=file.name, height=height, width=width, path=file, fault=fault))
    made = [Source(height=height, width=width) for height, width in wanted or [_DEFAULT_SIZE]]
    return found or made


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size is {text!r}; expected height x width in px, such as 512x768")
    if not 1 <= int(height) * int(width) <= _MOST_PIXELS:
        raise ConfigError(f"--size is {text!r}; expected 1 to {_MOST_PIXELS:,} pixels")
    return int(height), int(width)


class Grid:
    """Every combination of what the options name."""

    def __init__(
        self,
        *,
        sources: list["Source"],
        backends: list[str],
        devices: list[str],
        threads: list[int],
        precisions: list[str],
        batches: list[int],
        runs: int,
        warmup: int,
    ) -> None:
        for name in backends:
            if name not in ("onnx", "torch"):
                raise ConfigError(f"--backend is {name!r}; expected onnx or torch")
        self._sources = sources
        self._backends, self._devices, self._precisions = backends, devices, precisions
        self._threads, self._batches = threads, batches
        self._runs, self._warmup = runs, warmup

    def of_bundles(
        self, name: str, bundles: Sequence["Bundle"]
    ) -> Iterator[tuple["Task", "Source"]]:
        """Yield the tasks of a family of bundles, which is called `name`."""
        for bundle in bundles:
            for backend, device in self._engines(bundle):
                for threads, precision in itertools.product(self._threads, self._precisions):
                    yield from self._tasks(
                        kind="lic",
                        system=name,
                        setting=str(bundle.manifest.rate_point),
                        path=str(bundle.path.resolve()),
                        fingerprint=bundle.file_fingerprint.hex(),
                        backend=backend,
                        device=device,
                        threads=threads,
                        precision=precision,
                    )

    def of_codecs(
        self, codecs: Sequence[str], qualities: Sequence[str]
    ) -> Iterator[tuple["Task", "Source"]]:
        """Yield the tasks of classic codecs; threads and devices are none of their options."""
        from lic.codec.benchmark.classic import parse_classic

        for text in codecs:
            codec = parse_classic(text, qualities)
            for setting in qualities or [str(codec.format.usual)]:
                yield from self._tasks(
                    kind="classic", system=codec.name, setting=setting, path=text,
                    backend="Pillow", precision="",
                )  # fmt: skip

    def _engines(self, bundle: "Bundle") -> list[tuple[str, str]]:
        """Return backend and device; providers are for ONNX Runtime, if that was not left out."""
        from lic.codec.benchmark.evaluate import installed_backends

        backends = self._backends or installed_backends(bundle)
        return [
            (backend, device)
            for backend, device in itertools.product(backends, self._devices)
            if backend == "onnx"
            or "onnx" not in backends
            or device.partition(":")[0] in _TORCH_DEVICES
        ]

    def _tasks(self, **system: Any) -> Iterator[tuple["Task", "Source"]]:
        from lic.codec.benchmark.speed_task import Task

        for source, number in itertools.product(self._sources, self._batches):
            task = Task(
                **system,
                picture=source.name,
                height=source.height,
                width=source.width,
                batch=number,
                runs=self._runs,
                warmup=self._warmup,
            )
            yield task, source


def _line(row: "SpeedRun", number: int, count: int) -> str:
    from lic.codec.benchmark.speed import size_of

    what = f"{number}/{count} {row.system} {row.setting}, {row.backend} {row.device}"
    what += f", {size_of(row)}"
    if row.error or not row.encode or not row.decode:
        return f"{what}: {row.error}"
    return f"{what}: encode {row.encode.wall.median:.1f} ms, decode {row.decode.wall.median:.1f} ms"
