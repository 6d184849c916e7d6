"""PyTorch for models whose entropy parameters come from a network: hyperprior, HPCM.

Shapes: B batch, M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.codec.backends.torch_device import memory_errors
from lic.codec.latents import State, Steps, checked_symbols
from lic.codec.models.context import ContextModel, Progress
from lic.codec.models.graphs import CODABLE, UNCODABLE


@dataclass
class CodingState:
    """Latents on their way through the walk; tensors stay on the device.

    Attributes:
        shape: of z, (B, N, h / 4, w / 4).
        y: (B, M, h, w), None when decoding.
        z: rounded symbols as floats, None when decoding.
        progress: of the model, from the moment that z is known.
        means: of the step under way.
        symbols: of the step under way as floats, None when decoding.
    """

    shape: tuple[int, ...]
    y: Tensor | None = None
    z: Tensor | None = None
    progress: Progress = None
    means: Tensor | None = None
    symbols: Tensor | None = None


class ContextSteps:
    """Orders the latents of a model: z, then its steps. See `lic.codec.latents.Steps`."""

    def __init__(self, model: ContextModel, device: torch.device) -> None:
        self.groups: tuple[str, ...] = ("z", *model.steps)
        self._model = model
        self._device = device

    @torch.inference_mode()
    def propose(
        self, group: int, state: State
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        """Return a group's symbols (None when decoding) and the indexes of their tables."""
        if group == 0:
            channels = np.arange(state.shape[1], dtype=np.uint16)[:, None, None]
            symbols = None if state.z is None else _to_symbols(state.z, "z")
            return symbols, np.broadcast_to(channels, state.shape)
        step = group - 1
        with _faithful(self._device):
            scales, state.means = self._model.parameters_of(step, state.progress)
            # Fewer bytes than int64 on their way from the device; indexes stay below 2^15.
            indexes = self._model.indexes(scales).to(torch.int16)
            if state.y is None:
                return None, indexes.cpu().numpy().view(np.uint16)
            state.symbols = torch.round(self._model.select(step, state.y) - state.means)
        symbols = _to_symbols(state.symbols, f"y, step {step}")
        return symbols, indexes.cpu().numpy().view(np.uint16)

    @torch.inference_mode()
    def accept(self, group: int, state: State, symbols: NDArray[np.int16]) -> State:
        """Return the state with a group's symbols known."""
        known = state.z if group == 0 else state.symbols
        if known is None:
            known = torch.from_numpy(symbols).to(self._device).to(torch.float32)
        with _faithful(self._device):
            if group == 0:
                state.progress = self._model.begin(known)
            else:
                self._model.accept(group - 1, state.progress, known + state.means)
        return state


class TorchContextBackend:
    """Runs a `ContextModel`; encoder and decoder compute with the very same calls.

    Args:
        model: in float32.
        device: where to run it.
        half: run analysis and synthesis, on which no symbol of the decoder depends, in bfloat16.
    """

    name = "torch"

    def __init__(self, model: ContextModel, device: torch.device, *, half: bool = False) -> None:
        self.notes: tuple[str, ...] = ()
        self.device = str(device)
        self.model = model.to(device).eval().requires_grad_(False)
        self.steps: Steps = ContextSteps(self.model, device)
        self._device = device
        self._half = half

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Do nothing: both directions are loaded together with the model."""

    @torch.inference_mode()
    def analyze(self, x: NDArray[np.float32]) -> State:
        """Return the state with y and z of x (B, 3, H, W) in [0, 1]."""
        with memory_errors():
            image = torch.from_numpy(x).to(self._device)
            with self._transform_precision():
                y = self.model.analyze(image)
            y = y.to(torch.float32)
            with _faithful(self._device):
                z = torch.round(self.model.hyper_analyze(y))
            return CodingState(shape=tuple(z.shape), y=y, z=z)

    def blank(self, height: int, width: int) -> State:
        """Return the decoder's first state for one picture of H x W pixels."""
        return CodingState(shape=(1, self.model.config.N, height // 64, width // 64))

    @torch.inference_mode()
    def synthesize(self, state: State) -> NDArray[np.float32]:
        """Return x_hat (B, 3, H, W) in [0, 1] from the state after the walk."""
        with memory_errors(), self._transform_precision():
            x_hat = self.model.synthesize(self.model.y_hat(state.progress))
            pixels: NDArray[np.float32] = x_hat.to(torch.float32).clamp(0, 1).cpu().numpy()
        return pixels

    def _transform_precision(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)


def _to_symbols(values: Tensor, name: str) -> NDArray[np.int16]:
    codable = torch.abs(values) <= CODABLE
    symbols = torch.where(codable, values, float(UNCODABLE)).to(torch.int32)
    return checked_symbols(symbols.cpu().numpy(), name)


class _Float32:
    """Keeps CUDA to plain float32 and to one choice of kernels while anyone is inside.

    TF32 keeps ten bits, and a kernel that is chosen by its speed today may be another tomorrow. The
    settings are the process's: of several threads the first sets them, the last puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[bool, bool, bool, bool] = (False, False, False, False)

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = self._settings()
                self._set(False, False, False, True)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(*self._before)

    @staticmethod
    def _settings() -> tuple[bool, bool, bool, bool]:
        cudnn = torch.backends.cudnn
        matmul = torch.backends.cuda.matmul.allow_tf32
        return matmul, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic

    @staticmethod
    def _set(matmul_tf32: bool, tf32: bool, benchmark: bool, deterministic: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = matmul_tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = benchmark
        torch.backends.cudnn.deterministic = deterministic


_float32 = _Float32()


@contextlib.contextmanager
def _faithful(device: torch.device) -> Iterator[None]:
    """Surround what selects tables, so that it gives the same numbers every time."""
    with memory_errors(), _float32 if device.type == "cuda" else contextlib.nullcontext():
        yield
