"""Latents in other steps than 1: the same on every engine, and refused where there are none."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec import Picture, decompress
from lic.codec.bundle import Bundle
from lic.codec.container import parse, serialize
from lic.codec.entropy import Tables, Writer, build_tables, cheapest_set
from lic.codec.errors import BitstreamError, ConfigError, ModelMismatchError, NumericsError
from lic.codec.latents import dequantise, quantise
from lic.codec.library import select
from lic.codec.metrics import psnr
from lic.codec.pipeline import Codec
from lic.codec.quantisation_step import nearest_step


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    return {name: Codec(select(), backend=name, threads=1) for name in ("onnx", "torch")}


@pytest.mark.parametrize("step", [0.25, 0.75, 1.25, 4.0])
def test_any_step_crosses_the_engines(
    codecs: dict[str, Codec], photo: NDArray[np.uint8], step: float
) -> None:
    for writer in codecs.values():
        encoded = writer.compress(Picture(pixels=photo), step=step)
        assert encoded.header.step == step
        file = parse(encoded.data)
        pixels = [c.decompress(file).picture.pixels.astype(int) for c in codecs.values()]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_larger_steps_take_fewer_bits_and_show_less(
    codecs: dict[str, Codec], photo: NDArray[np.uint8]
) -> None:
    files = [codecs["onnx"].compress(Picture(pixels=photo), step=s) for s in (0.5, 1.0, 2.0)]
    sizes = [len(file.data) for file in files]
    qualities = [psnr(photo, decompress(file.data).picture.pixels) for file in files]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[2]
    assert qualities == sorted(qualities, reverse=True)


def test_latents_become_symbols_and_back_as_the_format_says() -> None:
    y = np.array([0.5, 1.5, -2.5, 3.2, -0.3, 100.1], np.float32)
    assert quantise(y).tolist() == [0, 2, -2, 3, 0, 100]
    assert quantise(y, 0.75).tolist() == [1, 2, -3, 4, 0, 133]
    back = dequantise(np.array([3, -7, 32767], np.int16), nearest_step(0.3))
    assert back.dtype == np.float32
    exact = [3 * 1229 / 4096, -7 * 1229 / 4096, 32767 * 1229 / 4096]
    assert back.tolist() == np.array(exact, np.float32).tolist()
    for value in (np.nan, np.inf, 40000.0):
        with pytest.raises(NumericsError, match=r"latent tensor y: the value at \[1\]"):
            quantise(np.array([0, value], np.float32))
    with pytest.raises(NumericsError, match="cannot be coded"):
        quantise(np.array([20000], np.float32), 0.5)
    assert [nearest_step(s) for s in (0.1, 1.0001, 9)] == [0.25, 1.0, 4.0]


@pytest.mark.parametrize("step", [0.2, 4.5, 1.0001, float("nan")])
def test_steps_that_no_file_can_tell_are_refused(
    codecs: dict[str, Codec], photo: NDArray[np.uint8], step: float
) -> None:
    with pytest.raises(ConfigError, match=r"step is .*; expected 0.25 to 4 in units of 1 / 4096"):
        codecs["onnx"].compress(Picture(pixels=photo), step=step)
    with pytest.raises(ConfigError, match="a lossless picture has none"):
        codecs["onnx"].compress(Picture(pixels=photo), step=step, lossless=True)


def test_models_with_a_context_have_no_steps(
    tiny_hpcm_bundle: Path, photo: NDArray[np.uint8]
) -> None:
    codec = Codec(Bundle.open(tiny_hpcm_bundle), threads=1)
    with pytest.raises(ConfigError, match=r"has a quantisation step of 1 only; found 0\.5"):
        codec.compress(Picture(pixels=photo), step=0.5)
    file = parse(codec.compress(Picture(pixels=photo[:16, :16])).data)
    forged = parse(serialize(replace(file, header=replace(file.header, step=0.5))))
    with pytest.raises(
        BitstreamError, match=r"chunk HEAD at byte 8: step is 0\.5, expected 1 of hp"
    ):
        codec.decompress(forged)
    forged = replace(file, tiles=(replace(file.tiles[0], tables=1),))
    with pytest.raises(BitstreamError, match="set 1 of the model's tables, which has 1"):
        codec.decompress(parse(serialize(forged)))


def test_a_devices_functions_know_a_step_of_one(photo: NDArray[np.uint8]) -> None:
    bundle = select()
    usual = Codec(bundle, backend="onnx", threads=1)
    file = parse(usual.compress(Picture(pixels=photo), step=1.5).data)
    codec = Codec(bundle, encode=lambda x: x, decode=lambda y: y.astype(np.float32))
    with pytest.raises(ConfigError, match="on backend 'device' has a quantisation step of 1 only"):
        codec.compress(Picture(pixels=photo), step=1.5)
    with pytest.raises(ConfigError, match="takes symbols of a quantisation step of 1 only"):
        codec.decompress(file)


def test_another_step_or_set_than_the_encoders_is_never_a_crash(
    codecs: dict[str, Codec], photo: NDArray[np.uint8]
) -> None:
    """A forged set is noticed by the symbols' CRC; a forged step only shows another picture."""
    codec = codecs["onnx"]
    file = parse(codec.compress(Picture(pixels=photo), step=0.75).data)
    (tile,) = file.tiles
    for number in {*range(10), 255} - {tile.tables}:
        forged = serialize(replace(file, tiles=(replace(tile, tables=number),)))
        with pytest.raises((BitstreamError, NumericsError)):
            codec.decompress(parse(forged))
    other = parse(serialize(replace(file, header=replace(file.header, step=4.0))))
    assert codec.decompress(other).picture.pixels.shape == photo.shape


