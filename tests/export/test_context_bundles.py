"""Bundles of models with a context, without graphs: weights, tables, and a check by coding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from lic.codec.backends import open_backend
from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import TABLES, WEIGHTS, Bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError, ExportError, NumericsError
from lic.codec.image_io import Picture
from lic.codec.models import HPCM, ContextModel, ScaleHyperprior
from lic.codec.models.hpcm import TABLE_BUFFERS
from lic.codec.pipeline import Codec
from lic.export.make_bundle import Description, make_bundle
from tests.export.conftest import spread_hyperprior

DESCRIPTION = Description(name="tiny", rate_point=3, lmbda=0.01)
Make = Callable[[], ContextModel]


@pytest.fixture
def make_hpcm(tiny_hpcm_bundle: Path) -> Make:
    """A function that returns a model to change."""

    def make() -> ContextModel:
        model = load_model(Bundle.open(tiny_hpcm_bundle))
        assert isinstance(model, ContextModel)
        return model

    return make


@pytest.fixture(scope="module")
def hyperprior_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(
        spread_hyperprior(), tmp_path_factory.mktemp("hyperprior") / "3", DESCRIPTION
    )


def test_a_bundle_without_graphs_has_weights_and_tables(
    tiny_hpcm_bundle: Path, tiny_hpcm: HPCM
) -> None:
    bundle = Bundle.open(tiny_hpcm_bundle)
    bundle.check()
    assert bundle.manifest.graphs == {}
    assert set(bundle.manifest.files) == {WEIGHTS, TABLES}
    assert {path.name for path in tiny_hpcm_bundle.iterdir()} == {"manifest.json", WEIGHTS, TABLES}
    assert (bundle.manifest.architecture, bundle.manifest.stride) == ("hpcm", 256)
    assert bundle.tables.digest() == tiny_hpcm.tables().digest()
    with pytest.raises(ConfigError, match="no graphs for ONNX Runtime: take backend 'torch', or"):
        open_backend(bundle, "onnx")


def test_every_tensor_is_kept_and_upstreams_tables_stay_empty(
    tiny_hpcm_bundle: Path, tiny_hpcm: HPCM
) -> None:
    stored, expected = load_file(tiny_hpcm_bundle / WEIGHTS), tiny_hpcm.state_dict()
    assert stored.keys() == expected.keys()
    for name, value in stored.items():
        assert torch.equal(value, expected[name]), name
    assert all(stored[name].shape == (0,) for name in TABLE_BUFFERS)


def test_files_of_such_bundles_decode(
    tiny_hpcm_bundle: Path, hyperprior_bundle: Bundle, photo: NDArray[np.uint8]
) -> None:
    for bundle in (Bundle.open(tiny_hpcm_bundle), hyperprior_bundle):
        codec = Codec(bundle)
        assert codec.backend.name == "torch"
        encoded = codec.compress(Picture(pixels=photo))
        assert len(encoded.data) > 500
        decoded = codec.decompress(parse(encoded.data))
        assert decoded.picture.pixels.shape == photo.shape


def test_a_hyperpriors_quantiles_are_solved(hyperprior_bundle: Bundle) -> None:
    model = load_model(hyperprior_bundle)
    assert isinstance(model, ScaleHyperprior)
    with torch.no_grad():
        assert float(model.entropy_bottleneck.aux_loss()) < 1e-2
    assert hyperprior_bundle.manifest.graphs == {}


def test_half_precision_rounds_the_transforms_only(
    make_hpcm: Make, tmp_path: Path, tiny_hpcm_bundle: Path
) -> None:
    bundle = make_bundle(make_hpcm(), tmp_path / "half", DESCRIPTION, dtype="float16")
    for name, value in load_file(bundle.path / WEIGHTS).items():
        half = name.startswith(("g_a.", "g_s."))
        assert value.dtype == (torch.float16 if half else torch.float32), name
    whole = Bundle.open(tiny_hpcm_bundle)
    assert bundle.tables.digest() == whole.tables.digest()
    assert bundle.fingerprint != whole.fingerprint


def test_the_model_stays_as_it_was(make_hpcm: Make, tmp_path: Path) -> None:
    model = make_hpcm().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_bundle(model, tmp_path / "a", DESCRIPTION, dtype="float16")
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name


@pytest.mark.parametrize("name", ["means_hyper", "context_net.1.bias", "g_s.branch.0.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(
    make_hpcm: Make, tmp_path: Path, name: str, value: float
) -> None:
    model = make_hpcm()
    with torch.no_grad():
        tensor = model.get_parameter(name)
        tensor[(0,) * tensor.ndim] = value
    with pytest.raises(ExportError, match=rf"^{name}: not finite in torch\.float32"):
        make_bundle(model, tmp_path / "a", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_decode_its_own_symbols_is_refused(
    make_hpcm: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device whose kernels give other numbers the second time."""
    real, calls = HPCM.begin, []

    def begin(self: HPCM, z: torch.Tensor) -> Any:
        calls.append(1)
        return real(self, z + (len(calls) - 1))

    monkeypatch.setattr(HPCM, "begin", begin)
    with pytest.raises(ExportError, match=r"^hpcm: .*test picture"):
        make_bundle(make_hpcm(), tmp_path / "a", DESCRIPTION)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_code_is_refused(make_hpcm: Make, tmp_path: Path) -> None:
    model = make_hpcm()
    with torch.no_grad():
        model.get_parameter("g_a.branch.0.weight").mul_(1e30)
    with pytest.raises(ExportError, match="does not code a test picture") as caught:
        make_bundle(model, tmp_path / "a", DESCRIPTION)
    assert isinstance(caught.value.__cause__, NumericsError)
    model = make_hpcm()
    with torch.no_grad():
        # In and out of the layers finite weights overflow, to a difference of infinities.
        model.get_parameter("g_s.branch.0.weight").mul_(1e37)
        model.get_parameter("g_s.branch.3.weight").mul_(1e37)
    with pytest.raises(ExportError, match="NaN or infinite pixels"):
        make_bundle(model, tmp_path / "a", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []
