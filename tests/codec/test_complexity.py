"""Counts of work and of learned numbers are the same with torch and without."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save

from lic.codec.benchmark import split
from lic.codec.benchmark.complexity import kmac_per_pixel, parameters
from lic.codec.bundle import Bundle
from lic.codec.library import select
from lic.codec.models import HPCM, MODELS, hpcm_config
from lic.codec.models.parameter_counts import parameter_count


def both(activation: str) -> dict[str, Any]:
    """Return a config of both sides."""
    return {"N": 8, "M": 12, "encoder_activation": activation, "decoder_activation": activation}


GAIN: dict[str, Any] = {"encoder_gain": {}, "decoder_gain": {}}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("bmshj2018-factorized", both("relu")),
    "gdn": ("bmshj2018-factorized", both("gdn")),
    "gain": ("bmshj2018-factorized", both("gdnish") | GAIN),
    "hyperprior": ("bmshj2018-hyperprior", both("gdn")),
}


class Stored:
    """As much of a bundle as holds a model's weights."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self._weights = weights

    def read(self, _: str) -> bytes:
        return save({name: value.contiguous() for name, value in self._weights.items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_learned_numbers_are_those_of_the_config(name: str) -> None:
    architecture, config = CONFIGS[name]
    stored = Stored(MODELS[architecture].from_dict(config).state_dict())
    assert parameters(cast(Bundle, stored)) == parameter_count(architecture, config)


@pytest.mark.parametrize("rate_point", [1, 4])
@pytest.mark.parametrize(("size", "kmac"), [("lite", 9.8), ("128-192", 36.8)])
def test_embedded_models_count_the_same_in_both_engines(
    size: str, kmac: float, rate_point: int
) -> None:
    bundle = select(f"bmshj2018-factorized-relu-{size}", rate_point)
    manifest = bundle.manifest
    assert parameters(bundle) == parameter_count(manifest.architecture, manifest.config)
    for backend in ("torch", "onnx"):
        assert kmac_per_pixel(bundle, backend) == {"encode": kmac, "decode": kmac}


def test_each_direction_of_a_context_model_counts_what_it_runs(tiny_hpcm_bundle: Path) -> None:
    bundle = Bundle.open(tiny_hpcm_bundle)
    manifest = bundle.manifest
    assert parameters(bundle) == parameter_count(manifest.architecture, manifest.config)
    with torch.device("meta"):
        parts = split.kmac_per_pixel(HPCM(hpcm_config("tiny")).requires_grad_(False))
    found = kmac_per_pixel(bundle, "torch")
    assert found["encode"] == pytest.approx(parts["total"] - parts["g_s"], abs=0.03)
    assert found["decode"] == pytest.approx(parts["total"] - parts["g_a"] - parts["h_a"], abs=0.03)


def test_planned_graphs_count_as_torch_does(tmp_path: Path) -> None:
    from lic.export.make_bundle import Description, make_bundle

    architecture, config = CONFIGS["hyperprior"]
    torch.manual_seed(0)
    model = MODELS[architecture].from_dict(config).eval()
    description = Description(name="tiny", rate_point=1)
    bundle = make_bundle(model, tmp_path / "1", description, graphs=True)
    assert kmac_per_pixel(bundle, "onnx") == kmac_per_pixel(bundle, "torch")
