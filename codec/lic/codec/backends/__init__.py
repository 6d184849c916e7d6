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


def open_backend(
    bundle: Bundle, name: str = "auto", *, device: str = "cpu", threads: int = 0
) -> Backend:
    """Load a bundle on an engine; "auto" is ONNX Runtime on the CPU, torch on a CUDA device.

    Raises:
        ConfigError: no such backend or device, or its package is not installed.
        ModelMismatchError: the bundle was changed.
    """
    if name not in BACKENDS:
        raise ConfigError(f"backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    if name == "auto":
        name = "torch" if device.startswith("cuda") and find_spec("torch") else "onnx"
    packages, extra = _NEEDS[name]
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(
                f"backend {name!r} needs {package}; in lic's own folder: pip install '{extra}'"
            )
    if name == "torch":
        from lic.codec.backends.torch_backend import TorchBackend

        return TorchBackend(bundle, device=device, threads=threads)
    from lic.codec.backends.ort_backend import OrtBackend

    return OrtBackend(bundle, device=device, threads=threads)


__all__ = ["BACKENDS", "Backend", "BackendName", "open_backend"]
