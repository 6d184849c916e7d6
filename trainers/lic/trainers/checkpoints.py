"""Checkpoints of a training run: written whole or not at all, read without pickle's powers.

A run's folder holds them as checkpoints/step-00005500.pt. There is no index beside them: which
ones stay is decided by what the files themselves say, so that nothing can disagree with them.
"""

import contextlib
import math
import pickle
import re
import textwrap
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lic.codec.errors import ConfigError, LicError, TrainingError
from lic.codec.models import MODELS, ContextModel, FactorizedPrior
from lic.codec.models.parameter_counts import check_size
from lic.trainers.config import CheckpointConfig
from lic.trainers.files import CHECKPOINTS, write_whole, writing

ENTRIES: Final = {
    "step": "optimiser steps that were done",
    "config": "TrainConfig.to_dict()",
    "architecture": "key of lic.codec.models.MODELS",
    "model_config": "the model's config.to_dict()",
    "model": "state dict of the weights as they are trained",
    "ema": "averaged weights by name; empty where none are kept",
    "optimizers": "state dicts by the optimisers' names",
    "schedule": "state of the learning rates' schedule",
    "objective": "state of what makes one number of the loss terms",
    "metrics": "last values by name, floats; the run's best_metric ranks by them",
    "stopping": "least bits of the scales, and which have stopped",
    "inter_scale": "state dict of what aligns scales; empty without --inter-scale-reg",
    "skips": "how many steps were skipped, in all and in a row",
    "since_line": "sums, by name, and steps since the last line of metrics",
    "facts": "what the run holds to when it goes on: photos, processes, replaced modules",
    "elapsed": "seconds of training",
}
"""What every checkpoint holds. A run may add what it needs besides, tensors and plain values."""

# What is needed to use a model; the rest only matters to a run that goes on.
OF_A_MODEL: Final = ("step", "config", "architecture", "model_config", "model", "ema", "metrics")

# Whether more is better, of the metrics that --best-metric can name.
RISES: Final = {
    "val_loss": False,
    "val_psnr": True,
    "val_ms_ssim": True,
    "val_bpp": False,
    "loss": False,
}

_NAME: Final = re.compile(r"step-(\d{8,})\.pt")
_LEFTOVER: Final = re.compile(r"step-\d{8,}\.pt\.[0-9a-f]+\.tmp")

