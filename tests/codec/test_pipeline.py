"""A picture there and back through the library, on both engines."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lic.codec import Picture, decompress, open_codec, parse_header, read_picture
from lic.codec.bundle import Bundle
from lic.codec.container import Coder, LicFile, parse
from lic.codec.entropy import Writer
from lic.codec.errors import ConfigError, ModelMismatchError, NumericsError
from lic.codec.library import family
from lic.codec.metrics import psnr
from lic.codec.pipeline import Codec
from lic.codec.tiling import Padding, from_network, to_levels, to_network

EMBEDDED_FAMILIES = ("bmshj2018-factorized-relu-128-192", "bmshj2018-factorized-relu-lite")
SAMPLE = Path(__file__).parents[2] / "samples" / "kodim23.png"


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    bundle = family()[0]
    return {name: Codec(bundle, backend=name) for name in ("onnx", "torch")}


@pytest.mark.parametrize("name", EMBEDDED_FAMILIES)
def test_every_embedded_bundle_is_whole(name: str) -> None:
    bundles = family(name)
    assert [b.manifest.rate_point for b in bundles] == [1, 2, 3, 4]
    for bundle in bundles:
        bundle.check()
        assert bundle.embedded and bundle.manifest.lmbda
        assert bundle.manifest.training["steps_done"] > 1000
        for name in bundle.manifest.files:
            assert b".py" not in bundle.read(name), "the graph tells where it was made"


@pytest.mark.parametrize("name", EMBEDDED_FAMILIES)
def test_embedded_bundles_beat_jpeg_of_the_same_size(name: str) -> None:
    from lic.codec.benchmark.classic import Classic, nearest_size

    picture = read_picture(SAMPLE)
    for bundle in family(name):
        codec = Codec(bundle)
        data = codec.compress(picture).data
        ours = psnr(picture.pixels, decompress(data).picture.pixels)
        assert ours > nearest_size(picture.pixels, Classic(key="jpeg"), len(data)).psnr


def test_only_models_that_a_decoder_may_lack_are_named(
    codecs: dict[str, Codec], tiny_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    assert _parsed(codecs["onnx"].compress(Picture(pixels=photo)).data).model is None
    by_path = Codec(Bundle.open(Path(os.path.relpath(family()[0].path))))
    assert _parsed(by_path.compress(Picture(pixels=photo)).data).model is None
    file = _parsed(Codec(Bundle.open(tiny_bundle)).compress(Picture(pixels=photo)).data)
    assert file.model is not None and file.model.name == "tiny-relu q1"


def test_files_cross_the_engines(codecs: dict[str, Codec], photo: NDArray[np.uint8]) -> None:
    picture = Picture(pixels=photo)
    for writer in codecs.values():
        data = writer.compress(picture).data
        decoded = {n: decompress(data, find=lambda *_, c=c: c) for n, c in codecs.items()}
        gap = decoded["onnx"].picture.pixels.astype(int) - decoded["torch"].picture.pixels
        assert np.abs(gap).max() <= 1
        assert psnr(photo, decoded["onnx"].picture.pixels) > 20


def test_size_matches_the_tables_code_length() -> None:
    """The whole file costs what its tables say, plus container, coder (8 bytes) and escapes."""
    codec = open_codec(backend="onnx", threads=1, contexts=False)
    picture = read_picture(SAMPLE)
    encoded = codec.compress(picture)
    state = codec.backend.analyze(to_network(picture.pixels, Padding(multiple=16)))
    (tile,) = _parsed(encoded.data).tiles
    tables = codec.bundle.tables.of_set(tile.tables)
    bits, escapes = 0.0, 0
    for channel in range(state.shape[0]):
        n = int(tables.cdf_length[channel]) - 1
        cdf = tables.quantized_cdf[channel, : n + 1].astype(np.int64)
        slots = state[channel].astype(np.int64) - tables.offset[channel]
        slots = np.where((slots < 0) | (slots >= n - 1), n - 1, slots)
        bits -= np.log2(np.diff(cdf)[slots] / 2**14).sum()
        escapes += int(np.count_nonzero(slots == n - 1))
    assert len(encoded.data) <= bits / 8 * 1.001 + 83 + 2 * escapes + 1
    assert len(encoded.data) >= bits / 8


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 1), (5, 90, 3), (64, 65, 1)])
def test_padding_is_undone(
    codecs: dict[str, Codec], photo: NDArray[np.uint8], shape: tuple[int, int, int]
) -> None:
    pixels = photo[: shape[0], : shape[1], : shape[2]]
    decoded = codecs["onnx"].decompress(
        _parsed(codecs["onnx"].compress(Picture(pixels=pixels)).data)
    )
    assert decoded.picture.pixels.shape == shape
    for padding in (Padding(multiple=16), Padding(multiple=16, centred=True)):
        x = to_network(pixels, padding)
        assert x.shape == (1, 3, -(-shape[0] // 16) * 16, -(-shape[1] // 16) * 16)
        planes = padding.crop(from_network(x, shape[2]), *shape[:2])
        np.testing.assert_array_equal(to_levels(planes), pixels)


def test_networks_see_levels_as_they_were_trained() -> None:
    """Divided by 255 as training and published code do; a product with 1 / 255 differs often."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    x = to_network(levels, Padding(multiple=16))
    expected = torch.from_numpy(levels).float().div_(255).squeeze(2).numpy()
    np.testing.assert_array_equal(x, np.broadcast_to(expected, (1, 3, 16, 16)))


