"""Which operators an NPU runs: facts from graphs, strict rule files, and the measured cells."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lic.codec.bundle import DECODER, Bundle
from lic.codec.errors import ConfigError, ExportError, ImageError
from lic.export.make_bundle import Description, make_bundle
from lic.export.parts import GraphOptions
from lic.export.targets.operators import read, without_ends
from lic.export.targets.report import Report, check
from lic.export.targets.rules import TARGETS, TOOLKITS, load, parse
from lic.export.targets.source import Graph, complete, of_bundle, of_file
from lic.export.variants import part_graphs
from tests.export.conftest import model_of as model_of_kind
from tests.export.conftest import spread_hyperprior

HEAD = 'title = "T"\nsizes = "fixed"\nprecision = "int8"\n'
RULE = '[[rule]]\noperator = "Conv"\nplacement = "npu"\nreason = "r"\nknown = "document: d"\n'


def model_of(
    *nodes: onnx.NodeProto,
    constants: dict[str, Any] | None = None,
    shape: tuple[int | str, ...] = (1, 32, 16, 16),
    output: str = "y",
    opset: int = 19,
) -> onnx.ModelProto:
    """Return a graph x -> y."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(output, TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def placements(model: onnx.ModelProto, target: str, part: str = "network") -> list[tuple[str, str]]:
    """Return type and place of every operator of a part."""
    report = check(Graph(source="s", name="g", model=model), load(target))
    return [
        (row.operator.type, row.rule.placement) for row in report.rows if row.operator.part == part
    ]


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return np.full(shape, 0.1, np.float32)


def transposed(kernel: int, channels: int, output_padding: int, pad: int = 2) -> onnx.ModelProto:
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], pads=[pad] * 4,
        output_padding=[output_padding] * 2, kernel_shape=[kernel] * 2,
    )  # fmt: skip
    shape = (1, channels, 16, 16)
    return model_of(node, constants={"w": weights(channels, 8, kernel, kernel)}, shape=shape)


def normalisation(*, inverse: bool, simplified: bool) -> onnx.ModelProto:
    """GDN (N, 32, H, W) as lic exports it: no power, a 1x1 convolution, a root, a division."""
    size = helper.make_node("Abs", ["x"], ["size"]) if simplified else helper.make_node(
        "Mul", ["x", "x"], ["size"]
    )  # fmt: skip
    nodes = [size, helper.make_node("Conv", ["size", "g", "b"], ["pool"], kernel_shape=[1, 1])]
    if not simplified:
        nodes.append(helper.make_node("Sqrt", ["pool"], ["norm"]))
    norm = "pool" if simplified else "norm"
    nodes.append(helper.make_node("Mul" if inverse else "Div", ["x", norm], ["y"]))
    return model_of(*nodes, constants={"g": weights(32, 32, 1, 1), "b": weights(32)})


def shuffle() -> onnx.ModelProto:
    """A pixel shuffle of reshapes and a transpose."""
    constants = {"s": np.array([1, 8, 2, 2, 16, 16]), "t": np.array([1, 8, 32, 32])}
    return model_of(
        helper.make_node("Reshape", ["x", "s"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1, 4, 2, 5, 3]),
        helper.make_node("Reshape", ["b", "t"], ["y"]),
        constants=constants,
    )


def layer(kind: str, **attributes: Any) -> onnx.ModelProto:
    return model_of(helper.make_node(kind, ["x"], ["y"], **attributes))


