"""Files come to what was asked for, or say why not."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec import Picture, RateControl, Target, TargetError, decompress
from lic.codec.bundle import Bundle
from lic.codec.container import Coder
from lic.codec.errors import ConfigError
from lic.codec.image_io import read_picture
from lic.codec.metrics import ms_ssim, psnr
from lic.codec.pipeline import Codec

SAMPLE = Path(__file__).parents[2] / "samples" / "kodim23.png"


@pytest.fixture(scope="module")
def control() -> RateControl:
    return RateControl.open(backend="onnx", threads=1)


@pytest.fixture(scope="module")
def picture() -> Picture:
    whole = read_picture(SAMPLE)
    return Picture(pixels=np.ascontiguousarray(whole.pixels[96:352, 192:512]))


def bpp(data: bytes, picture: Picture) -> float:
    return 8 * len(data) / (picture.width * picture.height)


@pytest.mark.parametrize("value", [0.08, 0.17, 0.3, 0.41])
def test_sizes_come_within_a_percent(control: RateControl, picture: Picture, value: float) -> None:
    found = control.compress(picture, Target(kind="bpp", value=value))
    assert found.reached == bpp(found.encoded.data, picture)
    assert found.reached == pytest.approx(value, rel=0.01)
    assert found.encoded.header.step != 1
    assert found.trials <= 13
    assert psnr(picture.pixels, decompress(found.encoded.data).picture.pixels) > 24


@pytest.mark.parametrize("size", [1000, 2222, 4000])
def test_strict_sizes_are_never_exceeded(control: RateControl, picture: Picture, size: int) -> None:
    found = control.compress(picture, Target(kind="size", value=size, strict=True))
    assert 0.985 * size <= len(found.encoded.data) <= size


@pytest.mark.parametrize("value", [29.0, 31.5])
@pytest.mark.parametrize("strict", [False, True])
def test_qualities_are_those_of_the_decoded_file(
    control: RateControl, picture: Picture, value: float, strict: bool
) -> None:
    found = control.compress(picture, Target(kind="psnr", value=value, strict=strict))
    quality = psnr(picture.pixels, decompress(found.encoded.data).picture.pixels)
    assert found.reached == quality
    assert quality == pytest.approx(value, abs=0.05)
    assert not strict or quality >= value


def test_ms_ssim_is_a_target_of_pictures_that_have_one(
    control: RateControl, picture: Picture
) -> None:
    found = control.compress(picture, Target(kind="ms-ssim", value=0.96, strict=True))
    quality = ms_ssim(picture.pixels, decompress(found.encoded.data).picture.pixels)
    assert 0.96 <= quality == found.reached < 0.962
    small = Picture(pixels=picture.pixels[:160])
    with pytest.raises(ConfigError, match=r"320 x 160 has no MS-SSIM to aim at; .* 161 px"):
        control.compress(small, Target(kind="ms-ssim", value=0.96))


def test_files_between_rate_points_are_as_good_as_those(
    control: RateControl, picture: Picture
) -> None:
    """At the size of a rate point's own file, quality is no worse."""
    for point in (1, 2):
        codec = control.codec(point)
        own = codec.compress(picture).data
        quality = psnr(picture.pixels, decompress(own).picture.pixels)
        found = control.compress(picture, Target(kind="size", value=len(own), strict=True))
        assert psnr(picture.pixels, decompress(found.encoded.data).picture.pixels) > quality


def test_what_cannot_be_reached_is_told(control: RateControl, picture: Picture) -> None:
    found = control.compress(picture, Target(kind="psnr", value=60))
    assert any("target is 60.000 dB, reached 3" in note for note in found.encoded.notes)
    with pytest.raises(TargetError, match=r"comes to 3\d\.\d+ dB at the most; .*60\.000 dB"):
        control.compress(picture, Target(kind="psnr", value=60, strict=True))
    with pytest.raises(TargetError, match="bytes at the least; found a strict target of 100 bytes"):
        control.compress(picture, Target(kind="size", value=100, strict=True))
    small = control.compress(picture, Target(kind="size", value=100))
    assert small.encoded.header.step == 4 and small.encoded.header.rate_point == 1


