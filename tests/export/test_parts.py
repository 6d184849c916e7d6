"""Parts of every kind of model as single graphs, of any size and of one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from lic.codec.errors import ConfigError, ExportError
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HPCMConfig,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.codec.models.hpcm import HPCM
from lic.export import onnx_export, parts
from lic.export.parts import GraphOptions, Model, Part, export_part

SMALL = HPCMConfig(
    widths=(8, 8, 8), blocks=(1, 1, 1), M=16, N=8, prior_s1_s2=(1, 0), prior_s3=(1, 0), heads=4
)


def factorized(act: Any) -> FactorizedPrior:
    return FactorizedPrior(
        FactorizedConfig(N=8, M=12, encoder_activation=act, decoder_activation=act)
    )


MODELS: dict[str, Callable[[], Model]] = {
    "relu": lambda: factorized("relu"),
    "gdn": lambda: factorized("gdn"),
    "igdn1": lambda: factorized("igdn1"),
    "gdnish": lambda: factorized("gdnish"),
    "hyperprior": lambda: ScaleHyperprior(HyperpriorConfig(N=8, M=12)),
    "hpcm": lambda: HPCM(SMALL),
}


def made(name: str) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return MODELS[name]().eval()


def outputs(graph: onnx.ModelProto, **inputs: Any) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", ["encoder", "decoder", "full"])
def test_every_part_of_one_size(name: str, part: Part) -> None:
    """By tracing, which is what older opsets are written by, and takes a tenth of the time."""
    model = made(name)
    side = model.stride
    options = GraphOptions(size=(side, 2 * side), opset=17)
    exported = export_part(model, part, options)
    assert exported.agreement.error < 1e-5
    (given,) = exported.graph.graph.input
    sizes = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    scale = 1 if given.name == "x" else 16
    assert sizes[2:] == [side // scale, 2 * side // scale]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_every_part_in_float16(name: str, part: Part) -> None:
    model = made(name)
    options = GraphOptions(size=(model.stride, model.stride), opset=17, half=True)
    graph, agreement = export_part(model, part, options)
    # A number of torch's own half precision: ONNX Runtime computes in float32 on a CPU.
    assert 0 < agreement.error < 2e-3
    held = {i.data_type for i in graph.graph.initializer if len(i.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in held


@pytest.mark.parametrize("name", ["relu", "hyperprior"])
def test_the_whole_codec_tells_its_bits(name: str) -> None:
    model = made(name)
    graph = export_part(model, "full", GraphOptions()).graph
    for size in ((64, 192), (128, 64)):
        x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            expected = model(x)
        found = outputs(graph, x=x.numpy())
        bits = sum(-torch.log2(v).sum() for v in expected.likelihoods.values())
        assert found["bits"] == pytest.approx([float(bits)], rel=1e-4)
        assert np.abs(found["x_hat"] - expected.x_hat.clamp(0, 1).numpy()).max() < 1e-4


def test_hpcm_has_no_bits_that_onnx_could_say() -> None:
    exported = export_part(made("hpcm"), "full", GraphOptions(size=(256, 256), opset=17))
    assert [each.name for each in exported.graph.graph.output] == ["x_hat"]


def test_normalisations_leave_nothing_to_compute_on_parameters() -> None:
    """Beta and gamma are what the convolution in the graph takes, as they are."""
    graph = export_part(made("gdn"), "encoder", GraphOptions(size=(32, 32))).graph.graph
    constants = {each.name for each in graph.initializer}
    for node in graph.node:
        assert not set(node.input) <= constants, node.op_type


@pytest.mark.parametrize("size", [(8, 64), (64, 72), (0, 64), (-64, 64)])
def test_a_size_that_the_networks_do_not_take_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="expected multiples of 64"):
        export_part(made("hyperprior"), "encoder", GraphOptions(size=size))


def test_a_graph_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    export = onnx_export.export_graph

    def damaged(*arguments: Any, **options: Any) -> onnx.ModelProto:
        graph = export(*arguments, **options)
        graph.graph.node[0].op_type = "NoSuchOperator"
        return graph

    monkeypatch.setattr(parts, "export_graph", damaged)
    with pytest.raises(ExportError, match="bmshj2018-factorized decoder: is no valid ONNX graph"):
        export_part(made("relu"), "decoder", GraphOptions(size=(32, 32)))
