"""lic bench rd: rate and distortion of models and classic codecs on one set of pictures."""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import options
from lic.cli.console import Exit, Output, note_precision
from lic.cli.measuring import NONE, bundles_of, chosen, named, number, progress_bar
from lic.cli.outputs import check_target, write_output
from lic.codec.errors import ConfigError, LicError, OutputError

if TYPE_CHECKING:
    from lic.codec.benchmark.cache import Cache
    from lic.codec.benchmark.schema import Point, RdResults
    from lic.codec.benchmark.systems import System

_MOST_FAILURES = 20


def rd(
    dataset: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            help="Bundle's name or path, run of lic train, or checkpoint; repeatable. 'none' for "
            "none. Default: lic's default model.",
        ),
    ] = None,
    rate: Annotated[
        list[int] | None, typer.Option("-q", "--rate", help="Rate points. Default: all.")
    ] = None,
    step: Annotated[
        list[float] | None,
        typer.Option(
            "--step",
            help="Quantisation steps of factorized priors, 0.25 to 4; repeatable. Default: 1.",
        ),
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            help="jpeg, webp, avif, jpeg2000, jpegxl, with options as in jpeg:optimise=no or "
            "webp:method=4; repeatable. 'none' for none. Default: all that are installed.",
        ),
    ] = None,
    qualities: Annotated[
        str,
        typer.Option(
            metavar="Q,Q...",
            help="Of the classic codecs: 0 to 100, of jpeg2000 compression ratios. Default: each "
            "codec's own range.",
        ),
    ] = "",
    backend: Annotated[
        list[str] | None,
        typer.Option(help="auto, onnx or torch; repeatable: each becomes a curve."),
    ] = None,
    device: options.Device = "cpu",
    threads: Annotated[
        int,
        typer.Option(
            min=1, help="Threads of one operator. Other numbers may give other last bits."
        ),
    ] = 1,
    precision: options.Precision = "float32",
    lpips: Annotated[
        bool | None,
        typer.Option("--lpips/--no-lpips", help="Default: where its package is installed."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write every number as JSON, for report and compare."),
    ] = None,
    force: options.Force = False,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Processes.")] = 1,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of what was measured before. Default: this user's cache."),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure everything anew.")] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure rate and quality of codecs on whole files that are decoded again.

    What was measured is kept: an interrupted run goes on where it was, and its results are the
    same to the byte. For whether a model's backends agree there is 'lic eval'.
    """
    from lic.codec.benchmark.classic import parse_classic
    from lic.codec.benchmark.datasets import open_dataset
    from lic.codec.benchmark.rd import failures, measure
    from lic.codec.benchmark.systems import check_names, lic_systems
    from lic.codec.container.header import STEP_UNIT

    check_target(output, force=force)
    if cache and no_cache:
        raise ConfigError("--cache contradicts --no-cache; take one of them")
    out = Output(-1 if quiet else 0, as_json)
    note_precision(out, precision, device)
    models = chosen(model, [None], "--model")
    if not models and (rate or backend or step):
        raise ConfigError(
            "--rate, --step and --backend are for models; leave them out with -m none"
        )
    codecs = _codecs(codec)
    if not codecs and qualities:
        raise ConfigError("--qualities is for classic codecs; leave it out with --codec none")
    settings = [quality.strip() for quality in qualities.split(",")] if qualities else []
    classics = [parse_classic(text, settings) for text in codecs]
    with_lpips = _lpips(lpips, out)
    with contextlib.ExitStack() as stack:
        families = [stack.enter_context(bundles_of(name, rate)) for name in models]
        own = lic_systems(
            families,
            backend or ("auto",),
            given=named(models),
            steps=[round(each * STEP_UNIT) / STEP_UNIT for each in step or (1.0,)],
            device=device,
            threads=threads,
            precision=precision,
        )
        systems: list[System] = [*own, *classics]
        if not systems:
            raise ConfigError("neither a model nor a codec is left to be measured")
        check_names(systems)
        source = open_dataset(dataset)
        if source.dataset.remark:
            out.note(f"note: {source.dataset.name}: {source.dataset.remark}")
        total = len(source.paths) * sum(len(system.settings) for system in systems)
        say, advance = stack.enter_context(progress_bar(total, out))
        say("measuring")
        done = 0

        def progress(now: int, _: int) -> None:
            nonlocal done
            advance(now - done)
            done = now

        results = measure(
            source,
            systems,
            command=_command(
                dataset, models, rate, codecs, qualities, backend, steps=step or (),
                device=device, threads=threads, precision=precision, lpips=lpips,
            ),
            jobs=jobs,
            cache=None if no_cache else _cache(cache, out),
            with_lpips=with_lpips,
            accelerators=_accelerators(device) if own else (),
            progress=progress,
        )  # fmt: skip
    if output:
        write_output(results.to_bytes(), output, force=force)
    _show(results, out)
    failed = failures(results)
    for line in failed[:_MOST_FAILURES]:
        out.error(LicError(line))
    if failed:
        more = len(failed) - _MOST_FAILURES
        out.note(f"{len(failed)} of {total} failed{f', {more} more than shown' * (more > 0)}")
        raise typer.Exit(Exit.BATCH)


def _codecs(given: list[str] | None) -> list[str]:
    from lic.codec.benchmark.classic import installed_formats

    return chosen(given, installed_formats(), "--codec")


def _lpips(wanted: bool | None, out: Output) -> bool:
    """Return whether to measure LPIPS; what cannot be loaded is left out, unless asked for."""
    from lic.codec.benchmark.perceptual import check_lpips, lpips_version

    if wanted is False or (wanted is None and lpips_version() is None):
        return False
    try:
        check_lpips()
    except ConfigError as error:
        if wanted:
            raise
        out.note(f"note: {error}; left out")
        return False
    return True


def _cache(folder: Path | None, out: Output) -> "Cache | None":
    """Return the cache; where this user's cannot be written, none, unless one was asked for."""
    from lic.codec.benchmark.cache import Cache, user_cache

    if folder:
        return Cache(folder)
    try:
        return Cache(user_cache())
    except (ConfigError, OutputError) as error:
        out.note(f"note: nothing is kept for a next time ({error})")
        return None


