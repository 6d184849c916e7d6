"""PyTorch on CPU or CUDA.

Shapes: as in `base`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from lic.codec.backends.base import OUT_OF_MEMORY, FactorizedBackend
from lic.codec.bundle import WEIGHTS, Bundle
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models import MODELS, FactorizedPrior
from lic.codec.models.graphs import Decoder, Encoder


def load_model(bundle: Bundle) -> FactorizedPrior:
    """Return a bundle's model in float32, ready to evaluate.

    Raises:
        ModelMismatchError: unknown architecture, or weights that do not fit it.
    """
    manifest = bundle.manifest
    model = MODELS[manifest.architecture].from_dict(manifest.config)
    try:
        model.load_state_dict(load(bundle.read(WEIGHTS)))
    except RuntimeError as error:
        raise ModelMismatchError(f"{bundle.path / WEIGHTS}: {error}") from None
    return model.eval()


class TorchBackend(FactorizedBackend):
    """Runs the model itself; the same functions that the exported graphs were made from.

    Args:
        bundle: the model.
        device: anything that torch.device takes, such as "cpu" or "cuda:0".
        threads: torch's threads (process-wide); 0 leaves them as they are.

    Raises:
        ConfigError: the device is not there.
    """

    name = "torch"

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int = 0) -> None:
        super().__init__(bundle)
        self.notes: tuple[str, ...] = ()
        self._device = _device(device)
        self.device = str(self._device)
        if threads:
            torch.set_num_threads(threads)
        model = load_model(bundle).to(self._device)
        self._encoder = Encoder(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._decoder = Decoder(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Do nothing: both directions are loaded together with the model."""

    @torch.inference_mode()
    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.int32]:
        with _memory_errors():
            image = torch.from_numpy(x).to(self._device, memory_format=torch.channels_last)
            symbols: NDArray[np.int32] = self._encoder(image).cpu().numpy()
        return symbols

    @torch.inference_mode()
    def _decode(self, symbols: NDArray[np.int32]) -> NDArray[np.float32]:
        with _memory_errors():
            x_hat: NDArray[np.float32] = (
                self._decoder(torch.from_numpy(symbols).to(self._device)).cpu().numpy()
            )
        return x_hat


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn torch's two ways of running out of memory into Python's."""
    try:
        yield
    except RuntimeError as error:
        if OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error).splitlines()[0]) from None
        raise


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} is not available to torch ({reason})") from None
    return device
