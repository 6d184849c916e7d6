"""Models as the options of a run describe them, and options as a model bears them out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lic.codec.errors import ConfigError
from lic.codec.models import FactorizedConfig, FactorizedPrior, HyperpriorConfig, ScaleHyperprior
from lic.codec.models.bmshj2018 import SIZES
from lic.codec.models.gdnish import DecoderGain, EncoderGain
from lic.trainers.config import ActivationConfig, TrainConfig
from lic.trainers.sections import option_name

Codec = FactorizedPrior | ScaleHyperprior

ARCHITECTURES = {"factorized": FactorizedPrior.name, "hyperprior": ScaleHyperprior.name}


def new_model(config: TrainConfig) -> Codec:
    """Return the untrained model of `config.model` and `config.activation`, random by the seed."""
    torch.manual_seed(config.run.seed)
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


def trainable(model: nn.Module, source: str) -> Codec:
    """Return a model that the loop can train.

    Raises:
        ConfigError: another architecture.
    """
    if not isinstance(model, FactorizedPrior | ScaleHyperprior):
        raise ConfigError(
            f"--init {source} is {model.name}; this command trains "
            f"{' and '.join(ARCHITECTURES.values())}"
        )
    return model


def describe(
    model: Codec, config: TrainConfig, given: Mapping[str, Any], source: str
) -> TrainConfig:
    """Return the config with what a loaded model is.

    Args:
        model: a bmshj2018.
        config: the options of the run.
        given: those that were asked for by name, which the model must not contradict.
        source: where the model came from, for messages.

    Raises:
        ConfigError: the model is another than asked for.
    """
    own = model.config
    found = _found(model)
    told = {
        **found,
        "act": f"{own.encoder_activation} in its encoder and {own.decoder_activation} "
        "in its decoder",
        "size": f"N = {own.N}, M = {own.M}",
    }
    differing = [k for k, value in given.items() if k in found and found[k] != value]
    if SIZES.get(given.get("size", ""), (own.N, own.M)) != (own.N, own.M):
        differing.append("size")
    if given.get("act", own.decoder_activation) != own.decoder_activation:
        differing.append("act")
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{option_name(name)} is {given[name]}, but {source} has {told[name]}; leave out "
            f"{option_name(name)}"
        )
    return described(model, config).updated(found)


def described(model: Codec, config: TrainConfig) -> TrainConfig:
    """Return the config with the architecture and size of a model whose activations will change.

    Widths that have no name leave the size as it is.
    """
    widths = (model.config.N, model.config.M)
    # Several sizes of CompressAI are alike: the one that was asked for comes first.
    sizes = [name for name in (config.model.size, *SIZES) if SIZES[name] == widths]
    return config.updated({"arch": _found(model)["arch"], **({"size": sizes[0]} if sizes else {})})


def _found(model: Codec) -> dict[str, Any]:
    """Return the options of [model] and [activation] that a model was built by.

    Without its size, which need not be one of those that have a name.
    """
    own = model.config
    values: dict[str, Any] = {
        "arch": next(key for key, name in ARCHITECTURES.items() if name == model.name),
        "act": own.encoder_activation,
    }
    for prefix, gain in (("enc", own.encoder_gain), ("dec", own.decoder_gain)):
        if gain is not None:
            values.update({f"{prefix}_{name}": value for name, value in gain.to_dict().items()})
    return values
