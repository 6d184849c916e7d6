"""What a model does to a folder of pictures, measured on whole files that are decoded again.

Shapes: H W pixels, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.errors import ImageError
from lic.codec.image_io import READABLE_SUFFIXES, Picture, apply_metadata_policy, read_picture
from lic.codec.metrics import bpp, ms_ssim, psnr
from lic.codec.pipeline import Codec, Encoded, to_network


@dataclass(frozen=True, kw_only=True)
class Row:
    """One picture at one rate point, coded by every backend and decoded by every backend.

    Attributes:
        picture: file name.
        size: bytes of the whole file that the first backend wrote.
        bpp: the same in bits per pixel.
        estimated_bpp: from the model's likelihoods in torch; None where torch is missing.
        psnr, ms_ssim: of the decoded file.
        same_symbols: every backend's file decoded on every other with the encoder's symbols.
        flips: symbols in which the backends' own analyses differ.
        pixel_gap: largest difference in levels between two backends' decodings of one file.
        encode, decode: backend -> stage -> milliseconds.
    """

    picture: str
    size: int
    bpp: float
    estimated_bpp: float | None
    psnr: float
    ms_ssim: float
    same_symbols: bool
    flips: int
    pixel_gap: int
    encode: dict[str, dict[str, float]]
    decode: dict[str, dict[str, float]]


def find_pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder, or the one file.

    Raises:
        ImageError: there is none.
    """
    if folder.is_file():
        return [folder]
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in READABLE_SUFFIXES)
    if not found:
        raise ImageError(f"{folder}: holds no pictures")
    return found


def evaluate(
    bundle: Bundle,
    pictures: Sequence[Path],
    backends: Sequence[str],
    *,
    device: str = "cpu",
    threads: int = 0,
    repeats: int = 3,
    progress: Callable[[], None] = lambda: None,
) -> list[Row]:
    """Code every picture with every backend, decode every file with every backend.

    Times are medians of `repeats` after one run that does not count.
    """
    codecs = {
        name: Codec(bundle, backend=name, device=device, threads=threads) for name in backends
    }
    estimate = _estimator(bundle)
    rows = []
    for path in pictures:
        picture = apply_metadata_policy(read_picture(path), "none")
        rows.append(_row(path.name, picture, codecs, estimate, repeats))
        progress()
    return rows


def _row(
    name: str,
    picture: Picture,
    codecs: dict[str, Codec],
    estimate: Callable[[NDArray[np.uint8]], float] | None,
    repeats: int,
) -> Row:
    encoded: dict[str, Encoded] = {}
    encode_times, decode_times = {}, {}
    for backend, codec in codecs.items():
        runs = [codec.compress(picture) for _ in range(repeats + 1)]
        encoded[backend] = runs[0]
        encode_times[backend] = _medians([run.stages for run in runs[1:]])
    gap, decoded = 0, []
    for file in encoded.values():
        results = []
        for backend, codec in codecs.items():
            # A decoder that got other symbols than the encoder's raises NumericsError here.
            outcome = [codec.decompress(parse(file.data)) for _ in range(repeats + 1)]
            decode_times[backend] = _medians([run.stages for run in outcome[1:]])
            results.append(outcome[0].picture.pixels)
        gap = max([gap, *(_gap(results[0], other) for other in results[1:])])
        decoded.append(results[0])
    size = len(next(iter(encoded.values())).data)
    bits = estimate(picture.pixels) if estimate else None
    pixels = picture.width * picture.height
    return Row(
        picture=name,
        size=size,
        bpp=bpp(size, picture.width, picture.height),
        estimated_bpp=None if bits is None else bits / pixels,
        psnr=psnr(picture.pixels, decoded[0]),
        ms_ssim=ms_ssim(picture.pixels, decoded[0]),
        same_symbols=True,
        flips=_flips(picture, list(codecs.values())),
        pixel_gap=gap,
        encode=encode_times,
        decode=decode_times,
    )


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {stage: median(run[stage] for run in runs) for stage in runs[0]}


def _gap(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(np.int16) - b).max())


def _flips(picture: Picture, codecs: Sequence[Codec]) -> int:
    """Return in how many symbols the backends' own analyses of a picture differ."""
    x = to_network(picture.pixels, codecs[0].bundle.manifest.stride)
    states = [codec.backend.analyze(x) for codec in codecs]
    return max(int(np.count_nonzero(states[0] != state)) for state in states)


def _estimator(bundle: Bundle) -> Callable[[NDArray[np.uint8]], float] | None:
    """Return the bits of pixels (H, W, C) by the model's likelihoods, where torch is there."""
    if find_spec("torch") is None:
        return None
    import torch

    from lic.codec.backends.torch_backend import load_model
    from lic.codec.models import bits

    model = load_model(bundle)

    def estimate(pixels: NDArray[np.uint8]) -> float:
        x = torch.from_numpy(to_network(pixels, bundle.manifest.stride))
        with torch.inference_mode():
            return float(bits(model(x).likelihoods))

    return estimate


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return means over pictures, the worst excess, and the median stage times."""
    estimated = [(r, r.estimated_bpp) for r in rows if r.estimated_bpp is not None]
    # What a file may exceed its estimate by: half a percent, and 80 bytes for headers.
    over = [r.size * (1 - 1.005 * rate / r.bpp) for r, rate in estimated]
    return {
        "pictures": len(rows),
        "bpp": fmean(r.bpp for r in rows),
        "estimated_bpp": fmean(rate for _, rate in estimated) if estimated else None,
        "worst_bytes_over_half_percent": max(over) if over else None,
        "psnr": fmean(r.psnr for r in rows),
        "ms_ssim": fmean(r.ms_ssim for r in rows),
        "same_symbols": sum(r.same_symbols for r in rows),
        "flips": sum(r.flips for r in rows),
        "pixel_gap": max(r.pixel_gap for r in rows),
        "encode": _stage_medians([r.encode for r in rows]),
        "decode": _stage_medians([r.decode for r in rows]),
    }


def _stage_medians(
    times: Sequence[dict[str, dict[str, float]]],
) -> dict[str, dict[str, float]]:
    return {backend: _medians([entry[backend] for entry in times]) for backend in times[0]}
