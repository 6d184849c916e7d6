"""lic eval and lic demo: honest numbers for a model, on whole files that are decoded again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import options
from lic.cli.console import Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lic.codec.benchmark.classic import Point


def evaluate(
    dataset: options.Folder,
    model: options.ModelName = None,
    rate: Annotated[
        list[int] | None, typer.Option("-q", "--rate", help="Rate points. Default: all.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="onnx, torch. Default: all that are installed.")
    ] = None,
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per picture.")] = 3,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write every number as JSON.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure a model on a folder of pictures: rate, quality, times, agreement of backends."""
    from importlib.util import find_spec

    from lic.codec.benchmark.classic import jpeg_curve, rate_at
    from lic.codec.benchmark.evaluate import evaluate as measure
    from lic.codec.benchmark.evaluate import find_pictures, summarise
    from lic.codec.image_io import read_picture
    from lic.codec.library import family

    pictures = find_pictures(dataset)
    engines = backend or (["onnx", "torch"] if find_spec("torch") else ["onnx"])
    curve = jpeg_curve([read_picture(path).pixels for path in pictures])
    out = Output(as_json=as_json)
    results = []
    for bundle in family(model, rate):
        rows = measure(bundle, pictures, engines, device=device, threads=threads, repeats=repeats)
        summary = {"model": bundle.label, **summarise(rows)}
        jpeg = rate_at(curve, summary["psnr"])
        summary["jpeg_bpp"] = jpeg
        summary["saving"] = None if jpeg is None else 1 - summary["bpp"] / jpeg
        results.append({**summary, "rows": [asdict(row) for row in rows]})
        if as_json:
            out.result(summary, "")
    if output:
        output.write_text(json.dumps(results, indent=1) + "\n")
    if not as_json:
        _print(results, out)


def _print(results: list[dict[str, Any]], out: Output) -> None:
    from rich.table import Table

    table = Table(
        "model", "bpp", "estimate", "PSNR dB", "MS-SSIM", "JPEG bpp", "saving", "cross-decoded",
        "level gap", box=None,
    )  # fmt: skip
    for r in results:
        table.add_row(
            r["model"],
            f"{r['bpp']:.4f}",
            "" if r["estimated_bpp"] is None else f"{r['estimated_bpp']:.4f}",
            f"{r['psnr']:.2f}",
            f"{r['ms_ssim']:.4f}",
            "" if r["jpeg_bpp"] is None else f"{r['jpeg_bpp']:.4f}",
            "" if r["saving"] is None else f"{r['saving']:.1%}",
            f"{r['same_symbols']}/{r['pictures']}",
            str(r["pixel_gap"]),
        )
    out.out.print(table)
    times = Table("model", "backend", "direction", "stages, median ms", box=None)
    for r in results:
        for direction in ("encode", "decode"):
            for engine, stages in r[direction].items():
                text = ", ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items())
                times.add_row(r["model"], engine, direction, text)
    out.out.print(times)


def demo(
    photo: Annotated[Path, typer.Argument(help="A picture.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for results.")] = Path(
        "demo"
    ),
    model: options.ModelName = None,
    rate: options.RatePoint = None,
    backend: options.BackendOption = "auto",
) -> None:
    """Compress a photo, decode it, and show it beside JPEG and WebP of the same size."""
    import time

    from lic.cli import batch
    from lic.cli.decompress import decoder
    from lic.codec.benchmark.classic import nearest_size
    from lic.codec.image_io import read_picture
    from lic.codec.pipeline import open_codec

    start = time.perf_counter()
    picture = read_picture(photo)
    read_ms = (time.perf_counter() - start) * 1000
    codec = open_codec(model, rate, backend=backend)
    codec.compress(picture)  # The first run pays for loading the graphs.
    encoded = codec.compress(picture)
    target = output / photo.with_suffix(".lic").name
    start = time.perf_counter()
    batch.write_output(encoded.data, target, force=True)
    write_ms = (time.perf_counter() - start) * 1000
    decode = decoder(model, backend=backend, device="cpu", threads=0, max_pixels=0)
    decode(target.read_bytes())
    decoded = decode(target.read_bytes())
    points = [_point(codec.bundle.label, picture.pixels, decoded.picture.pixels, len(encoded.data))]
    points += [nearest_size(picture.pixels, name, len(encoded.data)) for name in ("JPEG", "WEBP")]
    side_by_side = output / f"{photo.stem}-side-by-side.png"
    _draw(picture.pixels, points, side_by_side)
    _print_demo(photo, picture.pixels, points, Output())
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
    from rich.table import Table

    from lic.codec.metrics import bpp

    height, width = pixels.shape[:2]
    table = Table("codec", "bytes", "bpp", "PSNR dB", "MS-SSIM", title=photo.name, box=None)
    for p in points:
        name = p.codec if p.codec.startswith("lic") else f"{p.codec} quality {p.quality}"
        rate = bpp(p.size, width, height)
        table.add_row(name, f"{p.size:,}", f"{rate:.3f}", f"{p.psnr:.2f}", f"{p.ms_ssim:.4f}")
    out.out.print(table)


def _draw(pixels: "NDArray[np.uint8]", points: list["Point"], target: Path) -> None:
    """Write original and results as one picture: two columns, a caption under each."""
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
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
