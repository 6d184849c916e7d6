"""Small runs of HPCM, under every objective."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lic.trainers import recipes
from lic.trainers.loop import Trainer
from tests.trainers.small_runs import begin_run, mini, quiet

BASE = recipes.hpcm().updated(
    {
        "epochs": 0, "steps": 6, "batch": 2, "crop": 128, "lr": 1e-3, "checkpoint_every": 3,
        "log_every": 1, "val_share": 0.0,
    }
)  # fmt: skip
OBJECTIVES: dict[str, dict[str, Any]] = {
    "standard": {},
    "balanced": {"objective": "balanced"},
    "every second step": {"objective": "balanced", "update_every": 2},
    "fixed": {"objective": "balanced", "balanced_solver": "fixed"},
    "qp": {"objective": "balanced", "balanced_solver": "qp"},
    "hierarchical": {"objective": "hierarchical"},
    "exact7": {"objective": "hierarchical", "tasks": "exact7", "gamma_schedule": "hierarchical"},
    "fixed5": {"objective": "hierarchical", "tasks": "fixed5", "renormalise": True},
    "adaptive": {
        "objective": "balanced", "gamma_schedule": "adaptive_snr", "gamma_window": 2, "w_lr": 0.5,
        "gamma_initial": 0.5,
    },
    "validated": {
        "objective": "hierarchical", "gamma_schedule": "adaptive", "gamma_window": 2,
        "gamma_threshold": 0.5, "schedule": "plateau", "plateau_patience": 0, "ema": 0.9,
        "val_share": 0.4, "val_every": 1,
    },
    "cautious": {"objective": "balanced", "optimizer": "cautious-adam", "ema": 0.9},
    "soap": {"objective": "balanced", "optimizer": "soap"},
    "curriculum": {
        "spectral_reg": True,
        "truncation_epochs": 2000.0,
        "truncation_target": "original",
    },
    "spectral": {
        "spectral_reg": True,
        "truncation_epochs": 1250.0,
        "truncation_continuous": True,
        "inter_scale_reg": True,
    },
    "literal": {"inter_scale_reg": True, "inter_scale_form": "literal", "objective": "balanced"},
    "groups": {
        "lr_scale": "context=0.5,h_a.branch.0=2",
        "freeze": "h_s,g_s",
        "unfreeze": "h_s=0.4",
        "optimizer": "soap",
    },
    "scales stop": {"scale_patience": 1, "val_share": 0.4, "checkpoint_every": 1, "keep_last": 9},
    "ms-ssim": {"loss": "ms-ssim", "lmbda": 8.0},
}  # fmt: skip


def begin(folder: Path, photos: Path, **changed: Any) -> Trainer:
    return begin_run(folder, photos, BASE.updated(changed), mini(), command="hpcm")


def run(trainer: Trainer, report: Callable[[dict[str, float]], None] = quiet) -> Trainer:
    trainer.run(report)
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.bare.state_dict().items()}


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)
