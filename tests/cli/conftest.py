"""Run command lines in this process and look at what they leave behind."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from lic.cli.app import run


class Result(NamedTuple):
    code: int
    out: str
    err: str


Lic = Callable[..., Result]


@pytest.fixture
def lic(capsys: pytest.CaptureFixture[str]) -> Lic:
    """Return a function that runs `lic` with arguments."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """A small photo as a file: 48x32 pixels."""
    from PIL import Image

    path = tmp_path / "photo.png"
    with Image.open("samples/kodim23.png") as image:
        image.crop((100, 100, 148, 132)).save(path)
    return path


@pytest.fixture
def stepping_down(tmp_path: Path) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which permissions count: the administrator may write anywhere."""
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)

    @contextmanager
    def down() -> Iterator[None]:
        administrator = os.geteuid() == 0
        try:
            if administrator:
                os.seteuid(65534)
            yield
        finally:
            if administrator:
                os.seteuid(0)

    return down
