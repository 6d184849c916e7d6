"""lic info and lic verify: one file, several, stdin, and files that are no good."""

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lic.cli import info as module
from lic.codec.container import parse, serialize
from lic.codec.image_io import read_picture
from lic.codec.lossless import compress_lossless

Lic = Callable[..., Any]
COMMANDS = (("info",), ("verify",), ("verify", "--structure"))


@pytest.fixture
def file(png: Path) -> Path:
    """A good .lic file, lossless, which needs no model."""
    path = png.with_suffix(".lic")
    path.write_bytes(compress_lossless(read_picture(png)).data)
    return path


@pytest.fixture
def cut(file: Path) -> Path:
    """The same, truncated."""
    path = file.with_name("cut.lic")
    path.write_bytes(file.read_bytes()[:-7])
    return path


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("command", COMMANDS)
def test_stdin_is_an_input(
    lic: Lic, file: Path, cut: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    give_stdin(monkeypatch, file.read_bytes())
    done = lic(*command, "-", "--json")
    assert done.code == 0
    (values,) = objects(done.out)
    assert values["input"] == "stdin"
    give_stdin(monkeypatch, cut.read_bytes())
    done = lic(*command, "-")
    assert done.code == 4 and "stdin: " in done.err
    assert lic(*command, "-", file).code == 2


def test_info_of_stdin_says_what_info_of_the_file_says(
    lic: Lic, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_stdin(monkeypatch, file.read_bytes())
    (piped,) = objects(lic("info", "-", "--json", "-v").out)
    (named,) = objects(lic("info", file, "--json", "-v").out)
    assert named.pop("input") == str(file)
    del piped["input"]
    assert piped == named
    assert (named["width"], named["height"], named["bytes"]) == (48, 32, file.stat().st_size)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_single_failure_is_json_too(
    lic: Lic, cut: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for path, code in ((cut, 4), (tmp_path / "missing.lic", 3), (tmp_path, 3)):
        done = lic(*command, path, "--json")
        assert done.code == code
        (values,) = objects(done.out)
        assert set(values) == {"input", "error", "exit_code"}
        assert (values["input"], values["exit_code"]) == (str(path), code)
        assert len(values["error"]) > 10
        assert f"lic: error: {path}: " in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_one_bad_file_never_stops_the_others(
    lic: Lic, file: Path, cut: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Whatever it raises: an error of lic's own, or a bug that the file lays open."""
    odd = file.with_name("odd.lic")
    odd.write_bytes(b"odd")

    def breakable(data: bytes, *rest: Any) -> Any:
        if data == b"odd":
            raise ZeroDivisionError("planted")
        return parse(data, *rest)

    for place in (module, sys.modules["lic.codec.decoding"]):
        monkeypatch.setattr(place, "parse", breakable)
    done = lic(*command, odd, cut, file, "--json")
    assert done.code == 8
    values = objects(done.out)
    assert [v["input"] for v in values] == [str(odd), str(cut), str(file)]
    assert [v.get("exit_code") for v in values] == [1, 4, None]
    assert "planted" in values[0]["error"] and "planted" in done.err
    assert lic(*command, odd).code == 1


def test_quiet_still_reports_errors(lic: Lic, file: Path, cut: Path) -> None:
    done = lic("verify", file, cut, "--quiet")
    assert done.code == 8
    assert done.err.count("\n") == 1 and str(cut) in done.err


def compressed(lic: Lic, png: Path, bundle: Path, *more: object) -> Path:
    """Return the .lic file of a picture, coded by the model of a bundle."""
    assert lic("compress", png, "-m", bundle, "-f", *more).code == 0
    return png.with_suffix(".lic")


@pytest.fixture
def picture(tmp_path: Path, large_photo: Any) -> Path:
    from PIL import Image

    path = tmp_path / "large.png"
    Image.fromarray(large_photo[:120, :300]).save(path)
    return path


def test_bits_are_told_by_part_where_the_model_is_installed(
    lic: Lic, picture: Path, tiny_bundle: Path, tiny_hpcm_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for bundle, names in ((tiny_hpcm_bundle, ["z", "s1", "s2", "s3"]), (tiny_bundle, ["y"])):
        monkeypatch.setenv("LIC_BUNDLES", str(bundle.parent))
        coded = compressed(lic, picture, bundle)
        done = lic("info", "-v", coded, "--json")
        assert done.code == 0
        (values,) = objects(done.out)
        assert list(values["bits"]) == names
        assert values["warnings"] == []
        # Beside the symbols a file has headers, checksums and the coder's states.
        assert 0 < 8 * values["bytes"] - sum(values["bits"].values()) < 2000
        text = lic("info", "-v", coded).out
        shares = [float(share) for share in re.findall(r"bits \w+ +[\d,]+ \(([\d.]+)%\)", text)]
        assert len(shares) == len(names) and sum(shares) == pytest.approx(100, abs=0.3)


def test_without_verbose_nothing_is_decoded(
    lic: Lic, picture: Path, tiny_hpcm_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.codec import inspection

    coded = compressed(lic, picture, tiny_hpcm_bundle)
    monkeypatch.setattr(inspection, "bits_by_part", None)
    (values,) = objects(lic("info", coded, "--json").out)
    assert "bits" not in values and "chunks" not in values
    assert "bits" not in lic("info", coded).out


def test_bits_of_a_model_that_is_named_by_its_path(
    lic: Lic, picture: Path, tiny_bundle: Path, tiny_hpcm_bundle: Path
) -> None:
    coded = compressed(lic, picture, tiny_hpcm_bundle)
    done = lic("info", "-v", coded, "-m", tiny_hpcm_bundle, "--json")
    (values,) = objects(done.out)
    assert done.code == 0 and values["warnings"] == []
    assert list(values["bits"]) == ["z", "s1", "s2", "s3"]
    (values,) = objects(lic("info", "-v", coded, "-m", tiny_bundle, "--json").out)
    assert "bits" not in values and str(tiny_bundle) in values["warnings"][0]


def test_bits_are_told_by_the_engine_that_was_asked_for(
    lic: Lic, picture: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.codec.pipeline import Codec

    coded = compressed(lic, picture, tiny_bundle)
    used: list[tuple[str, str]] = []
    real = Codec.check_sizes

    def check_sizes(codec: Codec, header: Any) -> None:
        used.append((codec.backend.name, codec.backend.device))
        real(codec, header)

    monkeypatch.setattr(Codec, "check_sizes", check_sizes)
    for backend in ("onnx", "torch"):
        assert lic("info", "-v", coded, "-m", tiny_bundle, "--backend", backend).code == 0
    assert used == [("onnx", "cpu"), ("torch", "cpu")]
    (values,) = objects(
        lic("info", "-v", coded, "-m", tiny_bundle, "--device", "npu9", "--json").out
    )
    assert "npu9" in values["warnings"][0] and "bits" not in values


def test_threads_reach_the_engine(
    lic: Lic, picture: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.codec import backends

    coded = compressed(lic, picture, tiny_bundle)
    told: list[int] = []
    real = backends.open_backend

    def open_backend(*arguments: Any, **options: Any) -> Any:
        told.append(options["threads"])
        return real(*arguments, **options)

    monkeypatch.setattr("lic.codec.pipeline.open_backend", open_backend)
    for command in (("info", "-v"), ("verify",)):
        assert lic(*command, coded, "-m", tiny_bundle, "--threads", 2).code == 0
    assert told == [2, 2]


def test_engines_change_nothing_unless_bits_are_asked_for(
    lic: Lic, picture: Path, tiny_hpcm_bundle: Path
) -> None:
    coded = compressed(lic, picture, tiny_hpcm_bundle)
    plain = lic("info", coded)
    done = lic("info", coded, "-m", "none", "--backend", "none", "--device", "none")
    assert (done.code, done.out, done.err) == (0, plain.out, "")


def test_a_model_that_is_not_here_costs_a_warning_only(
    lic: Lic, picture: Path, tiny_hpcm_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.codec import backends

    coded = compressed(lic, picture, tiny_hpcm_bundle)
    done = lic("info", "-v", coded, "--json")
    assert done.code == 0
    (values,) = objects(done.out)
    assert "bits" not in values and values["chunks"]
    (warning,) = values["warnings"]
    assert warning.startswith("bits by part are unknown: ") and "hpcm-tiny q4" in warning
    assert "not installed" in lic("info", "-v", coded).out
    monkeypatch.setenv("LIC_BUNDLES", str(tiny_hpcm_bundle.parent))
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "torch" else name)
    done = lic("info", "-v", coded)
    assert done.code == 0 and "backend 'torch' needs torch" in done.out


def test_a_size_that_no_decoder_accepts_is_not_decoded(
    lic: Lic, picture: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few bytes may claim any size; describing them must not fill the memory."""
    monkeypatch.setenv("LIC_BUNDLES", str(tiny_bundle.parent))
    coded = compressed(lic, picture, tiny_bundle)
    file = parse(coded.read_bytes())
    header = replace(file.header, width=2**16 - 1, height=2**16 - 1)
    coded.write_bytes(serialize(replace(file, header=header)))
    done = lic("info", "-v", coded, "--json")
    assert done.code == 0
    (values,) = objects(done.out)
    assert "the limit is" in values["warnings"][0] and "bits" not in values


@pytest.mark.parametrize("command", ["compress", "decompress", "verify", "eval"])
def test_precision_is_for_models_with_a_context_on_torch(
    lic: Lic,
    picture: Path,
    tmp_path: Path,
    tiny_bundle: Path,
    tiny_hpcm_bundle: Path,
    command: str,
) -> None:
    def run(bundle: Path, precision: str, *more: object) -> Any:
        source = picture if command in ("compress", "eval") else compressed(lic, picture, bundle)
        target = ("-o", tmp_path / "result", "-f") if command != "verify" else ()
        options = ("-m", bundle, "--precision", precision, *target, *more)
        if command == "eval":
            options = (*options, "--repeats", 1)
        return lic(command, source, *options)

    done = run(tiny_hpcm_bundle, "bfloat16")
    assert done.code == 0 and "meant for CUDA and usually slower on a CPU" in done.err
    assert "CUDA" not in run(tiny_hpcm_bundle, "float32").err
    done = run(tiny_bundle, "bfloat16")
    assert done.code == 2 and "precision 'bfloat16' needs backend 'torch'" in done.err
    done = run(tiny_bundle, "bfloat16", "--backend", "torch")
    assert done.code == 2 and "runs in float32 only" in done.err
    done = run(tiny_hpcm_bundle, "int8")
    assert done.code == 2 and "expected float32 or bfloat16" in done.err


def test_files_of_either_precision_decode_in_the_other(
    lic: Lic, picture: Path, tiny_hpcm_bundle: Path
) -> None:
    """What selects tables has one precision; the encoder's is in the symbols."""
    for one, other in (("float32", "bfloat16"), ("bfloat16", "float32")):
        coded = compressed(lic, picture, tiny_hpcm_bundle, "--precision", one)
        done = lic("verify", coded, "-m", tiny_hpcm_bundle, "--precision", other)
        assert done.code == 0, done.err
