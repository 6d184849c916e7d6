"""How many numbers a model learns, by its config alone: known before anything of its size is made.

Whoever builds a model from a config of unknown origin compares with what its weights hold: a few
characters of JSON, or a tensor of the right shape, ask for any amount of memory.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models.bmshj2018 import FactorizedConfig, FactorizedPrior, TransformConfig
from lic.codec.models.gdnish import GATE_TAPS
from lic.codec.models.hierarchy import SCALES, STEPS
from lic.codec.models.hpcm import HPCM
from lic.codec.models.hpcm_config import HPCMConfig
from lic.codec.models.hyperprior import HyperpriorConfig, ScaleHyperprior


def parameter_count(architecture: str, config: Mapping[str, Any]) -> int:
    """Return how many numbers the parameters of a model have.

    Args:
        architecture: key of `lic.codec.models.MODELS`.
        config: the architecture's options.

    Raises:
        ConfigError: options that do not exist or cannot work.
    """
    return _COUNTS[architecture](config)


def check_size(
    architecture: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], where: str
) -> None:
    """Refuse a config far beyond the weights that are meant to fill it.

    Args:
        architecture: key of `lic.codec.models.MODELS`.
        config: the architecture's options.
        weights: tensors by name, not yet compared with the model's.
        where: what the message starts with.

    Raises:
        ModelMismatchError: the model would have more than twice as many numbers as its weights.
        ConfigError: options that do not exist or cannot work.
    """
    wanted = parameter_count(architecture, config)
    held = sum(value.numel() for value in weights.values())
    # Twice: where only some tensors are missing, the model is built, and they are named.
    if wanted > 2 * held:
        raise ModelMismatchError(
            f"{where}: the config asks for {wanted:,} numbers, the weights hold {held:,}; "
            "they do not belong together"
        )


def _factorized(config: Mapping[str, Any]) -> int:
    sizes = FactorizedConfig.from_dict(dict(config), model=FactorizedPrior.name)
    return _bmshj2018_transforms(sizes) + _bottleneck(sizes.M)


def _hyperprior(config: Mapping[str, Any]) -> int:
    sizes = HyperpriorConfig.from_dict(dict(config), model=ScaleHyperprior.name)
    n, m = sizes.N, sizes.M
    h_a = _conv(m, n, 3) + 2 * _conv(n, n, 5)
    h_s = 2 * _conv(n, n, 5) + _conv(n, m, 3)
    return _bmshj2018_transforms(sizes) + h_a + h_s + _bottleneck(n)


def _bmshj2018_transforms(config: TransformConfig) -> int:
    n, m = config.N, config.M
    g_a = _conv(3, n, 5) + 2 * _conv(n, n, 5) + _conv(n, m, 5)
    g_s = _conv(m, n, 5) + 2 * _conv(n, n, 5) + _conv(n, 3, 5)
    sides = (config.encoder_activation, config.decoder_activation)
    gdn = sum(3 * (n + n * n) for kind in sides if kind in ("gdn", "igdn1"))
    return g_a + g_s + gdn + 3 * (_encoder_gain(config) + _decoder_gain(config))


def _encoder_gain(config: TransformConfig) -> int:
    n, gain = config.N, config.encoder_gain
    if gain is None:
        return 0
    wide = gain.t * n
    gate = GATE_TAPS + 1 if gain.eca else 0
    return _conv(n, wide, 1) + _conv(1, wide, gain.kdw) + _conv(wide, n, 1) + gate


def _decoder_gain(config: TransformConfig) -> int:
    n, gain = config.N, config.decoder_gain
    return 0 if gain is None else _conv(1, n, gain.k) + _conv(n, n, 1)


def _bottleneck(channels: int) -> int:
    widths = (1, 3, 3, 3, 3, 1)
    matrices = sum(a * b for a, b in pairwise(widths))
    biases, factors, quantiles = sum(widths[1:]), sum(widths[1:-1]), 3
    return channels * (matrices + biases + factors + quantiles)


def _hpcm(options: Mapping[str, Any]) -> int:
    try:
        config = HPCMConfig(**options)
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{HPCM.name}: {error}") from None
    n, m = config.N, config.M
    h_a = _partial_block(m) + _conv(m, n, 2) + 3 * _partial_block(n) + _conv(n, n, 2)
    h_s = _conv(n, n, 2) + 3 * _partial_block(n) + _conv(n, 2 * m, 2) + _partial_block(2 * m)
    return _hpcm_transforms(config) + h_a + h_s + 2 * n + _hpcm_context(config)


def _hpcm_transforms(config: HPCMConfig) -> int:
    half, quarter, eighth = config.widths
    stages = ((3, half, 4), (half, quarter, 2), (quarter, eighth, 2), (eighth, config.M, 2))
    ends = sum(_conv(i, o, k) + _conv(o, i, k) for i, o, k in stages)
    sizes = zip(config.widths, config.blocks, strict=True)
    return ends + 2 * sum(count * _partial_block(width) for width, count in sizes)


def _hpcm_context(config: HPCMConfig) -> int:
    wide, double = 3 * config.M, 2 * config.M
    steps = len(STEPS) - 1
    blocks = sum((*config.prior_s1_s2, *config.prior_s3))
    depthwise = _conv(1, wide, 3) + _perceptron(wide, 2)
    attention = len(SCALES) * 4 * _conv(double, double, 1) if config.heads else 0
    return (
        steps * (_conv(wide, wide, 1) + wide)
        + blocks * depthwise
        + 2 * _conv(wide, double, 1)
        + attention
        + 2 * _conv(double, double, 1)
    )


def _partial_block(channels: int) -> int:
    active = channels // 4
    return _conv(active, active, 3) + _perceptron(channels, 4)


def _perceptron(channels: int, expansion: int) -> int:
    hidden = expansion * channels
    return _conv(channels, hidden, 1) + _conv(hidden, channels, 1)


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> int:
    return in_channels * out_channels * kernel_size**2 + out_channels


_COUNTS: dict[str, Callable[[Mapping[str, Any]], int]] = {
    FactorizedPrior.name: _factorized,
    ScaleHyperprior.name: _hyperprior,
    HPCM.name: _hpcm,
}
