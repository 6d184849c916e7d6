"""What contexts save of whole files: `make contexts-saving KODAK=/path/to/kodak`.

Each picture is coded with the embedded model's contexts and, from the same symbols, with the set of
plain tables that suits it best; both files decode to the same pixels, which are measured once.
Prints rates and savings of every rate point, BD-rates against the same model without contexts, and
what is left to published curves.
"""

import argparse
import sys
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from lic.codec import Picture, read_picture
from lic.codec.benchmark.anchors import published_curve
from lic.codec.benchmark.bd_rate import bd_rate
from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.library import all_bundles
from lic.codec.metrics import psnr
from lic.codec.pipeline import Codec

PUBLISHED = ("bmshj2018-hyperprior (CompressAI, MSE)", "bmshj2018-factorized (CompressAI, MSE)")


class Sizes(NamedTuple):
    """Bits per pixel of whole files, and PSNR in dB."""

    plain: float
    contexts: float
    psnr: float


def sizes(bundle: Bundle, pictures: list[Picture]) -> list[Sizes]:
    """Return what each picture takes.

    Raises:
        AssertionError: the two files of a picture do not hold the same symbols.
    """
    codec, plain = (Codec(bundle, threads=1, contexts=contexts) for contexts in (True, False))
    found = []
    for picture in pictures:
        files = [each.compress(picture).data for each in (plain, codec)]
        crcs = [[tile.symbols_crc for tile in parse(data).tiles] for data in files]
        assert crcs[0] == crcs[1]
        quality = psnr(picture.pixels, codec.decompress(parse(files[1])).picture.pixels)
        rates = [8 * len(data) / (picture.width * picture.height) for data in files]
        found.append(Sizes(rates[0], rates[1], quality))
    return found


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kodak", type=Path)
    pictures = [read_picture(path) for path in sorted(parser.parse_args().kodak.glob("*.png"))]
    families: dict[str, list[Sizes]] = {}
    say("| model | plain, bpp | contexts, bpp | PSNR, dB | saved | of one picture |")
    for bundle in sorted(filter(lambda b: b.embedded, all_bundles()), key=lambda b: b.label):
        found = sizes(bundle, pictures)
        mean = Sizes(*(fmean(column) for column in zip(*found, strict=True)))
        families.setdefault(bundle.manifest.name, []).append(mean)
        saved = [1 - each.contexts / each.plain for each in found]
        say(
            f"| {bundle.label} | {mean.plain:.4f} | {mean.contexts:.4f} | {mean.psnr:.2f} | "
            f"{1 - mean.contexts / mean.plain:.1%} | {min(saved):.1%} to {max(saved):.1%} |"
        )
    for name, points in families.items():
        plain, contexts = ([(p[column], p.psnr) for p in points] for column in (0, 1))
        say(f"{name}: BD-rate {bd_rate(plain, contexts).percent:+.1f} % against plain tables")
        for published in PUBLISHED:
            curve = published_curve("Kodak", published)
            anchor = [(p.mean["bpp"] or 0.0, p.mean["psnr"] or 0.0) for p in curve.points]
            rates = [bd_rate(anchor, each).percent for each in (plain, contexts)]
            say(f"  against {published}: {rates[1]:+.1f} %, with plain tables {rates[0]:+.1f} %")
    mean_saving = fmean(1 - p.contexts / p.plain for family in families.values() for p in family)
    say(f"saved in the mean of all rate points: {mean_saving:.1%}")


if __name__ == "__main__":
    main()
