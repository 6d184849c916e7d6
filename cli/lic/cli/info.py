"""lic info and lic verify: what a .lic file says, and whether it is whole."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from lic.cli import batch, options
from lic.cli.console import Exit, Output, exit_code, message, note_precision
from lic.codec.container import Coder, LicFile, Limits, Model, list_chunks, parse
from lic.codec.container.header import check_header
from lic.codec.errors import ConfigError, LicError

if TYPE_CHECKING:
    from lic.codec.pipeline import Codec

Files = Annotated[list[str], typer.Argument(help=".lic files; - is stdin.")]
# Reading a header costs nothing, whatever size it claims.
ANY_SIZE = Limits(max_pixels=0)


def info(
    files: Files,
    model: options.ModelName = None,
    backend: options.BackendOption = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
) -> None:
    """Show what .lic files hold, without decoding them; -v lists the chunks.

    With -v and the model at hand symbols are decoded, too, and their bits told by part. Only then
    do --model, --backend, --device and --threads count: some files decode on their encoder's
    device only.
    """
    out = Output(verbose, as_json)
    measure = _meter(model, backend=backend, device=device, threads=threads) if verbose else None
    _each(files, out, lambda job: _describe(job, out, measure))


def verify(
    files: Annotated[
        list[str] | None, typer.Argument(help=".lic files; - is stdin.", show_default=False)
    ] = None,
    model: options.ModelName = None,
    backend: options.BackendOption = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    precision: options.Precision = "float32",
    structure: Annotated[
        bool, typer.Option("--structure", help="Checksums only; needs no model.")
    ] = False,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="No files: code a small picture with the embedded models on every backend, and "
            "decode it again.",
        ),
    ] = False,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Check .lic files: every checksum, and that they decode to the encoder's symbols.

    With --self-test it is this installation that is checked.
    """
    from lic.cli.decompress import opener

    out = Output(-1 if quiet else verbose, as_json)
    engine: dict[str, Any] = {
        "backend": backend, "device": device, "threads": threads, "precision": precision
    }  # fmt: skip
    if self_test:
        if files or structure or model:
            raise ConfigError(
                "--self-test is of this installation and its embedded models; leave out files, "
                "--structure and --model"
            )
        _test_installation(out, engine)
    if not files:
        raise ConfigError("found no files; name .lic files or - (stdin), or take --self-test")
    if not structure:
        note_precision(out, precision, device)
    decode = opener(model, max_pixels=max_pixels, **engine)

    def check(job: batch.Job) -> None:
        if structure:
            parse(batch.read_input(job), Limits(max_pixels=max_pixels))
        else:
            for _ in decode(job, None).picture.parts:
                pass
        out.result({"input": job.name, "ok": True}, f"{job.name}: ok")

    _each(files, out, check)


def _test_installation(out: Output, engine: dict[str, Any]) -> NoReturn:
    """Tell how every model does on every backend.

    Raises:
        Exit: always, with the code of what failed; with 8 where that is of several kinds.
    """
    from lic.codec.self_test import Failed, run

    backend = engine.pop("backend")
    codes = set()
    for done in run([] if backend == "auto" else [backend], **engine):
        subject = f"{done.model}, {done.backend}"
        values = {"model": done.model, "backend": done.backend}
        if isinstance(done, Failed):
            codes.add(exit_code(done.error))
            if out.as_json:
                failure = {"error": message(done.error), "exit_code": int(exit_code(done.error))}
                out.result({**values, **failure}, "")
            out.error(done.error, subject)
            continue
        for note in done.notes:
            out.note(f"{subject}: {note}")
        kernel = {"c": "C kernel", "python": "Python coder"}[done.kernel]
        out.result(
            {
                **values, "ok": True, "device": done.device, "kernel": done.kernel,
                "bytes": done.size, "psnr": round(done.psnr, 3), "seconds": round(done.seconds, 3),
                "notes": list(done.notes),
            },
            f"{subject} on {done.device}: ok, {done.size} bytes, {done.psnr:.2f} dB, {kernel}, "
            f"{done.seconds:.2f} s",
        )  # fmt: skip
    raise typer.Exit(int(Exit.BATCH if len(codes) > 1 else max(codes, default=Exit.OK)))


