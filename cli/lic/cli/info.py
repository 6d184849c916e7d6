"""lic info and lic verify: what a .lic file says, and whether it is whole."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lic.cli import options
from lic.cli.console import Exit, Output, exit_code
from lic.codec.container import LicFile, Limits, list_chunks, parse
from lic.codec.errors import ImageError, LicError

Files = Annotated[list[Path], typer.Argument(help=".lic files.")]
# Reading a header costs nothing, whatever size it claims.
ANY_SIZE = Limits(max_pixels=0)


def info(
    files: Files,
    as_json: options.AsJson = False,
    verbose: options.Verbose = 0,
) -> None:
    """Show what .lic files hold, without decoding them; -v lists the chunks."""
    out = Output(verbose, as_json)
    _each(files, out, lambda path: _describe(path, out))


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

    def check(path: Path) -> None:
        data = _read(path)
        if structure:
            parse(data, Limits(max_pixels=max_pixels))
        else:
            decode(data)
        out.result({"input": str(path), "ok": True}, f"{path}: ok")

    _each(files, out, check)


def _each(files: list[Path], out: Output, act: Any) -> None:
    """Act on every file; one failure ends with its own code, in a batch the code is 8."""
    failed = False
    for path in files:
        try:
            act(path)
        except LicError as error:
            if len(files) == 1:
                raise
            failed = True
            if out.as_json:
                values = {"input": str(path), "error": str(error), "exit_code": exit_code(error)}
                out.result(values, "")
            out.error(error, str(path))
    raise typer.Exit(int(Exit.BATCH if failed else Exit.OK))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from None


def _describe(path: Path, out: Output) -> None:
    data = _read(path)
    file = parse(data, ANY_SIZE)
    values = _values(path, data, file)
    if out.verbosity > 0:
        values["chunks"] = [
            {"type": chunk.name, "offset": chunk.offset, "length": chunk.length}
            for chunk in list_chunks(data)
        ]
    if out.as_json:
        out.result(values, "")
        return
    typer.echo(f"{path}")
    for key, value in values.items():
        if key == "chunks":
            for chunk in value:
                typer.echo(f"  {chunk['offset']:>10}  {chunk['type']}  {chunk['length']} bytes")
        elif key != "input" and value not in (None, [], {}):
            typer.echo(f"  {key.replace('_', ' '):<12} {value}")


def _values(path: Path, data: bytes, file: LicFile) -> dict[str, Any]:
    header = file.header
    extras = {"icc": file.icc, "exif": file.exif, "xmp": file.xmp, "alpha": file.alpha}
    return {
        "input": str(path),
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
        "metadata": {name: len(value) for name, value in extras.items() if value is not None},
        "meta": dict(file.meta),
        "warnings": list(file.warnings),
    }
