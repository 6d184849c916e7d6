"""LPIPS where its package is installed; nothing here needs it.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
"""

import contextlib
import io
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ConfigError

NETWORK = "alex"
# What its first layers make of a smaller picture has no pixels left.
LEAST_SIDE = 64


def lpips_version() -> str | None:
    """Return the package's version and network, None where it is not installed."""
    if find_spec("lpips") is None:
        return None
    try:
        return f"{version('lpips')} {NETWORK}"
    except PackageNotFoundError:
        return NETWORK


def check_lpips() -> None:
    """Load the network once, which may have to be fetched.

    Raises:
        ConfigError: it cannot be loaded.
    """
    if find_spec("lpips") is None:
        raise ConfigError("LPIPS needs the package lpips: pip install lpips")
    try:
        _network()
    # Whatever torchvision, torch and the network's server may raise.
    except Exception as error:
        raise ConfigError(f"LPIPS cannot be loaded ({type(error).__name__}: {error})") from None


def lpips(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Return the distance of two pictures (H, W, C), 0 for equal ones; None for small pictures."""
    if min(a.shape[:2]) < LEAST_SIDE:
        return None
    import torch

    planes = [
        torch.from_numpy(np.broadcast_to(p, (*p.shape[:2], 3)).copy()).permute(2, 0, 1)[None]
        for p in (a, b)
    ]
    with torch.inference_mode():
        return float(_network()(*(plane.float() / 127.5 - 1 for plane in planes)))


@cache
def _network() -> Any:
    import lpips as package
    import torch

    # Sums of several threads may differ in their last bits.
    torch.set_num_threads(1)
    # It greets on stdout, which is for results.
    with contextlib.redirect_stdout(io.StringIO()):
        return package.LPIPS(net=NETWORK, verbose=False).eval()