Say = Callable[[str], object]


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` through another name in its folder."""
    write_whole(path, lambda file: torch.save(dict(state), file))


def load(path: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises:
        TrainingError: missing, damaged, or holding anything but tensors and plain values.
    """
    with _read_errors(path):
        state = _read(path)
        # torch itself does not look at the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    if broken:
        raise TrainingError(
            f"{path}: cannot be read as a checkpoint (it is damaged: {broken} has another checksum)"
        )
    if not isinstance(state, dict) or not state.keys() >= set(OF_A_MODEL):
        raise TrainingError(f"{path}: not a training checkpoint of lic")
    return state


def _read(path: Path, *, mapped: bool = False) -> Any:
    """Return what a file holds; `mapped` leaves the tensors on the disk."""
    # Its warnings are of pickle's versions; what matters of them becomes an error.
    with warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


@contextlib.contextmanager
def _read_errors(path: Path) -> Any:
    try:
        yield
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    # Without torch's own words, which advise to load it unsafely.
    except pickle.UnpicklingError:
        reason = "it is damaged, or holds more than tensors and plain values"
        raise TrainingError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    except Exception as error:  # torch raises a dozen kinds on damaged files.
        reason = str(error).strip().partition("\n")[0]
        raise TrainingError(f"{path}: cannot be read as a checkpoint ({reason})") from None


class CheckpointManager:
    """Writes the checkpoints of a run and keeps the newest and the best.

    All checkpoints in the folder are ranked anew at each writing, those of an earlier process
    included. Files of other names, and those that cannot be read, are left alone and count for
    nothing.

    Args:
        folder: of the run; checkpoints lie in its CHECKPOINTS.
        config: how many stay, and the metric that ranks them.
        say: takes what the user should know of.
    """

    def __init__(self, folder: Path, config: CheckpointConfig, say: Say = lambda _: None) -> None:
        self.folder = folder / CHECKPOINTS
        self.config = config
        self._say = say
        self._known: dict[Path, tuple[tuple[int, int], float]] = {}

    def write(self, state: Mapping[str, Any], step: int, metrics: Mapping[str, float]) -> Path:
        """Write the checkpoint of `step`, then delete what is neither new nor good enough.

        Args:
            state: the ENTRIES but step and metrics, and more where a run needs it.
            step: optimiser steps done.
            metrics: last values; without the metric that ranks, or NaN, it is never the best.

        Raises:
            OutputError: it cannot be written; all checkpoints are as they were.
        """
        values = {name: float(value) for name, value in metrics.items()}
        whole = {**state, "step": step, "metrics": values}
        missing = ENTRIES.keys() - whole.keys()
        assert not missing, f"a checkpoint without {', '.join(sorted(missing))}"
        path = self.folder / f"step-{step:08d}.pt"
        with writing(path):
            # First, since they may be what fills the disk.
            self._remove(self._leftovers())
            save(path, whole)
        self._remove(set(self._all()) - self._kept(path))
        return path

    def latest(self) -> Path | None:
        """Return the newest checkpoint that can be read."""
        return self._first_readable(reversed(self._all()))

    def best(self) -> Path | None:
        """Return the best checkpoint that can be read, None where none has the metric."""
        return self._first_readable(self._ranked())

    def remove_later(self, step: int) -> None:
        """Delete the checkpoints of later steps, which a run that goes on at `step` redoes."""
        self._remove(path for path in self._all() if _step(path) > step)

    def _all(self) -> list[Path]:
        """Return the files that are named as checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=_step)

    def _leftovers(self) -> list[Path]:
        """Return what processes left behind that were killed while they wrote."""
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if _LEFTOVER.fullmatch(path.name)]

    def _kept(self, written: Path) -> set[Path]:
        """Return what stays: what was just written above all."""
        unreadable = {path for path in self._all() if self._metric(path) is None}
        sound = [path for path in self._all() if path not in unreadable]
        best = self._ranked()[: self.config.keep_best]
        return {written, *sound[-self.config.keep_last :], *best, *unreadable}

    def _ranked(self) -> list[Path]:
        """Return the checkpoints that have the metric, best first, of equal ones the newer."""
        sign = -1 if RISES[self.config.best_metric] else 1
        scored = []
        for path in self._all():
            value = self._metric(path)
            if value is not None and not math.isnan(value):
                scored.append((sign * value, -_step(path), path))
        return [path for _, _, path in sorted(scored)]

    def _metric(self, path: Path) -> float | None:
        """Return what ranks a checkpoint, NaN where it has none; None if it cannot be read."""
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if self._known.get(path, (None, 0.0))[0] != stamp:
                values = _read(path, mapped=True)["metrics"]
                value = float(values.get(self.config.best_metric, math.nan))
                self._known[path] = (stamp, value)
        except Exception:  # Foreign or damaged: whatever it is, it must not end a run.
            return None
        return self._known[path][1]

    def _first_readable(self, paths: Iterable[Path]) -> Path | None:
        for path in paths:
            try:
                load(path)
            except TrainingError as error:
                self._say(f"passed over {error}")
            else:
                return path
        return None

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._say(f"{path}: cannot be deleted ({error.strerror or error})")


def _step(path: Path) -> int:
    """Return the step in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def averaged(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint to evaluate and ship: averaged where averages are kept."""
    return {**state["model"], **state["ema"]}


def load_model(
    path: Path, *, best: bool = False, say: Say = lambda _: None
) -> tuple[FactorizedPrior | ContextModel, dict[str, Any]]:
    """Return the averaged model of a run, ready to evaluate, and its provenance as JSON values.

    Args:
        path: a run's folder, or a checkpoint's file.
        best: in a folder take the checkpoint of the best metric instead of the last.
        say: takes what the user should know of, such as checkpoints that cannot be read.

    Returns:
        The model, and the run's options with `steps_done`; `lmbda` as well where the loss has one.

    Raises:
        TrainingError: no readable checkpoint.
    """
    file = find_checkpoint(path, best=best, say=say) if path.is_dir() else path
    state = load(file)
    config = state["config"]
    try:
        model = _model(state, str(file))
        loss = config.get("loss", {})
        own = {"lmbda": loss["lmbda"]} if loss.get("loss") in ("mse", "ms-ssim") else {}
    # What a state dict of other things than tensors runs into depends on what it holds.
    except (LicError, RuntimeError, AttributeError, TypeError, KeyError) as error:
        reason = in_short(error)
        raise TrainingError(f"{file}: not a training checkpoint of lic ({reason})") from None
    return model, {**config, **own, "steps_done": state["step"]}


def in_short(error: BaseException) -> str:
    """Return what an error says on one line; torch lists every tensor that does not fit."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def _model(state: Mapping[str, Any], where: str) -> FactorizedPrior | ContextModel:
    architecture, config, weights = state["architecture"], state["model_config"], averaged(state)
    if architecture not in MODELS:
        raise TrainingError(f"architecture is {architecture!r}; expected {', '.join(MODELS)}")
    check_size(architecture, config, weights, where)
    model = MODELS[architecture].from_dict(config)
    model.load_state_dict(weights)
    return model.eval()


def find_checkpoint(run: Path, *, best: bool = False, say: Say = lambda _: None) -> Path:
    """Return the last readable checkpoint of a run's folder, or the best by the run's own metric.

    Raises:
        TrainingError: there is none.
    """
    run = run.parent if run.name == CHECKPOINTS else run
    manager = CheckpointManager(run, CheckpointConfig(), say)
    found = manager.latest()
    if found is None:
        raise TrainingError(
            f"{run}: holds no readable checkpoint; expected a training run's folder, with "
            f"{CHECKPOINTS}/step-*.pt in it"
        )
    if not best:
        return found
    metric = _best_metric(load(found), found)
    chosen = CheckpointManager(run, CheckpointConfig(best_metric=metric), say).best()
    if chosen is None:
        raise TrainingError(
            f"{run}: no checkpoint has {metric}, so none is the best; take the last one, or train "
            "with pictures to validate on (--val)"
        )
    return chosen


def _best_metric(state: Mapping[str, Any], path: Path) -> str:
    try:
        return CheckpointConfig(**state["config"]["checkpoint"]).best_metric
    except (KeyError, TypeError, ConfigError) as error:
        raise TrainingError(f"{path}: not a training checkpoint of lic ({error})") from None
