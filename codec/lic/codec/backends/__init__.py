"""The same few calls on two engines; the engine is imported when it is asked for."""

from importlib.util import find_spec
from typing import Literal

from lic.codec.backends.base import Backend
from lic.codec.bundle import Bundle
from lic.codec.errors import ConfigError

BackendName = Literal["auto", "onnx", "torch"]
BACKENDS: tuple[BackendName, ...] = ("auto", "onnx", "torch")


_NEEDS = {
    "torch": (("torch", "safetensors"), ".[torch]"),
    "onnx": (("onnxruntime",), "."),
}


def engine(bundle: Bundle, name: str = "auto", device: str = "cpu") -> str:
    """Return the backend that a name stands for with this bundle: "onnx" or "torch".

    "auto" is ONNX Runtime, but torch on a CUDA device and for bundles without graphs.

    Raises:
        ConfigError: no such backend.
    """
    if name not in BACKENDS:
        raise ConfigError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    if name != "auto":
        return name
    torch_on_gpu = device.startswith("cuda") and find_spec("torch")
    return "torch" if torch_on_gpu or not bundle.has_graphs else "onnx"


def open_backend(
    bundle: Bundle,
    name: str = "auto",
    *,
    device: str = "cpu",
    threads: int = 0,
    precision: str = "float32",
) -> Backend:
    """Load a bundle on an engine; see `engine` for "auto".

    Raises:
        ConfigError: no such backend or device, its package is not installed, or the bundle or the
            backend has nothing for what is asked.
        ModelMismatchError: the bundle was changed.
    """
    name = engine(bundle, name, device)
    packages, extra = _NEEDS[name]
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(
                f"{bundle.label}: backend {name!r} needs {package}; in lic's own folder: "
                f"pip install '{extra}'"
            )
    if name == "torch":
        from lic.codec.backends.torch_backend import open_torch_backend

        return open_torch_backend(bundle, device=device, threads=threads, precision=precision)
    if not bundle.has_graphs:
        raise ConfigError(
            f"{bundle.label} has no graphs for ONNX Runtime: take backend 'torch', or make "
            "a bundle that has them with 'lic export'"
        )
    if precision != "float32":
        raise ConfigError(f"precision {precision!r} needs backend 'torch'; graphs have their own")
    from lic.codec.backends.ort_backend import open_ort_backend

    return open_ort_backend(bundle, device=device, threads=threads)


__all__ = ["BACKENDS", "Backend", "BackendName", "engine", "open_backend"]
