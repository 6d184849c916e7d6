"""Torch's devices and its ways of failing, as lic's errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lic.codec.backends.base import OUT_OF_MEMORY
from lic.codec.errors import ConfigError


def provider_name(device: torch.device) -> str:
    """Return what computes: "CPU", or the name of the GPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return device.type.upper()


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's two ways of running out of memory into Python's."""
    try:
        yield
    except RuntimeError as error:
        if OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error).splitlines()[0]) from None
        raise


def torch_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} is not available to torch ({reason})") from None
    return device
