"""A bundle's graphs in ONNX Runtime: one session for each, made when it is first wanted."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from lic.codec.backends.base import OUT_OF_MEMORY
from lic.codec.bundle import WEIGHTS, Bundle
from lic.codec.errors import ConfigError, ModelMismatchError, NumericsError

# Short names for the execution providers that people ask for.
PROVIDERS: dict[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
}


class Sessions:
    """Runs a bundle's graphs.

    Args:
        bundle: the model.
        device: "cpu", a short name of PROVIDERS, or a provider's full name.
        threads: threads of one operator; 0 lets ONNX Runtime choose.

    Raises:
        ConfigError: this build of ONNX Runtime has no such provider.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", threads: int = 0) -> None:
        self.device = device
        self.notes: tuple[str, ...] = ()
        self.providers: tuple[str, ...] = ()
        self._bundle = bundle
        self._provider = _provider(device)
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    def options(self) -> Any:
        """Return the options of a new session."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        # For a factorized prior's few large tensors memory that is planned ahead is 7 % more, and
        # no faster.
        options.enable_mem_pattern = "plan" in self._bundle.manifest.graphs
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def load(self, *graphs: str) -> None:
        """Make the sessions of graphs now rather than at first use; weights are read once."""
        missing = [graph for graph in dict.fromkeys(graphs) if graph not in self._sessions]
        weights = self._bundle.read(WEIGHTS) if missing else b""
        for graph in missing:
            self._sessions[graph] = self._make_session(graph, weights)

    def run(
        self, graph: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> list[NDArray[Any]]:
        """Run a graph; returns the outputs named, or all.

        Raises:
            MemoryError: there was too little.
            ModelMismatchError: ONNX Runtime cannot load the graph.
            NumericsError: it fails.
        """
        session = self._session(graph)
        try:
            found: list[NDArray[Any]] = session.run(outputs, dict(inputs))
        except Exception as error:  # ONNX Runtime's own classes share no base but Exception.
            if OUT_OF_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from None
            raise NumericsError(
                f"{graph} failed in ONNX Runtime on {self.device}: {error}"
            ) from None
        return found

    def _session(self, graph: str) -> Any:
        self.load(graph)
        return self._sessions[graph]

    def _make_session(self, graph: str, weights: bytes) -> Any:
        options = self.options()
        # From memory: exactly the bytes whose hash was checked, and it works inside a .zip.
        options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
        providers = list(dict.fromkeys([self._provider, PROVIDERS["cpu"]]))
        model = self._bundle.read(graph)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # ONNX Runtime's own classes share no base but Exception.
            raise ModelMismatchError(
                f"{self._bundle.path / graph}: ONNX Runtime {onnxruntime.__version__} cannot load "
                f"it ({error})"
            ) from None
        if note := self._where_it_runs(graph, session):
            self.notes = (*self.notes, note)
        return session

    def _where_it_runs(self, graph: str, session: Any) -> str:
        """Return what to tell if not all of a graph runs on the provider asked for."""
        used = session.get_providers()[0]
        if used != self._provider:
            self._count_providers(used)
            return f"{graph}: asked for {self._provider}, runs on {used}"
        # ONNX Runtime 1.24 cannot tell yet.
        tell = getattr(session, "get_provider_graph_assignment_info", None)
        if self._provider == PROVIDERS["cpu"] or tell is None:
            self._count_providers(used)
            return ""
        runs = [(part.ep_name, node.op_type) for part in tell() for node in part.get_nodes()]
        self._count_providers(*(name for name, _ in runs))
        elsewhere = [(name, kind) for name, kind in runs if name != self._provider]
        if not elsewhere:
            return ""
        kinds = ", ".join(sorted({kind for _, kind in elsewhere}))
        others = ", ".join(sorted({name for name, _ in elsewhere}))
        return (
            f"{graph}: {len(elsewhere)} of {len(runs)} operators run on {others} in place of "
            f"{self._provider} ({kinds})"
        )

    def _count_providers(self, *names: str) -> None:
        self.providers = tuple(dict.fromkeys([*self.providers, *names]))


def _provider(device: str) -> str:
    """Return the full name of a provider that this build has."""
    wanted = PROVIDERS.get(device, device)
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise ConfigError(
            f"device {device!r} needs {wanted}, which this ONNX Runtime does not have; "
            f"available: {', '.join(available)}"
        )
    return wanted
