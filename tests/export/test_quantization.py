"""int8 and float16 bundles: same model, other graphs, honest checks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor

from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import DECODER, EMBEDDED, ENCODER, TABLES, WEIGHTS, Bundle
from lic.codec.container import parse
from lic.codec.errors import ConfigError, ExportError, ImageError, OutputError
from lic.codec.image_io import Picture
from lic.codec.models import FactorizedPrior
from lic.codec.models.graphs import Decoder
from lic.codec.models.int8_files import QuantizedLayer, load_converted
from lic.codec.pipeline import Codec
from lic.export.calibration import METHODS
from lic.export.equalisation import equalise, pairs
from lic.export.forms import FORMS
from lic.export.graph_check import run, session
from lic.export.half import check_half, half_graph
from lic.export.int8_bundle import Int8Options, quantise_bundle, trained_bundle
from lic.export.int8_plan import levels_of
from lic.export.int8_prepare import prepare
from lic.export.make_bundle import Description
from lic.export.parts import GraphOptions
from lic.export.qdq import SYMBOLS, IntegerLayer, Levels, Wiring, write_qdq
from lic.export.quantization import quantise_graph
from lic.export.variants import half_bundle, part_graphs, sample_picture, write_variant
from lic.trainers.qat import convert, save_converted
from tests.export.conftest import model_of
from tests.trainers.quantised import calibrated

Graphs = dict[str, onnx.ModelProto]


def in_form(model: FactorizedPrior, form: str, *, bundled: bool = False) -> Graphs:
    return part_graphs(model, GraphOptions(upsample=form, bundled=bundled))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, large_photo: NDArray[np.uint8]) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(2):
        Image.fromarray(large_photo[200 * i : 200 * i + 128, 300:460]).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> FactorizedPrior:
    loaded = load_model(Bundle.open(tiny_bundle))
    assert isinstance(loaded, FactorizedPrior)
    return loaded


@pytest.fixture(scope="module")
def graphs() -> Graphs:
    """Graphs of a model whose symbols fit 8 bits; those of `model` do not."""
    return in_form(model_of("relu", "relu"), "blocks")


def _operators(graph: onnx.ModelProto) -> list[str]:
    """Return what ONNX Runtime runs in place of a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = "optimised.onnx"
    onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [node.op_type for node in onnx.load("optimised.onnx").graph.node]


