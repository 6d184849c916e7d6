"""Models with a context in ONNX Runtime: the same files as torch's, and no torch."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from lic.codec.backends import open_backend
from lic.codec.bundle import ENCODER, MANIFEST, WEIGHTS, Bundle
from lic.codec.container import parse
from lic.codec.errors import ExportError, ModelMismatchError
from lic.codec.graph_plan import CONSTANTS
from lic.codec.image_io import Picture
from lic.codec.models import HPCM, ContextModel, HPCMConfig
from lic.codec.pipeline import Codec
from lic.export import context_export, onnx_export
from lic.export.make_bundle import Description, make_bundle
from lic.export.variants import half_bundle
from tests.export.conftest import spread_hyperprior

DESCRIPTION = Description(name="small", rate_point=3, lmbda=0.01)
SMALL = HPCMConfig(
    widths=(8, 8, 8), blocks=(1, 1, 1), M=16, N=8, prior_s1_s2=(1, 0), prior_s3=(1, 0), heads=4
)


def hpcm(**options: Any) -> HPCM:
    """Return a small HPCM whose symbols and scales are spread over many values."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = HPCM(replace(SMALL, **options))
        parameters = dict(model.named_parameters())
        for name, gain in (("g_a.branch.0", 3), ("g_a.branch.6", 30), ("h_a.branch.5", 9)):
            parameters[f"{name}.weight"].mul_(gain)
        for scale in ("s1_s2", "s3"):
            parameters[f"y_spatial_prior_{scale}.branch_2.0.bias"][:16].uniform_(0.2, 2)
        parameters["h_s.branch.4.bias"][:16].uniform_(0.2, 2)
    return model.eval()


