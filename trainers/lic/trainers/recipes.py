"""Configs of the commands, as functions: a variant is a `replace` of one of them."""

from lic.trainers.config import OptimizerConfig, TrainConfig


def bmshj2018() -> TrainConfig:
    """From scratch: PCA start, SOAP, cosine to the end (compared in trainers/LOG.md)."""
    return TrainConfig()


def relu() -> TrainConfig:
    """Replacement in a trained model: the same, at a rate that keeps what it knows."""
    return TrainConfig(optimizer=OptimizerConfig(lr=5e-4))
