"""PyTorch for models whose entropy parameters come from a network: hyperprior, HPCM.

Shapes: B batch, M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.codec.backends.context_steps import ContextState, ContextSteps
from lic.codec.backends.torch_device import memory_errors, provider_name
from lic.codec.latents import State, Steps, checked_symbols
from lic.codec.models.context import ContextModel, Progress
from lic.codec.models.graphs import to_symbols
from lic.codec.models.nudges import Nudger
from lic.codec.stages import stage


@dataclass(kw_only=True)
class CodingState(ContextState):
    """Tensors stay on the device.

    Attributes:
        z: rounded symbols as floats, None when decoding.
        y: (B, M, h, w), None when decoding.
        progress: of the model, from the moment that z is known.
        scales, means: of the step under way.
        symbols: of the step under way as floats, None when decoding.
    """

    z: Tensor | None = None
    y: Tensor | None = None
    progress: Progress = None
    scales: Tensor | None = None
    means: Tensor | None = None
    symbols: Tensor | None = None


class TorchContextSteps(ContextSteps):
    """Computes a model's steps with torch."""

    def __init__(self, model: ContextModel, device: torch.device) -> None:
        super().__init__(model.steps, model.table_count, len(model.levels))
        self._model = model
        self._device = device
        self._nudger = Nudger(model.levels)

    @torch.inference_mode()
    def propose(
        self, group: int, state: State
    ) -> tuple[NDArray[np.int16] | None, NDArray[np.uint16]]:
        """Return a group's symbols (None when decoding) and the indexes of their tables."""
        with _faithful(self._device):
            return super().propose(group, state)

    @torch.inference_mode()
    def accept(self, group: int, state: State, symbols: NDArray[np.int16]) -> State:
        """Return the state with a group's symbols known.

        Raises:
            BitstreamError: a nudge is none that an encoder writes.
        """
        with _faithful(self._device):
            return super().accept(group, state, symbols)

    def _symbols_of_z(self, state: CodingState) -> NDArray[np.int16]:
        assert state.z is not None
        return _to_symbols(state.z, "z")

    def _begin(self, state: CodingState, symbols: NDArray[np.int16]) -> None:
        state.progress = self._model.begin(self._known(state.z, symbols))

    def _predict(self, step: int, state: CodingState) -> int:
        state.scales, state.means = self._model.parameters_of(step, state.progress)
        return state.scales.numel()

    def _choose_nudges(self, state: CodingState) -> NDArray[np.int16]:
        assert state.scales is not None
        return _to_host(self._nudger.choose(state.scales).to(torch.int16))

    def _indexes_of_y(self, state: CodingState) -> NDArray[np.uint16]:
        assert state.scales is not None and state.nudges is not None
        nudges = _to_device(state.nudges, self._device).long()
        levels = self._nudger.levels(state.scales, nudges)
        # Fewer bytes than int64 on their way from the device; indexes stay below 2^15.
        return _to_host((self._channels + levels).to(torch.int16)).view(np.uint16)

    def _symbols_of_y(self, step: int, state: CodingState) -> NDArray[np.int16]:
        assert state.y is not None and state.means is not None
        selected = self._model.select(step, state.y)
        with stage("quantise"):
            state.symbols = torch.round(selected - state.means)
        return _to_symbols(state.symbols, f"y, step {step}")

    def _finish(self, step: int, state: CodingState, symbols: NDArray[np.int16]) -> None:
        assert state.means is not None
        y_hat = self._known(state.symbols, symbols) + state.means
        self._model.accept(step, state.progress, y_hat)

    def _known(self, own: Tensor | None, symbols: NDArray[np.int16]) -> Tensor:
        """Return symbols as floats: the encoder's own, which are on the device, or those read."""
        if own is not None:
            return own
        return _to_device(symbols, self._device).to(torch.float32)


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
        self.provider = provider_name(device)
        with memory_errors():
            self.model = model.to(device).eval().requires_grad_(False)
        steps = TorchContextSteps(self.model, device)
        self.steps: Steps = steps
        self._shape_of_z = steps.shape_of_z
        self._device = device
        self._half = half

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Do nothing: both directions are loaded together with the model."""

    @torch.inference_mode()
    def analyze(self, x: NDArray[np.float32]) -> State:
        """Return the state with y and z of x (B, 3, H, W) in [0, 1]."""
        with _faithful(self._device):
            image = _to_device(x, self._device)
            with self._transform_precision():
                y = self.model.analyze(image)
            y = y.to(torch.float32)
            z = self.model.hyper_analyze(y)
            with stage("quantise"):
                z = torch.round(z)
            return CodingState(shape=tuple(z.shape), y=y, z=z)

    def blank(self, height: int, width: int) -> State:
        """Return the decoder's first state for one picture of H x W pixels."""
        return CodingState(shape=self._shape_of_z(height, width))

    @torch.inference_mode()
    def synthesize(self, state: State) -> NDArray[np.float32]:
        """Return x_hat (B, 3, H, W) in [0, 1] from the state after the walk."""
        with _faithful(self._device), self._transform_precision():
            x_hat = self.model.synthesize(self.model.y_hat(state.progress))
            pixels: NDArray[np.float32] = _to_host(x_hat.to(torch.float32).clamp(0, 1))
        return pixels

    def _transform_precision(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._half)


def _to_symbols(values: Tensor, name: str) -> NDArray[np.int16]:
    with stage("quantise"):
        return checked_symbols(_to_host(to_symbols(values)), name)


def _to_host(values: Tensor) -> NDArray[Any]:
    with stage("copy"):
        copied: NDArray[Any] = values.cpu().numpy()
        return copied


def _to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    with stage("copy"):
        return torch.from_numpy(values).to(device)


# Precision of matrix products and of convolutions, and cuDNN's benchmark and deterministic.
_Settings = tuple[Any, Any, bool, bool]


class _Float32:
    """Keeps CUDA to plain float32 and to one choice of kernels while anyone is inside.

    TF32 keeps ten bits, and a kernel that is chosen by its speed today may be another tomorrow. The
    settings are the process's: of several threads the first sets them, the last puts them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: _Settings = (False, False, False, False)

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = self._settings()
                exact = "ieee" if self._named() else False
                self._set(exact, exact, False, True)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._set(*self._before)

    @staticmethod
    def _named() -> bool:
        """Return whether this torch names precisions; there, asking the older way may raise."""
        return hasattr(torch.backends.cudnn, "conv")

    def _settings(self) -> _Settings:
        cudnn: Any = torch.backends.cudnn
        matmul = torch.backends.cuda.matmul
        if self._named():
            precisions = matmul.fp32_precision, cudnn.conv.fp32_precision
        else:
            precisions = matmul.allow_tf32, cudnn.allow_tf32
        return *precisions, cudnn.benchmark, cudnn.deterministic

    def _set(self, matmul: Any, conv: Any, benchmark: bool, deterministic: bool) -> None:
        cudnn: Any = torch.backends.cudnn
        if self._named():
            torch.backends.cuda.matmul.fp32_precision = matmul
            cudnn.conv.fp32_precision = conv
        else:
            torch.backends.cuda.matmul.allow_tf32 = matmul
            cudnn.allow_tf32 = conv
        cudnn.benchmark = benchmark
        cudnn.deterministic = deterministic


_float32 = _Float32()


@contextlib.contextmanager
def _faithful(device: torch.device) -> Iterator[None]:
    """Surround networks, so that they give the same numbers every time."""
    with memory_errors(), _float32 if device.type == "cuda" else contextlib.nullcontext():
        yield
