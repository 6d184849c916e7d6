"""How much work a model is: multiply-accumulates per pixel and direction, and learned numbers.

Counted is what coding really runs: of a model with a context both directions run the networks that
select tables. Torch counts in its own calls; ONNX Runtime's profile tells the shapes that every
operator of the graphs was given, so that neither torch nor a reader of graphs is needed.
"""

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lic.codec.backends.base import Backend
from lic.codec.bundle import WEIGHTS, Bundle, safetensors_index
from lic.codec.entropy import Writer
from lic.codec.latents import State, walk

# What safetensors files hold beside what was learned, by the tensor's name.
_NOT_LEARNED = re.compile(
    r"(.*\.)?(\w*bound|pedestal|target|options|scale_table|_?cdf_length\w*|_?offset\w*"
    r"|_?quantized_cdf\w*)|entropy_estimation\.beta"
)


def parameters(bundle: Bundle) -> int:
    """Return how many numbers the model learned; as `parameter_count`, but without torch."""
    index = safetensors_index(bundle.read(WEIGHTS))
    return sum(
        math.prod(shape)
        for name, (_, shape, _, _) in index.items()
        if not _NOT_LEARNED.fullmatch(name)
    )


def kmac_per_pixel(bundle: Bundle, backend: str) -> dict[str, float]:
    """Return thousands of multiply-accumulates per pixel by direction, "encode" and "decode".

    One picture of the model's stride is coded, on the CPU.

    Args:
        bundle: the model.
        backend: "torch" or "onnx", which has graphs.
    """
    counts = (_in_torch if backend == "torch" else _in_onnx)(bundle)
    pixels = 1000 * bundle.manifest.stride**2
    return {direction: round(count / pixels, 3) for direction, count in counts.items()}


def _in_torch(bundle: Bundle) -> dict[str, int]:
    from torch.utils.flop_counter import FlopCounterMode

    from lic.codec.backends.torch_backend import open_torch_backend

    backend = open_torch_backend(bundle)

    def counted(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return int(counter.get_total_flops()) // 2

    return _both_directions(bundle, backend, counted)


def _in_onnx(bundle: Bundle) -> dict[str, int]:
    with profiled(bundle, "cpu", as_written=True) as (backend, events):

        def counted(work: Callable[[], object]) -> int:
            work()
            return sum(map(_macs, events()))

        return _both_directions(bundle, backend, counted)


def operators_by_provider(bundle: Bundle, device: str, threads: int) -> dict[str, int]:
    """Return how many operators each of ONNX Runtime's providers runs in both directions.

    By its profile: before 1.25 a session cannot tell, and a provider that was accepted need not
    run anything. What a provider fused into one counts as one.
    """
    with profiled(bundle, device, threads=threads) as (backend, events):
        _both_directions(bundle, backend, _uncounted)
        found: dict[str, int] = {}
        for event in events():
            if provider := event.get("args", {}).get("provider"):
                found[provider] = found.get(provider, 0) + 1
    return found


def _uncounted(work: Callable[[], object]) -> int:
    work()
    return 0


@contextmanager
def profiled(
    bundle: Bundle, device: str, *, threads: int = 1, as_written: bool = False
) -> Iterator[tuple[Backend, Callable[[], list[dict[str, Any]]]]]:
    """Give a backend and what tells the events of its graphs since they were asked for last.

    Args:
        bundle: with graphs.
        device: of ONNX Runtime.
        threads: of one operator.
        as_written: run the operators that the graphs name, not what they are fused into.
    """
    import onnxruntime

    from lic.codec.backends.ort_backend import run_sessions
    from lic.codec.backends.ort_sessions import Sessions

    class Profiled(Sessions):
        def options(self) -> Any:
            options = super().options()
            options.enable_profiling = True
            # Files are told apart by the second only, and sessions are made within one.
            options.profile_file_prefix = str(Path(tempfile.mkdtemp(dir=folder)) / "profile")
            if as_written:
                level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                options.graph_optimization_level = level
                # Weights that were packed for a kernel have no shape any more.
                options.add_session_config_entry("session.disable_prepacking", "1")
            return options

        def events(self) -> list[dict[str, Any]]:
            files = [Path(session.end_profiling()) for session in self._sessions.values()]
            self._sessions.clear()
            return [event for file in files for event in json.loads(file.read_bytes())]

    with tempfile.TemporaryDirectory() as folder:
        sessions = Profiled(bundle, device=device, threads=threads)
        try:
            yield run_sessions(bundle, sessions), sessions.events
        finally:
            # Windows removes no file that a session still writes to.
            sessions.events()


def _both_directions(
    bundle: Bundle, backend: Backend, counted: Callable[[Callable[[], object]], int]
) -> dict[str, int]:
    """Return what a picture of the model's stride takes: three parts, of which two go each way."""
    side = bundle.manifest.stride
    x = np.full((1, 3, side, side), 0.5, np.float32)
    state: list[State] = []

    def between() -> None:
        state[0], _ = walk(backend.steps, state[0], Writer(bundle.tables.of_set(0)))

    analysis = counted(lambda: state.append(backend.analyze(x)))
    context = counted(between)
    synthesis = counted(lambda: backend.synthesize(state[0]))
    return {"encode": analysis + context, "decode": context + synthesis}


def _macs(event: dict[str, Any]) -> int:
    """Return the multiply-accumulates of one operator of ONNX Runtime's profile."""
    told = event.get("args", {})
    kind = told.get("op_name")
    if kind not in _COUNTS or "input_type_shape" not in told:
        return 0
    inputs = [_shape(each) for each in told["input_type_shape"]]
    return _COUNTS[kind](inputs, _shape(told["output_type_shape"][0]))


def _shape(told: dict[str, list[int]]) -> list[int]:
    return next(iter(told.values()))


_Shapes = list[list[int]]
# Weights are (out, in / groups, ...), of transposed convolutions (in, out / groups, ...).
_COUNTS: dict[str, Callable[[_Shapes, list[int]], int]] = {
    "Conv": lambda i, o: math.prod(o) * math.prod(i[1][1:]),
    "ConvInteger": lambda i, o: math.prod(o) * math.prod(i[1][1:]),
    "QLinearConv": lambda i, o: math.prod(o) * math.prod(i[3][1:]),
    "ConvTranspose": lambda i, _: math.prod(i[0]) * math.prod(i[1][1:]),
    "MatMul": lambda i, o: math.prod(o) * i[0][-1],
    "MatMulInteger": lambda i, o: math.prod(o) * i[0][-1],
    "Gemm": lambda i, o: math.prod(o) * math.prod(i[0]) // o[0],
}
