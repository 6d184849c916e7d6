import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image


def pink(seed: int, size: int) -> NDArray[np.float32]:
    """Return a smooth picture (3, size, size) in [0, 1] whose spectrum falls like a photo's."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    falloff = 1 / np.maximum(np.hypot(rows, columns), 1 / size)
    gray = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(1, size, size))) * falloff, s=(size, size))
    colour = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(3, size, size))) * falloff, s=(size, size))
    picture = gray + 0.2 * colour
    clipped = np.clip(0.5 + 0.15 * picture / picture.std(), 0, 1)
    return np.asarray(clipped, np.float32)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small, threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smooth_crops() -> torch.Tensor:
    """Crops (8, 3, 128, 128) in [0, 1]."""
    return torch.from_numpy(np.stack([pink(seed, 128) for seed in range(8)]))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four pictures of 64x64, a.png to d.png."""
    folder = tmp_path_factory.mktemp("photos")
    for seed, name in enumerate("abcd"):
        pixels = np.rint(pink(seed, 64) * 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three pictures of 160x160."""
    folder = tmp_path_factory.mktemp("large")
    for seed in range(3):
        pixels = np.rint(pink(seed, 160) * 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


# Of its own doings, such as looking at .grad of every tensor.
compiler_warns = pytest.mark.filterwarnings("default")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[Any]]]:
    """Have torch.compile use a backend of this name, and give the graphs that it then takes.

    The default one, inductor, calls a C++ compiler for minutes.
    """
    from torch._dynamo.backends.registry import lookup_backend

    # Fabric puts its own in front, which its `setup` needs to have seen the model.
    importlib.import_module("lightning_fabric")
    real: Any = torch.compile

    def begin(name: str) -> list[Any]:
        found: list[Any] = []

        def backend(graph: Any, inputs: Any) -> Any:
            found.append(graph)
            return lookup_backend(name)(graph, inputs)

        monkeypatch.setattr(torch, "compile", lambda model, **_: real(model, backend=backend))
        return found

    yield begin
    torch.compiler.reset()


@pytest.fixture
def no_waiting_for_the_disk() -> Iterator[None]:
    """Databases of studies need not survive a power cut."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def off(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", off)
    yield
    event.remove(Engine, "connect", off)