def test_metadata_and_alpha_count(control: RateControl, picture: Picture) -> None:
    alpha = np.random.default_rng(0).integers(0, 256, picture.pixels.shape[:2]).astype(np.uint8)
    alpha[32:] = 255
    rich = replace(picture, alpha=alpha, icc=b"profile" * 100)
    size = 10_000 + 3000
    found = control.compress(rich, Target(kind="size", value=size, strict=True))
    assert 0.99 * size <= len(found.encoded.data) <= size
    assert found.reached == len(found.encoded.data)
    back = decompress(found.encoded.data).picture
    assert back.alpha is not None and np.array_equal(back.alpha, alpha) and back.icc == rich.icc


def test_one_rate_point_leaves_the_step(picture: Picture) -> None:
    control = RateControl.open(rate_points=[2], backend="onnx", threads=1)
    for value in (0.12, 0.27):
        found = control.compress(picture, Target(kind="bpp", value=value))
        assert found.encoded.header.rate_point == 2
        assert found.reached == pytest.approx(value, rel=0.01)


def test_a_lossless_file_wins_where_it_is_small_enough(control: RateControl) -> None:
    flat = Picture(pixels=np.full((200, 300, 3), (9, 90, 190), np.uint8))
    for target in (Target(kind="size", value=5000), Target(kind="psnr", value=40, strict=True)):
        found = control.compress(flat, target, lossless=None)
        assert found.encoded.header.coder == 0
        assert np.array_equal(decompress(found.encoded.data).picture.pixels, flat.pixels)
        assert found.reached in (len(found.encoded.data), float("inf"))
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
    small = Picture(pixels=noise)
    with pytest.raises(TargetError, match="bytes at the least"):
        control.compress(small, Target(kind="size", value=60, strict=True), lossless=None)
    found = control.compress(small, Target(kind="psnr", value=50, strict=True), lossless=None)
    assert (found.encoded.header.coder, found.reached) == (0, float("inf"))
    found = control.compress(small, Target(kind="size", value=500), lossless=None)
    assert found.encoded.header.coder is Coder.CONTEXTS


def test_models_with_a_context_have_their_rate_points(
    tiny_hpcm_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    picture = Picture(pixels=photo)
    bundle = Bundle.open(tiny_hpcm_bundle)
    own = Codec(bundle).compress(picture)
    control = RateControl([bundle], threads=1)
    found = control.compress(picture, Target(kind="size", value=len(own.data) // 2))
    assert found.encoded.data == own.data and found.trials == 1
    assert any("has rate points only" in note for note in found.encoded.notes)
    with pytest.raises(TargetError, match="at the least"):
        control.compress(picture, Target(kind="size", value=len(own.data) // 2, strict=True))
    near = control.compress(picture, Target(kind="size", value=len(own.data), strict=True))
    assert near.encoded.notes == own.notes


def test_threads_share_a_control(control: RateControl, picture: Picture) -> None:
    targets = [Target(kind="bpp", value=value) for value in (0.1, 0.2, 0.3, 0.4)]
    alone = [control.compress(picture, target).encoded.data for target in targets]
    fresh = RateControl.open(backend="onnx", threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda target: fresh.compress(picture, target).encoded.data, targets)
    assert list(found) == alone


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("bpp", 0.0, "target bpp is 0; expected a number above 0"),
        ("size", -5, "target size is -5"),
        ("psnr", float("inf"), "target psnr is inf"),
        ("psnr", float("nan"), "target psnr is nan"),
        ("ms-ssim", 1.0, "target ms-ssim is 1; expected between 0 and 1"),
        ("ssim", 0.5, "target is 'ssim'; expected one of bpp, size, psnr, ms-ssim"),
    ],
)
def test_targets_that_no_file_has_are_refused(kind: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Target(kind=kind, value=value)  # type: ignore[arg-type]


def test_the_header_and_tables_of_a_found_file_are_those_it_was_coded_with(
    control: RateControl, picture: Picture
) -> None:
    found = control.compress(picture, Target(kind="bpp", value=0.25)).encoded
    point = [b.manifest.rate_point for b in control.bundles].index(found.header.rate_point)
    again = control.codec(point).compress(picture, step=found.header.step)
    assert again.data == found.data and found.header.step != 1
