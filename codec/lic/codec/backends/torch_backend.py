"""PyTorch on CPU or CUDA.

Shapes: as in `base`.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from lic.codec.backends.base import Backend, FactorizedBackend
from lic.codec.backends.torch_context import TorchContextBackend
from lic.codec.backends.torch_device import memory_errors, torch_device
from lic.codec.bundle import WEIGHTS, Bundle
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models import MODELS, ContextModel, FactorizedPrior
from lic.codec.models.graphs import Decoder, Encoder

Precision = Literal["float32", "bfloat16"]


def load_model(bundle: Bundle) -> FactorizedPrior | ContextModel:
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


def open_torch_backend(
    bundle: Bundle, *, device: str = "cpu", threads: int = 0, precision: str = "float32"
) -> Backend:
    """Load a bundle.

    Args:
        bundle: the model.
        device: anything that torch.device takes, such as "cpu" or "cuda:0".
        threads: torch's threads (process-wide); 0 leaves them as they are.
        precision: of analysis and synthesis; "bfloat16" for models with a context.

    Raises:
        ConfigError: the device is not there, or the model has no such precision.
        ModelMismatchError: the bundle was changed.
    """
    if precision not in get_args(Precision):
        known = " or ".join(get_args(Precision))
        raise ConfigError(f"precision is {precision!r}; expected {known}")
    place = torch_device(device)
    if threads:
        torch.set_num_threads(threads)
    model = load_model(bundle)
    if isinstance(model, ContextModel):
        return TorchContextBackend(model, place, half=precision == "bfloat16")
    if precision != "float32":
        raise ConfigError(f"{bundle.label} runs in float32 only; leave out precision {precision!r}")
    return TorchBackend(bundle, model, place)


class TorchBackend(FactorizedBackend):
    """Runs a factorized prior; the same functions that the exported graphs were made from."""

    name = "torch"

    def __init__(self, bundle: Bundle, model: FactorizedPrior, device: torch.device) -> None:
        super().__init__(bundle)
        self.notes: tuple[str, ...] = ()
        self.device = str(device)
        self._device = device
        model = model.to(device)
        self._encoder = Encoder(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._decoder = Decoder(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Do nothing: both directions are loaded together with the model."""

    @torch.inference_mode()
    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.int32]:
        with memory_errors():
            image = torch.from_numpy(x).to(self._device, memory_format=torch.channels_last)
            symbols: NDArray[np.int32] = self._encoder(image).cpu().numpy()
        return symbols

    @torch.inference_mode()
    def _decode(self, symbols: NDArray[np.int32]) -> NDArray[np.float32]:
        with memory_errors():
            x_hat: NDArray[np.float32] = (
                self._decoder(torch.from_numpy(symbols).to(self._device)).cpu().numpy()
            )
        return x_hat
