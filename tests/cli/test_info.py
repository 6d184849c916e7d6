"""lic info and lic verify: one file, several, stdin, and files that are no good."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lic.cli import info as module
from lic.codec.container import parse
from lic.codec.image_io import read_picture
from lic.codec.pipeline import compress_lossless

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

    for place in (module, sys.modules["lic.codec.pipeline"]):
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
