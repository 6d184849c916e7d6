"""lic export: graphs and bundles, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.bundle import EMBEDDED, Bundle
from lic.export.forms import FORMS
from tests.cli.conftest import Lic

H, W = 64, 96


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("half", [False, True])
def test_a_bundle_of_a_bundle_has_its_fingerprint(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, half: bool
) -> None:
    """Stored in float16 or not: files that were coded with one decode with the other."""
    if half:
        tiny_bundle = EMBEDDED / "bmshj2018-factorized-relu-lite" / "1"
    done = lic("export", tiny_bundle, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    made = Bundle.open(tmp_path / "out")
    made.check()
    assert made.fingerprint == Bundle.open(tiny_bundle).fingerprint
    assert values["fingerprint"] == made.manifest.fingerprint
    assert values["bytes"] == sum(values["files"].values())


def test_parts_are_single_files_that_say_what_they_are(
    lic: Lic, tiny_bundle: Path, tmp_path: Path
) -> None:
    parts = ("--part", "encoder", "--part", "decoder", "--part", "full")
    done = lic("export", tiny_bundle, "-o", tmp_path, *parts, "--input-size", f"{H},{W}")
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "encoder.onnx", "decoder.onnx", "full.onnx"
    }  # fmt: skip
    for path in tmp_path.iterdir():
        onnx.checker.check_model(onnx.load(path), full_check=True)
        found = metadata(path)
        assert found["lic.fingerprint"] == Bundle.open(tiny_bundle).manifest.fingerprint
        assert (found["lic.part"], found["lic.model"]) == (path.stem, "tiny-relu q1")
        assert found["lic.agreement"].startswith("largest error ")
        assert {"lic.torch", "lic.onnxruntime", "lic.lic", "lic.tolerance"} <= found.keys()
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    assert session.get_inputs()[0].shape == [1, 3, H, W]
    assert "encoder -> " in done.err and "largest error" in done.err


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_the_opset_is_the_one_asked_for(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, opset: int
) -> None:
    done = lic("export", tiny_bundle, "-o", tmp_path, "--part", "decoder", "--opset", opset)
    assert done.code == 0, done.err
    (entry,) = onnx.load(tmp_path / "decoder.onnx").opset_import
    assert entry.version == opset


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "tflite"), "--format is 'tflite'; expected onnx"),
        (("--part", "middle"), "--part is 'middle'; expected full, encoder, decoder, bundle"),
        (("--part", "bundle", "--part", "full"), "--part bundle is a folder of its own"),
        (("--opset", "17"), "--opset means nothing for a bundle"),
        (("--input-size", "64,64"), "--input-size means nothing for a bundle"),
        (("--part", "full", "--opset", "12"), "--opset is 12; expected 13 to 20"),
        (("--part", "full", "--opset", "21"), "--opset is 21; expected 13 to 20"),
        (("--part", "full", "--input-size", "64"), "--input-size is '64'; expected height and"),
        (("--part", "full", "--input-size", "a,b"), "--input-size is 'a,b'; expected height"),
        (("--part", "full", "--input-size", "60,64"), "60,64; expected multiples of 16, such as"),
        (("--part", "full", "--input-size", "0,64"), "expected multiples of 16, such as 16,64"),
        (("--part", "full", "--dynamic", "--input-size", "64,64"), "--dynamic contradicts"),
        (("--part", "full", "--dtype", "float16"), "--dtype means nothing for single graphs"),
        (("--external-round",), "--external-round means nothing for a bundle"),
        (("--int8",), "--int8 needs pictures to take its ranges from"),
        (("--int8", "--calib", ""), "--int8 needs pictures to take its ranges from"),
        (("--int8", "--fp16"), "--int8 contradicts --fp16"),
        (("--calib", "."), "--calib means nothing without --int8"),
        (("--calib-method", "rd"), "--calib-method means nothing without --int8"),
        (("--int8", "--calib", ".", "--calib-method", "best"), "method is 'best'; expected"),
        (("--int8", "--calib", ".", "--int8-sides", "left"), "sides is 'left'; expected"),
        (("--part", "encoder", "--int8"), "--int8 needs pictures to take its ranges from"),
        (("--part", "full", "--int8", "--calib", "."), "--int8 is not for --part full"),
        (
            ("--part", "encoder", "--int8", "--calib", ".", "--int8-sides", "encoder"),
            "--int8-sides means nothing for single graphs",
        ),
        (
            ("--part", "encoder", "--int8", "--calib", ".", "--input-size", "60,64"),
            "60,64; expected multiples of 16",
        ),
        (("--part", "full", "--external-round"), "--external-round is for the encoder and the"),
        (("--part", "full", "--fp16"), "--fp16 is not for --part full, whose bits"),
        (("--part", "decoder", "--upsample", "k7"), "upsample is 'k7'; expected one of k5"),
        (("--upsample", "k7"), "upsample is 'k7'; expected one of k5"),
        (("--dtype", "float16"), "--dtype means nothing with tiny-relu q1, a bundle"),
    ],
)
def test_options_that_cannot_be_are_refused(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    done = lic("export", tiny_bundle, "-o", tmp_path / "out", *options)
    assert done.code == 2
    assert said in done.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_unless_told(lic: Lic, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "full.onnx").write_bytes(b"mine")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "note.txt").write_text("mine")
    for options in (("-o", tmp_path, "--part", "full"), ("-o", tmp_path / "bundle")):
        done = lic("export", tiny_bundle, *options)
        assert done.code == 7
        assert "exists" in done.err
    assert (tmp_path / "full.onnx").read_bytes() == b"mine"
    assert lic("export", tiny_bundle, "-o", tmp_path / "bundle", "-f").code == 7
    assert (tmp_path / "bundle" / "note.txt").read_text() == "mine"
    assert lic("export", tiny_bundle, "-o", tmp_path, "--part", "full", "-f").code == 0
    assert (tmp_path / "full.onnx").stat().st_size > 1000


def test_graphs_do_not_go_into_a_bundle(lic: Lic, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    done = lic("export", tiny_bundle, "-o", tmp_path / "bundle", "--part", "decoder", "-f")
    assert done.code == 7
    assert "is a bundle, which other graphs would break" in done.err
    Bundle.open(tmp_path / "bundle").read("decoder.onnx")


def test_what_is_asked_for_comes_whole_or_not_at_all(
    lic: Lic, tiny_bundle: Path, tmp_path: Path
) -> None:
    parts = ("--part", "decoder", "--part", "full")
    assert lic("export", tiny_bundle, "-o", tmp_path / "out", *parts, "--fp16").code == 2
    assert not (tmp_path / "out").exists()


def test_sources_that_hold_no_model(lic: Lic, tmp_path: Path) -> None:
    (tmp_path / "odd.pth").write_bytes(b"?" * 100)
    for source in ("nobody-knows-it", tmp_path / "odd.pth"):
        done = lic("export", source, "-o", tmp_path / "out")
        assert done.code == 5
        assert str(source) in done.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_has_no_rate_points_to_choose_from(lic: Lic, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"?")
    done = lic("export", tmp_path / "a.pth", "-o", tmp_path / "out", "-q", 2)
    assert done.code == 2
    assert "--rate means nothing with" in done.err


def test_a_folder_that_cannot_be_written(lic: Lic, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for options in (("--part", "decoder"), ()):
        done = lic("export", tiny_bundle, "-o", tmp_path / "file" / "out", *options)
        assert done.code == 7, done.err
        assert "cannot be written" in done.err


def test_int8_on_the_decoder_only(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, photo: NDArray[np.uint8]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")
    done = lic(
        "export", tiny_bundle, "-o", tmp_path / "int8", "--int8", "--calib", tmp_path / "photos",
        "--int8-sides", "decoder", "--upsample", "subpixel",
    )  # fmt: skip
    assert done.code == 0, done.err
    made = Bundle.open(tmp_path / "int8")
    assert made.fingerprint == Bundle.open(tiny_bundle).fingerprint
    assert made.manifest.graphs["decoder"]["precision"] == "int8"
    assert "precision" not in made.manifest.graphs["encoder"]
    operators = {n.op_type for n in onnx.load(tmp_path / "int8" / "decoder.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators


@pytest.mark.parametrize(
    ("part", "options", "shape"),
    [
        ("encoder", ("--input-size", "64,96"), [1, 3, 64, 96]),
        ("decoder", ("--input-size", "64,96", "--opset", "17"), [1, 12, 4, 6]),
        ("encoder", ("--external-round", "--upsample", "k6", "--opset", "13"), [1, 3, 0, 0]),
        ("decoder", ("--external-round", "--upsample", "subpixel"), [1, 12, 0, 0]),
    ],
)
def test_a_single_int8_graph(
    lic: Lic, tiny_bundle: Path, tmp_path: Path, photo: NDArray[np.uint8],
    part: str, options: tuple[str, ...], shape: list[int],
) -> None:  # fmt: skip
    (tmp_path / "photos").mkdir()
    Image.fromarray(photo).save(tmp_path / "photos" / "a.png")
    done = lic(
        "export", tiny_bundle, "-o", tmp_path, "--part", part, "--int8",
        "--calib", tmp_path / "photos", *options, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert 0 < told["error"] < 0.2
    assert (part == "encoder") == (told["symbols"] > 0)
    found = metadata(tmp_path / f"{part}.onnx")
    assert found["lic.calibration"] == "minmax" and found["lic.upsample"] in FORMS
    assert found["lic.external_round"] == str("--external-round" in options)
    graph = onnx.load(tmp_path / f"{part}.onnx")
    assert metadata(tmp_path / f"{part}.onnx")["lic.precision"] == "int8"
    (given,), (left,) = graph.graph.input, graph.graph.output
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == shape
    operators = {node.op_type for node in graph.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert "Shape" not in operators or not shape[3]
    outside = "--external-round" in options
    assert outside == ("Round" not in operators and "Clip" not in operators)
    kinds = {given.type.tensor_type.elem_type, left.type.tensor_type.elem_type}
    assert kinds == {onnx.TensorProto.FLOAT} | (set() if outside else {onnx.TensorProto.INT32})
    onnxruntime.InferenceSession(graph.SerializeToString())


def test_a_calibration_folder_that_is_not_there(
    lic: Lic, tiny_bundle: Path, tmp_path: Path
) -> None:
    done = lic("export", tiny_bundle, "-o", tmp_path / "a", "--int8", "--calib", tmp_path / "none")
    assert done.code == 3
    assert "none" in done.err


def test_a_calibration_folder_without_pictures(lic: Lic, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    done = lic(
        "export", tiny_bundle, "-o", tmp_path / "int8", "--int8", "--calib", tmp_path / "photos"
    )
    assert done.code == 3
    assert "photos" in done.err
    assert not (tmp_path / "int8").exists()


@pytest.mark.parametrize("options", [("--fp16",), ("--upsample", "k6")])
def test_other_graphs_for_the_same_model(
    lic: Lic, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source = EMBEDDED / "bmshj2018-factorized-relu-lite" / "2"
    done = lic("export", source, "-o", tmp_path / "out", *options)
    assert done.code == 0, done.err
    made = Bundle.open(tmp_path / "out")
    assert made.fingerprint == Bundle.open(source).fingerprint
    expected = ("float16", "k5") if "--fp16" in options else ("float32", "k6")
    for entry in made.manifest.graphs.values():
        assert (entry["precision"], entry["upsample"]) == expected


def test_rounding_left_to_the_caller(lic: Lic, tiny_bundle: Path, tmp_path: Path) -> None:
    parts = ("--part", "encoder", "--part", "decoder", "--upsample", "k6", "--external-round")
    done = lic("export", tiny_bundle, "-o", tmp_path, *parts, "--input-size", f"{H},{W}")
    assert done.code == 0, done.err
    operators = {node.op_type for path in tmp_path.iterdir() for node in onnx.load(path).graph.node}
    assert operators == {"Conv", "Relu", "Sub", "ConvTranspose", "Add"}
