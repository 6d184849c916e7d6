"""lic compress: pictures -> .lic files."""

import contextlib
import io
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import batch, options, targets
from lic.cli.console import Output, note_precision
from lic.cli.decompress import decoder
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.image_io import LazyPicture, Picture
    from lic.codec.rate_control import Controlled, RateControl, Target
    from lic.codec.results import Decoded, Encoded

SUFFIX = ".lic"


def compress(
    inputs: options.Inputs,
    output: options.OutputPath = None,
    model: options.ModelName = None,
    rate: options.RatePoint = None,
    backend: options.BackendOption = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    precision: options.Precision = "float32",
    lossless: Annotated[bool, typer.Option("--lossless", help="Keep every 8-bit pixel.")] = False,
    metadata: Annotated[
        str, typer.Option(help="all, none, or a list of exif,icc,xmp to keep.")
    ] = "all",
    tile: Annotated[
        int | None,
        typer.Option(
            help="Code in tiles of this side in px, with what they overlap if they do. Default: "
            "large pictures only."
        ),
    ] = None,
    target_bpp: targets.Bpp = None,
    target_size: targets.Size = None,
    target_psnr: targets.Psnr = None,
    target_ms_ssim: targets.MsSsim = None,
    strict: targets.Strict = False,
    force: options.Force = False,
    skip_existing: options.SkipExisting = False,
    jobs: options.Jobs = 0,
    engine: options.Engine = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print bpp and PSNR, write nothing.")
    ] = False,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Compress pictures to .lic files with a learned codec.

    One file: lic compress photo.png (writes photo.lic). A folder: lic compress DIR -o OUT.

    With a target, rate point and quantisation step are chosen for each picture; -q leaves the step.
    """
    from lic.cli.folder_engine import choose_crew
    from lic.codec.image_io import READABLE_SUFFIXES, check_metadata_policy

    out = Output(-1 if quiet else verbose, as_json)
    plan = batch.plan(inputs, output, accept=READABLE_SUFFIXES, suffix=SUFFIX)
    keep: Any = metadata if metadata in ("all", "none") else metadata.split(",")
    check_metadata_policy(keep)
    target = targets.target_of(target_bpp, target_size, target_psnr, target_ms_ssim, strict)
    crew = choose_crew(engine, jobs, files=len(plan), device=device, threads=threads)
    if not lossless:
        note_precision(out, precision, device)
    code = batch.run(
        plan,
        partial(
            _open_work, model, rate, lossless, tile, target, keep=keep, dry_run=dry_run,
            max_pixels=max_pixels, backend=backend, device=device, threads=crew.threads,
            precision=precision,
        ),
        out,
        crew.work_off,
        force=force,
        skip_existing=skip_existing,
        write=not dry_run,
    )  # fmt: skip
    raise typer.Exit(int(code))


def _open_work(
    model: str | None,
    rate: int | None,
    lossless: bool,
    tile: int | None,
    target: "Target | None",
    *,
    keep: Any,
    dry_run: bool,
    max_pixels: int,
    **engine: Any,
) -> batch.Work:
    """Return what compresses a file, with its model loaded."""
    from lic.codec.image_io import apply_metadata_policy, open_picture
    from lic.codec.rate_control import Controlled
    from lic.codec.results import Encoded

    decode = decoder(model, max_pixels=0, **engine)
    encode = _encoder(model, rate, lossless, tile, target, **engine)

    def work(job: batch.Job) -> batch.Done:
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(batch.open_input(job))
            opened = open_picture(file, max_pixels=max_pixels, name=job.name)
            picture = apply_metadata_policy(stack.enter_context(opened), keep)
            read_ms = (time.perf_counter() - start) * 1000
            found = encode(picture)
            return report(job, picture, found, file.seek(0, io.SEEK_END), read_ms)

    def report(
        job: batch.Job,
        picture: "Picture | LazyPicture",
        found: "Encoded | Controlled",
        input_bytes: int,
        read_ms: float,
    ) -> batch.Done:
        encoded = found if isinstance(found, Encoded) else found.encoded
        values = _values(job, input_bytes, encoded, {"read": read_ms, **encoded.stages})
        if dry_run:
            values["psnr"] = _psnr(picture, decode(encoded.data))
        text = _text(values)
        if isinstance(found, Controlled):
            values |= targets.values_of(found)
            text += targets.text_of(found)
        return batch.Done(data=encoded.data, values=values, text=text, notes=encoded.notes)

    return work


def _encoder(
    model: str | None,
    rate: int | None,
    lossless: bool,
    tile: int | None,
    target: "Target | None",
    **engine: Any,
) -> Callable[["Picture | LazyPicture"], "Encoded | Controlled"]:
    """Return the function that codes a picture; the model is loaded now, so that it fails now."""
    from lic.codec.lossless import compress_lossless
    from lic.codec.pipeline import open_codec
    from lic.codec.rate_control import RateControl

    if lossless:
        if rate is not None:
            raise ConfigError("--lossless has no rate points; leave out --rate")
        if tile is not None:
            raise ConfigError("--lossless has no tiles; leave out --tile")
        if target is not None:
            raise ConfigError(f"--lossless comes to no target; leave out --target-{target.kind}")
        return compress_lossless
    if target is not None:
        return _controlled(
            RateControl.open(model, [rate] if rate is not None else None, **engine), target, tile
        )
    codec = open_codec(model, rate, **engine)
    if tile is not None:
        codec.check_tile(tile)
    codec.backend.load(encoder=True)

    def encode(picture: "Picture | LazyPicture") -> "Encoded":
        return codec.compress(picture, lossless=None, tile=tile)

    return encode


def _controlled(
    control: "RateControl", target: "Target", tile: int | None
) -> Callable[["Picture | LazyPicture"], "Controlled"]:
    """Return the function that codes a picture to a target; what cannot be fails now."""
    codec = control.codec(control.first)
    if tile is not None:
        codec.check_tile(tile)
    codec.backend.load(encoder=True, decoder=not target.of_size)

    def encode(picture: "Picture | LazyPicture") -> "Controlled":
        return control.compress(picture, target, lossless=None, tile=tile)

    return encode


def _psnr(picture: "Picture | LazyPicture", decoded: "Decoded") -> float | None:
    """Return the PSNR of what a decoder gives; None stands for infinity, which JSON lacks."""
    from lic.codec.metrics import psnr

    value = psnr(picture.pixels, decoded.picture.pixels)
    return None if value == float("inf") else round(value, 4)


def _values(
    job: batch.Job, input_bytes: int, encoded: "Encoded", stages: dict[str, float]
) -> dict[str, Any]:
    header = encoded.header
    size = len(encoded.data)
    return {
        "input": job.name,
        "output": str(job.target) if job.target else "stdout",
        "width": header.width,
        "height": header.height,
        "input_bytes": input_bytes,
        "bytes": size,
        "bpp": round(size * 8 / (header.width * header.height), 6),
        "rate_point": header.rate_point,
        "step": header.step,
        "coder": header.coder.name.lower(),
        "fingerprint": header.fingerprint.hex(),
        "milliseconds": {k: round(v, 3) for k, v in stages.items()},
    }


def _text(values: dict[str, Any]) -> str:
    psnr = f", {values['psnr'] or float('inf'):.2f} dB" if "psnr" in values else ""
    dry = " (dry run, nothing written)" if "psnr" in values else ""
    step = f", step {values['step']:.3f}" if values["step"] != 1 else ""
    return (
        f"{values['input']} -> {values['output']}{dry}: {values['width']}x{values['height']}, "
        f"{values['bytes']:,} bytes, {values['bpp']:.3f} bpp{psnr}{step}, "
        f"{sum(values['milliseconds'].values()):.0f} ms"
    )
