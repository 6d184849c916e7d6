"""Files of a model with a context: any picture there and back, and mismatches by their name."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lic.codec import Picture, decompress
from lic.codec.backends.torch_context import TorchContextBackend
from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.errors import BitstreamError, ConfigError, NumericsError
from lic.codec.pipeline import Codec
from lic.codec.tiling import places, to_network

SIZES = [(256, 256), (512, 768), (317, 441), (1, 1), (300, 257)]


@pytest.fixture(scope="module")
def codec(tiny_hpcm_bundle: Path) -> Codec:
    return Codec(Bundle.open(tiny_hpcm_bundle))


def _picture(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    row, column, channel = np.meshgrid(
        np.arange(height), np.arange(width), np.arange(channels), indexing="ij"
    )
    wave = np.sin(row / 37 + channel) + np.cos(column / 23) + 0.3 * np.sin(row * column / 900)
    return np.clip(128 + 50 * wave, 0, 255).astype(np.uint8)


def _backend(codec: Codec) -> TorchContextBackend:
    assert isinstance(codec.backend, TorchContextBackend)
    return codec.backend


@torch.no_grad()
def _expected(codec: Codec, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what the model's forward pass makes of a picture."""
    height, width = pixels.shape[:2]
    padding = codec.bundle.manifest.padding
    x = torch.from_numpy(to_network(pixels, padding))
    x_hat = _backend(codec).model(x).x_hat[0].clamp(0, 1).numpy()
    planes = padding.crop(x_hat, height, width)
    if pixels.shape[2] == 1:
        planes = planes.mean(axis=0, keepdims=True)
    levels: NDArray[np.uint8] = np.rint(planes * np.float32(255)).astype(np.uint8)
    return levels.transpose(1, 2, 0)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_file_decodes_to_the_forward_pass(
    codec: Codec, height: int, width: int, channels: int
) -> None:
    pixels = _picture(height, width, channels)
    encoded = codec.compress(Picture(pixels=pixels))
    again = decompress(encoded.data, find=lambda *_: codec).picture.pixels
    np.testing.assert_array_equal(again, _expected(codec, pixels))


