"""Does lic bench rd measure what others measured? Points of Kodak that CompressAI published.

    make check-measuring KODAK=/path/to/kodak

WebP by Pillow with method 4, and JPEG with 4:2:0 and the standard's Huffman tables, are what those
points were made with. WebP comes out to every digit, JPEG with another libjpeg-turbo nearly so.
Optimised JPEG, which reports compare with, has the same pixels in fewer bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lic.codec.benchmark.anchors import published_curve
from lic.codec.benchmark.cache import Cache
from lic.codec.benchmark.classic import Classic, parse_classic
from lic.codec.benchmark.datasets import OpenDataset, open_dataset
from lic.codec.benchmark.rd import failures, measure
from lic.codec.benchmark.schema import Point


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A point that should come out.

    Attributes:
        bpp, psnr, ms_ssim: of it; None where nobody says.
        bpp_within: relative.
        psnr_within: dB.
    """

    codec: str
    quality: str
    bpp: float
    psnr: float
    ms_ssim: float | None = None
    bpp_within: float
    psnr_within: float


def expectations() -> list[Expected]:
    """Return published points, at the qualities 5, 10, 15, and two of optimised JPEG."""
    found = []
    for name, codec, within in (
        ("WebP", "webp:method=4", {"bpp_within": 1e-4, "psnr_within": 0.01}),
        ("JPEG", "jpeg:optimise=no", {"bpp_within": 0.001, "psnr_within": 0.15}),
    ):
        points = published_curve("Kodak", name).points
        for quality, point in zip(("5", "10", "15"), points, strict=False):
            means = {key: value for key, value in point.mean.items() if value is not None}
            found.append(Expected(codec=codec, quality=quality, **means, **within))
    for quality, bpp, psnr in (("10", 0.256, 26.67), ("20", 0.449, 29.14)):
        tight = {"bpp_within": 0.005, "psnr_within": 0.01}
        found.append(Expected(codec="jpeg", quality=quality, bpp=bpp, psnr=psnr, **tight))
    return found


def measured(source: OpenDataset, wanted: Sequence[Expected], **options: object) -> list[Point]:
    """Return the points that were measured, in the order of what was expected."""
    codecs = dict.fromkeys(each.codec for each in wanted)
    systems: dict[str, Classic] = {
        codec: parse_classic(codec, [each.quality for each in wanted if each.codec == codec])
        for codec in codecs
    }
    results = measure(source, list(systems.values()), command="", **options)  # type: ignore[arg-type]
    for line in failures(results):
        sys.exit(line)
    points = {
        (codec, point.setting): point
        for codec, curve in zip(codecs, results.curves, strict=True)
        for point in curve.points
    }
    return [points[each.codec, each.quality] for each in wanted]


def off(expected: Expected, point: Point) -> str:
    """Return what is wrong with a point; "" where nothing is."""
    bpp, psnr = point.mean["bpp"] or 0.0, point.mean["psnr"] or 0.0
    if abs(bpp / expected.bpp - 1) > expected.bpp_within:
        return f"bpp is off by more than {expected.bpp_within:.2%}"
    if abs(psnr - expected.psnr) > expected.psnr_within:
        return f"PSNR is off by more than {expected.psnr_within} dB"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print both, and return 1 where they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kodak", type=Path)
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("runs/measuring"))
    options = parser.parse_args(arguments)
    source = open_dataset(options.kodak)
    if not source.dataset.known:
        sys.exit(f"{options.kodak} is not Kodak: {source.dataset.remark or 'other files'}")
    wanted = expectations()
    points = measured(source, wanted, jobs=options.jobs, cache=Cache(options.cache))
    wrong = 0
    for expected, point in zip(wanted, points, strict=True):
        problem = off(expected, point)
        wrong += bool(problem)
        print(  # noqa: T201
            f"{expected.codec:17} {expected.quality:>2}  "
            f"bpp {point.mean['bpp']:.5f} (expected {expected.bpp:.5f})  "
            f"PSNR {point.mean['psnr']:.3f} ({expected.psnr:.3f})  "
            f"MS-SSIM {point.mean['ms_ssim']:.4f} ({expected.ms_ssim or 'not published'})  "
            f"{problem or 'ok'}"
        )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