def _each(files: list[str], out: Output, act: Callable[[batch.Job], None]) -> None:
    """Act on every file; one failure ends with its own code, in a batch the code is 8.

    Raises:
        ConfigError: stdin among other inputs.
        Exit: always, with the code.
    """
    if batch.STREAM in files and len(files) > 1:
        raise ConfigError("- (stdin) must be the only input")
    code = Exit.OK
    for name in files:
        job = batch.Job(source=None if name == batch.STREAM else Path(name), target=None)
        try:
            act(job)
        except BrokenPipeError:
            # Whoever read the results has gone; no other file will change that.
            raise
        # A bug that one file lays open must not hide the others' results.
        except Exception as error:
            code = Exit.BATCH if len(files) > 1 else exit_code(error)
            if out.as_json:
                failure = {"input": job.name, "error": message(error)}
                out.result({**failure, "exit_code": int(exit_code(error))}, "")
            out.error(error, job.name)
    raise typer.Exit(int(code))


def _meter(model: str | None, **engine: Any) -> Callable[[LicFile], dict[str, float]]:
    """Return the function that gives a file's bits by part; it opens each model once."""

    @lru_cache(maxsize=4)
    def opened(fingerprint: bytes, hint: Model | None) -> "Codec":
        from lic.codec.library import for_fingerprint
        from lic.codec.pipeline import Codec

        return Codec(for_fingerprint(fingerprint, hint, model=model), **engine)

    def measure(file: LicFile) -> dict[str, float]:
        from lic.codec.inspection import bits_by_part

        check_header(file.header, Limits())
        return bits_by_part(opened(file.header.fingerprint, file.model), file)

    return measure


def _describe(
    job: batch.Job, out: Output, measure: Callable[[LicFile], dict[str, float]] | None
) -> None:
    data = batch.read_input(job)
    file = parse(data, ANY_SIZE)
    values = _values(job.name, data, file)
    if measure:
        if file.header.coder is not Coder.LOSSLESS:
            try:
                values["bits"] = {part: round(bits, 3) for part, bits in measure(file).items()}
            # What cannot be decoded here can still be described.
            except (LicError, MemoryError) as error:
                values["warnings"].append(f"bits by part are unknown: {message(error)}")
        values["chunks"] = [
            {"type": chunk.name, "offset": chunk.offset, "length": chunk.length}
            for chunk in list_chunks(data)
        ]
    if out.as_json:
        out.result(values, "")
    else:
        _print(values)


def _print(values: dict[str, Any]) -> None:
    bits, chunks = values.pop("bits", {}), values.pop("chunks", [])
    typer.echo(values.pop("input"))
    if values["step"] == 1:
        del values["step"]
    for key, value in values.items():
        if value not in (None, [], {}):
            typer.echo(f"  {key.replace('_', ' '):<12} {value}")
    total = sum(bits.values()) or 1
    for part, count in bits.items():
        typer.echo(f"  {'bits ' + part:<12} {count:,.0f} ({count / total:.1%})")
    for chunk in chunks:
        typer.echo(f"  {chunk['offset']:>10}  {chunk['type']}  {chunk['length']} bytes")


def _values(name: str, data: bytes, file: LicFile) -> dict[str, Any]:
    header = file.header
    metadata = {"icc": file.icc, "exif": file.exif, "xmp": file.xmp, "alpha": file.alpha}
    return {
        "input": name,
        "version": f"{header.major}.{header.minor}",
        "width": header.width,
        "height": header.height,
        "colour": "gray" if header.colour == 1 else "RGB",
        "bit_depth": header.bit_depth,
        "orientation": header.orientation,
        "tiles": header.tile_count,
        "tile_size": f"{header.tile_width}x{header.tile_height}" if header.tile_width else None,
        "coder": header.coder.name.lower(),
        "rate_point": header.rate_point,
        "step": header.step,
        "fingerprint": header.fingerprint.hex(),
        "model": file.model.name if file.model else None,
        "source": file.model.source if file.model else None,
        "bytes": len(data),
        "bpp": round(len(data) * 8 / (header.width * header.height), 6),
        "metadata": {name: len(value) for name, value in metadata.items() if value is not None},
        "meta": dict(file.meta),
        "warnings": list(file.warnings),
    }