CONVOLUTION = helper.make_node(
    "Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[2] * 4, kernel_shape=[5, 5]
)
CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv k5 s2": lambda: model_of(CONVOLUTION, constants={"w": weights(8, 32, 5, 5)}),
    "relu": lambda: layer("Relu"),
    "leaky relu": lambda: layer("LeakyRelu", alpha=0.01),
    "gdn": lambda: normalisation(inverse=False, simplified=False),
    "igdn": lambda: normalisation(inverse=True, simplified=False),
    "gdn1": lambda: normalisation(inverse=False, simplified=True),
    "igdn1": lambda: normalisation(inverse=True, simplified=True),
    "k5 wide": lambda: transposed(5, 192, 1),
    "k5 narrow": lambda: transposed(5, 64, 1),
    "k6": lambda: transposed(6, 192, 0),
    "k4": lambda: transposed(4, 192, 0, pad=1),
    "depth to space": lambda: layer("DepthToSpace", blocksize=2, mode="CRD"),
    "shuffle": shuffle,
    "round": lambda: layer("Round"),
    "cast": lambda: layer("Cast", to=TensorProto.INT32),
    "power": lambda: model_of(
        helper.make_node("Pow", ["x", "two"], ["y"]), constants={"two": np.float32(2)}
    ),
}
# What leaves the NPU, by target; everything else of the case stays there. Measured with the
# toolkits that the rules name.
NOTHING: tuple[str, ...] = ()
MEASURED: dict[str, dict[str, tuple[str, ...]]] = {
    "hexagon-htp": dict.fromkeys(CASES, NOTHING) | {"shuffle": ("Transpose fails",)},
    "rk3588": dict.fromkeys(CASES, NOTHING)
    | {
        "gdn": ("Sqrt cpu", "Div cpu"),
        "igdn": ("Sqrt cpu",),
        "gdn1": ("Div cpu",),
        "k5 wide": ("ConvTranspose fails",),
        "round": ("Round cpu",),
        "cast": ("Cast cpu",),
    },
    "ethos-u55": dict.fromkeys(CASES, NOTHING)
    | {
        "igdn": ("Sqrt cpu",),
        "gdn1": ("Div cpu",),
        "depth to space": ("DepthToSpace cpu",),
        "round": ("Round cpu",),
        "cast": ("Cast cpu",),
        "power": ("Pow cpu",),
    },
}
MEASURED["ethos-u65"] = MEASURED["ethos-u55"]
MEASURED["ethos-u85"] = MEASURED["ethos-u55"] | {"gdn1": NOTHING, "cast": NOTHING}


@pytest.mark.parametrize("target", MEASURED)
@pytest.mark.parametrize("case", CASES)
def test_rules_say_what_was_measured(target: str, case: str) -> None:
    found = [f"{kind} {place}" for kind, place in placements(CASES[case](), target) if
             place != "npu"]  # fmt: skip
    assert found == list(MEASURED[target][case])


@pytest.mark.parametrize("target", TARGETS)
def test_every_rules_file_is_valid_and_unknown_operators_are_no_npus(target: str) -> None:
    assert load(target).rules
    assert placements(layer("Hardmax"), target) == [("Hardmax", "unknown")]
    assert check(Graph(source="s", name="g", model=layer("Hardmax")), load(target)).totals == {
        "network": {"npu": 0, "cpu": 0, "fails": 0, "unknown": 1},
        "ends": {"npu": 0, "cpu": 0, "fails": 0, "unknown": 0},
    }


@pytest.mark.parametrize("case", CASES)
def test_the_generic_target_is_no_better_than_any_that_was_measured(case: str) -> None:
    rank = {"npu": 0, "cpu": 1, "fails": 2, "unknown": 3}
    generic = [rank[place] for _, place in placements(CASES[case](), "generic-int8")]
    for target in MEASURED:
        one = [rank[place] for _, place in placements(CASES[case](), target)]
        assert all(g >= t for g, t in zip(generic, one, strict=True)), target


def test_a_failing_layer_names_the_rewrite() -> None:
    report = check(Graph(source="s", name="g", model=transposed(5, 192, 1)), load("rk3588"))
    (row,) = report.rows
    assert row.operator.label == "ConvTranspose k5 s2 output_padding 1"
    assert "--upsample k6" in row.rule.cure and row.rule.known.startswith("measured: ")


def test_both_graphs_of_a_bundle_have_a_network_and_ends(tiny_bundle: Path) -> None:
    encoder, decoder = of_bundle(Bundle.open(tiny_bundle))
    for graph, network, ends in (
        (encoder, ["Conv", "Relu"] * 3 + ["Conv"], ["Sub"]),
        (decoder, ["ConvTranspose", "Relu"] * 3 + ["ConvTranspose"], ["Add", "Clip"]),
    ):  # fmt: skip
        operators = read(graph.model).operators
        assert [o.type for o in operators if o.part == "network"] == network
        assert [o.type for o in operators if o.part == "ends"] == ends
        for target in ("hexagon-htp", "rk3588", "ethos-u55", "ethos-u65", "ethos-u85"):
            report = check(graph, load(target))
            assert report.totals["network"] == {"npu": 7, "cpu": 0, "fails": 0, "unknown": 0}


