"""Configs of the commands, as functions: a variant is a `replace` of one of them."""

from collections.abc import Collection
from dataclasses import replace

from lic.trainers.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from lic.trainers.model_options import ModelConfig
from lic.trainers.objective_options import GammaConfig


def bmshj2018() -> TrainConfig:
    """From scratch: PCA start, SOAP, cosine to the end (compared in trainers/LOG.md)."""
    return TrainConfig()


def relu() -> TrainConfig:
    """Replacement in a trained model: the same, at a rate that keeps what it knows."""
    return TrainConfig(optimizer=OptimizerConfig(lr=5e-4))


def hpcm() -> TrainConfig:
    """From scratch, as upstream's script trains it (arXiv 2507.19125)."""
    return TrainConfig(
        model=ModelConfig(arch="hpcm", size="base", start="random"),
        run=RunConfig(epochs=3000),
        data=DataConfig(crop=256, batch=32, flip_vertical=True),
        optimizer=OptimizerConfig(
            optimizer="adam",
            lr=1e-4,
            schedule="milestones",
            lr_warmup_steps=0,
            max_grad_norm=1.0,
            skip_nonfinite=10,
            ema=0.0,
        ),
    )


def hpcm_finetune() -> TrainConfig:
    """From a trained model: small steps, no milestones, task weights that settle."""
    base = hpcm()
    return replace(
        base,
        run=RunConfig(epochs=500),
        optimizer=replace(base.optimizer, lr=base.finetune.finetune_lr, schedule="none"),
        gamma=GammaConfig(gamma_schedule="cosine", gamma_initial=0.002, gamma_final=0.001),
    )


def completed(config: TrainConfig, named: Collection[str]) -> TrainConfig:
    """Return the options with those that follow from others, unless somebody named them.

    Balanced training of HPCM is published with cautious Adam. Hierarchical training looks at every
    16th step: a look costs nearly a third of a step, and its weights have thousands of steps to
    follow. MS-SSIM has lambdas on another scale: that of the published rate point 4,
    as 0.013 is for MSE.

    Args:
        config: all options.
        named: those that were asked for, wherever.
    """
    if config.model.arch != "hpcm":
        return config
    if config.objective.objective == "balanced" and "optimizer" not in named:
        config = config.updated({"optimizer": "cautious-adam"})
    famo = config.objective.balanced_solver == "famo"
    if config.objective.objective == "hierarchical" and famo and "update_every" not in named:
        config = config.updated({"update_every": 16})
    if config.loss.loss == "ms-ssim" and "lmbda" not in named:
        config = config.updated({"lmbda": 16.64})
    return config