def _parsed(data: bytes) -> LicFile:
    return parse(data)


def test_the_header_alone_can_be_read(codecs: dict[str, Codec], photo: NDArray[np.uint8]) -> None:
    codec = codecs["onnx"]
    header = parse_header(codec.compress(Picture(pixels=photo, orientation=6)).data[:52])
    assert (header.width, header.height, header.orientation) == (144, 96, 6)
    assert header.fingerprint == codec.bundle.file_fingerprint
    assert header.coder is Coder.CONTEXTS


def test_latents_that_are_not_finite_are_an_error_that_names_them(
    tiny_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    import torch

    for value in (float("nan"), float("inf"), 1e30):
        codec = Codec(Bundle.open(tiny_bundle), backend="torch")
        with torch.no_grad():
            codec.backend._encoder.g_a[6].bias[3] = value  # type: ignore[attr-defined]
        with pytest.raises(NumericsError, match="latent tensor y"):
            codec.compress(Picture(pixels=photo))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_the_graph_marks_what_cannot_be_coded(tiny_bundle: Path, value: float) -> None:
    codec = Codec(Bundle.open(tiny_bundle), backend="onnx")
    x = np.zeros((1, 3, 32, 32), np.float32)
    x[0, 1, 20, 20] = value
    with pytest.raises(NumericsError, match="latent tensor y"):
        codec.backend.analyze(x)


def test_a_decoder_with_other_tables_is_noticed(
    tiny_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    """Same fingerprint on the outside, other symbols inside: never a picture."""
    codec = Codec(Bundle.open(tiny_bundle))
    file = _parsed(codec.compress(Picture(pixels=photo)).data)
    other = Writer(codec.bundle.tables.of_set(file.tiles[0].tables))
    symbols = np.zeros((12, 54), np.int16)
    other.code(symbols, np.broadcast_to(np.arange(12, dtype=np.uint16)[:, None], symbols.shape))
    from dataclasses import replace

    forged = replace(file, tiles=(replace(file.tiles[0], streams=other.finish()),))
    with pytest.raises(NumericsError, match="other symbols"):
        codec.decompress(forged)


def test_backends_that_are_not_there(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for options in ({"backend": "tflite"}, {"device": "npu9"}, {"backend": "torch", "device": "x"}):
        with pytest.raises(ConfigError):
            Codec(bundle, **options)  # type: ignore[arg-type]
    with pytest.raises(ModelMismatchError):
        open_codec("no-such-family")


def test_threads_and_batches_do_not_change_the_file(
    tiny_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    bundle = Bundle.open(tiny_bundle)
    codec = Codec(bundle, threads=1)
    expected = codec.compress(Picture(pixels=photo)).data
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: codec.compress(Picture(pixels=photo)).data, range(8)))
    assert set(files) == {expected}


@pytest.mark.gpu
def test_cuda_gives_the_same_symbols(tiny_bundle: Path, photo: NDArray[np.uint8]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    bundle = Bundle.open(tiny_bundle)
    cpu, gpu = Codec(bundle, backend="torch"), Codec(bundle, backend="torch", device="cuda")
    data = gpu.compress(Picture(pixels=photo)).data
    gap = decompress(data, find=lambda *_: cpu).picture.pixels.astype(int)
    assert np.abs(gap - decompress(data, find=lambda *_: gpu).picture.pixels).max() <= 1
