from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from lic.codec.errors import ModelMismatchError, OutputError
from lic.trainers.qat import convert, load_converted, save_converted
from tests.trainers.quantised import calibrated, factorized, forward


@pytest.mark.parametrize("activation", ["relu", "gdn", "gdnish"])
def test_the_converted_model_computes_in_integers_what_was_simulated(
    activation: str, tmp_path: Path
) -> None:
    model = factorized(activation)
    qat = calibrated(model)
    save_converted(tmp_path / "int8.safetensors", convert(model, qat))
    loaded = load_converted(tmp_path / "int8.safetensors").model()
    model.eval()
    # Layer by layer, as a rounding of the last bit may grow to a step of the next activation.
    for layer in qat.layers:
        x = torch.rand(1, layer.module.in_channels, 9, 8) * layer.input.state()[1]
        with torch.no_grad():
            simulated = layer.module(x)
        integers = loaded.get_submodule(layer.name)(x)
        assert torch.allclose(integers, simulated, rtol=0, atol=1e-5 * float(simulated.abs().max()))
    with torch.no_grad():
        simulated, integers = forward(model, 0), forward(loaded, 0)
        qat.detach()
        cost = (forward(model, 0) - simulated).abs().mean()
    assert float((integers - simulated).abs().mean()) < 0.05 * float(cost)


def test_the_converted_file_holds_what_its_format_says(tmp_path: Path) -> None:
    model = factorized()
    qat = calibrated(model, qat_skip_first_conv=True)
    with torch.no_grad():
        model.state_dict()["g_s.0.weight"][:, 3].mul_(0.01)
    path = tmp_path / "int8.safetensors"
    save_converted(path, convert(model, qat))
    found = load_converted(path)
    layer, first = found.layers["g_s.0"], model.state_dict()["g_s.0.weight"]
    assert (layer.weight.dtype, layer.input_zero_point.dtype) == (torch.int8, torch.uint8)
    assert (layer.axis, tuple(layer.weight_scale.shape)) == (1, (8,))
    # Every channel uses its whole range.
    assert layer.weight.abs().amax((0, 2, 3)).tolist() == [127] * 8
    assert torch.equal(found.rest["g_a.0.weight"], model.state_dict()["g_a.0.weight"])
    assert found.config == model.config.to_dict()
    error = (found.float_state_dict()["g_s.0.weight"] - first).abs()
    assert float((error / layer.weight_scale.reshape(1, 8, 1, 1)).max()) <= 0.501


@pytest.mark.parametrize("kind", ["missing", "no file of the kind", "cut", "other"])
def test_what_is_no_int8_model_is_refused(kind: str, tmp_path: Path) -> None:
    model = factorized()
    path = tmp_path / "int8.safetensors"
    save_converted(path, convert(model, calibrated(model)))
    if kind == "missing":
        path.unlink()
    elif kind == "no file of the kind":
        path.write_bytes(b"text")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(path.read_bytes().replace(b"lic-int8", b"lic-int4"))
    with pytest.raises(ModelMismatchError, match=r"int8\.safetensors: "):
        load_converted(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({}, {"layers": "[]"}, "damaged int8 model"),
        ({}, {"layers": '{"g_a.0": 7}'}, r"g_a\.0\.weight is \(8, 3, 5, 5\) with axis 7"),
        ({}, {"layers": '{"g_a.0": 1}'}, r"g_a\.0\.weight_scale is .*\(8,\)\); expected .*\(3,\)"),
        ({}, {"config": "3"}, "its config is 3; expected an object"),
        ({"g_a.0.weight": torch.zeros(8, 3, 5, 5)}, {}, r"g_a\.0\.weight is \(torch\.float32"),
        ({"g_a.0.weight_scale": torch.ones(3)}, {}, r"g_a\.0\.weight_scale is"),
        ({"g_a.0.bias": torch.ones(3)}, {}, r"g_a\.0\.bias is"),
        ({"g_a.0.input_scale": torch.ones(3)}, {}, r"g_a\.0\.input_scale is"),
        ({"g_a.0.input_zero_point": torch.tensor([300])}, {}, r"g_a\.0\.input_zero_point is"),
    ],
)
def test_tensors_that_are_not_what_the_format_says_are_named(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], said: str, tmp_path: Path
) -> None:
    model = factorized()
    path = tmp_path / "int8.safetensors"
    save_converted(path, convert(model, calibrated(model)))
    with safe_open(path, framework="pt") as file:
        whole = {**file.metadata(), **metadata}
    path.write_bytes(save({**load_file(path), **tensors}, whole))
    with pytest.raises(ModelMismatchError, match=said):
        load_converted(path)


def test_an_unwritable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    model = factorized()
    with pytest.raises(OutputError, match="cannot be written"):
        save_converted(tmp_path / "file" / "int8", convert(model, calibrated(model)))
