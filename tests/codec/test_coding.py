"""Files coded with contexts, beside those with one table a channel."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.bundle import CONTEXTS, Bundle, tables_to_npz, write_bundle
from lic.codec.container import Coder, parse, serialize
from lic.codec.decoding import decompress
from lic.codec.errors import BitstreamError, ModelMismatchError
from lic.codec.image_io import Picture, read_picture
from lic.codec.inspection import bits_by_part
from lic.codec.library import VARIABLE, select
from lic.codec.pipeline import Codec
from lic.trainers.context_fit import FitOptions, fit_contexts

SAMPLE = Path(__file__).parents[2] / "samples" / "kodim23.png"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The default model with contexts, from the four quarters of one photo."""
    own = select()
    pixels = read_picture(SAMPLE).pixels
    parts = [half for rows in np.split(pixels, 2) for half in np.split(rows, 2, axis=1)]
    codec = Codec(own, threads=1)
    contexts = fit_contexts([codec.symbols(part) for part in parts], FitOptions(steps=60))
    files = {name: own.read(name) for name in own.manifest.files}
    target = tmp_path_factory.mktemp("models") / "fitted"
    return write_bundle(target, own.manifest, {**files, CONTEXTS: tables_to_npz(contexts)})


@pytest.fixture
def codec(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Codec:
    monkeypatch.setenv(VARIABLE, str(bundle.path.parent))
    return Codec(bundle, threads=1)


@pytest.fixture
def plain(bundle: Bundle) -> Codec:
    return Codec(bundle, threads=1, contexts=False)


def test_contexts_save_bytes_of_the_same_pixels(
    codec: Codec, plain: Codec, photo: NDArray[np.uint8]
) -> None:
    picture = Picture(pixels=photo)
    small, large = codec.compress(picture), plain.compress(picture)
    assert (small.header.coder, large.header.coder) == (Coder.CONTEXTS, Coder.RANS)
    assert len(small.data) < 0.92 * len(large.data)
    one, other = (decompress(each.data).picture.pixels for each in (small, large))
    assert np.array_equal(one, other)
    crcs = {parse(each.data).tiles[0].symbols_crc for each in (small, large)}
    assert len(crcs) == 1


@pytest.mark.parametrize("step", [0.25, 0.75, 1.25, 2.5])
def test_contexts_serve_every_step(
    codec: Codec, plain: Codec, photo: NDArray[np.uint8], step: float
) -> None:
    picture = Picture(pixels=photo)
    small, large = (each.compress(picture, step=step) for each in (codec, plain))
    assert len(small.data) < 0.97 * len(large.data)
    found = [each.decompress(parse(small.data)).picture.pixels for each in (codec, plain)]
    assert np.array_equal(found[0], found[1])


def test_without_contexts_files_are_those_of_the_model_before(
    plain: Codec, photo: NDArray[np.uint8]
) -> None:
    picture = Picture(pixels=photo)
    own = Codec(select(), threads=1, contexts=False)
    assert plain.compress(picture).header == own.compress(picture).header


def test_a_coder_with_the_other_ones_fingerprint_is_refused(
    codec: Codec, photo: NDArray[np.uint8]
) -> None:
    file = parse(codec.compress(Picture(pixels=photo)).data)
    other = replace(file, header=replace(file.header, fingerprint=codec.bundle.fingerprint))
    with pytest.raises(BitstreamError, match="coder contexts, but fingerprint"):
        decompress(serialize(other))
    other = replace(file, header=replace(file.header, coder=Coder.RANS))
    with pytest.raises(BitstreamError, match="coder rans, but fingerprint"):
        decompress(serialize(other))


def test_contexts_have_one_set_of_tables(codec: Codec, photo: NDArray[np.uint8]) -> None:
    file = parse(codec.compress(Picture(pixels=photo)).data)
    other = replace(file, tiles=(replace(file.tiles[0], tables=1),))
    with pytest.raises(BitstreamError, match=r"set 1 .* contexts have one"):
        codec.decompress(other)


def test_bits_are_told_of_files_with_contexts(codec: Codec, photo: NDArray[np.uint8]) -> None:
    file = parse(codec.compress(Picture(pixels=photo)).data)
    (bits,) = bits_by_part(codec, file).values()
    size = 8 * sum(map(len, file.tiles[0].streams))
    assert bits <= size < 1.005 * bits + 8 * 24


def refitted(bundle: Bundle, target: Path) -> Bundle:
    """Return the bundle with other contexts."""
    assert bundle.contexts
    other = replace(bundle.contexts, bias=bundle.contexts.bias + 300)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return write_bundle(target, bundle.manifest, {**files, CONTEXTS: tables_to_npz(other)})


def test_other_contexts_are_another_model_for_their_own_files_only(
    codec: Codec, plain: Codec, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    other = Codec(refitted(codec.bundle, tmp_path / "other"), threads=1)
    other.bundle.check()
    picture = Picture(pixels=photo)
    assert other.decompress(parse(plain.compress(picture).data)).picture.pixels.shape == photo.shape
    with pytest.raises(ModelMismatchError, match="the contexts, it was made with"):
        other.decompress(parse(codec.compress(picture).data))
    with pytest.raises(ModelMismatchError, match="not installed"):
        decompress(other.compress(picture).data)


def test_changed_contexts_are_noticed(codec: Codec, tmp_path: Path) -> None:
    bundle = refitted(codec.bundle, tmp_path / "other")
    file = bundle.path / CONTEXTS
    file.write_bytes(codec.bundle.read(CONTEXTS))
    with pytest.raises(ModelMismatchError, match=r"contexts\.npz: was changed"):
        Codec(Bundle.open(bundle.path)).compress(Picture(pixels=np.zeros((16, 16, 3), np.uint8)))
