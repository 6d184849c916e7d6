"""lic eval and lic demo: honest numbers for a model, on whole files that are decoded again."""

import contextlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import options, outputs
from lic.cli.console import Output, note_precision
from lic.cli.measuring import bundles_of, number, progress_bar
from lic.cli.weights import is_checkpoint
from lic.codec.errors import ConfigError, NumericsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lic.codec.benchmark.classic import Point


def evaluate(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DATASET",
            help="Folder of pictures; before it, instead of -m: a bundle's name or path, a run of "
            "lic train, or a checkpoint.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="The same as an option. Default: lic's default model."),
    ] = None,
    rate: Annotated[
        list[int] | None, typer.Option("-q", "--rate", help="Rate points. Default: all.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="onnx, torch. Default: all that are installed and the model has."),
    ] = None,
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    precision: options.Precision = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per picture.")] = 3,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write every number as JSON.")
    ] = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Check a model on a folder of pictures: do its backends agree, and are its files as promised.

    Every backend decodes what every backend wrote. Besides: times of the stages, and bytes beyond
    what the model's likelihoods promise. For comparing codecs there is 'lic bench rd'.
    """
    from lic.codec.benchmark.classic import jpeg_curve, rate_at
    from lic.codec.benchmark.datasets import find_pictures, read_plain
    from lic.codec.benchmark.evaluate import evaluate as measure
    from lic.codec.benchmark.evaluate import installed_backends, summarise

    outputs.check_target(output, force=force)
    *named, dataset = paths
    if len(named) + (model is not None) > 1:
        raise ConfigError(f"found {' '.join(paths)}; expected at most one model and one folder")
    model = named[0] if named else model
    if Path(dataset).is_dir() and is_checkpoint(Path(dataset)):
        raise ConfigError(f"{dataset} is a run; name a folder of pictures after it")
    pictures = find_pictures(Path(dataset))
    engine: dict[str, Any] = {
        "device": device, "threads": threads, "precision": precision, "repeats": repeats
    }  # fmt: skip
    out = Output(as_json=as_json)
    note_precision(out, precision, device)
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        bundles = stack.enter_context(bundles_of(model, rate))
        say, advance = stack.enter_context(progress_bar(len(bundles) * len(pictures), out))
        say("JPEG")
        curve = jpeg_curve([read_plain(path).pixels for path in pictures])
        for bundle in bundles:
            say(bundle.label)
            backends = backend or installed_backends(bundle)
            rows = measure(bundle, pictures, backends, progress=lambda: advance(1), **engine)
            summary = {"model": bundle.label, **summarise(rows)}
            jpeg = None if summary["psnr"] is None else rate_at(curve, summary["psnr"])
            summary["jpeg_bpp"] = jpeg
            summary["saving"] = None if jpeg is None else 1 - summary["bpp"] / jpeg
            results.append({**summary, "rows": [asdict(row) for row in rows]})
            if as_json:
                out.result(summary, "")
    if not as_json:
        _print(results, out)
    if output:
        data = (json.dumps(results, indent=1) + "\n").encode()
        outputs.write_output(data, output, force=force)
    _check_symbols(results, out)


def _check_symbols(results: list[dict[str, Any]], out: Output) -> None:
    """Say which files did not decode to the encoder's symbols.

    Raises:
        NumericsError: there is one.
    """
    count = 0
    for r in results:
        for row in r["rows"]:
            count += not row["same_symbols"]
            for failure in row["failures"]:
                out.note(f"{r['model']}, {row['picture']}: {failure}")
    if count:
        total = sum(r["pictures"] for r in results)
        raise NumericsError(f"{count} of {total} codings gave a decoder other symbols (see above)")


def _print(results: list[dict[str, Any]], out: Output) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lic.codec.benchmark.evaluate import ALLOWED_BYTES

    table = Table(
        "model", "bpp", "estimate", "excess\nbytes", "PSNR dB", "MS-SSIM", "JPEG\nbpp", "saving",
        "decoded\nby all", "level\ngap", box=None, caption_justify="left",
        caption="excess bytes: of the worst file, beyond its estimate + 0.5 %, and what is allowed",
    )  # fmt: skip
    for r in results:
        excess = number(r["worst_bytes_over_half_percent"], ".0f")
        table.add_row(
            escape(r["model"]),
            f"{r['bpp']:.4f}",
            number(r["estimated_bpp"], ".4f"),
            f"{excess} of {ALLOWED_BYTES}" if excess else "",
            number(r["psnr"], ".2f"),
            number(r["ms_ssim"], ".4f"),
            number(r["jpeg_bpp"], ".4f"),
            number(r["saving"], ".1%"),
            f"{r['same_symbols']}/{r['pictures']}",
            str(r["pixel_gap"]),
        )
    out.out.print(table)
    times = Table("model", "backend", "direction", "stages, median ms", box=None)
    for r in results:
        for direction in ("encode", "decode"):
            for engine, stages in r[direction].items():
                text = ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items())
                times.add_row(escape(r["model"]), engine, direction, text)
    out.out.print(times)


def demo(
    photo: Annotated[Path, typer.Argument(help="A picture.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for results.")] = Path(
        "demo"
    ),
    model: options.ModelName = None,
    rate: options.RatePoint = None,
    backend: options.BackendOption = "auto",
    force: options.Force = False,
) -> None:
    """Compress a photo, decode it, and show it beside JPEG and WebP of the same size."""
    import time

    from lic.cli.decompress import decoder
    from lic.codec.benchmark.classic import Classic, nearest_size
    from lic.codec.benchmark.datasets import read_plain
    from lic.codec.pipeline import open_codec

    target = output / f"{photo.stem}.lic"
    side_by_side = output / f"{photo.stem}-side-by-side.png"
    for path in (target, side_by_side):
        outputs.check_target(path, force=force)
    out = Output()
    start = time.perf_counter()
    picture = read_plain(photo)
    read_ms = (time.perf_counter() - start) * 1000
    codec = open_codec(model, rate, backend=backend)
    codec.compress(picture)  # The first run pays for loading the graphs.
    encoded = codec.compress(picture)
    start = time.perf_counter()
    outputs.write_output(encoded.data, target, force=force)
    write_ms = (time.perf_counter() - start) * 1000
    decode = decoder(model, backend=backend, device="cpu", threads=0, max_pixels=0)
    decode(target.read_bytes())
    decoded = decode(target.read_bytes())
    points = [_point(codec.bundle.label, picture.pixels, decoded.picture.pixels, len(encoded.data))]
    for classic in (Classic(key="jpeg"), Classic(key="webp")):
        if classic.fits(picture.pixels):
            points.append(nearest_size(picture.pixels, classic, len(encoded.data)))
        else:
            side = classic.format.largest_side
            out.note(f"{classic.format.pillow} left out: it holds at most {side} pixels a side")
    outputs.write_output(_draw(picture.pixels, points), side_by_side, force=force)
    _print_demo(photo, picture.pixels, points, out)
    stages = {"read": read_ms, **encoded.stages, "write": write_ms}
    for name, times in (("encode", stages), ("decode", decoded.stages)):
        text = ", ".join(f"{stage} {ms:.1f}" for stage, ms in times.items())
        typer.echo(f"{name} ms: {text}")
    typer.echo(f"file: {target}\nside by side: {side_by_side}")


def _point(
    name: str, pixels: "NDArray[np.uint8]", decoded: "NDArray[np.uint8]", size: int
) -> "Point":
    from lic.codec.benchmark.classic import Point
    from lic.codec.metrics import ms_ssim, psnr

    return Point(
        codec=f"lic, {name}",
        quality=0,
        size=size,
        psnr=psnr(pixels, decoded),
        ms_ssim=ms_ssim(pixels, decoded),
        pixels=decoded,
    )


def _print_demo(
    photo: Path, pixels: "NDArray[np.uint8]", points: list["Point"], out: Output
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from lic.codec.metrics import bpp

    height, width = pixels.shape[:2]
    columns = ("codec", "bytes", "bpp", "PSNR dB", "MS-SSIM")
    table = Table(*columns, title=escape(photo.name), box=None)
    for p in points:
        name = p.codec if p.codec.startswith("lic") else f"{p.codec} quality {p.quality}"
        rate = bpp(p.size, width, height)
        table.add_row(
            escape(name), f"{p.size:,}", f"{rate:.3f}", f"{p.psnr:.2f}", f"{p.ms_ssim:.4f}"
        )
    out.out.print(table)


def _draw(pixels: "NDArray[np.uint8]", points: list["Point"]) -> bytes:
    """Return original and results as one PNG: two columns, a caption under each."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    height, width = pixels.shape[:2]
    size = max(12, width // 40)
    font = ImageFont.load_default(size=size)
    caption = int(size * 1.6)
    sheet = Image.new("RGB", (2 * width, 2 * (height + caption)), "white")
    draw = ImageDraw.Draw(sheet)
    panels = [("original", pixels)]
    panels += [(f"{p.codec}: {p.size:,} bytes, {p.psnr:.2f} dB", p.pixels) for p in points]
    for position, (text, panel) in enumerate(panels):
        left, top = position % 2 * width, position // 2 * (height + caption)
        colour = np.broadcast_to(panel, (height, width, 3))
        sheet.paste(Image.fromarray(np.ascontiguousarray(colour)), (left, top))
        draw.text((left + 4, top + height + caption // 8), text, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
