"""What a model does to whole pictures: estimated while it trains, from real files at the end.

Shapes: H W pixels, C channels (1 gray, 3 RGB); H' W' are padded to the model's stride.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lic.codec.benchmark.datasets import read_plain
from lic.codec.benchmark.evaluate import evaluate, installed_backends, summarise
from lic.codec.bundle import Bundle
from lic.codec.errors import NumericsError, TrainingError
from lic.codec.metrics import ms_ssim, psnr
from lic.codec.models import Output, bits
from lic.codec.models.likelihood import EntropyBottleneck
from lic.codec.tiling import Padding, from_network, to_levels, to_network
from lic.trainers.config import LossConfig
from lic.trainers.losses import TAPS, terms_of
from lic.trainers.objective import build_objective
from lic.trainers.objective_options import SCALES

Pixels = NDArray[np.uint8]
Say = Callable[[str], object]

# Of what one forward pass sees: about 0.5 GB of activations at N = 192.
MAX_PIXELS = 2**20


class Coded(NamedTuple):
    """A picture after a model in theory: pixels (H, W, C), bits per pixel, value of the loss.

    Pixels are None where the model gave values that are no numbers. Parts are bits per pixel of
    z, s1, s2, s3 where the model has them.
    """

    pixels: Pixels | None
    bpp: float
    loss: float
    parts: dict[str, float]


def validate(
    model: nn.Module,
    pictures: Sequence[Path],
    loss: LossConfig,
    *,
    device: torch.device | None = None,
    max_pixels: int = MAX_PIXELS,
    say: Say = lambda _: None,
) -> dict[str, float]:
    """Return means over pictures of what coding them would give, estimated from likelihoods.

    Weights, modes and random numbers are afterwards what they were before. Whoever wants those of
    averaged weights passes a model that has them.

    Args:
        model: a FactorizedPrior, ScaleHyperprior or HPCM, not wrapped for mixed precision.
        pictures: files of any size; those that cannot be read are left out, with a note.
        loss: the run's own.
        device: where the model is; None looks.
        max_pixels: of a larger picture only the middle counts.
        say: takes what the user should know of.

    Returns:
        val_psnr (dB) and val_ms_ssim of 8-bit pictures, val_bpp with rounded latents, and val_loss,
        the plain sum of rate and distortion; of HPCM val_bpp_z, _s1, _s2, _s3 as well. All are NaN
        where no picture could be read.
    """
    device = device or next(model.parameters()).device
    with coding(model, say), _workers(device) as pool:
        jobs = []
        for path in pictures:
            pixels = read(path, max_pixels, say)
            if pixels is not None:
                coded = code(model, pixels, loss, device)
                jobs.append((coded, pool(_quality, pixels, coded.pixels)))
        rows = [
            {
                **dict(zip(("val_psnr", "val_ms_ssim"), quality(), strict=True)),
                "val_bpp": coded.bpp,
                "val_loss": coded.loss,
                **{f"val_bpp_{name}": rate for name, rate in coded.parts.items()},
            }
            for coded, quality in jobs
        ]
    if not rows:
        parts = ("z", *SCALES) if hasattr(model, "bits_by_part") else ()
        names = ("val_psnr", "val_ms_ssim", "val_bpp", "val_loss")
        return dict.fromkeys((*names, *(f"val_bpp_{part}" for part in parts)), math.nan)
    return {name: fmean(row[name] for row in rows) for name in rows[0]}


def read(path: Path, max_pixels: int = MAX_PIXELS, say: Say = lambda _: None) -> Pixels | None:
    """Return a picture's pixels (H, W, C), upright, or None where it cannot be read.

    Of more than `max_pixels`, the middle.
    """
    try:
        pixels = read_plain(path).pixels
    # Whatever is wrong with one picture must not end a run of hours.
    except Exception as error:
        say(f"left out {path}: {str(error).removeprefix(f'{path}: ') or type(error).__name__}")
        return None
    height, width = pixels.shape[:2]
    share = math.sqrt(max_pixels / (height * width))
    if share >= 1:
        return pixels
    rows, columns = max(1, int(height * share)), max(1, int(width * share))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]


@contextlib.contextmanager
def coding(model: nn.Module, say: Say = lambda _: None) -> Iterator[None]:
    """Have a model behave as its bundle will: evaluating, on the bundle's quantisation grid.

    In training the grid's centres, the medians, are not kept up: they are solved for when a bundle
    is made. Here the same is done for a while.
    """
    modes = [(module, module.training) for module in model.modules()]
    bottlenecks = [module for module in model.modules() if isinstance(module, EntropyBottleneck)]
    kept = [bottleneck.quantiles.detach().clone() for bottleneck in bottlenecks]
    model.eval()
    try:
        for bottleneck in bottlenecks:
            try:
                bottleneck.solve_quantiles()
            except NumericsError as error:
                say(f"rates are those of medians that were not solved for: {error}")
        with torch.no_grad():
            yield
    finally:
        with torch.no_grad():
            for bottleneck, values in zip(bottlenecks, kept, strict=True):
                bottleneck.quantiles.copy_(values)
        for module, mode in modes:
            module.training = mode


def code(model: Any, pixels: Pixels, loss: LossConfig, device: torch.device) -> Coded:
    """Return what a model makes of pixels (H, W, C), inside of `coding`.

    Padding is that of coding: it costs its bits, and it is no part of the distortion.
    """
    height, width, channels = pixels.shape
    padded = to_network(pixels, Padding(multiple=model.stride))
    x = torch.from_numpy(padded).to(device, memory_format=torch.channels_last)
    output: Output = model(x)
    planes = output.x_hat[..., :height, :width]
    rate = float(bits(output.likelihoods)) / (height * width)
    # MS-SSIM needs a whole window, so the smallest pictures count with their padding.
    if loss.loss != "mse" and min(height, width) < TAPS:
        terms = terms_of(output, x, loss)
    else:
        terms = terms_of(Output(planes, output.likelihoods), x[..., :height, :width], loss)
    value = float(build_objective(loss).loss(terms, 0))
    by_part = getattr(model, "bits_by_part", None)
    bits_of = by_part(output.likelihoods) if by_part else {}
    parts = {name: float(count) / (height * width) for name, count in bits_of.items()}
    return Coded(_levels(planes, channels), rate, value, parts)


def _levels(planes: Tensor, channels: int) -> Pixels | None:
    """Return x_hat (1, 3, H, W) as a decoder writes it."""
    if not bool(torch.isfinite(planes).all()):
        return None
    x_hat: NDArray[np.float32] = planes.clamp(0, 1).float().cpu().numpy()
    return to_levels(from_network(x_hat, channels))


def _quality(original: Pixels, decoded: Pixels | None) -> tuple[float, float]:
    if decoded is None:
        return math.nan, math.nan
    return psnr(original, decoded), ms_ssim(original, decoded)


@contextlib.contextmanager
def _workers(device: torch.device) -> Iterator[Callable[..., Callable[[], tuple[float, float]]]]:
    """Give what calls a function and returns how to get the result.

    Beside a GPU the metrics take longer than the model, on a CPU their threads would only wait.
    """
    if device.type == "cpu":

        def at_once(work: Callable[..., tuple[float, float]], *arguments: Any) -> Any:
            result = work(*arguments)
            return lambda: result

        yield at_once
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield lambda work, *arguments: pool.submit(work, *arguments).result


def final_files(
    bundle: Path,
    pictures: Sequence[Path],
    *,
    device: str = "cpu",
    say: Say = lambda _: None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Return means over pictures of a bundle's real files, whole ones, decoded again.

    Args:
        bundle: its folder.
        pictures: files; those that cannot be read are left out, with a note.
        device: anything that torch.device takes.
        say: takes what the user should know of.
        progress: called after every picture.

    Returns:
        psnr (dB), ms_ssim and bpp of the files, estimated_bpp from
        likelihoods, and pictures, their number.

    Raises:
        TrainingError: no picture can be read.
    """
    usable = [path for path in pictures if read(path, 1, say) is not None]
    if not usable:
        raise TrainingError(f"none of {len(pictures)} pictures to validate on can be read")
    opened = Bundle.open(bundle)
    backend = "torch" if "torch" in installed_backends(opened) else "onnx"
    rows = evaluate(opened, usable, [backend], device=device, repeats=1, progress=progress)
    for row in rows:
        for failure in row.failures:
            say(f"{row.picture}: {failure}")
    means = summarise(rows)
    found = {name: means[name] for name in ("psnr", "ms_ssim", "bpp", "estimated_bpp", "pictures")}
    return {k: math.nan if v is None else float(v) for k, v in found.items()}
