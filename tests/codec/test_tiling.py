import numpy as np
import pytest

from lic.codec.tiling import crop, pad_to_multiple


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (63, 65), (64, 64), (100, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_gives_multiples_and_crop_takes_it_back(
    size: tuple[int, int], channels: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    padded = pad_to_multiple(pixels, 64)
    assert padded.dtype == np.uint8
    assert padded.shape[0] % 64 == padded.shape[1] % 64 == 0
    assert padded.shape[0] - size[0] < 64 and padded.shape[1] - size[1] < 64
    np.testing.assert_array_equal(crop(padded, *size), pixels)


def test_padding_repeats_the_border() -> None:
    pixels = np.array([[1, 2], [3, 4]], np.uint8)[..., None]
    np.testing.assert_array_equal(
        pad_to_multiple(pixels, 4)[..., 0],
        [[1, 2, 2, 2], [3, 4, 4, 4], [3, 4, 4, 4], [3, 4, 4, 4]],
    )
