import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from lic.codec.backends import open_backend
from lic.codec.bundle import DECODER, ENCODER, WEIGHTS, Bundle, safetensors_index
from lic.codec.errors import ConfigError, ExportError, NumericsError, OutputError
from lic.codec.models import FactorizedConfig, FactorizedPrior
from lic.codec.models.adapters import factorized_from_state_dict
from lic.codec.models.gdnish import DecoderGain
from lic.codec.tiling import Padding, to_network
from lic.export import make_bundle as module
from lic.export import onnx_export
from lic.export.make_bundle import Description, make_bundle
from lic.export.onnx_export import OPSET

Built = Callable[[str], tuple[Bundle, str]]
EVERY = ["relu", "relu-half", "gdn", "igdn1-half", "gdnish"]
DESCRIPTION = Description(name="tiny", rate_point=3, lmbda=0.01, source="https://example.org")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("graph", [ENCODER, DECODER])
def test_a_graph_is_valid_and_of_the_opset_asked_for(built: Built, kind: str, graph: str) -> None:
    bundle, _ = built(kind)
    # By path, so that the pointers into the weights file are checked too.
    onnx.checker.check_model(bundle.path / graph, full_check=True)
    proto = onnx.load(bundle.path / graph, load_external_data=False)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": OPSET}
    assert proto.producer_name == "lic"


@pytest.mark.parametrize("kind", EVERY)
def test_a_bundle_says_nothing_of_the_machine_it_was_made_on(built: Built, kind: str) -> None:
    bundle, _ = built(kind)
    for name in bundle.manifest.files:
        data = bundle.read(name)
        for trace in (str(Path(torch.__file__).parent), str(Path.cwd()), "stack_trace", ".py"):
            assert trace.encode() not in data, (name, trace)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("graph", "side"), [(ENCODER, "g_a."), (DECODER, "g_s.")])
def test_weights_are_stored_once_and_pointed_at(
    built: Built, kind: str, graph: str, side: str
) -> None:
    bundle, dtype = built(kind)
    index = safetensors_index(bundle.read(WEIGHTS))
    proto = onnx.load(bundle.path / graph, load_external_data=False)
    pointers = {}
    for initializer in proto.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in initializer.external_data}
            assert entry["location"] == WEIGHTS
            begin = int(entry["offset"])
            pointers[initializer.name.removesuffix(".half")] = (begin, begin + int(entry["length"]))
        else:
            # Medians, folded normalisations, and constants.
            assert len(initializer.raw_data) <= 4 * 8 * 8
    convolutions = {f"{side}{i}.{part}" for i in (0, 2, 4, 6) for part in ("weight", "bias")}
    # The exporter merges tensors that are equal, which biases of 0 and 1 can be.
    stored = {name: index[name][2:] for name in index if name.startswith(side)}
    assert pointers.items() <= stored.items()
    assert pointers.keys() >= {name for name in convolutions if name.endswith("weight")}
    kinds = {index[name][0] for name in convolutions}
    assert kinds == {"F16" if dtype == "float16" else "F32"}


# Of deployment on NPUs; rounding and what checks it are the encoder graph's last nodes.
NPU_OPERATORS = {"Conv", "ConvTranspose", "Clip", "Mul", "Add", "GlobalAveragePool"}
AROUND = {"Sub", "Round", "Abs", "LessOrEqual", "Where", "Cast"}


@pytest.mark.parametrize("graph", [ENCODER, DECODER])
def test_gain_blocks_are_operators_that_npus_run(built: Built, graph: str) -> None:
    bundle, _ = built("gdnish")
    proto = onnx.load(bundle.path / graph, load_external_data=False)
    found = {node.op_type for node in proto.graph.node}
    assert found <= NPU_OPERATORS | AROUND
    assert ("GlobalAveragePool" in found) == (graph == ENCODER)


def test_a_bundle_with_gain_blocks_needs_nothing_but_itself(built: Built) -> None:
    bundle, _ = built("gdnish")
    bundle.check()
    config = bundle.manifest.config
    assert config["encoder_gain"]["eca"] and config["decoder_gain"]["gmax"] == 4.0
    state = load_file(bundle.path / WEIGHTS)
    assert factorized_from_state_dict(state).config.to_dict() == config


