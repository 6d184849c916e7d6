"""ONNX Runtime: everything that coding needs, without torch.

Shapes: as in `base`.
"""

import numpy as np
from numpy.typing import NDArray

from lic.codec.backends.base import Backend, FactorizedBackend
from lic.codec.backends.ort_context import OrtContextBackend
from lic.codec.backends.ort_sessions import Sessions
from lic.codec.bundle import DECODER, ENCODER, MANIFEST, Bundle
from lic.codec.errors import ModelMismatchError


def open_ort_backend(bundle: Bundle, *, device: str = "cpu", threads: int = 0) -> Backend:
    """Load a bundle that has graphs.

    Args:
        bundle: the model.
        device: "cpu", a short name of PROVIDERS, or a provider's full name.
        threads: threads of one operator; 0 lets ONNX Runtime choose.

    Raises:
        ConfigError: this build of ONNX Runtime has no such provider.
        ModelMismatchError: the bundle was changed.
    """
    return run_sessions(bundle, Sessions(bundle, device=device, threads=threads))


def run_sessions(bundle: Bundle, sessions: Sessions) -> Backend:
    """Return the backend of a bundle that has graphs, on sessions of whatever kind."""
    if "plan" in bundle.manifest.graphs:
        return OrtContextBackend(bundle, sessions)
    return OrtBackend(bundle, sessions)


def _check_graphs(bundle: Bundle) -> None:
    """Refuse graphs that take or give something else, such as those of an earlier lic."""
    graphs = bundle.manifest.graphs
    try:
        found = [*graphs["encoder"]["outputs"], *graphs["decoder"]["inputs"]]
    except (KeyError, TypeError) as error:
        raise ModelMismatchError(f"{bundle.path / MANIFEST}: graphs lack {error}") from None
    if found != ["y", "y_hat"]:
        raise ModelMismatchError(
            f"{bundle.path}: between the graphs lie {', '.join(map(str, found))}, expected y and "
            f"y_hat; 'lic models refit {bundle.path}' makes them anew"
        )


class OrtBackend(FactorizedBackend):
    """Runs a factorized prior's graphs."""

    name = "onnx"

    def __init__(self, bundle: Bundle, sessions: Sessions) -> None:
        super().__init__(bundle)
        _check_graphs(bundle)
        self.device = sessions.device
        self._sessions = sessions

    @property
    def notes(self) -> tuple[str, ...]:
        """What the sessions made so far have to say."""
        return self._sessions.notes

    @property
    def provider(self) -> str:
        """The providers that the sessions made so far run on."""
        return ", ".join(self._sessions.providers)

    def load(self, *, encoder: bool = False, decoder: bool = False) -> None:
        """Make the sessions of the directions asked for."""
        self._sessions.load(*([ENCODER] * encoder), *([DECODER] * decoder))

    def _encode(self, x: NDArray[np.float32]) -> NDArray[np.floating]:
        (y,) = self._sessions.run(ENCODER, {"x": np.ascontiguousarray(x)})
        return y

    def _decode(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        (x_hat,) = self._sessions.run(DECODER, {"y_hat": y_hat})
        return x_hat
