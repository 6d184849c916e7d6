"""Whether this installation codes as lic does everywhere: its models, engines and entropy coder.

Needs no file but lic's own, no network and no place to write. Shapes: H W pixels, C channels.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.benchmark.evaluate import installed_backends
from lic.codec.bundle import EMBEDDED, Bundle
from lic.codec.container import LicFile, parse
from lic.codec.entropy import kernel_name
from lic.codec.errors import ModelMismatchError, NumericsError
from lic.codec.image_io import Picture
from lic.codec.latents import walk
from lic.codec.metrics import psnr
from lic.codec.pipeline import Codec
from lic.codec.tiling import places

# The embedded models give 26.9 dB. One pixel off it would be 25.6, with swapped channels 9.
LEAST_PSNR = 26.0
# Engines round differently: by a level where a pixel lies between two.
PIXEL_GAP = 1


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One model on one engine.

    Attributes:
        model: its label.
        backend, device: the engine.
        kernel: of the entropy coder, "c" or "python".
        size: bytes of the file.
        psnr: of the decoded picture, in dB.
        seconds: wall time, loading included.
        notes: what the engine has to say, such as operators that run elsewhere.
    """

    model: str
    backend: str
    device: str
    kernel: str
    size: int
    psnr: float
    seconds: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """One model on one engine, and what went wrong."""

    model: str
    backend: str
    error: Exception


def embedded_models() -> list[Bundle]:
    """Return the middle rate point of every embedded family, after a look at every byte of all.

    Raises:
        ModelMismatchError: there is none, or one was changed.
    """
    families: dict[str, list[Bundle]] = {}
    for path in sorted(EMBEDDED.glob("[!.]*/[!.]*")):
        bundle = Bundle.open(path)
        bundle.check()
        families.setdefault(bundle.manifest.name, []).append(bundle)
    if not families:
        raise ModelMismatchError(
            f"{EMBEDDED}: found no embedded models, expected at least one; install lic again"
        )
    return [sorted(f, key=lambda b: b.manifest.rate_point)[len(f) // 2] for f in families.values()]


def picture() -> NDArray[np.uint8]:
    """Return pixels (75, 100, 3) with slopes, waves, edges and colours.

    No model takes such sides as they are, so that padding is a part of the test.
    """
    y, x = np.mgrid[0:75, 0:100].astype(np.float64)
    red = 40 + 1.6 * x + 12 * np.sin(y / 3)
    green = 200 - 1.5 * y + 10 * np.sin(x / 2)
    blue = 128 + 80 * np.sin((x + y) / 15)
    pixels = np.stack([red, green, blue], axis=2)
    pixels[20:50, 30:70] = (220, 60, 40)
    pixels[(x - 75) ** 2 + (y - 45) ** 2 < 300] = (30, 80, 190)
    return pixels.round().clip(0, 255).astype(np.uint8)


def run(backends: Sequence[str] = (), **engine: Any) -> Iterator[Passed | Failed]:
    """Code the picture with every embedded model on every backend, and decode it on all of them.

    Args:
        backends: "onnx", "torch" or both; none named are all that are installed.
        **engine: `device`, `threads` and `precision` of `Codec`.

    Raises:
        ModelMismatchError: the embedded models are not all there.
    """
    pixels = picture()
    for bundle in embedded_models():
        earlier: list[_Coded] = []
        for backend in backends or installed_backends(bundle):
            start = time.perf_counter()
            try:
                coded = _code(Codec(bundle, backend=backend, **engine), pixels)
                for other in earlier:
                    _compare(coded, other)
            # A bug that one engine lays open must not hide what the others do.
            except Exception as error:
                yield Failed(model=bundle.label, backend=backend, error=error)
                continue
            earlier.append(coded)
            yield Passed(
                model=bundle.label,
                backend=backend,
                device=coded.codec.backend.device,
                kernel=kernel_name(),
                size=coded.size,
                psnr=psnr(pixels, coded.pixels),
                seconds=time.perf_counter() - start,
                notes=coded.codec.backend.notes,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Coded:
    """What one engine made of the picture: a file, and pixels (H, W, C) out of it again."""

    codec: Codec
    file: LicFile
    size: int
    pixels: NDArray[np.uint8]


def _code(codec: Codec, pixels: NDArray[np.uint8]) -> _Coded:
    """Code and decode pixels (H, W, C).

    Raises:
        LicError: symbols, streams or pixels are not what they should be.
    """
    data = codec.compress(Picture(pixels=pixels)).data
    file = parse(data)
    decoded = codec.decompress(file).picture.pixels
    quality = psnr(pixels, decoded)
    if quality < LEAST_PSNR:
        raise NumericsError(
            f"the decoded picture has {quality:.2f} dB, expected at least {LEAST_PSNR:g}: this "
            "engine does not compute what the model says; try another backend, device or version"
        )
    _check_kernel(codec, file)
    return _Coded(codec=codec, file=file, size=len(data), pixels=decoded)


def _check_kernel(codec: Codec, file: LicFile) -> None:
    """Write the file's symbols once more, with the coder that is the reference.

    A kernel that was compiled wrongly may well read what it wrote, but nobody else could.
    """
    for place, tile in zip(places(file.header), file.tiles, strict=True):
        writer = codec.coding.writer(file.header, tile.tables, kernel="python")
        walk(codec.backend.steps, codec.read_symbols(file.header, place, tile), writer)
        if writer.finish() != tile.streams:
            raise NumericsError(
                "the C kernel of the entropy coder writes other bytes than the Python coder, "
                "expected the same; install lic again, with another C compiler"
            )


def _compare(one: _Coded, other: _Coded) -> None:
    """Decode each engine's file on the other, and compare the pixels."""
    for writer, reader in ((one, other), (other, one)):
        decoded = reader.codec.decompress(writer.file).picture.pixels
        gap = int(np.abs(decoded.astype(np.int16) - writer.pixels).max())
        if gap > PIXEL_GAP:
            raise NumericsError(
                f"a file of {writer.codec.backend.name} decodes on {reader.codec.backend.name} to "
                f"pixels {gap} levels away, expected at most {PIXEL_GAP}"
            )
