"""Arrays to .lic files in memory, and back; `open_codec` is for all that goes with a picture."""

# Shapes: H W pixels.

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lic.codec.codec_cache import SHARED
from lic.codec.container import Limits
from lic.codec.decoding import decompress
from lic.codec.errors import ConfigError, ImageError
from lic.codec.image_io import Picture, upright
from lic.codec.lossless import compress_lossless
from lic.codec.regions import Region


def encode(
    pixels: NDArray[np.uint8],
    *,
    model: str | None = None,
    rate_point: int | None = None,
    lossless: bool | None = None,
    backend: str = "auto",
    device: str = "cpu",
    threads: int = 0,
) -> bytes:
    """Return a .lic file of an array; the model stays open for the next one.

    Args:
        pixels: uint8 (H, W) or (H, W, 1) gray, (H, W, 2) gray and alpha, (H, W, 3) RGB, or
            (H, W, 4) RGB and alpha, which is not premultiplied.
        model: family name or path of a bundle; None is lic's default model.
        rate_point: 1 is the smallest; None takes the middle one.
        lossless: True stores the pixels losslessly, False codes them with the model, None takes
            whichever is smaller where the first has a chance.
        backend: "auto", "onnx" or "torch".
        device: see the backends.
        threads: of one operator; 0 leaves the choice to the engine.

    Raises:
        ImageError: an array of another type or shape.
        ConfigError: no such rate point, backend or device; or a model for `lossless=True`.
        ModelMismatchError: no such bundle, or it was changed.
        LimitError: a side is longer than the format allows.
        NumericsError: the network gave latents that cannot be coded.
    """
    picture = _picture(pixels)
    if lossless:
        if model is not None or rate_point is not None:
            raise ConfigError("lossless=True takes no model and no rate point; leave them out")
        return compress_lossless(picture).data
    codec = SHARED.encoder(model, rate_point, backend=backend, device=device, threads=threads)
    return codec.compress(picture, lossless=lossless).data


def decode(
    data: bytes | bytearray | memoryview,
    *,
    limits: Limits | None = None,
    region: tuple[int, int, int, int] | None = None,
    backend: str = "auto",
    device: str = "cpu",
    threads: int = 0,
) -> NDArray[np.uint8]:
    """Return the pixels of a .lic file as they are to be seen: orientation is applied.

    Args:
        data: the file.
        limits: sizes to refuse; the default suits files from strangers.
        region: x, y, width and height in px of the part to decode, of the picture as it is to be
            seen; only the tiles that it needs are looked at. None decodes all.
        backend: "auto", "onnx" or "torch".
        device: see the backends.
        threads: of one operator; 0 leaves the choice to the engine.

    Returns:
        uint8 (H, W) gray, (H, W, 2) gray and alpha, (H, W, 3) RGB, (H, W, 4) RGB and alpha.

    Raises:
        LicError: as `decompress` does; ConfigError where the region is not within the picture.
    """
    find = partial(SHARED.decoder, backend=backend, device=device, threads=threads)
    part = Region(*region) if region is not None else None
    decoded = decompress(bytes(data), find=find, limits=limits, region=part)
    return upright(decoded.picture).samples


def _picture(pixels: NDArray[np.uint8]) -> Picture:
    array = np.asarray(pixels)
    shape = (*array.shape, 1) if array.ndim == 2 else array.shape
    if len(shape) != 3 or shape[2] not in (1, 2, 3, 4) or 0 in shape:
        raise ImageError(
            f"the array's shape is {array.shape}; expected (H, W) or (H, W, 1) gray, (H, W, 2) "
            "gray and alpha, (H, W, 3) RGB, or (H, W, 4) RGB and alpha"
        )
    if array.dtype != np.uint8:
        raise ImageError(
            f"the array's samples are {array.dtype}; expected uint8, 0 to 255: scale and round "
            "them first, for instance (x * 255).round().astype(np.uint8) of 0 to 1"
        )
    # A copy, as the caller may go on with the array while threads code it.
    samples = np.array(array.reshape(shape))
    alpha = samples[..., -1].copy() if shape[2] in (2, 4) else None
    colours = 1 if shape[2] < 3 else 3
    return Picture(pixels=np.ascontiguousarray(samples[..., :colours]), alpha=alpha)