def _accelerators(device: str) -> list[str]:
    """Return the names of what computes beside the processor."""
    if not device.startswith("cuda"):
        return [] if device == "cpu" else [device]
    try:
        import torch

        return [torch.cuda.get_device_name(torch.device(device))]
    except (ImportError, RuntimeError, AssertionError):
        return [device]


def _command(
    dataset: Path,
    models: Sequence[str | None],
    rates: list[int] | None,
    codecs: Sequence[str],
    qualities: str,
    backends: list[str] | None,
    **engine: Any,
) -> str:
    """Return the command that gives the same numbers: without -j, -o, --cache and the like.

    Codecs are named even where they are the default, which depends on what is installed.
    """
    words = ["lic", "bench", "rd", str(dataset)]
    for name in models or [NONE]:
        words += [] if name is None else ["-m", name]
    for rate in rates or ():
        words += ["-q", str(rate)]
    for step in engine["steps"]:
        words += ["--step", f"{step:g}"]
    for name in codecs or [NONE]:
        words += ["--codec", name]
    words += ["--qualities", qualities] if qualities else []
    for name in backends or ():
        words += ["--backend", name]
    for name, default in (("device", "cpu"), ("threads", 1), ("precision", "float32")):
        if engine[name] != default:
            words += [f"--{name}", str(engine[name])]
    if engine["lpips"] is not None:
        words.append("--lpips" if engine["lpips"] else "--no-lpips")
    return shlex.join(words)


def _show(results: "RdResults", out: Output) -> None:
    """Print means: one JSON object a point, or a table."""
    pictures = len(results.dataset.pictures)
    if out.as_json:
        for curve in results.curves:
            for point in curve.points:
                values = {
                    "system": curve.system, "setting": point.setting, "pictures": pictures,
                    "failed": _failed(point), **point.mean, "ms_ssim_db": _decibels(point),
                }  # fmt: skip
                out.result(values, "")
        return
    from rich.markup import escape
    from rich.table import Table

    with_lpips = any(
        point.mean["lpips"] is not None for curve in results.curves for point in curve.points
    )
    with_failures = any(_failed(point) for curve in results.curves for point in curve.points)
    table = Table(
        "system", "setting", "bpp", "PSNR dB", "PSNR-Y dB", "MS-SSIM", "MS-SSIM dB",
        *(["LPIPS"] if with_lpips else []), *(["failed"] if with_failures else []),
        title=escape(f"{results.dataset.name}, means of {_counted(results)}"), box=None,
    )  # fmt: skip
    for curve in results.curves:
        for point in curve.points:
            mean = point.mean
            cells = [
                escape(curve.system), point.setting, number(mean["bpp"], ".4f"),
                number(mean["psnr"], ".2f"), number(mean["psnr_y"], ".2f"),
                number(mean["ms_ssim"], ".4f"), number(_decibels(point), ".2f"),
            ]  # fmt: skip
            cells += [number(mean["lpips"], ".4f")] if with_lpips else []
            cells += [str(_failed(point) or "")] if with_failures else []
            table.add_row(*cells)
    out.out.print(table)


def _counted(results: "RdResults") -> str:
    count = sum(1 for picture in results.dataset.pictures if picture.width)
    return "1 picture" if count == 1 else f"{count} pictures"


def _failed(point: "Point") -> int:
    return sum(row.error is not None for row in point.rows)


def _decibels(point: "Point") -> float | None:
    from lic.codec.benchmark.quality import MS_SSIM_DB

    return MS_SSIM_DB.of(point.mean)