MODELS: dict[str, Callable[[], ContextModel]] = {
    "hyperprior": spread_hyperprior,
    "hpcm": hpcm,
    # Without attention the parameters themselves are the next context.
    "phi, corrected": lambda: hpcm(heads=0, placement="corrected"),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A bundle with graphs of each of MODELS."""
    folder = tmp_path_factory.mktemp("graphs")
    return {
        name: make_bundle(make(), folder / str(number), DESCRIPTION, graphs=True)
        for number, (name, make) in enumerate(MODELS.items())
    }


@pytest.fixture(params=MODELS)
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Iterator[Bundle]:
    yield bundles[request.param]


def test_files_go_from_either_engine_to_the_other(bundle: Bundle, photo: NDArray[np.uint8]) -> None:
    codecs = [Codec(bundle, backend=name) for name in ("torch", "onnx")]
    assert [codec.backend.name for codec in codecs] == ["torch", "onnx"]
    files = [codec.compress(Picture(pixels=photo)).data for codec in codecs]
    assert len(files[0]) > 500
    pictures = [codec.decompress(parse(file)).picture.pixels for codec in codecs for file in files]
    for pixels in pictures:
        assert pixels.shape == photo.shape
        assert np.abs(pixels.astype(int) - pictures[0]).max() <= 1


@pytest.mark.parametrize("name", ["hyperprior", "hpcm"])
def test_in_float16_files_stay_interchangeable(
    bundles: dict[str, Bundle], name: str, tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    half = half_bundle(bundles[name], tmp_path / "half")
    assert half.fingerprint == bundles[name].fingerprint
    precise = {"encoder": "float16", "decoder": "float16"}
    entries = half.manifest.graphs.items()
    assert {n: e["precision"] for n, e in entries if "precision" in e} == precise
    assert half.manifest.graphs["plan"] == bundles[name].manifest.graphs["plan"]
    own, torchs = Codec(half, backend="onnx"), Codec(bundles[name], backend="torch")
    file = own.compress(Picture(pixels=photo)).data
    mine, theirs = (codec.decompress(parse(file)).picture.pixels for codec in (own, torchs))
    assert np.abs(mine.astype(int) - theirs).max() <= 2
    assert own.decompress(parse(torchs.compress(Picture(pixels=photo)).data))


def test_onnx_runtime_is_the_automatic_choice(bundle: Bundle) -> None:
    assert bundle.has_graphs
    assert open_backend(bundle).name == "onnx"


def test_graphs_have_no_searches_and_share_their_weights(bundle: Bundle) -> None:
    """Nothing that hangs on values, and no tensor of the model outside of its weights file."""
    bundle.check()
    for name in bundle.manifest.files:
        if not name.endswith(".onnx"):
            continue
        graph = onnx.load_from_string(bundle.read(name)).graph
        operators = {node.op_type for node in graph.node}
        # Where a symbol cannot be coded, the encoder says so.
        of_values = {"NonZero", "GatherND", "ScatterND", "Loop", "If"}
        assert operators.isdisjoint(of_values if name == ENCODER else of_values | {"Where"}), name
        inside = sum(len(i.raw_data) for i in graph.initializer)
        assert inside < 4000, name


def test_of_a_graph_for_several_steps_there_is_one(bundles: dict[str, Bundle]) -> None:
    plan = bundles["hpcm"].manifest.graphs["plan"]
    calls = [call["graph"] for step in plan["steps"] for call in step["before"]]
    assert calls.count("predict_s3.onnx") == 6 and calls.count("predict_s1_s2.onnx") == 4
    assert len(plan["steps"]) == 11
    assert calls.count("attend_s3.onnx") == 5, "after the last step nothing needs it"


def test_it_works_without_torch(
    bundles: dict[str, Bundle], tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    np.save(tmp_path / "photo.npy", photo)
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "onnx", "lightning_fabric"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from pathlib import Path
import numpy as np
from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.image_io import Picture
from lic.codec.pipeline import Codec
codec = Codec(Bundle.open(Path({str(bundles["hpcm"].path)!r})))
encoded = codec.compress(Picture(pixels=np.load({str(tmp_path / "photo.npy")!r})))
pixels = codec.decompress(parse(encoded.data)).picture.pixels
np.save({str(tmp_path / "back.npy")!r}, pixels)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    codec = Codec(bundles["hpcm"], backend="torch")
    expected = codec.decompress(parse(codec.compress(Picture(pixels=photo)).data)).picture.pixels
    assert np.abs(np.load(tmp_path / "back.npy").astype(int) - expected).max() <= 1


def test_a_step_is_what_the_model_computes(bundles: dict[str, Bundle]) -> None:
    """Scales and means of every step, with the symbols of torch known."""
    bundle, model = bundles["hpcm"], hpcm()
    x = torch.rand(1, 3, 256, 512, generator=torch.Generator().manual_seed(1))
    engines = [open_backend(bundle, name) for name in ("torch", "onnx")]
    states = [engine.analyze(x.numpy()) for engine in engines]
    for group in range(len(engines[0].steps.groups)):
        (symbols, indexes), (own, own_indexes) = (
            engine.steps.propose(group, state)
            for engine, state in zip(engines, states, strict=True)
        )
        assert symbols is not None and own is not None
        assert np.array_equal(np.asarray(indexes), np.asarray(own_indexes)), group
        assert np.count_nonzero(symbols.ravel() != own.ravel()) <= 1, group
        states = [
            engine.steps.accept(group, state, symbols)
            for engine, state in zip(engines, states, strict=True)
        ]
    assert engines[0].steps.groups == engines[1].steps.groups
    assert model.steps == engines[1].steps.groups[1::2]


def changed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, **graphs: Any) -> Bundle:
    """Return a bundle whose manifest says something else, as if it had been made so."""
    copy = Bundle.open(bundle.path)
    manifest = replace(copy.manifest, graphs={**copy.manifest.graphs, **graphs})
    monkeypatch.setattr(copy, "manifest", manifest)
    return copy


@contextmanager
def instead_of(name: str, content: bytes) -> Iterator[None]:
    """Let bundles hold another content of a file, as if they had been made so."""
    read = Bundle.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "read", lambda self, n: content if n == name else read(self, n))
        yield


def plan_of(bundle: Bundle, **changes: Any) -> dict[str, Any]:
    plan: dict[str, Any] = {**bundle.manifest.graphs["plan"], **changes}
    return plan


def test_a_plan_that_cannot_be_is_the_bundles_fault(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch, photo: NDArray[np.uint8]
) -> None:
    bundle = bundles["hpcm"]

    def opened(**changes: Any) -> Codec:
        return Codec(changed(bundle, monkeypatch, plan=plan_of(bundle, **changes)))

    with pytest.raises(ModelMismatchError, match=rf"{MANIFEST}: not a plan"):
        opened(begin=3)
    with pytest.raises(ModelMismatchError, match=r"tables\.npz: holds 69 entropy tables; the plan"):
        opened(levels=[float(n + 1) for n in range(90)])
    call = {"graph": "begin.onnx", "inputs": {"z": "weights/nowhere"}, "outputs": {}}
    with pytest.raises(ModelMismatchError, match=rf"{WEIGHTS}: no float32 tensor weights/nowhere"):
        opened(begin=[call])
    with pytest.raises(ModelMismatchError, match=rf"{CONSTANTS}: unreadable"):
        opened(begin=[{**call, "inputs": {"z": "constants/nowhere"}}])
    for damaged in (b"", b"PK\x03\x04 cut", b"text"):
        with (
            pytest.raises(ModelMismatchError, match=rf"{CONSTANTS}: unreadable"),
            instead_of(CONSTANTS, damaged),
        ):
            opened()
    codec = opened(begin=[{**call, "inputs": {"z": "later"}}])
    with pytest.raises(ModelMismatchError, match="has no array 'later' yet"):
        codec.compress(Picture(pixels=photo))
    codec = opened(begin=[{**call, "graph": "nowhere.onnx", "inputs": {"z": "z"}}])
    with pytest.raises(ModelMismatchError, match=r"the bundle has no nowhere\.onnx"):
        codec.compress(Picture(pixels=photo))


def test_a_tensor_of_another_size_than_its_bytes_is_the_bundles_fault(
    bundles: dict[str, Bundle],
) -> None:
    data = bundles["hpcm"].read(WEIGHTS)
    shape = json.dumps([1, 48, 1, 1], separators=(",", ":")).encode()
    for other in (b"[1,47,1,1]", b"[1,-8,1,1]", b"[1,[],1,1]"):
        with (
            pytest.raises(ModelMismatchError, match=f"{WEIGHTS}: no"),
            instead_of(WEIGHTS, data.replace(shape, other)),
        ):
            open_backend(bundles["hpcm"], "onnx")


def test_a_graph_that_differs_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = onnx_export.share_weights

    def damaged(graph: onnx.ModelProto, weights: bytes) -> onnx.ModelProto:
        for node in graph.graph.node:
            if node.op_type == "ConvTranspose":
                node.op_type = "Conv"
                break
        return share(graph, weights)

    monkeypatch.setattr(context_export, "share_weights", damaged)
    model: ContextModel = spread_hyperprior()
    with pytest.raises(ExportError, match=r"^decoder\.onnx: "):
        make_bundle(model, tmp_path / "out", DESCRIPTION, graphs=True)
    assert list(tmp_path.iterdir()) == []
