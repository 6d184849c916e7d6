"""A vendor's compiler in an environment of its own, asked through a subprocess.

The toolkits contradict each other's and lic's requirements (other numpy, other torch), so none is
imported here: a worker, a script that imports nothing of lic, runs in the toolkit's environment. It
reads a request and leaves an answer, both JSON files.

Shapes: K samples, N batch, C channels, H W height and width of the input at hand.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lic.codec.errors import ConfigError
from lic.export.targets.report import Compiled

# Compiling takes seconds; more than this is a compiler that hangs.
TIME_LIMIT = 600.0
# What `make npu-check` makes, below the working directory.
FOLDER = Path(".npu")
WORKERS = Path(__file__).parent / "workers"
# A worker's last words, of which a message shows no more.
_WORDS = 300


def unchanged(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph as it is, for toolkits that read what lic writes."""
    return model


def unverified(model: onnx.ModelProto, inputs: NDArray[np.float32], folder: Path) -> str:  # noqa: ARG001
    """Find no fault, for toolkits that read ONNX themselves."""
    return ""


@dataclass(frozen=True, kw_only=True)
class Toolkit:
    """One toolkit.

    Attributes:
        name: of its folder and its variable.
        package: what pip installs.
        configurations: what to compile for, by target.
        prepare: makes a graph one that the toolkit reads; raises ExportError where it cannot.
        verify: returns what is wrong with what a worker left in its folder.
    """

    name: str
    package: str
    configurations: Mapping[str, tuple[str, ...]]
    prepare: Callable[[onnx.ModelProto], onnx.ModelProto] = unchanged
    verify: Callable[[onnx.ModelProto, NDArray[np.float32], Path], str] = unverified

    @property
    def variable(self) -> str:
        """The environment variable that names the toolkit's Python."""
        return f"LIC_{self.name.upper()}_PYTHON"

    def find(self) -> Path | None:
        """Return the toolkit's Python, None where it is not installed.

        Raises:
            ConfigError: the variable names a file that does not exist.
        """
        named = os.environ.get(self.variable)
        if named:
            if not Path(named).is_file():
                raise ConfigError(f"{self.variable} is {named!r}; expected a Python with "
                                  f"{self.package}")  # fmt: skip
            return Path(named)
        windows = sys.platform == "win32"
        made = FOLDER / self.name / ("Scripts/python.exe" if windows else "bin/python")
        # Not resolved: an environment is known by the path its Python is called by.
        return made.absolute() if made.is_file() else None

    def missing(self) -> str:
        """Return what to say where it is not installed."""
        return (
            f"{self.package} was not asked: {FOLDER / self.name} does not exist and "
            f"{self.variable} is not set; `make npu-check` installs it"
        )

    def ask(
        self,
        python: Path,
        model: onnx.ModelProto,
        configurations: Sequence[str],
        *,
        time_limit: float = TIME_LIMIT,
    ) -> dict[str, Compiled]:
        """Return what the toolkit makes of a graph, by configuration; its failures are results.

        Args:
            python: of the toolkit's environment.
            model: complete, of one size, with one input.
            configurations: what to compile for.
            time_limit: seconds for all of them; whatever runs then is ended.
        """
        with tempfile.TemporaryDirectory(prefix="lic-npu-") as name:
            folder = Path(name)
            onnx.save(model, folder / "graph.onnx")
            inputs = typical_inputs(model)
            np.save(folder / "inputs.npy", inputs)
            request = {
                "model": str(folder / "graph.onnx"),
                "inputs": str(folder / "inputs.npy"),
                "folder": name,
                "answer": str(folder / "answer.json"),
                "configurations": list(configurations),
            }
            (folder / "request.json").write_text(json.dumps(request))
            words = _run(self._command(python, folder), time_limit)
            toolkit, results = _answer(folder / "answer.json", self.package, words)
            fault = "" if isinstance(results, str) else self.verify(model, inputs, folder)
        if isinstance(results, str) or fault:
            results = {c: {"error": fault or results} for c in configurations}
        return {
            c: _compiled(toolkit, c, results.get(c, {"error": "no result"})) for c in configurations
        }

    def _command(self, python: Path, folder: Path) -> list[str]:
        worker = WORKERS / f"{self.name}_worker.py"
        return [str(python), str(worker), str(folder / "request.json")]


def typical_inputs(model: onnx.ModelProto, count: int = 4) -> NDArray[np.float32]:
    """Return inputs (K, N, C, H, W) that give integers' ranges: enough to compile, no more.

    Smooth pictures in [0, 1] where there are three channels, else latents' integers.
    """
    given = {i.name for i in model.graph.initializer}
    value = next(v for v in model.graph.input if v.name not in given)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    generator = np.random.default_rng(0)
    if len(shape) == 4 and shape[1] == 3:
        noise = generator.random((count, *shape))
        for axis in (-2, -1):
            noise = np.mean([np.roll(noise, step, axis) for step in range(8)], axis=0)
        low, high = noise.min(), noise.max()
        pictures: NDArray[np.float32] = ((noise - low) / (high - low)).astype(np.float32)
        return pictures
    return np.round(generator.laplace(0, 2, (count, *shape))).astype(np.float32)


def _run(command: list[str], time_limit: float) -> str:
    """Run a worker and return its last words, empty where it ended well."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # The caller's packages are not those of the toolkit's environment.
            env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
        )
    except OSError as error:
        return f"cannot be started ({error.strerror or error})"
    try:
        _, words = process.communicate(timeout=time_limit)
    except subprocess.TimeoutExpired:
        return f"was ended after {time_limit:g} seconds"
    finally:
        if process.poll() is None:
            _end(process)
    if process.returncode:
        lines = words.decode(errors="replace").strip().splitlines() or ["no message"]
        return f"ended with {process.returncode}: {lines[-1][:_WORDS]}"
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker and, where the system groups processes, the compilers that it started."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _answer(path: Path, package: str, words: str) -> tuple[str, dict[str, Any] | str]:
    """Return the toolkit's name with its version, and its results or what went wrong."""
    if words:
        return package, f"{package} {words}"
    try:
        answer = json.loads(path.read_bytes())
        toolkit = f"{package} {answer['versions'][package]}"
        return toolkit, answer["error"] if "error" in answer else dict(answer["results"])
    except FileNotFoundError:
        return package, f"{package} left no answer"
    except (ValueError, KeyError, TypeError) as error:
        return package, f"{package} left an answer that cannot be read ({error!r})"


def _compiled(toolkit: str, configuration: str, result: Any) -> Compiled:
    try:
        if "error" in result:
            return Compiled(
                toolkit=toolkit, configuration=configuration, error=str(result["error"])
            )
        operators = tuple(dict(operator) for operator in result["operators"])
        if any({"operator", "name", "placement"} - o.keys() for o in operators):
            raise KeyError("operator, name, placement")
        return Compiled(
            toolkit=toolkit,
            configuration=configuration,
            operators=operators,
            estimates=result.get("estimates"),
        )
    except (KeyError, TypeError, ValueError) as error:
        return Compiled(
            toolkit=toolkit,
            configuration=configuration,
            error=f"an answer that cannot be read ({error!r})",
        )