@pytest.mark.parametrize("target", ["rk3588", "ethos-u55", "ethos-u65", "ethos-u85"])
def test_the_shuffle_that_was_measured_can_be_had(target: str) -> None:
    """NPUs without DepthToSpace take it, and the rules that name it mean what lic writes."""
    graph = part_graphs(model_of_kind("relu", "relu"), GraphOptions(upsample="shuffle"))[DECODER]
    report = check(Graph(source="s", name="decoder", model=graph), load(target))
    assert report.totals["network"] == {"npu": 19, "cpu": 0, "fails": 0, "unknown": 0}
    if target.startswith("ethos"):
        (row,) = check(
            Graph(source="s", name="g", model=CASES["depth to space"]()), load(target)
        ).rows
        assert "--upsample shuffle" in row.rule.cure


def test_a_bundle_with_a_context_shows_all_its_graphs(tmp_path: Path) -> None:
    """Each for pictures of one size, whatever multiples of pixels the model wants."""
    description = Description(name="small", rate_point=1)
    bundle = make_bundle(spread_hyperprior(), tmp_path / "a", description, graphs=True)
    graphs = of_bundle(bundle)
    assert [graph.name for graph in graphs] == ["encoder", "decoder", "begin"]
    sizes = []
    for graph in (*graphs, of_file(tmp_path / "a" / "decoder.onnx")):
        (value,) = complete(graph, (256, 128)).graph.input
        sizes.append([dim.dim_value for dim in value.type.tensor_type.shape.dim])
    assert sizes == [[1, 3, 256, 128], [1, 12, 16, 8], [1, 8, 4, 2], [1, 12, 16, 8]]


def test_a_free_size_is_a_finding_where_the_target_needs_a_fixed_one(tiny_bundle: Path) -> None:
    encoder, _ = of_bundle(Bundle.open(tiny_bundle))
    (size,) = [f for f in load("ethos-u55").findings(read(encoder.model)) if f.level == "fails"]
    assert "1x3x16*heightx16*width" in size.reason and "fixed size" in size.cure
    assert load("tensorrt").findings(read(encoder.model)) == []
    fixed = complete(encoder, (32, 48))
    assert not [f for f in load("ethos-u55").findings(read(fixed)) if f.level == "fails"]


def test_an_opset_that_a_target_does_not_read_is_a_finding() -> None:
    def levels(opset: int) -> list[str]:
        model = model_of(helper.make_node("Relu", ["x"], ["y"]), opset=opset)
        return [f.reason for f in load("rk3588").findings(read(model)) if f.level == "fails"]

    assert levels(19) == []
    assert levels(20) == ["opset 20; rk3588 reads 12 to 19"]


def test_conversions_of_weights_and_shape_arithmetic_are_computed_beforehand() -> None:
    half = weights(8, 32, 5, 5).astype(np.float16)
    model = model_of(
        helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
        CONVOLUTION,
        helper.make_node("Shape", ["y"], ["shape"]),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
        constants={"half": half},
        output="z",
    )
    reading = read(model)
    assert [o.type for o in reading.operators] == ["Conv", "Reshape"] and reading.folded == 2
    assert reading.operators[0].facts["constant_weights"] is True
    whole = complete(Graph(source="s", name="g", model=model))
    assert [n.op_type for n in whole.graph.node] == ["Conv", "Reshape"]
    assert {i.name for i in whole.graph.initializer} == {"w", "shape"}


def test_quantise_and_dequantise_are_marks_and_the_facts_see_through_them() -> None:
    def marks(name: str) -> list[onnx.NodeProto]:
        scale = [f"{name}.q", "scale", "zero"]
        return [
            helper.make_node("QuantizeLinear", [name, *scale[1:]], [f"{name}.q"]),
            helper.make_node("DequantizeLinear", scale, [f"{name}.d"]),
        ]

    model = model_of(
        helper.make_node("DequantizeLinear", ["wq", "scale"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[1, 1]),
        *marks("c"),
        helper.make_node("Sqrt", ["c.d"], ["s"]),
        *marks("s"),
        helper.make_node("Div", ["c.d", "s.d"], ["y"]),
        constants={
            "wq": np.ones((32, 32, 1, 1), np.int8),
            "scale": np.float32(0.1),
            "zero": np.uint8(0),
        },
    )
    reading = read(model)
    assert [o.type for o in reading.operators] == ["Conv", "Sqrt", "Div"]
    assert (reading.folded, reading.marks) == (1, 4)
    assert reading.quantised == frozenset({"uint8"})
    assert reading.operators[1].facts["feeds"] == "divisor"
    assert reading.operators[2].facts["divisor"] == "Sqrt"
    assert load("ethos-u55").findings(reading) == []


def test_the_network_alone_computes_what_it_did(tiny_bundle: Path) -> None:
    import onnxruntime

    encoder, _ = of_bundle(Bundle.open(tiny_bundle))
    whole = complete(encoder, (32, 48))
    network = without_ends(whole)
    x = np.random.default_rng(0).random((1, 3, 32, 48), np.float32)

    def run(model: onnx.ModelProto) -> Any:
        return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]

    medians = next(i for i in whole.graph.initializer if i.name == "medians")
    latents = run(network) - numpy_helper.to_array(medians)
    assert np.array_equal(latents, run(whole))


