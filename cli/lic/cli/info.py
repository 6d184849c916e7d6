"""lic info and lic verify: what a .lic file says, and whether it is whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lic.cli import batch, options
from lic.cli.console import Exit, Output, exit_code, message
from lic.codec.container import LicFile, Limits, list_chunks, parse
from lic.codec.errors import ConfigError

Files = Annotated[list[str], typer.Argument(help=".lic files; - is stdin.")]
# Reading a header costs nothing, whatever size it claims.
ANY_SIZE = Limits(max_pixels=0)


def info(
    files: Files,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
) -> None:
    """Show what .lic files hold, without decoding them; -v lists the chunks."""
    out = Output(verbose, as_json)
    _each(files, out, lambda job: _describe(job, out))


def verify(
    files: Files,
    model: options.ModelName = None,
    backend: options.BackendOption = "auto",
    device: options.Device = "cpu",
    structure: Annotated[
        bool, typer.Option("--structure", help="Checksums only; needs no model.")
    ] = False,
    max_pixels: options.MaxPixels = options.MAX_PIXELS,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Check .lic files: every checksum, and that they decode to the encoder's symbols."""
    from lic.cli.decompress import decoder

    out = Output(-1 if quiet else verbose, as_json)
    decode = decoder(model, backend=backend, device=device, threads=0, max_pixels=max_pixels)

    def check(job: batch.Job) -> None:
        data = batch.read_input(job)
        if structure:
            parse(data, Limits(max_pixels=max_pixels))
        else:
            decode(data)
        out.result({"input": job.name, "ok": True}, f"{job.name}: ok")

    _each(files, out, check)


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


def _describe(job: batch.Job, out: Output) -> None:
    data = batch.read_input(job)
    file = parse(data, ANY_SIZE)
    values = _values(job.name, data, file)
    if out.verbosity > 0:
        values["chunks"] = [
            {"type": chunk.name, "offset": chunk.offset, "length": chunk.length}
            for chunk in list_chunks(data)
        ]
    if out.as_json:
        out.result(values, "")
        return
    typer.echo(job.name)
    for key, value in values.items():
        if key == "chunks":
            for chunk in value:
                typer.echo(f"  {chunk['offset']:>10}  {chunk['type']}  {chunk['length']} bytes")
        elif key != "input" and value not in (None, [], {}):
            typer.echo(f"  {key.replace('_', ' '):<12} {value}")


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
        "coder": header.coder.name.lower(),
        "rate_point": header.rate_point,
        "fingerprint": header.fingerprint.hex(),
        "model": file.model.name if file.model else None,
        "source": file.model.source if file.model else None,
        "bytes": len(data),
        "bpp": round(len(data) * 8 / (header.width * header.height), 6),
        "metadata": {name: len(value) for name, value in metadata.items() if value is not None},
        "meta": dict(file.meta),
        "warnings": list(file.warnings),
    }
