"""Every codec as the same few calls: whole files that decode, options, names, and identities."""

import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.benchmark import classic
from lic.codec.benchmark.classic import FORMATS, Classic, installed_formats, parse_classic
from lic.codec.benchmark.systems import LicSystem, System, check_names, lic_systems
from lic.codec.bundle import Bundle
from lic.codec.container import Coder, parse_header
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.library import select
from lic.codec.metrics import psnr

Pixels = NDArray[np.uint8]
INSTALLED = installed_formats()


@pytest.mark.parametrize("key", FORMATS)
def test_times_are_of_a_setting_whose_rate_is_measured(key: str) -> None:
    assert FORMATS[key].usual in FORMATS[key].settings


def test_pillow_brings_all_but_jpeg_xl() -> None:
    assert set(FORMATS) - set(INSTALLED) <= {"jpegxl"}


@pytest.mark.parametrize("key", FORMATS)
def test_settings_go_from_few_bits_to_many(key: str, photo: Pixels) -> None:
    if key not in INSTALLED:
        pytest.skip(f"{key} is not installed")
    system = Classic(key=key)
    large = np.ascontiguousarray(np.tile(photo, (2, 2, 1)))
    ends = system.settings[0], system.settings[len(system.settings) // 2], system.settings[-1]
    files = [system.code(large, setting) for setting in ends]
    assert len(files[0]) < len(files[1]) < len(files[2])
    qualities = [psnr(large, system.decode(file)) for file in files]
    assert qualities[0] < qualities[1] < qualities[2]
    with Image.open(io.BytesIO(files[0])) as image:
        assert image.format == system.format.pillow
    assert system.code(large, ends[1]) == files[1]
    gray = np.ascontiguousarray(photo[..., :1])
    decoded = system.decode(system.code(gray, ends[2]), 1)
    assert decoded.shape == gray.shape and psnr(gray, decoded) > 25
    json.dumps(system.details)
    assert pickle.loads(pickle.dumps(system)) == system


def test_jpeg_is_optimised_with_half_the_colour_unless_told_otherwise(photo: Pixels) -> None:
    sizes = {
        text: len(parse_classic(text).code(photo, "50"))
        for text in ("jpeg", "jpeg:optimise=no", "jpeg:subsampling=4:4:4")
    }
    assert sizes["jpeg"] < sizes["jpeg:optimise=no"]
    assert sizes["jpeg"] < sizes["jpeg:subsampling=4:4:4"]
    with Image.open(io.BytesIO(parse_classic("jpeg").code(photo, "50"))) as image:
        layers: Any = image
        assert layers.layer[0][1:3] == (2, 2) and layers.layer[1][1:3] == (1, 1)


def test_names_tell_options_and_identities_tell_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_classic("jpeg:optimise=yes").name == "JPEG"
    system = parse_classic("jpeg:subsampling=4:4:4,optimise=no", ["10", "20"])
    assert system.name == "JPEG subsampling=4:4:4 optimise=no"
    assert system.settings == ("10", "20")
    assert system.details["options"] == {"subsampling": "4:4:4", "optimise": "no"}
    found = [
        parse_classic("jpeg").identity("10"),
        parse_classic("jpeg").identity("20"),
        system.identity("10"),
        parse_classic("webp").identity("10"),
    ]
    monkeypatch.setattr(classic, "library", lambda _: "libjpeg-turbo 99")
    found.append(parse_classic("jpeg").identity("10"))
    assert len({json.dumps(each) for each in found}) == 5


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("bpg", [], "codec is 'bpg'; expected one of jpeg, webp"),
        ("jpeg:effort=3", [], "jpeg has no option 'effort'; it has subsampling, optimise"),
        ("jpeg2000:a=b", [], "jpeg2000 has no option 'a'; it has none"),
        ("webp:method=7", [], "webp: method is '7'; expected one of 0, 1, 2"),
        ("webp:method", [], "codec is 'webp:method'; expected options as in webp:option=value"),
        ("jpeg", ["101"], "jpeg: quality is '101'; expected 0 to 100"),
        ("jpeg", ["-1"], "jpeg: quality is '-1'; expected 0 to 100"),
        ("jpeg", ["q"], "jpeg: quality is 'q'; expected 0 to 100"),
        ("jpeg2000", ["0"], "quality is '0'; expected 1 to"),
    ],
)
def test_what_cannot_be_coded_is_refused(text: str, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_classic(text, settings)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classic, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs pillow-jxl-plugin; .* pip install '\.\[jxl\]'"):
        Classic(key="jpegxl")
    monkeypatch.setattr("PIL.features.check", lambda _: False)
    assert installed_formats() == ["jpeg"]
    with pytest.raises(ConfigError, match="codec 'avif' needs a Pillow with libavif"):
        Classic(key="avif")


@pytest.fixture
def system(tiny_bundle: Path, tiny_bundle_2: Path) -> LicSystem:
    bundles = [Bundle.open(tiny_bundle), Bundle.open(tiny_bundle_2)]
    return lic_systems([bundles], ["onnx"])[0]


def test_a_family_is_a_system_of_rate_points(system: LicSystem, photo: Pixels) -> None:
    assert (system.name, system.settings, system.kind) == ("tiny-relu", ("1", "2"), "lic")
    system.open()
    files = {setting: system.code(photo, setting) for setting in system.settings}
    assert files["1"] != files["2"]
    for data in files.values():
        assert system.decode(data).shape == photo.shape
    gray = np.ascontiguousarray(photo[..., :1])
    assert system.decode(system.code(gray, "1"), 1).shape == gray.shape
    details = json.loads(json.dumps(system.details))
    assert (details["backend"], details["device"], details["threads"]) == ("onnx", "cpu", 1)
    assert details["library"].startswith("onnxruntime ")
    assert details["fingerprints"]["1"] == Bundle.open(system.bundles[0].path).manifest.fingerprint


def test_steps_are_settings_of_their_own(tiny_bundle: Path, photo: Pixels) -> None:
    (system,) = lic_systems([[Bundle.open(tiny_bundle)]], ["onnx"], steps=[0.75, 1, 1.5, 1.5])
    assert system.settings == ("1@1.5", "1", "1@0.75")
    system.open()
    sizes = [len(system.code(photo, setting)) for setting in system.settings]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    assert system.decode(system.code(photo, "1@1.5")).shape == photo.shape
    assert system.identity("1@1.5") != system.identity("1")
    with pytest.raises(ConfigError, match="step is 9"):
        lic_systems([[Bundle.open(tiny_bundle)]], ["onnx"], steps=[9])[0].open()


def test_a_system_travels_without_what_it_loaded(system: LicSystem, photo: Pixels) -> None:
    data = system.code(photo, "1")
    there: LicSystem = pickle.loads(pickle.dumps(system))
    assert there._open == {} and there.details == system.details
    assert there.code(photo, "1") == data


def test_identities_tell_bundles_backends_and_encoders_apart(
    system: LicSystem, tiny_bundle: Path, tmp_path: Path
) -> None:
    found = [system.identity("1"), system.identity("2")]
    for change in ({"backend": "torch"}, {"threads": 2}, {"device": "cuda"}):
        found.append(replace(system, **change).identity("1"))
    # Another encoder under the same fingerprint, which only names the decoder.
    bundle = Bundle.open(tiny_bundle)
    files = {**bundle.manifest.files, "encoder.onnx": {"bytes": 1, "sha256": "0" * 64}}
    bundle.manifest = replace(bundle.manifest, files=files)
    found.append(replace(system, bundles=(bundle,)).identity("1"))
    assert len({json.dumps(each) for each in found}) == len(found)
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    assert replace(system, bundles=(Bundle.open(copy),)).identity("1") == found[0]


def test_names_tell_backends_and_paths_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    names = [s.name for s in lic_systems([[bundle]], ["onnx", "torch"])]
    assert names == ["tiny-relu (onnx)", "tiny-relu (torch)"]
    copy = Bundle.open(Path(shutil.copytree(tiny_bundle, tmp_path / "other" / "1")))
    names = [s.name for s in lic_systems([[bundle], [copy]])]
    assert names == [f"tiny-relu of {b.path.parent}" for b in (bundle, copy)]
    names = [s.name for s in lic_systems([[bundle], [copy]], ["onnx", "torch"], given=["a", "b"])]
    assert names == [f"tiny-relu ({e}) of {run}" for run in "ab" for e in ("onnx", "torch")]
    assert [s.name for s in lic_systems([[bundle]], given=["a"])] == ["tiny-relu"]
    with pytest.raises(ConfigError, match="is named 2 times; once is enough"):
        lic_systems([[bundle], [bundle]])
    twice: list[System] = [Classic(key="jpeg"), parse_classic("jpeg:optimise=yes")]
    with pytest.raises(ConfigError, match="JPEG is named 2 times"):
        check_names(twice)
    with pytest.raises(ConfigError, match="backend is 'npu'"):
        lic_systems([[bundle]], ["npu"])[0].open()


def test_files_of_others_are_refused(system: LicSystem, photo: Pixels) -> None:
    other = replace(system, bundles=system.bundles[1:])
    with pytest.raises(ModelMismatchError, match="none of tiny-relu"):
        other.decode(system.code(photo, "1"))


def test_files_with_contexts_come_back(photo: Pixels) -> None:
    bundle = select()
    assert bundle.contexts is not None
    system = lic_systems([[bundle]])[0]
    file = system.code(photo, system.settings[0])
    assert parse_header(file).coder is Coder.CONTEXTS
    assert psnr(photo, system.decode(file)) > 25
    # What `lic info` tells of the file.
    (told,) = system.details["fingerprints"].values()
    assert told == parse_header(file).fingerprint.hex()
