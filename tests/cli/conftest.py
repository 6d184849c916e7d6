"""Run command lines in this process and look at what they leave behind."""

import codecs
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lic.cli.app import run
from lic.codec.bundle import Bundle


class Result(NamedTuple):
    code: int
    out: str
    err: str


Lic = Callable[..., Result]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On tensors of small models, threads that wait for each other cost more than they give."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    ours = [p for p in tmp_path.parents if p.name.startswith(("pytest-", "popen-"))]
    for folder in (tmp_path, *ours):
        folder.chmod(0o755)
    # zipfile wants it, and nobody else may enter a Python that the administrator has at home.
    codecs.lookup("cp437")

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


@pytest.fixture
def full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, int], AbstractContextManager[None]]:
    """Return a context in which, from a training step on, the system ends files at a size."""
    from lic.trainers.stepper import Stepper

    real = Stepper.take

    @contextmanager
    def full(step: int, size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)

        def take(stepper: Stepper, number: int, x: Any) -> Any:
            if number == step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            return real(stepper, number, x)

        monkeypatch.setattr(Stepper, "take", take)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_bundle: Path) -> dict[str, Any]:
    """What make_bundle was last told; it writes nothing, and no bundle of the user's is there."""
    from lic.export import make_bundle as module

    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    told: dict[str, Any] = {}

    def make_bundle(model: Any, target: Path, description: Any, **options: Any) -> Bundle:
        told.update(model=model, target=target, description=description, **options)
        return Bundle.open(tiny_bundle)

    monkeypatch.setattr(module, "make_bundle", make_bundle)
    return told
