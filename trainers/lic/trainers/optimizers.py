"""Optimisers of the transforms, of the entropy bottleneck's densities and of its quantiles."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from lic.codec.errors import ConfigError
from lic.codec.models.likelihood import EntropyBottleneck
from lic.trainers.cautious import CautiousAdam
from lic.trainers.config import OptimizerConfig

# Steps between updates of SOAP's bases; each one is a QR decomposition per side of a kernel.
PRECONDITION_EVERY = 10


@dataclass(frozen=True)
class NamedOptimizer:
    """An optimiser, what it moves, and the peak learning rate of each of its groups.

    Attributes:
        name: transforms, entropy or aux; align is what `Stepper` adds for --inter-scale-reg.
        optimizer: the optimiser.
        rates: one for each of its groups, which a schedule multiplies.
    """

    name: str
    optimizer: Optimizer
    rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        object.__setattr__(self, "rates", rates)


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, factor: Callable[[str], float] = lambda _: 1.0
) -> list[NamedOptimizer]:
    """Return the optimisers of what requires gradients; of what has nothing to move, none.

    transforms: all but entropy bottlenecks, by `--optimizer`. Weight decay is for kernels alone,
    never for biases or GDN's beta and gamma.
    entropy: the densities, by Adam. They have few parameters and take larger steps.
    aux: with `--eb-aux` the quantiles, by Adam, for the loss `EntropyBottleneck.aux_loss`. Its
    gradient reaches nothing else, and no other loss reaches them. The middle one is the grid that
    validation rounds to. Without `--eb-aux` they are in no optimiser: they are solved for at the
    end.

    Args:
        model: what learns.
        config: how.
        factor: gives what the learning rate of a parameter, by its name, is multiplied by.

    Raises:
        ConfigError: nothing to train, or weight decay for an optimiser that has none.
    """
    if config.optimizer == "adam" and config.weight_decay:
        raise ConfigError(
            f"--weight-decay is {config.weight_decay:g} and --optimizer adam has none; expected "
            "0, or adamw, cautious-adam, soap or muon"
        )
    quantiles, densities, kernels, others = _sorted(model)
    factors = {id(p): factor(name) for name, p in model.named_parameters()}
    made = []
    if kernels or others:
        made.append(NamedOptimizer("transforms", _transforms(kernels, others, config, factors)))
    if densities:
        groups = _by_rate(densities, config.entropy_lr, factors)
        made.append(NamedOptimizer("entropy", Adam(groups)))
    if not made:
        raise ConfigError(
            "nothing to train: all parameters are frozen; choose a wider --train-scope"
        )
    if quantiles and config.eb_aux:
        made.append(NamedOptimizer("aux", Adam(quantiles, lr=config.eb_aux_lr)))
    return made


_Parameters = list[nn.Parameter]


def _sorted(model: nn.Module) -> tuple[_Parameters, _Parameters, _Parameters, _Parameters]:
    """Return what learns: quantiles, densities, kernels and other parameters of transforms."""
    bottlenecks = [m for m in model.modules() if isinstance(m, EntropyBottleneck)]
    quantiles = [b.quantiles for b in bottlenecks if b.quantiles.requires_grad]
    entropy = {id(p) for b in bottlenecks for p in b.parameters()}
    centres = {id(b.quantiles) for b in bottlenecks}
    densities, kernels, others = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in centres:
            continue
        if id(parameter) in entropy:
            densities.append(parameter)
        elif name.endswith("weight") and parameter.ndim >= 2:
            kernels.append(parameter)
        else:
            others.append(parameter)
    return quantiles, densities, kernels, others


def _by_rate(
    parameters: _Parameters, lr: float, factors: Mapping[int, float], **options: Any
) -> list[dict[str, Any]]:
    """Return a group for each learning rate, in the order the rates come."""
    rates = dict.fromkeys(factors[id(p)] for p in parameters)
    return [
        {"params": [p for p in parameters if factors[id(p)] == rate], "lr": lr * rate, **options}
        for rate in rates
    ]


def _transforms(
    kernels: _Parameters,
    others: _Parameters,
    config: OptimizerConfig,
    factors: Mapping[int, float],
) -> Optimizer:
    if config.optimizer == "muon":
        return _muon(kernels, others, config, factors)
    groups = [
        *_by_rate(kernels, config.lr, factors, weight_decay=config.weight_decay),
        *_by_rate(others, config.lr, factors, weight_decay=0.0),
    ]
    if config.optimizer == "soap":
        return _soap(groups, config)
    if config.optimizer == "cautious-adam":
        return CautiousAdam(groups, lr=config.lr)
    return (
        AdamW(groups, lr=config.lr) if config.optimizer == "adamw" else Adam(groups, lr=config.lr)
    )


def _soap(groups: list[dict[str, Any]], config: OptimizerConfig) -> Optimizer:
    # Second order; on learned codecs up to 70 % fewer steps (arXiv 2601.20769).
    from pytorch_optimizer.optimizer.soap import SOAP

    soap: Optimizer = SOAP(groups, lr=config.lr, precondition_frequency=PRECONDITION_EVERY)
    return soap


def _muon(
    kernels: _Parameters,
    others: _Parameters,
    config: OptimizerConfig,
    factors: Mapping[int, float],
) -> Optimizer:
    """Return Muon for kernels that mix channels, and its Adam for all else.

    Steps of orthogonalised kernels are scaled to Adam's usual size (arXiv 2502.16982), so that
    one rate serves both.
    """
    from pytorch_optimizer.optimizer.muon import Muon

    mixing = [p for p in kernels if _mixes_channels(p)]
    single = [p for p in kernels if not _mixes_channels(p)]
    parts = ((mixing, config.weight_decay), (single, config.weight_decay), (others, 0.0))
    groups = [
        group
        for params, decay in parts
        for group in _by_rate(
            params, config.lr, factors, weight_decay=decay, use_muon=params is mixing
        )
    ]
    muon: Optimizer = Muon(groups)
    muon.register_step_pre_hook(_make_gradients_contiguous)
    return muon


def _mixes_channels(kernel: nn.Parameter) -> bool:
    """Return whether a kernel is a matrix of channels; those of depthwise layers are not."""
    return kernel.shape[0] > 1 and kernel.shape[1] > 1


def _make_gradients_contiguous(optimizer: Optimizer, *_: Any) -> None:
    """Let Muon view kernels as matrices, which it cannot where channels come last in memory."""
    groups = (group for group in optimizer.param_groups if group["use_muon"])
    parameters: Iterable[Any] = (p for group in groups for p in group["params"])
    for parameter in parameters:
        if parameter.grad is not None and not parameter.grad.is_contiguous():
            parameter.grad = torch.clone(parameter.grad, memory_format=torch.contiguous_format)
