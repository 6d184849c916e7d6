"""lic decompress: .lic files -> pictures."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from lic.cli import batch, options
from lic.cli.console import Output, note_precision
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.decoding import DecodedInParts
    from lic.codec.regions import Region
    from lic.codec.results import Decoded


def decompress(
    inputs: options.Inputs,
    output: options.OutputPath = None,
    format: Annotated[
        str | None, typer.Option(help="Suffix of results: png, jpg, webp, tiff, ... Default: png.")
    ] = None,
    keep_orientation: Annotated[
        bool,
        typer.Option("--keep-orientation", help="Write the EXIF tag instead of turning pixels."),
    ] = False,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Decode this part only, in px of the picture as it is seen: left, top, width, "
            "height.",
        ),
    ] = None,
    model: options.ModelName = None,
    backend: options.BackendOption = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    precision: options.Precision = "float32",
    force: options.Force = False,
    skip_existing: options.SkipExisting = False,
    jobs: options.Jobs = 0,
    engine: options.Engine = "auto",
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Decompress .lic files to pictures; the file says which model it needs."""
    from lic.cli.folder_engine import choose_crew
    from lic.codec.image_io import WRITABLE

    out = Output(-1 if quiet else verbose, as_json)
    suffix = "." + (format or "png").lower().removeprefix(".")
    if suffix not in WRITABLE:
        raise ConfigError(f"--format is {format!r}; expected one of {', '.join(sorted(WRITABLE))}")
    plan = batch.plan(inputs, output, accept=frozenset({".lic"}), suffix=suffix)
    note_precision(out, precision, device)
    crew = choose_crew(engine, jobs, files=len(plan), device=device, threads=threads)
    part = _region(region) if region is not None else None
    open_work = partial(
        _open_work, model, format, suffix, keep_orientation, part, max_pixels=max_pixels,
        backend=backend, device=device, threads=crew.threads, precision=precision,
    )  # fmt: skip
    code = batch.run(plan, open_work, out, crew.work_off, force=force, skip_existing=skip_existing)
    raise typer.Exit(int(code))


def _region(text: str) -> "Region":
    from lic.codec.regions import Region

    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--region is {text!r}; expected four whole numbers, x,y,width,height in px, such as "
            "0,0,512,512"
        ) from None
    return Region(x, y, width, height)


def _open_work(
    model: str | None,
    format: str | None,
    suffix: str,
    keep_orientation: bool,
    region: "Region | None",
    *,
    max_pixels: int,
    **engine: Any,
) -> batch.Work:
    """Return what decompresses a file; it opens each model once."""
    from lic.codec.image_io import LAZY_PIXELS, WRITABLE, write_parts

    decode = opener(model, max_pixels=max_pixels, **engine)

    def work(job: batch.Job) -> batch.Deferred:
        kind = format or (job.target.suffix if job.target and job.target.suffix else suffix)
        decoded = decode(job, region)
        picture = decoded.picture

        def write(file: BinaryIO) -> batch.Done:
            written = write_parts(picture, file, kind, bake_orientation=not keep_orientation)
            size = (picture.width, picture.height)
            if picture.orientation >= 5 and not keep_orientation:
                size = size[::-1]
            values = _values(job, written.size, size, decoded.stages)
            text = (
                f"{values['input']} -> {values['output']}: {values['width']}x{values['height']}, "
                f"{sum(values['milliseconds'].values()):.0f} ms"
            )
            notes = (*decoded.notes, *written.notes)
            return batch.Done(data=b"", values=values, text=text, notes=notes)

        raw = WRITABLE.get("." + kind.lower().removeprefix(".")) == "PPM"
        large = picture.width * picture.height > LAZY_PIXELS
        return batch.Deferred(write=write, streams=raw and large)

    return work


def opener(
    model: str | None, *, max_pixels: int, **engine: Any
) -> Callable[[batch.Job, "Region | None"], "DecodedInParts"]:
    """Return the function that decodes a job's file by parts; it opens each model once."""
    from lic.codec.codec_cache import CodecCache
    from lic.codec.container import Limits
    from lic.codec.decoding import decompress_parts

    find = partial(CodecCache().decoder, model=model, **engine)
    limits = Limits(max_pixels=max_pixels)

    def decode(job: batch.Job, region: "Region | None") -> "DecodedInParts":
        with batch.open_input(job) as file:
            return decompress_parts(file, find=find, limits=limits, region=region)

    return decode


def decoder(model: str | None, *, max_pixels: int, **engine: Any) -> Callable[[bytes], "Decoded"]:
    """Return the function that decodes a file's bytes; it opens each model once."""
    from lic.codec.codec_cache import CodecCache
    from lic.codec.container import Limits
    from lic.codec.decoding import decompress

    find = partial(CodecCache().decoder, model=model, **engine)
    limits = Limits(max_pixels=max_pixels)

    def decode(data: bytes) -> "Decoded":
        return decompress(data, find=find, limits=limits)

    return decode


def _values(
    job: batch.Job, count: int, size: tuple[int, int], stages: dict[str, float]
) -> dict[str, Any]:
    return {
        "input": job.name,
        "output": str(job.target) if job.target else "stdout",
        "width": size[0],
        "height": size[1],
        "bytes": count,
        "milliseconds": {k: round(v, 3) for k, v in stages.items()},
    }
