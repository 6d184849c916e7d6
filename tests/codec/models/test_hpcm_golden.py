"""HPCM against the recorded run of the published code, in double precision.

More recorded runs, of other sizes and pictures, are checked by the same tests: name their files in
LIC_HPCM_GOLDEN, separated as in PATH. A case is called base256, large192x320 and the like.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lic.codec.models.conditional import GeneralizedGaussian, scale_indexes
from lic.codec.models.hpcm import HPCM
from lic.codec.models.hpcm_config import hpcm_config
from lic.codec.tiling import Padding
from tests.golden import hpcm_reference as reference

GOLDEN = Path(__file__).parents[2] / "golden"
Arrays = dict[str, NDArray[Any]]


@cache
def _recorded() -> Arrays:
    arrays: Arrays = {}
    extra = [Path(p) for p in os.environ.get("LIC_HPCM_GOLDEN", "").split(os.pathsep) if p]
    for path in (GOLDEN / "hpcm.npz", *extra):
        with np.load(path, allow_pickle=False) as file:
            arrays |= dict(file)
    return arrays


CASES = sorted({name.split("/")[0] for name in _recorded() if name.endswith("/y_symbols")})


def _model(size: str) -> HPCM:
    with torch.device("meta"):
        shapes = HPCM(hpcm_config(size))
    model = HPCM(hpcm_config(size))
    missing, unexpected = model.load_state_dict(reference.reference_state(shapes), strict=False)
    assert not unexpected
    assert not [n for n in missing if n.endswith(("weight", "bias"))]
    return model.eval()


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Arrays, HPCM, torch.Tensor]]:
    """A recorded run, the model, and the padded picture (1, 3, H, W) in float32."""
    name: str = request.param
    found = re.match(r"([a-z]+?)_?(\d+)(?:x(\d+))?", name)
    assert found, name
    size, height = found[1], int(found[2])
    arrays = {k.split("/")[1]: v for k, v in _recorded().items() if k.startswith(f"{name}/")}
    pixels = reference.picture(height, int(found[3] or height))
    if "image_u8_sha256" in arrays:
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == arrays["image_u8_sha256"]
    pixels = arrays.get("image_u8", pixels)
    padded = Padding(multiple=256, centred=True).pad(pixels.transpose(1, 2, 0))
    x = torch.from_numpy(np.ascontiguousarray(padded.transpose(2, 0, 1))).float()[None] / 255
    yield arrays, _model(size), x


def _probe(value: torch.Tensor) -> NDArray[np.float64]:
    flat = value.double().contiguous().flatten().numpy()
    some = flat[(7919 * np.arange(64)) % flat.size]
    return np.array([flat.mean(), flat.std(), np.abs(flat).max(), flat.sum(), *some])


@torch.no_grad()
def test_symbols_and_indexes_are_those_of_the_published_code(
    case: tuple[Arrays, HPCM, torch.Tensor],
) -> None:
    arrays, model, x = case
    model.double()
    y = model.analyze(x.double())
    z = torch.round(model.hyper_analyze(y))
    np.testing.assert_array_equal(z.flatten().numpy(), arrays["z_symbols"])

    progress = model.begin(z)
    symbols, indexes = [], []
    for step in range(len(model.steps)):
        scales, means = model.parameters_of(step, progress)
        q = torch.round(model.select(step, y) - means)
        model.accept(step, progress, q + means)
        symbols.append(q.flatten())
        indexes.append(scale_indexes(scales, model.levels).flatten())
    np.testing.assert_array_equal(torch.cat(symbols).numpy(), arrays["y_symbols"])
    np.testing.assert_array_equal(torch.cat(indexes).numpy(), arrays["y_indexes"])
    y_hat = model.y_hat(progress)
    np.testing.assert_allclose(_probe(y_hat), arrays["probe_y_hat"], rtol=1e-9, atol=1e-9)
    x_hat = model.synthesize(y_hat)
    np.testing.assert_allclose(_probe(x_hat), arrays["probe_x_hat"], rtol=1e-9, atol=1e-8)


@torch.no_grad()
def test_bits_are_those_of_the_published_code(case: tuple[Arrays, HPCM, torch.Tensor]) -> None:
    arrays, model, x = case

    def bits(likelihoods: dict[str, torch.Tensor]) -> list[float]:
        return [float(-torch.log2(likelihoods[name]).double().sum()) for name in ("y", "z")]

    exact = model.double()(x.double()).likelihoods
    np.testing.assert_allclose(bits(exact), arrays["bits_total"], rtol=1e-10)
    per_channel = -torch.log2(exact["y"]).sum((0, 2, 3))
    np.testing.assert_allclose(per_channel.numpy(), arrays["y_bits_per_channel"], rtol=1e-8)
    # In float32 the tails have steps of 6e-8 and end in the bound: 0.2 % more bits, as recorded.
    single = model.float()(x).likelihoods
    # On another processor a tail may end a step earlier or later: six bits a symbol.
    np.testing.assert_allclose(bits(single), arrays["bits_float32"], rtol=1e-6, atol=24)


@torch.no_grad()
def test_a_divergence_would_be_found_at_its_step(case: tuple[Arrays, HPCM, torch.Tensor]) -> None:
    """Every network of the steps gets and gives what was recorded, in the recorded order."""
    arrays, model, x = case
    if "trace_names" not in arrays:
        pytest.skip("the recording has no trace")
    seen: list[tuple[str, NDArray[np.float64], NDArray[np.float64]]] = []

    def hook(name: str) -> Any:
        def record(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            seen.append((name, _probe(inputs[0]), _probe(output)))

        return record

    names = set(arrays["trace_names"].tolist())
    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if n in names]
    model.double()(x.double())
    for handle in handles:
        handle.remove()
    recorded = arrays["trace_names"].tolist()
    if recorded[-1] == "attn_s3":
        # Computed upstream after the last step and never used; lic leaves it out.
        recorded = recorded[:-1]
    assert [name for name, _, _ in seen] == recorded
    for (name, got, gave), want_in, want_out in zip(
        seen, arrays["trace_in"][: len(seen)], arrays["trace_out"][: len(seen)], strict=True
    ):
        np.testing.assert_allclose(got, want_in, rtol=1e-9, atol=1e-8, err_msg=f"into {name}")
        np.testing.assert_allclose(gave, want_out, rtol=1e-9, atol=1e-8, err_msg=f"out of {name}")


@pytest.mark.parametrize("size", ["base", "large", "phi"])
def test_the_reference_weights_are_made_right(size: str) -> None:
    with torch.device("meta"):
        model = HPCM(hpcm_config(size))
    state = reference.reference_state(model)
    key = f"weights/{size}_sha256_sorted_concat"
    assert reference.digest(state) == str(_recorded()[key])


@pytest.mark.parametrize(("size", "count"), [("base", 68_505_299), ("large", 89_718_803)])
def test_names_and_shapes_are_those_of_published_weights(size: str, count: int) -> None:
    with torch.device("meta"):
        model = HPCM(hpcm_config(size))
    wanted = json.loads((GOLDEN / f"hpcm_{size}_keys.json").read_text())
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == wanted
    assert sum(p.numel() for p in model.parameters()) == count


def test_phi_is_base_without_attention() -> None:
    with torch.device("meta"):
        phi = HPCM(hpcm_config("phi"))
    wanted = json.loads((GOLDEN / "hpcm_base_keys.json").read_text())
    assert set(phi.state_dict()) == {name for name in wanted if not name.startswith("attn_")}
    assert sum(p.numel() for p in phi.parameters()) == 63_582_419


@pytest.mark.parametrize("latent", ["y", "z"])
def test_sixteen_bit_tables_are_upstreams(latent: str) -> None:
    """Lic codes with tables of its own; these show that both mean the same density."""
    recorded = _recorded()
    if latent == "y":
        with torch.device("cpu"):
            scales = HPCM(hpcm_config("tiny")).levels
        np.testing.assert_array_equal(scales.numpy(), recorded["cdf/scale_table"])
    else:
        scales = torch.from_numpy(reference.weight("scales_hyper", (256,)))
    cdf, length, offset = reference.published_tables(scales)
    np.testing.assert_array_equal(cdf, recorded[f"cdf/quantized_cdf_{latent}"])
    np.testing.assert_array_equal(length, recorded[f"cdf/cdf_length_{latent}"])
    np.testing.assert_array_equal(offset, recorded[f"cdf/offset_{latent}"])


def test_likelihoods_and_gradients_are_those_recorded() -> None:
    recorded = _recorded()
    values = torch.from_numpy(recorded["ggm/values"]).requires_grad_()
    scales = torch.from_numpy(recorded["ggm/scales"]).requires_grad_()
    likelihoods = GeneralizedGaussian().double()(values, scales)
    np.testing.assert_allclose(
        likelihoods.detach().numpy(), recorded["ggm/likelihood"], rtol=1e-9, atol=1e-15
    )
    (-torch.log2(likelihoods)).sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None and scales.grad is not None
    for grad, name in ((values.grad, "values"), (scales.grad, "scales")):
        wanted = recorded[f"ggm/grad_bits_wrt_{name}"]
        np.testing.assert_allclose(grad.numpy(), wanted, rtol=1e-6, atol=1e-9)
