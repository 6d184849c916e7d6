"""Whatever picture goes in comes out: any size, mode and metadata, with a model and without.

The same examples every time, so that the gate does not depend on luck.
"""

import io
from functools import cache

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lic.codec.container import parse, serialize
from lic.codec.decoding import decompress
from lic.codec.image_io import Picture, encode_picture, read_picture
from lic.codec.library import select
from lic.codec.pipeline import Codec
from lic.codec.tiling import from_network, to_levels, to_network

stable = settings(
    max_examples=200, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
sides = st.integers(1, 80)
blobs = st.none() | st.binary(max_size=400)


@cache
def codec() -> Codec:
    return Codec(select(), backend="onnx", threads=1)


def samples(height: int, width: int, channels: int, seed: int) -> NDArray[np.uint8]:
    """Return noise, a gradient, or one colour."""
    rng = np.random.default_rng(seed)
    match seed % 3:
        case 0:
            return rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
        case 1:
            ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None]
            return np.repeat(ramp + rng.integers(0, 9), channels, 2).astype(np.uint8)
        case _:
            return np.full((height, width, channels), seed % 256, np.uint8)


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    height, width, seed = draw(sides), draw(sides), draw(st.integers(0, 2**32 - 1))
    transparent = draw(st.booleans())
    return Picture(
        pixels=samples(height, width, draw(st.sampled_from([1, 3])), seed),
        alpha=samples(height, width, 1, seed // 7)[..., 0] if transparent else None,
        bit_depth=draw(st.integers(1, 16)),
        orientation=draw(st.integers(1, 8)),
        icc=draw(blobs),
        exif=draw(blobs),
        xmp=draw(blobs),
    )


def assert_the_same_but_for_pixels(found: Picture, picture: Picture) -> None:
    for name in ("bit_depth", "orientation", "icc", "exif", "xmp"):
        assert getattr(found, name) == getattr(picture, name), name
    assert (found.alpha is None) == (picture.alpha is None)
    if picture.alpha is not None and found.alpha is not None:
        np.testing.assert_array_equal(found.alpha, picture.alpha)
    assert found.pixels.shape == picture.pixels.shape
    assert found.pixels.dtype == np.uint8


@stable
@given(pictures())
@example(Picture(pixels=np.zeros((1, 1, 1), np.uint8)))
@example(Picture(pixels=np.zeros((1, 80, 3), np.uint8), icc=b"", exif=b"", xmp=b""))
@example(Picture(pixels=np.zeros((80, 1, 3), np.uint8), alpha=np.zeros((80, 1), np.uint8)))
def test_lossless_pictures_come_back_as_they_were(picture: Picture) -> None:
    encoded = codec().compress(picture, lossless=True)
    decoded = decompress(encoded.data)
    assert_the_same_but_for_pixels(decoded.picture, picture)
    np.testing.assert_array_equal(decoded.picture.pixels, picture.pixels)
    assert serialize(parse(encoded.data)) == encoded.data


@stable
@given(pictures())
@example(Picture(pixels=np.zeros((1, 1, 1), np.uint8)))
@example(Picture(pixels=np.full((1, 80, 3), 255, np.uint8)))
@example(Picture(pixels=np.full((80, 1, 1), 128, np.uint8)))
def test_coded_pictures_are_what_the_model_makes_of_them(picture: Picture) -> None:
    encoded = codec().compress(picture)
    assert encoded.data == codec().compress(picture).data
    assert parse(encoded.data).header.coder is codec().coding.coder
    found = decompress(encoded.data, find=lambda *_: codec()).picture
    assert_the_same_but_for_pixels(found, picture)
    # The networks one after the other, without a file between them.
    padding, backend = codec().bundle.manifest.padding, codec().backend
    x_hat = backend.synthesize(backend.analyze(to_network(picture.pixels, padding)))
    planes = from_network(x_hat, picture.channels)
    expected = to_levels(padding.crop(planes, picture.height, picture.width))
    np.testing.assert_array_equal(found.pixels, expected)


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@stable
@given(
    st.sampled_from(MODES),
    sides,
    sides,
    st.integers(0, 2**32 - 1),
    st.sampled_from(["png", "tiff"]),
)
def test_picture_files_of_any_mode_come_back(
    mode: str, width: int, height: int, seed: int, form: str
) -> None:
    """What a file says to be seen is the same before and after, in 8 bits a sample."""
    if mode == "I;16":
        wide = np.random.default_rng(seed).integers(0, 2**16, (height, width)).astype(np.uint16)
        image = Image.fromarray(wide)
    else:
        image = Image.fromarray(samples(height, width, 4, seed), "RGBA").convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    before = read_picture(io.BytesIO(buffer.getvalue()))
    assert (before.height, before.width) == (height, width)
    decoded = decompress(codec().compress(before, lossless=None).data, find=lambda *_: codec())
    assert_the_same_but_for_pixels(decoded.picture, before)
    stored = decompress(codec().compress(before, lossless=True).data).picture
    after = read_picture(io.BytesIO(encode_picture(stored, ".png")[0]))
    np.testing.assert_array_equal(after.pixels, before.pixels)
    assert after.channels == before.channels
