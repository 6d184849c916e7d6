from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import Tensor, nn

from lic.codec.bundle import WEIGHTS
from lic.codec.errors import ExportError
from lic.codec.models.blocks import GDN, conv
from lic.export import onnx_export as module
from lic.export.graph_check import Agreement, check_graph, runs_of
from lic.export.onnx_export import (
    OPSET,
    FoldedGDN,
    export_graph,
    fold_normalisations,
    share_weights,
)


class Scale(nn.Module):
    """y = w x."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


class Rounded(Scale):
    """y = round(w x) as int32."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * self.w).to(torch.int32)


SIZES = {"x": {2: 16 * torch.export.Dim("height"), 3: 16 * torch.export.Dim("width")}}
W = torch.tensor([1.5, -2.0, 0.25]).reshape(1, 3, 1, 1)


def graph_of(w: Tensor, *, rounded: bool = False) -> onnx.ModelProto:
    """Return the graph that the exporter would write, without waiting for it."""
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    if rounded:
        nodes = [
            helper.make_node("Mul", ["x", "w"], ["product"]),
            helper.make_node("Round", ["product"], ["steps"]),
            helper.make_node("Cast", ["steps"], ["y"], to=TensorProto.INT32),
        ]
    size: list[Any] = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.INT32 if rounded else TensorProto.FLOAT, size
            )
        ],
        [numpy_helper.from_array(w.detach().numpy(), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def examples(count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 8 * i, 8, generator=generator) for i in range(1, count + 1)]


def check(
    name: str, graph: onnx.ModelProto, weights: bytes, module: nn.Module, examples: list[Tensor]
) -> Agreement:
    output = graph.graph.output[0].name
    return check_graph(name, graph, weights, runs_of(module, "x", (output,), examples))


def test_equal_graphs_pass() -> None:
    check("a", graph_of(W), b"", Scale(W), examples())
    check("a", graph_of(100 * W, rounded=True), b"", Rounded(100 * W), examples())


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1.001, "differs from torch by"),
        (float("nan"), "has NaN or infinite values"),
        (float("inf"), "has NaN or infinite values"),
    ],
)
def test_a_perturbed_weight_is_noticed(factor: float, told: str) -> None:
    changed = W.clone()
    changed[0, 1] *= factor
    with pytest.raises(ExportError, match=rf"name .* {told}"):
        check("name", graph_of(changed), b"", Scale(W), examples())


def test_what_is_rounded_is_compared_before() -> None:
    near, far = (torch.full((1, 3, 1, 1), v) for v in (0.1, 0.2))
    x = torch.ones(1, 3, 2, 2)
    assert check("a", graph_of(near, rounded=True), b"", Rounded(near), [x]).flips == 0
    with pytest.raises(ExportError, match=r"it is rounded\) differs from torch by 1\.00e-01"):
        check("a", graph_of(far, rounded=True), b"", Rounded(near), [x])


def test_rounding_that_only_one_of_them_does_is_noticed() -> None:
    with pytest.raises(ExportError, match="rounds 1 times, torch 0"):
        check("a", graph_of(W, rounded=True), b"", Scale(W), examples())


def test_a_perturbed_weight_is_noticed_behind_rounding() -> None:
    w = 100 * W
    changed = w.clone()
    changed[0, 1] *= 1.01
    with pytest.raises(ExportError, match=r"name .*: \d+ of 192 symbols differ"):
        check("name", graph_of(changed, rounded=True), b"", Rounded(w), examples())


def test_one_rounding_that_falls_the_other_way_is_allowed() -> None:
    x = torch.full((1, 3, 2, 2), 1.0)
    x[0, 0, 0, 0] = 2.0
    # Twice 0.2500001 rounds up, twice 0.2499999 does not.
    up, down = (torch.full((1, 3, 1, 1), v) for v in (0.2500001, 0.2499999))
    check("a", graph_of(up, rounded=True), b"", Rounded(down), [x])
    x[0, 1, 0, 0] = 2.0
    with pytest.raises(ExportError, match="2 of 12 symbols differ"):
        check("a", graph_of(up, rounded=True), b"", Rounded(down), [x])


