"""Codecs with real bundles, tables, groups, nudges and streams, whose networks are plain rules.

Everything that reads a file runs as it does for users; only what no file can reach, the networks'
arithmetic, is replaced. A context's rule makes the tables depend on all symbols before, as a
network does. Needs neither torch nor ONNX Runtime.

Shapes: M latent channels, N hyper-latent channels, H W pixels, h = H / 16, w = W / 16.
"""

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from lic.codec.architectures import FACTORIZED
from lic.codec.backends.base import FactorizedBackend
from lic.codec.backends.context_steps import ContextState, ContextSteps
from lic.codec.benchmark.entropy import SCALES, gaussian
from lic.codec.bundle import (
    CONTEXTS,
    TABLES,
    WEIGHTS,
    Bundle,
    Manifest,
    tables_to_npz,
    write_bundle,
)
from lic.codec.entropy import Contexts, build_tables
from lic.codec.entropy.contexts import CLASSES
from lic.codec.entropy.contexts import LEVELS as LEVELS_OF_MAGNITUDE
from lic.codec.latents import State, Steps
from lic.codec.nudges import Nudger, pmf
from lic.codec.pipeline import Codec

N, M = 4, 16
LEVELS = np.geomspace(0.11, 32, SCALES).astype(np.float32)
# For each step the part that it belongs to, and its share of y's (M, h, w).
PARTS: dict[str, tuple[tuple[str, float], ...]] = {
    "bmshj2018-hyperprior": (("y", 1.0),),
    "hpcm": (*[("s1", 1 / 32)] * 2, *[("s2", 1 / 16)] * 3, *[("s3", 1 / 8)] * 6),
}
_STRIDES = {"bmshj2018-hyperprior": 64, "hpcm": 256}
_CONFIGS = {"bmshj2018-hyperprior": {}, "hpcm": {"placement": "upstream"}}


def context_bundle(architecture: str, target: Path) -> Bundle:
    """Write a bundle without weights; its tables are Gaussians of 64 scales."""
    work = gaussian(1)
    of_z = range(20, 20 + 8 * N, 8)
    nudges = pmf()
    tables = build_tables(
        [*(work.pmfs[i] for i in of_z), *work.pmfs, nudges],
        [*(work.offsets[i] for i in of_z), *work.offsets, 0],
    )
    header = json.dumps({}).encode()
    files = {WEIGHTS: struct.pack("<Q", len(header)) + header, TABLES: tables_to_npz(tables)}
    manifest = Manifest(
        name=f"stand-in-{architecture}",
        rate_point=1,
        architecture=architecture,
        config=_CONFIGS[architecture],
        stride=_STRIDES[architecture],
    )
    return write_bundle(target, manifest, files)


def with_contexts(bundle: Bundle, target: Path) -> Bundle:
    """Write a factorized prior's bundle again, with contexts that choose tables by any integers."""
    rng = np.random.default_rng(0)
    work = gaussian(1)
    tables = build_tables(work.pmfs, work.offsets)
    count, predicted = len(bundle.tables.of_set(0)), 3
    choice = {
        "levels": np.minimum(16 * np.arange(LEVELS_OF_MAGNITUDE), 255),
        "order": rng.permutation(count),
        "mean": rng.integers(0, 32, count),
        "beside": rng.integers(-4, 20, (count, 6)),
        "into": rng.integers(-9, 30, (count, 4)),
        "from_sums": rng.integers(-9, 30, (count, 4)),
        "bias": rng.integers(-4000, 9000, count),
        "table_map": np.sort(rng.integers(20, len(tables), (count, CLASSES))),
        "predicted": rng.permutation(count)[:predicted],
        "weights": rng.integers(-20, 40, (predicted, 6)),
    }
    contexts = Contexts.from_arrays({**choice, **tables.to_arrays()})
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return write_bundle(target, bundle.manifest, {**files, CONTEXTS: tables_to_npz(contexts)})


def stand_in(bundle: Bundle) -> Codec:
    """Return the codec of a bundle, with rules or black pictures for its networks."""
    factorized = bundle.manifest.architecture == FACTORIZED
    backend = BlackBackend(bundle) if factorized else RuleBackend(bundle)
    with mock.patch("lic.codec.pipeline.open_backend", lambda *_, **__: backend):
        return Codec(bundle)