@pytest.mark.parametrize("method", METHODS)
def test_an_int8_bundle_is_the_same_model(
    method: Any, tiny_bundle: Path, photos: Path, tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    bundle = Bundle.open(tiny_bundle)
    options = Int8Options(method=method, crops=2, side=64)
    made = quantise_bundle(bundle, tmp_path / "int8", photos, options)
    made.check()
    assert made.fingerprint == bundle.fingerprint
    for name in (WEIGHTS, TABLES):
        assert made.read(name) == bundle.read(name)
    assert {entry["precision"] for entry in made.manifest.graphs.values()} == {"int8"}
    floating, quantised = Codec(bundle, backend="onnx"), Codec(made, backend="onnx")
    data = quantised.compress(Picture(pixels=photo)).data
    expected = floating.compress(Picture(pixels=photo)).data
    assert abs(len(data) - len(expected)) < 0.2 * len(expected)
    one = floating.decompress(parse(data)).picture.pixels.astype(float)
    two = quantised.decompress(parse(data)).picture.pixels.astype(float)
    assert np.abs(one - two).mean() < 4


@pytest.mark.parametrize("sides", ["encoder", "decoder"])
def test_one_side_alone(sides: Any, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    made = quantise_bundle(
        bundle, tmp_path / "int8.zip", photos, Int8Options(sides=sides, crops=1, upsample="k5")
    )
    other = DECODER if sides == "encoder" else ENCODER
    assert made.read(other) == bundle.read(other)
    assert "precision" not in made.manifest.graphs[other.removesuffix(".onnx")]
    assert made.manifest.graphs[sides]["precision"] == "int8"


def test_onnx_runtime_computes_all_convolutions_in_integers(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x = [sample_picture()]
    symbols = [run(session(graphs[ENCODER]), value) for value in x]
    for graph, inputs in ((graphs[ENCODER], x), (graphs[DECODER], symbols)):
        found = _operators(quantise_graph(graph, inputs))
        assert found.count("QLinearConv") == 4
        assert "Conv" not in found


def test_weights_and_activations_are_what_kernels_are_fast_for(graphs: Graphs) -> None:
    made = quantise_graph(graphs[ENCODER], [sample_picture()])
    kinds = {i.name.rpartition(".")[2]: i.data_type for i in made.graph.initializer}
    held = {i.name: i for i in made.graph.initializer}
    assert [o.version for o in made.opset_import] == [20]
    assert kinds["integers"] in (onnx.TensorProto.INT8, onnx.TensorProto.INT32)
    assert held["g_a.2.weight.integers"].data_type == onnx.TensorProto.INT8
    assert list(held["g_a.2.weight.scale"].dims) == [8]
    assert {n.op_type for n in made.graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Conv"}
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            assert held[node.input[2]].data_type == onnx.TensorProto.UINT8


def test_symbols_enter_and_leave_exactly(graphs: Graphs) -> None:
    x = sample_picture()
    for name, inputs in ((ENCODER, [x]), (DECODER, [run(session(graphs[ENCODER]), x)])):
        plan = prepare(graphs[name], inputs)
        assert SYMBOLS in plan.fixed.values()
        expected, found = run(session(graphs[name]), inputs[0]), run(session(plan.graph), inputs[0])
        # Medians sit elsewhere: the same numbers, but for their rounding.
        assert np.abs(expected - found).max() <= (1e-5 if name == DECODER else 0)


def test_symbols_beyond_8_bits_leave_y_in_float(graphs: Graphs) -> None:
    large = onnx.ModelProto()
    large.CopyFrom(graphs[ENCODER])
    (weight,) = (i for i in large.graph.initializer if i.name == "g_a.6.weight")
    weight.CopyFrom(numpy_helper.from_array(200 * numpy_helper.to_array(weight), weight.name))
    x = sample_picture()
    expected = run(session(large), x)
    assert np.abs(expected).max() > 200
    found = run(session(quantise_graph(large, [x])), x)
    assert np.abs(found).max() > 200
    plan = prepare(graphs[DECODER], [expected])
    assert SYMBOLS not in plan.fixed.values()
    assert np.isfinite(run(session(quantise_graph(graphs[DECODER], [expected])), expected)).all()


@pytest.mark.parametrize("form", FORMS)
def test_equalised_channels_compute_the_same(form: str) -> None:
    graph = in_form(model_of("relu", "relu"), form)[DECODER]
    found = pairs(graph)
    assert len(found) == 3
    rng = np.random.default_rng(0)
    sizes = {pair.tensor: rng.uniform(0.1, 9, 8).astype(np.float32) for pair in found}
    changed = equalise(graph, sizes, {pair.tensor: 0.5 for pair in found})
    symbols = rng.integers(-3, 4, (1, 12, 2, 3)).astype(np.int32)
    gap = np.abs(run(session(graph), symbols) - run(session(changed), symbols)).max()
    assert gap < 1e-5


@pytest.mark.parametrize("shared", [["bias"], ["weight", "bias"]])
def test_equal_parameters_are_not_one(graphs: Graphs, shared: list[str]) -> None:
    """The exporter stores equal tensors once; a change of one must not reach the other."""
    graph = onnx.ModelProto()
    graph.CopyFrom(graphs[ENCODER])
    for node in graph.graph.node:
        for place, name in enumerate(node.input):
            layer, _, kind = name.rpartition(".")
            if layer == "g_a.4" and kind in shared:
                node.input[place] = f"g_a.2.{kind}"
    x = sample_picture()
    made = quantise_graph(graph, [x], keep_float=["g_a.6"])
    assert len([n for n in made.graph.node if n.op_type == "Conv"]) == 4
    assert len([i for i in made.graph.initializer if i.name.endswith("weight.integers")]) == 3
    assert np.mean(run(session(made), x) != run(session(graph), x)) < 0.2


@pytest.mark.parametrize("activation", ["gdn", "gdnish"])
def test_other_activations_become_int8_around_their_convolutions(activation: Any) -> None:
    graphs = in_form(model_of(activation, activation), "subpixel")
    x = sample_picture()
    symbols = run(session(graphs[ENCODER]), x)
    for name, value in ((ENCODER, x), (DECODER, symbols)):
        made = quantise_graph(graphs[name], [value])
        assert np.isfinite(run(session(made), value).astype(float)).all()


def test_a_middle_layer_cannot_stay_in_float(graphs: Graphs) -> None:
    x = [sample_picture()]
    with pytest.raises(ExportError, match=r"only g_a\.0\.conv and g_a\.6 can stay in float"):
        quantise_graph(graphs[ENCODER], x, keep_float=["g_a.2"])
    made = quantise_graph(graphs[ENCODER], x, keep_float=["g_a.6"])
    assert "g_a.6.weight" in Wiring(made).initializers


def test_what_cannot_become_int8_says_so(graphs: Graphs) -> None:
    x = [sample_picture()]
    empty = onnx.ModelProto()
    empty.CopyFrom(graphs[ENCODER])
    for initializer in empty.graph.initializer:
        initializer.name = initializer.name.replace(".weight", ".other")
    with pytest.raises(ExportError, match="nothing here can become int8"):
        quantise_graph(empty, x)
    with pytest.raises(ConfigError, match="at least one picture"):
        quantise_graph(graphs[ENCODER], [])
    with pytest.raises(ConfigError, match="needs a loss"):
        quantise_graph(graphs[ENCODER], x, method="rd")
    with pytest.raises(ConfigError, match="method is 'best'; expected one of minmax"):
        quantise_graph(graphs[ENCODER], x, method="best")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="expected finite values"):
        levels_of(-1, float("inf"))


def test_nan_in_a_model_is_refused_and_leaves_nothing(
    tiny_bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = part_graphs

    def broken(*args: Any) -> Graphs:
        graphs = real(*args)
        for initializer in graphs[DECODER].graph.initializer:
            if initializer.name.endswith(".bias"):
                value = numpy_helper.to_array(initializer) * np.float32("nan")
                initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
        return graphs

    monkeypatch.setattr("lic.export.int8_bundle.part_graphs", broken)
    with pytest.raises(ExportError, match="NaN or infinite"):
        quantise_bundle(
            Bundle.open(tiny_bundle), tmp_path / "int8", photos, Int8Options(sides="decoder")
        )
    assert list(tmp_path.iterdir()) == []


def test_graphs_that_compute_something_else_are_refused(
    tiny_bundle: Path, model: FactorizedPrior, tmp_path: Path
) -> None:
    other = in_form(model, "blocks", bundled=True)[DECODER]
    (weight,) = (i for i in other.graph.initializer if i.name == "g_s.6.conv.weight")
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    with pytest.raises(ExportError, match="mean squared error"):
        write_variant(
            Bundle.open(tiny_bundle),
            tmp_path / "other",
            {DECODER: other.SerializeToString()},
            {},
            picture=sample_picture(),
        )
    with pytest.raises(ExportError, match="do not code"):
        write_variant(
            Bundle.open(tiny_bundle), tmp_path / "x", {ENCODER: b"?"}, {}, picture=sample_picture()
        )
    assert list(tmp_path.iterdir()) == []


def test_folders_targets_and_models_are_checked_first(
    tiny_bundle: Path, tiny_hpcm_bundle: Path, tmp_path: Path, photos: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no pictures"):
        quantise_bundle(bundle, tmp_path / "int8", tmp_path / "empty")
    with pytest.raises(OutputError, match="exists already"):
        quantise_bundle(bundle, tmp_path / "empty", photos)
    with pytest.raises(ConfigError, match="only bmshj2018-factorized"):
        quantise_bundle(Bundle.open(tiny_hpcm_bundle), tmp_path / "int8", photos)
    with pytest.raises(ConfigError, match="sides is 'left'"):
        Int8Options(sides="left")  # type: ignore[arg-type]


def test_rd_needs_a_lambda(tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    bundle.manifest = replace(bundle.manifest, lmbda=None)
    with pytest.raises(ConfigError, match="lambda is None"):
        quantise_bundle(bundle, tmp_path / "int8", photos, Int8Options(method="rd", crops=1))


@pytest.mark.parametrize("form", FORMS)
def test_the_integers_of_training_come_out_as_they_are(
    form: Any, tmp_path: Path, tiny_model: FactorizedPrior
) -> None:
    import copy

    model = copy.deepcopy(tiny_model).train()
    path = tmp_path / "int8.safetensors"
    save_converted(path, convert(model, calibrated(model)))
    converted = load_converted(path)
    made = trained_bundle(path, tmp_path / "out", Description(name="t", rate_point=1), form)
    on_grid = {
        name: replace(layer, bias=_on_grid(layer)) for name, layer in converted.layers.items()
    }
    integers: Any = replace(converted, layers=on_grid).model()
    x = torch.from_numpy(sample_picture())
    with torch.no_grad():
        medians = integers.entropy_bottleneck.medians
        expected = torch.round(integers.g_a(x) - medians)
        symbols = np.rint(run(session(onnx.load_from_string(made.read(ENCODER))), x.numpy()))
        assert np.count_nonzero(symbols - expected.numpy()) <= max(2, expected.numel() // 200)
        x_hat = integers.g_s(torch.from_numpy(symbols).float() + medians).clamp(0, 1)
    found = run(session(onnx.load_from_string(made.read(DECODER))), symbols)
    gap = np.abs(np.rint(found * 255) - np.rint(x_hat.numpy() * 255))
    assert gap.mean() < 0.002
    wiring = Wiring(onnx.load_from_string(made.read(ENCODER)))
    stored = wiring.value("g_a.2.weight.integers")
    assert np.array_equal(stored, converted.layers["g_a.2"].weight.numpy())
    scale = float(converted.layers["g_a.2"].input_scale)
    assert scale in [float(v) for n in wiring.initializers if n.endswith(".scale")
                     for v in wiring.value(n).reshape(-1)]  # fmt: skip


def _on_grid(layer: QuantizedLayer) -> Tensor | None:
    """Return a bias in the steps that int32 holds it in."""
    if layer.bias is None:
        return None
    step = layer.input_scale * layer.weight_scale
    return torch.round(layer.bias / step) * step


def test_half_precision_stays_within_its_tolerance(
    tiny_bundle: Path, tmp_path: Path, model: FactorizedPrior
) -> None:
    bundle = Bundle.open(tiny_bundle)
    made = half_bundle(bundle, tmp_path / "half", "blocks")
    assert made.fingerprint == bundle.fingerprint
    assert {entry["precision"] for entry in made.manifest.graphs.values()} == {"float16"}
    half = onnx.load_from_string(made.read(DECODER))
    held = {i.data_type for i in half.graph.initializer if len(i.dims) == 4 and "g_s" in i.name}
    assert held == {onnx.TensorProto.FLOAT16}
    assert half.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    other = half_graph(in_form(_shifted(bundle), "blocks")[DECODER])
    symbols = np.zeros((1, 12, 2, 2), np.int32)
    with pytest.raises(ExportError, match="float16 as a graph: outputs differ"):
        check_half(
            in_form(model, "blocks")[DECODER],
            other,
            Decoder(model),
            [symbols],
        )


def _shifted(bundle: Bundle) -> FactorizedPrior:
    model = load_model(bundle)
    assert isinstance(model, FactorizedPrior)
    with torch.no_grad():
        model.get_parameter("g_s.6.bias").sub_(0.1)
    return model


def test_a_weight_too_large_for_half_is_named(graphs: Graphs) -> None:
    large = onnx.ModelProto()
    large.CopyFrom(graphs[ENCODER])
    (weight,) = (i for i in large.graph.initializer if i.name == "g_a.4.weight")
    weight.CopyFrom(numpy_helper.from_array(1e6 * numpy_helper.to_array(weight), weight.name))
    with pytest.raises(ExportError, match=r"g_a\.4\.weight: .* does not fit float16"):
        half_graph(large)


def test_the_embedded_model_loses_little(tmp_path: Path, photos: Path) -> None:
    """Calibrated on two crops; measured on one of them."""
    bundle = Bundle.open(EMBEDDED / "bmshj2018-factorized-relu-lite" / "4")
    made = quantise_bundle(bundle, tmp_path / "int8", photos, Int8Options(crops=2, side=128))
    with Image.open(photos / "0.png") as image:
        picture = Picture(pixels=np.asarray(image))
    losses = []
    for each in (bundle, made):
        codec = Codec(each, backend="onnx")
        data = codec.compress(picture).data
        decoded = codec.decompress(parse(data)).picture.pixels
        error = np.square(decoded.astype(float) - picture.pixels).mean()
        pixels = picture.width * picture.height
        losses.append(8 * len(data) / pixels + 0.013 * error)
    assert losses[1] < losses[0] + 0.04


def test_a_bias_too_large_for_its_scale_is_named(graphs: Graphs) -> None:
    wiring = Wiring(graphs[ENCODER])
    weight = wiring.value("g_a.2.weight")
    layer = IntegerLayer(
        weight=np.ones_like(weight, np.int8),
        weight_scale=np.full(weight.shape[0], 1e-9, np.float32),
        bias=np.full(weight.shape[0], 3.0, np.float32),
        input=Levels(scale=1e-3, zero_point=0),
        output=None,
    )
    with pytest.raises(ExportError, match=r"g_a\.2: a bias of 3 does not fit into 31 bits"):
        write_qdq(graphs[ENCODER], {"g_a.2": layer})