def test_an_output_of_another_kind_is_noticed() -> None:
    graph = graph_of(W)
    graph.graph.node.append(helper.make_node("Cast", ["y"], ["whole"], to=TensorProto.INT32))
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info("whole", TensorProto.INT32, None))
    with pytest.raises(ExportError, match=r"is int32, torch's float32"):
        check("a", graph, b"", Scale(W), examples())


def test_a_graph_that_does_not_load_is_named() -> None:
    broken = graph_of(W)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="name: ONNX Runtime cannot load the graph"):
        check("name", broken, b"", Scale(W), examples())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_shared_weight_is_read_from_the_file(dtype: torch.dtype) -> None:
    weights = save({"w": W.to(dtype).contiguous(), "other": torch.zeros(5)})
    shared = share_weights(graph_of(W), weights)
    (pointer,) = shared.graph.initializer
    assert pointer.data_location == TensorProto.EXTERNAL
    assert not pointer.raw_data
    assert {e.key: e.value for e in pointer.external_data}["location"] == WEIGHTS
    check("a", shared, weights, Scale(W), examples())

    changed = bytearray(weights)
    place = {e.key: int(e.value) for e in pointer.external_data if e.key != "location"}
    changed[place["offset"] + place["length"] - 1] ^= 0x80  # The last value's sign.
    with pytest.raises(ExportError, match="differs from torch"):
        check("a", shared, bytes(changed), Scale(W), examples())


def test_a_weight_that_is_not_the_files_is_refused() -> None:
    with pytest.raises(ExportError, match="w: the graph's values differ"):
        share_weights(graph_of(W), save({"w": W + 1e-6}))


def test_sharing_leaves_the_graph_as_it_was() -> None:
    graph = graph_of(W)
    before = graph.SerializeToString()
    share_weights(graph, save({"w": W}))
    assert graph.SerializeToString() == before


def normalised(*, inverse: bool, simplified: bool, channels: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        conv(3, channels), GDN(channels, inverse=inverse, simplified=simplified)
    ).eval()
    with torch.no_grad():
        gamma = layers[1].gamma
        assert isinstance(gamma, Tensor)
        gamma.add_(0.1 * torch.rand_like(gamma))
        gamma[0, 1] = -1  # Below the bound that the re-parametrisation sets.
    return layers


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("simplified", [False, True])
def test_a_folded_normalisation_computes_the_same(inverse: bool, simplified: bool) -> None:
    layers = normalised(inverse=inverse, simplified=simplified)
    folded = fold_normalisations(layers)
    x = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        assert torch.allclose(folded(x), layers(x), rtol=1e-5, atol=1e-6)
    assert isinstance(folded.get_submodule("1"), FoldedGDN)
    assert isinstance(layers[1], GDN)


def test_no_graph_computes_on_parameters() -> None:
    """At 96 channels, which is too large for the exporter to fold by itself."""
    layers = normalised(inverse=False, simplified=False, channels=96)
    example = torch.rand(1, 3, 32, 48)
    graph = export_graph(layers, {"x": example}, ["y"], SIZES)
    assert [n.op_type for n in graph.graph.node] == ["Conv", "Mul", "Conv", "Sqrt", "Div"]
    assert sorted(i.name for i in graph.graph.initializer) == [
        "0.bias", "0.weight", "1.folded_beta", "1.folded_gamma"
    ]  # fmt: skip
    check("a", graph, b"", layers, [example, torch.rand(1, 3, 16, 80)])


def test_another_opset_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the default exporter does with old ones, which is why another writes those."""
    layers = normalised(inverse=False, simplified=False)
    monkeypatch.setattr(module, "_OLDEST_OF_DEFAULT", 13)
    with pytest.raises(ExportError, match="asked for opset 13, the exporter wrote 18"):
        export_graph(layers, {"x": torch.rand(1, 3, 32, 48)}, ["y"], SIZES, opset=13)


def test_what_the_exporter_cannot_do_is_an_export_error() -> None:
    class Unexportable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    with pytest.raises(ExportError, match=r"torch\.onnx\.export failed"):
        export_graph(Unexportable(), {"x": torch.rand(1, 3, 32, 48)}, ["y"], SIZES)