class BlackBackend(FactorizedBackend):
    """Decodes symbols of a factorized prior, and then gives black."""

    name = "black"
    device = "cpu"
    provider = ""
    notes: tuple[str, ...] = ()

    def load(self, **_: Any) -> None:
        """Nothing to make ready."""

    def _encode(self, _: NDArray[np.float32]) -> NDArray[np.floating]:
        raise AssertionError("a stand-in has no encoder")

    def _decode(self, y_hat: NDArray[np.float32]) -> NDArray[np.float32]:
        height, width = (self.stride * side for side in y_hat.shape[2:])
        return np.zeros((1, 3, height, width), np.float32)


@dataclass(kw_only=True)
class RuleState(ContextState):
    """Latents on their way; `known` are the symbols so far, `scales` those of the step."""

    known: list[NDArray[np.int16]] = field(default_factory=list)
    scales: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    seed: int = 0


class RuleSteps(ContextSteps):
    """A step's scales follow from the checksum of the symbols before it."""

    def __init__(self, bundle: Bundle) -> None:
        self._shares = PARTS[bundle.manifest.architecture]
        super().__init__([part for part, _ in self._shares], len(bundle.tables), len(LEVELS))
        self._nudger = Nudger(LEVELS)

    def _symbols_of_z(self, state: RuleState) -> NDArray[np.int16]:
        symbols: NDArray[np.int16] = state.z
        return symbols

    def _begin(self, state: RuleState, symbols: NDArray[np.int16]) -> None:
        state.known.append(symbols)

    def _predict(self, step: int, state: RuleState) -> int:
        _, _, rows, columns = state.shape
        count = int(M * 16 * rows * columns * self._shares[step][1])
        start = zlib.crc32(np.ascontiguousarray(state.known[-1]).data)
        spread = (np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(start)) >> 8
        state.scales = np.exp(spread.astype(np.float32) * np.float32(5 / 2**24) - 2)
        return count

    def _choose_nudges(self, state: RuleState) -> NDArray[np.int16]:
        return self._nudger.choose(state.scales)

    def _indexes_of_y(self, state: RuleState) -> NDArray[np.uint16]:
        assert state.nudges is not None
        return (self._channels + self._nudger.levels(state.scales, state.nudges)).astype(np.uint16)

    def _symbols_of_y(self, step: int, state: RuleState) -> NDArray[np.int16]:
        draws = np.random.default_rng((state.seed, step)).normal(0, state.scales)
        # Some far outside their tables: escapes.
        draws[::499] *= 40
        return np.rint(draws).astype(np.int16)

    def _finish(self, step: int, state: RuleState, symbols: NDArray[np.int16]) -> None:  # noqa: ARG002
        state.known.append(symbols)


class RuleBackend:
    """Draws symbols from a picture's checksum, and makes a black picture of any."""

    name = "rule"
    device = "cpu"
    provider = ""
    notes: tuple[str, ...] = ()

    def __init__(self, bundle: Bundle) -> None:
        steps = RuleSteps(bundle)
        self.steps: Steps = steps
        self._shape_of_z = steps.shape_of_z

    def load(self, **_: Any) -> None:
        """Nothing to make ready."""

    def analyze(self, x: NDArray[np.float32]) -> State:
        """Return a state whose symbols are drawn, seeded by x (1, 3, H, W)."""
        seed = zlib.crc32(np.ascontiguousarray(x).data)
        shape = self._shape_of_z(*x.shape[2:])
        z = np.rint(np.random.default_rng(seed).normal(0, 1, shape)).astype(np.int16)
        return RuleState(shape=shape, z=z, seed=seed)

    def blank(self, height: int, width: int) -> State:
        """Return the decoder's first state."""
        return RuleState(shape=self._shape_of_z(height, width))

    def synthesize(self, state: State) -> NDArray[np.float32]:
        """Return black (1, 3, H, W)."""
        _, _, rows, columns = state.shape
        return np.zeros((1, 3, 64 * rows, 64 * columns), np.float32)
