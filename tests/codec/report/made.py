"""Results that nobody measured: numbers for tests of what is made of them."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lic.codec.benchmark.report.reconstruct import reconstruct
from lic.codec.benchmark.schema import (
    Curve,
    Dataset,
    DatasetPicture,
    DirectionTimes,
    Machine,
    Point,
    RdResults,
    Row,
    SpeedResults,
    SpeedRun,
    Times,
)
from lic.codec.image_io import Picture
from lic.codec.metrics import ms_ssim, psnr

# What a name can hold that HTML, JSON, attributes, LaTeX or Markdown might take for their own.
NASTY = """</script><img src=x onerror="window.injected=1">'&|_$%.png"""
MACHINE = Machine(
    cpu="Some CPU <b>", cores=2, memory=8 * 10**9, system="Linux", versions={"numpy": "2"}
)
RATES = (0.1, 0.2, 0.4, 0.8)
QUALITIES = (27.0, 29.0, 31.0, 33.0)


def curve(
    system: str,
    factor: float = 1.0,
    *,
    kind: str = "classic",
    rates: Sequence[float] = RATES,
    pictures: Sequence[str] = (),
    source: str = "",
) -> Curve:
    """Return a curve with `factor` times the rates; pictures differ by their number."""
    points = []
    for i, (rate, quality) in enumerate(zip(rates, QUALITIES, strict=False), start=1):
        rows = tuple(
            Row(
                picture=name,
                bytes=int(1e5 * rate * factor * n),
                bpp=rate * factor * n,
                psnr=quality - n,
                psnr_y=quality,
                ms_ssim=0.9 + i / 50,
                sha256="0" * 64,
            )
            for n, name in enumerate(pictures, start=1)
        )
        mean = {"bpp": rate * factor, "psnr": quality, "ms_ssim": 0.9 + i / 50}
        if kind != "published":
            mean["psnr_y"] = quality + 1
        points.append(Point(setting=str(i), rows=rows, mean=dict(mean)))
    assert kind in ("lic", "classic", "published")
    return Curve(system=system, kind=kind, points=tuple(points), source=source)  # type: ignore[arg-type]


def rd_results(
    *curves: Curve, name: str = "Kodak", known: bool = True, pictures: Sequence[str] = ("a.png",)
) -> RdResults:
    """Return results of curves on pictures that are not there."""
    entries = tuple(
        DatasetPicture(
            name=each, sha256=hashlib.sha256(each.encode()).hexdigest(), width=96, height=64
        )
        for each in pictures
    )
    return RdResults(
        command=f"lic bench rd {name}",
        machine=MACHINE,
        dataset=Dataset(name=name, known=known, pictures=entries),
        curves=curves,
    )


def times(milliseconds: float) -> Times:
    return Times(
        median=milliseconds,
        p90=milliseconds * 1.1,
        p95=milliseconds * 1.2,
        p99=milliseconds * 1.5,
    )


def direction(milliseconds: float, pixels: int) -> DirectionTimes:
    stages = {"read": times(0.1 * milliseconds), "transform": times(0.8 * milliseconds)}
    return DirectionTimes(
        wall=times(milliseconds),
        cpu=times(milliseconds),
        stages=stages,
        mpx_per_s=pixels / milliseconds / 1000,
    )


def speed_run(system: str, milliseconds: float, *, side: int = 512) -> SpeedRun:
    scale = side * side / 512**2
    return SpeedRun(
        system=system, setting="2", backend="onnx", device="cpu", provider="CPU", threads=1,
        width=side, height=side, bytes=20000, runs=9, peak_memory=int(1e8 * scale),
        encode=direction(milliseconds * scale, side**2),
        decode=direction(2 * milliseconds * scale, side**2),
        kmac_per_pixel={"encode": 7.0, "decode": 12.0}, parameters=1234567,
    )  # fmt: skip


def speed_results(*runs: SpeedRun) -> SpeedResults:
    return SpeedResults(command="lic bench speed", machine=MACHINE, runs=runs)


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> DatasetPicture:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return DatasetPicture(
        name=path.name,
        sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        width=pixels.shape[1],
        height=pixels.shape[0],
    )


def classic_curve(
    system: str, qualities: Sequence[int], pictures: Sequence[tuple[str, NDArray[np.uint8]]]
) -> Curve:
    """Return what a classic codec really does to pictures."""
    nothing = Curve(system=system, kind="classic", points=())
    points = []
    for quality in qualities:
        rows = []
        for name, pixels in pictures:
            found = reconstruct(nothing, str(quality), Picture(pixels=pixels))
            rows.append(
                Row(
                    picture=name,
                    bytes=found.bytes,
                    bpp=8 * found.bytes / (pixels.shape[0] * pixels.shape[1]),
                    psnr=psnr(pixels, found.pixels),
                    ms_ssim=ms_ssim(pixels, found.pixels),
                    sha256=found.sha256,
                )
            )
        mean = {key: fmean(getattr(row, key) for row in rows) for key in ("bpp", "psnr", "ms_ssim")}
        points.append(Point(setting=str(quality), rows=tuple(rows), mean=dict(mean)))
    return Curve(system=system, kind="classic", points=tuple(points))
