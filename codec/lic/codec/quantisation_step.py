"""Which models have quantisation steps beside 1, and which steps there are.

Shapes: M latent channels, H W pixels, h = H / 16, w = W / 16.
"""

from lic.codec.architectures import FACTORIZED
from lic.codec.backends import Backend
from lic.codec.backends.base import FactorizedBackend
from lic.codec.bundle import Bundle
from lic.codec.container import Header
from lic.codec.container.header import MAX_STEP, MIN_STEP, STEP_UNIT
from lic.codec.errors import BitstreamError, ConfigError


def nearest_step(step: float) -> float:
    """Return the nearest step that a file can tell."""
    return min(max(round(step * STEP_UNIT) / STEP_UNIT, MIN_STEP), MAX_STEP)


def has_steps(bundle: Bundle, backend: Backend) -> bool:
    """Return whether an encoder may take other steps than 1: the networks can, and tables exist."""
    networks = isinstance(backend, FactorizedBackend) and backend.any_step
    return networks and bundle.tables.sets > 1


def check_step(bundle: Bundle, backend: Backend, step: float) -> None:
    """Refuse a step that nothing can be coded in.

    Raises:
        ConfigError: names the step and what there is.
    """
    if step != 1 and not has_steps(bundle, backend):
        raise ConfigError(
            f"{bundle.label} on backend {backend.name!r} has a quantisation step of 1 only; found "
            f"{step:g}, which needs {FACTORIZED} with tables for it, on onnx or torch"
        )
    if not MIN_STEP <= step <= MAX_STEP or step * STEP_UNIT % 1:
        raise ConfigError(
            f"step is {step:g}; expected {MIN_STEP:g} to {MAX_STEP:g} in units of 1 / {STEP_UNIT}"
        )


def check_header_step(bundle: Bundle, header: Header) -> None:
    """Refuse a file whose step its model does not have.

    Raises:
        BitstreamError: a model with a context, whose steps are always 1.
    """
    architecture = bundle.manifest.architecture
    if header.step != 1 and architecture != FACTORIZED:
        raise BitstreamError(
            f"chunk HEAD at byte 8: step is {header.step:g}, expected 1 of {architecture}"
        )


def check_any_step(backend: Backend) -> None:
    """Refuse a backend that takes symbols of a step of 1 only.

    Raises:
        ConfigError: it does, such as a device's functions.
    """
    if not (isinstance(backend, FactorizedBackend) and backend.any_step):
        raise ConfigError(
            f"backend {backend.name!r} takes symbols of a quantisation step of 1 only; code with "
            "backend 'onnx' or 'torch'"
        )
