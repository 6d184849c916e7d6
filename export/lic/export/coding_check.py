"""A bundle at work: a photo coded with PyTorch and decoded with ONNX Runtime, and back."""

import io
from functools import cache
from importlib.resources import files

import numpy as np

from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.errors import ExportError, LicError
from lic.codec.image_io import Picture, read_picture
from lic.codec.pipeline import Codec

ENGINES = ("torch", "onnx")
# Engines round pixels at the same place but for their last bits.
PIXEL_GAP = 1


@cache
def photo() -> Picture:
    """Return the photo, 224x160: a part of kodim23."""
    return read_picture(io.BytesIO(files("lic.export").joinpath("check.png").read_bytes()))


def check_coding(bundle: Bundle, *, pixel_gap: int = PIXEL_GAP) -> None:
    """Code a photo on each engine, and decode it on each.

    A decoder that gets other symbols notices by their checksum.

    Raises:
        ExportError: it does not work, or pictures differ by more than `pixel_gap` levels.
    """
    where = f"{bundle.label}: a photo"
    pictures = {}
    for coded_by in ENGINES:
        for decoded_by in ENGINES:
            step = f"coded by {coded_by}"
            try:
                data = Codec(bundle, backend=coded_by).compress(photo()).data
                step = f"coded by {coded_by} and decoded by {decoded_by}"
                decoded = Codec(bundle, backend=decoded_by).decompress(parse(data))
            except LicError as error:
                raise ExportError(f"{where} cannot be {step} ({error})") from None
            pictures[step] = decoded.picture.pixels.astype(np.int16)
    first, *others = pictures
    for other in others:
        gap = int(np.abs(pictures[first] - pictures[other]).max())
        if gap > pixel_gap:
            raise ExportError(
                f"{where} differs by {gap} levels, {first} and {other}; allowed {pixel_gap}"
            )
