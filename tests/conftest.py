"""Fixtures that several components' tests share: a small picture and two small bundles."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from lic.codec.models import HPCM, FactorizedPrior

# Wall time belongs to whoever else is running.
hypothesis.settings.register_profile("lic", deadline=None)
hypothesis.settings.load_profile("lic")

# Shells have jobs in the background ignore it, and what tests interrupt would never hear of it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SAMPLE = Path(__file__).parents[1] / "samples" / "kodim23.png"
Activation = Literal["relu", "gdn", "igdn1"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that writes golden files anew, where a change is meant."""
    parser.addoption("--regenerate-golden", action="store_true", help="write golden files anew")


def _crop(top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
    with Image.open(SAMPLE) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _tiny_model(seed: int, activation: Activation = "relu") -> "FactorizedPrior":
    """Return a model of N = 8, M = 12; with ReLU, one whose latents mean something."""
    import torch

    from lic.codec.models import FactorizedConfig, FactorizedPrior
    from lic.trainers.start import fit_densities, pca_start

    config = FactorizedConfig(
        N=8, M=12, encoder_activation=activation, decoder_activation=activation
    )
    threads = torch.get_num_threads()
    # On tensors this small, threads that wait for each other cost more than they give.
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FactorizedPrior(config)
        crops = torch.from_numpy(_crop(0, 0, 256, 256)).permute(2, 0, 1)[None].float() / 255
        if activation == "relu":
            pca_start(model, crops, lmbda=0.013)
        fit_densities(model, crops, steps=40, lr=0.1)
    torch.set_num_threads(threads)
    return model.eval()


def _tiny_hpcm() -> "HPCM":
    """Return HPCM of size tiny, untrained, whose symbols and scales are spread over many values."""
    import torch

    from lic.codec.models import HPCM, hpcm_config

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = HPCM(hpcm_config("tiny"))
        parameters = dict(model.named_parameters())
        for name, gain in (("g_a.branch.0", 3), ("g_a.branch.7", 10), ("h_a.branch.5", 3)):
            parameters[f"{name}.weight"].mul_(gain)
        half = model.config.M
        for name in ("h_s.branch.4", *(f"y_spatial_prior_{s}.branch_2.1" for s in ("s1_s2", "s3"))):
            parameters[f"{name}.bias"][:half].uniform_(0.2, 2)
        parameters["g_s.branch.7.bias"].fill_(0.5)
    return model.eval()


def _tiny_bundle(folder: Path, *, seed: int, rate_point: int) -> Path:
    from lic.export.make_bundle import Description, make_bundle

    description = Description(name="tiny-relu", rate_point=rate_point, lmbda=0.013)
    return make_bundle(_tiny_model(seed), folder / str(rate_point), description).path


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the factorized prior coded in tiles that overlap, as models with a context are."""
    from lic.codec.architectures import ARCHITECTURES, Tiling

    name = "bmshj2018-factorized"
    overlapping = replace(ARCHITECTURES[name], tiling=Tiling.OVERLAPPING)
    monkeypatch.setitem(ARCHITECTURES, name, overlapping)


@pytest.fixture(scope="session")
def large_photo() -> NDArray[np.uint8]:
    """Pixels (500, 700, 3) of a photo: 3 x 2 tiles of the smallest size, the last ones smaller."""
    pixels = _crop(0, 0, 500, 700)
    pixels.setflags(write=False)
    return pixels


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """Pixels (96, 144, 3) of a photo."""
    pixels = _crop(128, 320, 96, 144)
    pixels.setflags(write=False)
    return pixels


@pytest.fixture(scope="session")
def tiny_model() -> "FactorizedPrior":
    """The model of `tiny_bundle`; tests that change it work on a copy."""
    return _tiny_model(seed=1)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder: family tiny-relu, rate point 1. Tests that change it work on a copy."""
    return _tiny_bundle(tmp_path_factory.mktemp("tiny-relu"), seed=1, rate_point=1)


@pytest.fixture(scope="session")
def tiny_bundle_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rate point 2 of tiny-relu: other weights, another fingerprint."""
    return _tiny_bundle(tmp_path_factory.mktemp("tiny-relu"), seed=2, rate_point=2)


@pytest.fixture(scope="session")
def tiny_hpcm() -> "HPCM":
    """The model of `tiny_hpcm_bundle`; tests that change it work on a copy."""
    return _tiny_hpcm()


@pytest.fixture(scope="session")
def tiny_hpcm_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder: family hpcm-tiny, rate point 4; a model with a context, for torch only."""
    from lic.export.make_bundle import Description, make_bundle

    description = Description(name="hpcm-tiny", rate_point=4, lmbda=0.013)
    target = tmp_path_factory.mktemp("tiny-hpcm") / "4"
    return make_bundle(_tiny_hpcm(), target, description).path