def test_half_precision_keeps_the_ends_of_gains() -> None:
    gain = DecoderGain(gmin=0.1, gmax=2.3)
    config = FactorizedConfig(N=2, M=2, decoder_activation="gdnish", decoder_gain=gain)
    stored = module._stored_weights(FactorizedPrior(config), "float16")
    assert stored["g_s.1.depthwise.weight"].dtype == torch.float16
    assert factorized_from_state_dict(stored).config.decoder_gain == gain


@pytest.mark.parametrize("kind", EVERY)
def test_both_engines_agree_on_sizes_the_exporter_never_saw(built: Built, kind: str) -> None:
    bundle, _ = built(kind)
    onnx_backend, torch_backend = (open_backend(bundle, name) for name in ("onnx", "torch"))
    rng = np.random.default_rng(0)
    for height, width in ((16, 112), (144, 16), (48, 80)):
        x = rng.random((1, 3, height, width), np.float32)
        y, other = onnx_backend.analyze(x), torch_backend.analyze(x)
        assert y.shape == (12, height // 16, width // 16)
        assert np.unique(y).size >= 3
        # Rounding may fall the other way once.
        gap = np.abs(y.astype(int) - other)
        assert gap.max() <= 1
        assert np.count_nonzero(gap) <= 1
        x_hat = onnx_backend.synthesize(y)
        assert x_hat.shape == x.shape
        assert float(x_hat.std()) > 1e-3
        assert np.abs(x_hat - torch_backend.synthesize(y)).max() <= 1e-4


@pytest.mark.parametrize("kind", ["relu", "igdn1-half"])
def test_the_encoder_gives_latents_and_lic_says_what_cannot_be_coded(
    built: Built, kind: str
) -> None:
    import onnxruntime

    bundle, _ = built(kind)
    session = onnxruntime.InferenceSession(bundle.path / ENCODER)
    (output,) = session.get_outputs()
    assert (output.name, output.type) == ("y", "tensor(float)")
    x = np.full((1, 3, 32, 32), np.nan, np.float32)
    with pytest.raises(NumericsError, match="cannot be coded"):
        open_backend(bundle, "onnx").analyze(x)


def test_the_tiny_bundle_shows_the_photo(tiny_bundle: Path, photo: NDArray[np.uint8]) -> None:
    backend = open_backend(Bundle.open(tiny_bundle), "onnx")
    x = to_network(photo, Padding(multiple=16))
    x_hat = backend.synthesize(backend.analyze(x))
    assert float(((x_hat - x) ** 2).mean()) < 0.5 * float(x.var())


@pytest.fixture
def known_graphs(built: Built, monkeypatch: pytest.MonkeyPatch) -> FactorizedPrior:
    """A model whose graphs are those of the gdn bundle, so that no test waits for the exporter."""
    from lic.codec.backends.torch_backend import load_model

    bundle, _ = built("gdn")
    protos = {name: onnx.load(bundle.path / name) for name in (ENCODER, DECODER)}

    def export_graph(module: Any, *_: Any, **__: Any) -> onnx.ModelProto:
        return protos[ENCODER if hasattr(module, "g_a") else DECODER]

    monkeypatch.setattr(module, "export_graph", export_graph)
    model = load_model(bundle)
    assert isinstance(model, FactorizedPrior)
    return model


def test_a_zip_is_the_folder_in_one_file(
    known_graphs: FactorizedPrior, tmp_path: Path, built: Built
) -> None:
    folder = make_bundle(known_graphs, tmp_path / "a", DESCRIPTION)
    archive = make_bundle(known_graphs, tmp_path / "a.zip", DESCRIPTION)
    assert (tmp_path / "a.zip").is_file()
    archive.check()
    assert archive.manifest == folder.manifest
    assert archive.fingerprint == built("gdn")[0].fingerprint
    x = np.random.default_rng(1).random((1, 3, 32, 48), np.float32)
    for name in ("onnx", "torch"):
        one, two = open_backend(folder, name), open_backend(archive, name)
        y = one.analyze(x)
        assert np.array_equal(two.analyze(x), y)
        assert np.array_equal(two.synthesize(y), one.synthesize(y))


def test_the_manifest_says_what_it_was_told(known_graphs: FactorizedPrior, tmp_path: Path) -> None:
    manifest = make_bundle(known_graphs, tmp_path / "a", DESCRIPTION).manifest
    assert (manifest.name, manifest.rate_point, manifest.lmbda) == ("tiny", 3, 0.01)
    assert manifest.source == "https://example.org"
    assert manifest.config == known_graphs.config.to_dict()
    assert {graph["file"] for graph in manifest.graphs.values()} == {ENCODER, DECODER}
    assert manifest.stride == 16


def test_half_precision_is_half_the_size_and_another_fingerprint(built: Built) -> None:
    half, single = built("relu-half")[0], built("relu")[0]
    sizes = {
        name: sum(
            end - begin
            for tensor, (_, _, begin, end) in safetensors_index(bundle.read(WEIGHTS)).items()
            if tensor.startswith("g_")
        )
        for name, bundle in (("half", half), ("single", single))
    }
    assert 2 * sizes["half"] == sizes["single"]
    assert half.fingerprint != single.fingerprint


@pytest.mark.parametrize("graph", [ENCODER, DECODER])
def test_a_graph_that_differs_from_torch_leaves_nothing_behind(
    known_graphs: FactorizedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    real = onnx_export.share_weights

    def damaged(proto: onnx.ModelProto, weights: bytes) -> onnx.ModelProto:
        shared = real(proto, weights)
        if (graph == ENCODER) == (shared.graph.output[0].name == "y"):
            for initializer in shared.graph.initializer:
                if initializer.name == "medians":
                    values = np.frombuffer(initializer.raw_data, np.float32) + 0.5
                    initializer.raw_data = values.tobytes()
        return shared

    monkeypatch.setattr(module, "share_weights", damaged)
    with pytest.raises(ExportError, match=rf"^{graph} .*differ"):
        make_bundle(known_graphs, tmp_path / "deep" / "a", DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


def test_the_model_stays_as_it_was(known_graphs: FactorizedPrior, tmp_path: Path) -> None:
    with torch.no_grad():
        known_graphs.entropy_bottleneck.quantiles.add_(0.25)
    before = {name: value.clone() for name, value in known_graphs.state_dict().items()}
    make_bundle(known_graphs, tmp_path / "a", DESCRIPTION)
    after = known_graphs.state_dict()
    assert [name for name, value in before.items() if not torch.equal(after[name], value)] == []
    stored = load_file(tmp_path / "a" / WEIGHTS)
    found = stored["entropy_bottleneck.quantiles"]
    assert not torch.equal(found, before["entropy_bottleneck.quantiles"])


def test_an_existing_target_is_refused_before_any_work(
    tiny_bundle: Path, tmp_path: Path, tiny_model: FactorizedPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "export_graph", None)
    (tmp_path / "a.zip").write_bytes(b"mine")
    for target in (tiny_bundle, tmp_path / "a.zip"):
        with pytest.raises(OutputError, match="exists already"):
            make_bundle(tiny_model, target, DESCRIPTION)
    assert (tmp_path / "a.zip").read_bytes() == b"mine"


def test_overwriting_replaces_the_bundle(known_graphs: FactorizedPrior, tmp_path: Path) -> None:
    make_bundle(known_graphs, tmp_path / "a", DESCRIPTION)
    other = Description(name="tiny", rate_point=9)
    make_bundle(known_graphs, tmp_path / "a", other, overwrite=True)
    assert Bundle.open(tmp_path / "a").manifest.rate_point == 9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_weights_that_the_precision_cannot_hold_are_refused_by_name(
    known_graphs: FactorizedPrior, tmp_path: Path, value: float
) -> None:
    with torch.no_grad():
        known_graphs.get_parameter("g_a.2.weight")[0, 0, 0, 0] = value
    with pytest.raises(ExportError, match=r"g_a\.2\.weight: not finite in torch\.float16"):
        make_bundle(known_graphs, tmp_path / "a", DESCRIPTION, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_is_refused(tiny_model: FactorizedPrior, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'int8'; expected float32 or float16"):
        make_bundle(tiny_model, tmp_path / "a", DESCRIPTION, dtype="int8")  # type: ignore[arg-type]


def test_the_weights_file_is_plain_safetensors(tiny_bundle: Path) -> None:
    data = (tiny_bundle / WEIGHTS).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(data) - 8 - length