def test_weights_beside_a_file_are_wanted_by_compilers_only(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    model = model_of(CONVOLUTION, constants={"w": weights(8, 32, 5, 5)})
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert len(complete(of_file(path)).graph.initializer[0].raw_data) == 4 * 8 * 32 * 25
    (tmp_path / "weights.bin").unlink()
    assert check(of_file(path), load("rk3588")).totals["network"]["npu"] == 1
    with pytest.raises(ExportError, match="weights of w are missing"):
        complete(of_file(path))


def test_what_is_no_onnx_file_is_refused(tmp_path: Path, tiny_hpcm_bundle: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(ImageError, match=r"x\.onnx: cannot be read"):
        of_file(path)
    for content in (b"", b"\x89PNG" + bytes(60), b"some text\n"):
        path.write_bytes(content)
        with pytest.raises(ExportError, match="not an ONNX model"):
            of_file(path)
    with pytest.raises(ConfigError, match="has no ONNX graphs"):
        of_bundle(Bundle.open(tiny_hpcm_bundle))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", "rules of t"),
        (RULE, "missing precision, sizes, title"),
        (HEAD + "colour = 1\n" + RULE, "unknown colour"),
        (HEAD.replace("fixed", "any") + RULE, "sizes is 'any'"),
        (HEAD + RULE.replace("npu", "gpu"), "rule 1: placement is 'gpu'"),
        (HEAD + RULE.replace("npu", "cpu"), "no cure"),
        (HEAD + RULE.replace("document: d", "heard of it"), "known is 'heard of it'"),
        (HEAD + RULE + "where = { colour = 1 }\n", "no fact 'colour'"),
        (HEAD + RULE + "where = { kernel = { most = 1 } }\n", "kernel is {'most': 1}"),
        (HEAD + RULE + "where = { kernel = [] }\n", "kernel is \\[\\]"),
        (HEAD + 'opset = "13"\n' + RULE, "opset is '13'"),
        (HEAD + 'toolkit = "abacus"\n' + RULE, "toolkit is 'abacus'"),
    ],
)
def test_a_wrong_rules_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse("t", text)


def test_the_first_rule_that_fits_decides_and_a_missing_fact_fits_nothing() -> None:
    rules = HEAD + RULE + "where = { stride = { min = 2 }, kernel = [3, 5] }\n"
    rules += RULE.replace('"r"', '"second"') + "where = { constant_weights = true }\n"
    target = parse("t", rules)

    def reason(**attributes: Any) -> str:
        node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
        size = attributes.get("kernel_shape", [1])[0]
        constants = {"w": weights(8, 32, size, size)}
        (operator,) = read(model_of(node, constants=constants)).operators
        return target.rule_for(operator).reason

    assert reason(kernel_shape=[5, 5], strides=[2, 2]) == "r"
    assert reason(kernel_shape=[5, 5]) == "second"
    given = model_of(helper.make_node("Conv", ["x", "x"], ["y"]), shape=(8, 8, 1, 1))
    assert target.rule_for(read(given).operators[0]).placement == "unknown"


def test_every_named_toolkit_has_a_compiler() -> None:
    from lic.export.targets.compilers import TOOLKITS as COMPILERS

    assert set(COMPILERS) == set(TOOLKITS)
    for name in TARGETS:
        target = load(name)
        if target.toolkit:
            assert COMPILERS[target.toolkit].configurations[name]


def test_a_report_is_plain_json(tiny_bundle: Path) -> None:
    import json

    report: Report = check(of_bundle(Bundle.open(tiny_bundle))[0], load("rk3588"))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["totals"]["network"] == {"npu": 7, "cpu": 0, "fails": 0, "unknown": 0}
    assert {o["part"] for o in values["operators"]} == {"network", "ends"}
