"""Models as the options of a run describe them, and options as a model bears them out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lic.codec.errors import ConfigError
from lic.codec.models import (
    HPCM,
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
    hpcm_config,
)
from lic.codec.models.bmshj2018 import SIZES
from lic.codec.models.gdnish import DecoderGain, EncoderGain
from lic.codec.models.hpcm_files import hpcm_size
from lic.trainers.config import TrainConfig
from lic.trainers.model_options import CUSTOM, ActivationConfig, ModelConfig
from lic.trainers.sections import option_name

Balle2018 = FactorizedPrior | ScaleHyperprior
Codec = Balle2018 | HPCM

ARCHITECTURES = {
    "factorized": FactorizedPrior.name,
    "hyperprior": ScaleHyperprior.name,
    "hpcm": HPCM.name,
}
# What each command trains.
TRAINS = {"bmshj2018": ("factorized", "hyperprior"), "hpcm": ("hpcm",)}


def new_model(config: TrainConfig) -> Codec:
    """Return the untrained model of `config.model` and `config.activation`, random by the seed.

    Raises:
        ConfigError: the size is that of no model with a name.
    """
    if config.model.size == CUSTOM:
        raise ConfigError(f"--size is {CUSTOM}, which only a model of --init can be; name another")
    torch.manual_seed(config.run.seed)
    if config.model.arch == "hpcm":
        placement: Any = config.model.placement
        return HPCM(hpcm_config(config.model.size, placement))
    n, m = SIZES[config.model.size]
    act: Any = config.activation.act
    values: dict[str, Any] = {"N": n, "M": m}
    for side in ("encoder", "decoder"):
        values[f"{side}_activation"] = act
        values[f"{side}_gain"] = gain_of(config.activation, side) if act == "gdnish" else None
    if config.model.arch == "hyperprior":
        return ScaleHyperprior(HyperpriorConfig(**values))
    return FactorizedPrior(FactorizedConfig(**values))


def gain_of(activation: ActivationConfig, side: str) -> EncoderGain | DecoderGain:
    """Return the options of a side's GDN-ish blocks as a model's config has them."""
    a = activation
    if side == "encoder":
        return EncoderGain(t=a.enc_t, kdw=a.enc_kdw, eca=a.enc_eca, residual=a.enc_residual)
    return DecoderGain(k=a.dec_k, gmin=a.dec_gmin, gmax=a.dec_gmax, residual=a.dec_residual)


def trainable(model: nn.Module, source: str, command: str | None = None) -> Codec:
    """Return a model that the loop, or a command of TRAINS, can train.

    Raises:
        ConfigError: another architecture.
    """
    kinds = TRAINS[command] if command else tuple(ARCHITECTURES)
    names = [ARCHITECTURES[kind] for kind in kinds]
    if not isinstance(model, Codec) or model.name not in names:
        raise ConfigError(f"--init {source} is {model.name}; expected {' or '.join(names)} here")
    return model


def describe(
    model: Codec, config: TrainConfig, given: Mapping[str, Any], source: str
) -> TrainConfig:
    """Return the config with what a loaded model is, or will be once it is widened.

    Args:
        model: loaded.
        config: the options of the run.
        given: those that were asked for by name, which the model must not contradict.
        source: where the model came from, for messages.

    Raises:
        ConfigError: the model is another than asked for.
    """
    found = _found(model, config)
    # Other sizes than the recipe's were asked for, if not here then in a file.
    asked = "size" in given or config.model.size != ModelConfig().size
    if asked and can_widen(model, config.model.size):
        found["size"] = config.model.size
    told = {**found, "size": f"N = {model.config.N}, M = {model.config.M}"}
    differing = [k for k, value in given.items() if k in found and found[k] != value]
    if not isinstance(model, HPCM):
        own = model.config
        told["act"] = (
            f"{own.encoder_activation} in its encoder and {own.decoder_activation} in its decoder"
        )
        if given.get("act", own.decoder_activation) != own.decoder_activation:
            differing.append("act")
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{option_name(name)} is {given[name]}, but {source} has {told[name]}; leave out "
            f"{option_name(name)}"
        )
    return config.updated(found)


def can_widen(model: Codec, size: str) -> bool:
    """Return whether a size of SIZES is wider than a bmshj2018, and nowhere narrower."""
    if isinstance(model, HPCM) or size not in SIZES:
        return False
    n, m = SIZES[size]
    old = (model.config.N, model.config.M)
    return n >= old[0] and m >= old[1] and (n, m) != old


def described(model: Codec, config: TrainConfig) -> TrainConfig:
    """Return the config with the architecture and size of a model whose activations will change."""
    found = _found(model, config)
    return config.updated({name: found[name] for name in ("arch", "size")})


def _found(model: Codec, config: TrainConfig) -> dict[str, Any]:
    """Return the options of [model] and [activation] that a model was built by."""
    arch = next(key for key, name in ARCHITECTURES.items() if name == model.name)
    if isinstance(model, HPCM):
        size = hpcm_size(model.config) or CUSTOM
        return {"arch": arch, "size": size, "placement": model.config.placement}
    own = model.config
    # Several sizes of CompressAI are alike: the one that was asked for comes first.
    names = [name for name in (config.model.size, *SIZES) if SIZES.get(name) == (own.N, own.M)]
    values = {"arch": arch, "size": names[0] if names else CUSTOM, "act": own.encoder_activation}
    for prefix, gain in (("enc", own.encoder_gain), ("dec", own.decoder_gain)):
        if gain is not None:
            values.update({f"{prefix}_{name}": value for name, value in gain.to_dict().items()})
    return values