def test_padding_of_upstream_is_black_and_centred(codec: Codec) -> None:
    pixels = np.full((100, 200, 3), 255, np.uint8)
    x = to_network(pixels, codec.bundle.manifest.padding)
    assert x.shape == (1, 3, 256, 256)
    rows, columns = np.nonzero(x[0, 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (78, 177, 28, 227)


def test_torch_is_chosen_where_there_are_no_graphs(codec: Codec, tiny_hpcm_bundle: Path) -> None:
    assert codec.backend.name == "torch"
    with pytest.raises(ConfigError, match="no graphs for ONNX Runtime: take backend 'torch', or"):
        Codec(Bundle.open(tiny_hpcm_bundle), backend="onnx")


@pytest.mark.parametrize("change", [1e-3, 0.05, 0.5, -3.0])
def test_a_decoder_with_another_weight_says_so(
    codec: Codec, tiny_hpcm_bundle: Path, change: float
) -> None:
    """Whether the decoder gets to the end of the stream or loses track before."""
    pixels = _picture(256, 256)
    data = codec.compress(Picture(pixels=pixels)).data
    other = Codec(Bundle.open(tiny_hpcm_bundle))
    bias = _backend(other).model.get_parameter("h_s.branch.4.bias")
    kept = bias.clone()
    with torch.no_grad():
        bias[: len(bias) // 2] += change
    with pytest.raises(NumericsError, match=r"intact but gave other symbols .* other entropy"):
        other.decompress(parse(data))
    # The codec is none the worse for it.
    with torch.no_grad():
        bias.copy_(kept)
    mended = other.decompress(parse(data)).picture.pixels
    np.testing.assert_array_equal(mended, codec.decompress(parse(data)).picture.pixels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda words, escapes: (words, escapes, b"b"), "3 entropy streams"),
        (lambda words, escapes: (words + b"x", escapes), "even number"),
        (lambda _, escapes: (b"", escapes), "stream is empty"),
        (lambda words, escapes: (b"\0" * 16 + words[16:], escapes), "begins with a state"),
        # z alone takes more of both.
        (lambda words, escapes: (words[:40], escapes), "entropy stream ends too early"),
        (lambda words, escapes: (words, escapes[:1]), "escape stream ends too early"),
    ],
)
def test_what_no_arithmetic_can_cause_is_damage(
    codec: Codec, change: Callable[[bytes, bytes], tuple[bytes, ...]], message: str
) -> None:
    """Tables of z are those of its channels, whatever a device computes."""
    file = parse(codec.compress(Picture(pixels=_picture(256, 256))).data)
    tile = replace(file.tiles[0], streams=change(*file.tiles[0].streams))
    with pytest.raises(BitstreamError, match=message):
        codec.decompress(replace(file, tiles=(tile,)))


def test_a_stream_that_is_lost_behind_z_may_be_the_device(codec: Codec) -> None:
    file = parse(codec.compress(Picture(pixels=_picture(256, 256))).data)
    words, escapes = file.tiles[0].streams
    tile = replace(file.tiles[0], streams=(words[: len(words) // 4 * 2], escapes))
    with pytest.raises(NumericsError, match="entropy stream ends too early"):
        codec.decompress(replace(file, tiles=(tile,)))


@pytest.mark.filterwarnings("error")
def test_pixels_that_are_no_numbers_become_no_picture(
    codec: Codec, tiny_hpcm_bundle: Path, large_photo: NDArray[np.uint8]
) -> None:
    other = Codec(Bundle.open(tiny_hpcm_bundle))
    with torch.no_grad():
        _backend(other).model.get_parameter("g_s.branch.7.bias").fill_(float("nan"))
    data = codec.compress(Picture(pixels=large_photo[:200, :600]), tile=512).data
    with pytest.raises(NumericsError, match=r"^tile 0 .*: the synthesis gave pixels that are NaN"):
        other.decompress(parse(data))


def test_several_threads_may_share_a_codec(codec: Codec) -> None:
    sizes = [(256, 256), (200, 500), (300, 257), (512, 256)]
    pictures = [Picture(pixels=_picture(*size)) for size in sizes]
    files = [codec.compress(picture).data for picture in pictures]
    decoded = [codec.decompress(parse(data)).picture.pixels for data in files]

    def both(number: int) -> tuple[bytes, NDArray[np.uint8]]:
        which = number % len(sizes)
        data = codec.compress(pictures[which]).data
        return data, codec.decompress(parse(files[which])).picture.pixels

    with ThreadPoolExecutor(len(sizes)) as pool:
        results = list(pool.map(both, range(2 * len(sizes))))
    for number, (data, pixels) in enumerate(results):
        assert data == files[number % len(sizes)]
        np.testing.assert_array_equal(pixels, decoded[number % len(sizes)])


def test_times_say_that_networks_are_in_the_walk(codec: Codec) -> None:
    encoded = codec.compress(Picture(pixels=_picture(256, 256)))
    networks = ["transform", "copy", "quantise"]
    assert list(encoded.stages) == ["convert", "pad", *networks, "context", "entropy", "container"]
    stages = decompress(encoded.data, find=lambda *_: codec).stages
    assert list(stages) == ["container", "context", "entropy", "copy", "transform", "convert"]


@torch.no_grad()
def test_tiles_of_a_picture_are_coded_on_their_own(codec: Codec) -> None:
    pixels = _picture(700, 900)
    tiled = codec.compress(Picture(pixels=pixels), tile=512)
    assert codec.compress(Picture(pixels=pixels)).header.tile_count == 1
    assert tiled.header.tile_count == 4
    again = codec.decompress(parse(tiled.data)).picture.pixels
    assert again.shape == pixels.shape
    padding, overlap = codec.bundle.manifest.padding, tiled.header.overlap
    for place in places(tiled.header):
        area = pixels[place.rows.outer, place.columns.outer]
        x = torch.from_numpy(to_network(area, padding, alone=False))
        x_hat = _backend(codec).model(x).x_hat[0].clamp(0, 1).numpy()
        levels = np.rint(padding.crop(x_hat, *area.shape[:2]) * np.float32(255)).transpose(1, 2, 0)
        # What no neighbour fades into is the tile's own.
        alone = np.s_[2 * overlap : -2 * overlap, 2 * overlap : -2 * overlap]
        found = again[place.rows.outer, place.columns.outer]
        np.testing.assert_array_equal(found[alone], levels[alone])


def test_threads_do_not_change_the_symbols(codec: Codec) -> None:
    pixels = _picture(512, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        data = codec.compress(Picture(pixels=pixels)).data
        torch.set_num_threads(1)
        again = codec.decompress(parse(data)).picture.pixels
    finally:
        torch.set_num_threads(before)
    assert again.shape == pixels.shape


def test_half_precision_transforms_make_files_that_all_decode(
    codec: Codec, tiny_hpcm_bundle: Path
) -> None:
    half = Codec(Bundle.open(tiny_hpcm_bundle), precision="bfloat16")
    pixels = _picture(256, 256)
    data = half.compress(Picture(pixels=pixels)).data
    full, rough = (c.decompress(parse(data)).picture.pixels for c in (codec, half))
    assert 0 < np.abs(full.astype(int) - rough).mean() < 4