def sets_of_tables() -> Tables:
    """Return two sets of two channels: narrow, then wide densities."""
    narrow, wide = np.array([0.05, 0.9, 0.05, 1e-5]), np.array([0.3, 0.4, 0.29, 1e-2])
    return build_tables([narrow, narrow, wide, wide], [-1] * 4, 2)


def test_the_cheapest_set_is_the_one_that_writes_the_fewest_bytes() -> None:
    tables = sets_of_tables()
    rng = np.random.default_rng(0)
    chosen = set()
    for spread in (0.2, 0.35, 0.45, 0.6, 0.9, 8.0):
        symbols = np.rint(rng.normal(0, spread, (2, 4000))).astype(np.int16)
        sizes = []
        for number in range(2):
            writer = Writer(tables.of_set(number))
            indexes = np.broadcast_to(np.arange(2, dtype=np.uint16)[:, None], symbols.shape)
            writer.code(symbols, indexes)
            sizes.append(sum(map(len, writer.finish())))
        number = cheapest_set(tables, symbols)
        assert sizes[number] == min(sizes)
        chosen.add(number)
    assert chosen == {0, 1}
    assert cheapest_set(tables, np.zeros((2, 0), np.int16)) == 0
    assert cheapest_set(tables.of_set(1), symbols) == 0


def test_sets_are_part_of_the_digest_and_of_the_file() -> None:
    tables = sets_of_tables()
    again = Tables.from_arrays(tables.to_arrays())
    assert (again.sets, again.digest()) == (2, tables.digest())
    one = Tables(
        quantized_cdf=tables.quantized_cdf, cdf_length=tables.cdf_length, offset=tables.offset
    )
    assert one.digest() != tables.digest() and "sets" not in one.to_arrays()
    assert [len(tables.of_set(number)) for number in range(2)] == [2, 2]
    for number in (-1, 2, 255):
        with pytest.raises(BitstreamError, match=f"set {number} of the model's tables"):
            tables.of_set(number)
    for count in (0, 3, 257, -1):
        with pytest.raises(ModelMismatchError, match="sets of equally many"):
            Tables.from_arrays({**tables.to_arrays(), "sets": np.array([count])})
    for odd in (np.array([1.0]), np.array([1, 1]), np.array(2)):
        with pytest.raises(ConfigError, match="sets must be one integer"):
            Tables.from_arrays({**tables.to_arrays(), "sets": odd})


def test_the_set_that_suits_a_picture_saves_bytes(
    codecs: dict[str, Codec], photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(codecs["onnx"].bundle, contexts=False)
    best = codec.compress(Picture(pixels=photo)).data
    monkeypatch.setattr("lic.codec.coding.cheapest_set", lambda *_: 4)
    trained = codec.compress(Picture(pixels=photo)).data
    assert parse(best).tiles[0].tables != 4
    assert len(best) < len(trained) - 10
    one, other = (codec.decompress(parse(data)).picture.pixels for data in (best, trained))
    assert np.array_equal(one, other)
