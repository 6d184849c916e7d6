"""PyTorch on CPU or CUDA.

Shapes: as in `base`.
"""

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lic.codec.backends.base import Backend, FactorizedBackend
from lic.codec.backends.torch_context import TorchContextBackend
from lic.codec.backends.torch_device import memory_errors, provider_name, torch_device
from lic.codec.bundle import MANIFEST, TABLES, WEIGHTS, Bundle
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models import MODELS, ContextModel, FactorizedPrior
from lic.codec.models.graphs import Analysis, Synthesis
from lic.codec.models.parameter_counts import check_size
from lic.codec.stages import stage

Precision = Literal["float32", "bfloat16"]


def load_model(bundle: Bundle) -> FactorizedPrior | ContextModel:
    """Return a bundle's model in float32, ready to evaluate.

    Memory: twice the model's weights.

    Raises:
        ModelMismatchError: weights that cannot be read or do not fit the config, a config that
            cannot work, or another stride than the model's.
    """
    manifest = bundle.manifest
    weights = _read_weights(bundle)
    where = bundle.path / WEIGHTS
    try:
        check_size(manifest.architecture, manifest.config, weights, str(where))
        model = MODELS[manifest.architecture].from_dict(manifest.config)
    except ConfigError as error:
        raise ModelMismatchError(f"{bundle.path / MANIFEST}: config of {error}") from None
    if manifest.stride != model.stride:
        raise ModelMismatchError(
            f"{bundle.path / MANIFEST}: stride is {manifest.stride}; this {model.name} takes "
            f"pictures in multiples of {model.stride}"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelMismatchError(f"{where}: {error}") from None
    return model.eval()


def _read_weights(bundle: Bundle) -> dict[str, Tensor]:
    """Return the tensors of a bundle's weights; the file's own bytes are gone by then."""
    data = bundle.read(WEIGHTS)
    # The package holds every tensor's size against its bytes, and knows dtypes that torch does not.
    try:
        return load(data)
    except (SafetensorError, KeyError) as error:
        raise ModelMismatchError(
            f"{bundle.path / WEIGHTS}: not a safetensors file ({error})"
        ) from None


def _check_tables(bundle: Bundle, model: FactorizedPrior | ContextModel) -> None:
    found = len(bundle.tables)
    if isinstance(model, ContextModel):
        wanted = model.table_count
    else:
        wanted = model.config.M * bundle.tables.sets
    if found != wanted:
        raise ModelMismatchError(
            f"{bundle.path / TABLES}: holds {found} entropy tables; this {model.name} needs "
            f"{wanted}"
        )


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
    _check_tables(bundle, model)
    if isinstance(model, ContextModel):
        return TorchContextBackend(model, place, half=precision == "bfloat16")
    if precision != "float32":
        raise ConfigError(f"{bundle.label} runs in float32 only; leave out precision {precision!r}")
    return TorchBackend(bundle, model, place)


class TorchBackend(FactorizedBackend):
    """Runs a factorized prior; the same modules that a bundle's graphs were made from."""

    name = "torch"

    def __init__(self, bundle: Bundle, model: FactorizedPrior, device: torch.device) -> None:
        super().__init__(bundle)
        self.notes: tuple[str, ...] = ()
        self.device = str(device)
        self.provider = provider_name(device)
        self._device = device
        model = model.to(device)
        self._encoder = Analysis(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._decoder = Synthesis(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Do nothing: both directions are loaded together with the model."""

    @torch.inference_mode()
    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.floating]:
        with memory_errors():
            with stage("copy"):
                image = torch.from_numpy(x).to(self._device, memory_format=torch.channels_last)
            y = self._encoder(image)
            with stage("copy"):
                latents: NDArray[np.float32] = y.cpu().numpy()
        return latents

    @torch.inference_mode()
    def _decode(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        with memory_errors():
            with stage("copy"):
                y = torch.from_numpy(y_hat).to(self._device)
            x_hat = self._decoder(y)
            with stage("copy"):
                pixels: NDArray[np.float32] = x_hat.cpu().numpy()
        return pixels
