"""Checkpoints of a training run: written whole or not at all, read without pickle's powers."""

import os
import pickle
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from lic.codec.errors import ConfigError, TrainingError
from lic.codec.models import FactorizedPrior

NAME = "checkpoint.pt"
ENTRIES = frozenset(
    "step train_config model_config model averaged ema optimizers objective".split()
)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state`, which has all ENTRIES, to `path` through another name in its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(path: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises:
        TrainingError: missing, damaged, or holding anything but tensors and plain values.
    """
    try:
        # Its warnings are of pickle's versions; what matters of them becomes an error.
        with warnings.catch_warnings(action="ignore"):
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such checkpoint") from None
    # Without torch's own words, which advise to load it unsafely.
    except pickle.UnpicklingError:
        reason = "it is damaged, or holds more than tensors and plain values"
        raise TrainingError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    except Exception as error:  # torch raises a dozen kinds on damaged files.
        reason = str(error).strip().partition("\n")[0]
        raise TrainingError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    if not isinstance(state, dict) or not state.keys() >= ENTRIES:
        raise TrainingError(f"{path}: not a training checkpoint of lic")
    return state


def load_model(path: Path) -> tuple[FactorizedPrior, dict[str, Any]]:
    """Return a run's averaged model and its provenance for a bundle's manifest.

    Raises:
        TrainingError: no readable checkpoint.
    """
    state = load(path)
    try:
        model = FactorizedPrior.from_dict(state["model_config"])
        model.load_state_dict(state["averaged"])
    except (ConfigError, RuntimeError) as error:
        raise TrainingError(f"{path}: not a training checkpoint of lic ({error})") from None
    return model.eval(), {**state["train_config"], "steps_done": state["step"]}
