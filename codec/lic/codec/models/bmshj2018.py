"""The factorized-prior model of Balle et al. 2018 (arXiv 1802.01436), with a choice of activations.

Its transforms, sizes and output are those of the hyperprior model, too.

Shapes: N batch, M latent channels, H W pixels, h = ceil(H / 16), w = ceil(W / 16).
`N` as a config field is the number of hidden channels, as in the paper.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models.blocks import ACTIVATIONS, Activation, activation, conv, deconv
from lic.codec.models.gdnish import DecoderGain, EncoderGain
from lic.codec.models.likelihood import EntropyBottleneck

STRIDE = 16


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Size and non-linearities of g_a and g_s.

    Attributes:
        N: hidden channels.
        M: latent channels.
        encoder_activation: of g_a.
        decoder_activation: of g_s.
        encoder_gain: options of the blocks of a "gdnish" encoder, None elsewhere.
        decoder_gain: of a "gdnish" decoder.

    Raises:
        ConfigError: a width below 1, an activation that does not exist, or options of blocks that
            the model does not have.
    """

    N: int = 128
    M: int = 192
    encoder_activation: Activation = "gdn"
    decoder_activation: Activation = "gdn"
    encoder_gain: EncoderGain | None = None
    decoder_gain: DecoderGain | None = None

    def __post_init__(self) -> None:
        for name, value in (("N", self.N), ("M", self.M)):
            if type(value) is not int or not 1 <= value <= 4096:
                raise ConfigError(f"{name} is {value!r}; expected 1 to 4096 channels")
        for name in ("encoder_activation", "decoder_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                found = getattr(self, name)
                raise ConfigError(f"{name} is {found!r}; expected one of {', '.join(ACTIVATIONS)}")
        self._settle_gain("encoder", EncoderGain)
        self._settle_gain("decoder", DecoderGain)

    def _settle_gain(self, side: str, kind: type[EncoderGain] | type[DecoderGain]) -> None:
        """Give a GDN-ish side the options that nobody told, and others none."""
        gain, found = getattr(self, f"{side}_gain"), getattr(self, f"{side}_activation")
        if gain is None:
            if found == "gdnish":
                object.__setattr__(self, f"{side}_gain", kind())
        elif found != "gdnish":
            raise ConfigError(f"{side}_gain is for gdnish, but {side}_activation is {found!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; options that a model has none of are left out."""
        values: dict[str, Any] = {
            "N": self.N,
            "M": self.M,
            "encoder_activation": self.encoder_activation,
            "decoder_activation": self.decoder_activation,
        }
        # A bundle's fingerprint covers this: it must not change for models without such blocks.
        if self.encoder_gain is not None:
            values["encoder_gain"] = self.encoder_gain.to_dict()
        if self.decoder_gain is not None:
            values["decoder_gain"] = self.decoder_gain.to_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, model: str) -> Self:
        """Return what `to_dict` gave.

        Raises:
            ConfigError: fields that do not exist or cannot work; names the model.
        """
        try:
            gains: dict[str, Any] = {}
            if "encoder_gain" in values:
                gains["encoder_gain"] = EncoderGain.from_dict(values["encoder_gain"])
            if "decoder_gain" in values:
                gains["decoder_gain"] = DecoderGain.from_dict(values["decoder_gain"])
            return cls(**{**values, **gains})
        except (TypeError, ConfigError) as error:
            raise ConfigError(f"{model}: {error}") from None

    @classmethod
    def of_size(cls, size: str, act: Activation) -> Self:
        """Return the config of a key of SIZES, one activation throughout.

        Raises:
            ConfigError: no such size or activation.
        """
        if size not in SIZES:
            raise ConfigError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
        n, m = SIZES[size]
        return cls(N=n, M=m, encoder_activation=act, decoder_activation=act)


class FactorizedConfig(TransformConfig):
    """Options of FactorizedPrior."""


# Qualities 1 to 8 as in CompressAI's zoo, and a small size for CPUs.
SIZES: dict[str, tuple[int, int]] = {
    "lite": (64, 96),
    **{str(quality): (128, 192) for quality in range(1, 6)},
    **{str(quality): (192, 320) for quality in range(6, 9)},
}


def factorized_config(size: str, act: Activation = "gdn") -> FactorizedConfig:
    """Return the config of a quality "1" to "8" or of the size "lite", one activation throughout.

    Raises:
        ConfigError: no such size or activation.
    """
    return FactorizedConfig.of_size(size, act)


def analysis_transform(config: TransformConfig) -> nn.Sequential:
    """Return g_a: (N, 3, H, W) -> (N, M, h, w)."""
    n, kind, gain = config.N, config.encoder_activation, config.encoder_gain
    return nn.Sequential(
        conv(3, n),
        activation(kind, n, inverse=False, gain=gain),
        conv(n, n),
        activation(kind, n, inverse=False, gain=gain),
        conv(n, n),
        activation(kind, n, inverse=False, gain=gain),
        conv(n, config.M),
    )


def synthesis_transform(config: TransformConfig) -> nn.Sequential:
    """Return g_s: (N, M, h, w) -> (N, 3, 16 h, 16 w)."""
    n, kind, gain = config.N, config.decoder_activation, config.decoder_gain
    return nn.Sequential(
        deconv(config.M, n),
        activation(kind, n, inverse=True, gain=gain),
        deconv(n, n),
        activation(kind, n, inverse=True, gain=gain),
        deconv(n, n),
        activation(kind, n, inverse=True, gain=gain),
        deconv(n, 3),
    )


class Latents(NamedTuple):
    """What a model with a context makes of y, all (B, M, h, w).

    Attributes:
        y_hat: what the decoder gets.
        residuals: y less the predicted means, before rounding.
        scales: predicted ones, as the network gives them.
    """

    y_hat: Tensor
    residuals: Tensor
    scales: Tensor


class Output(NamedTuple):
    """What a forward pass gives.

    Attributes:
        x_hat: (N, 3, H, W), not clamped.
        likelihoods: by latent name.
    """

    x_hat: Tensor
    likelihoods: dict[str, Tensor]


class ContextOutput(NamedTuple):
    """What the forward pass of a model with a context gives: as `Output`, and the latents."""

    x_hat: Tensor
    likelihoods: dict[str, Tensor]
    latents: Latents


class FactorizedPrior(nn.Module):
    """bmshj2018-factorized: analysis, one entropy bottleneck, synthesis."""

    name = "bmshj2018-factorized"
    stride = STRIDE

    def __init__(self, config: FactorizedConfig) -> None:
        super().__init__()
        self.config = config
        self.g_a = analysis_transform(config)
        self.g_s = synthesis_transform(config)
        self.entropy_bottleneck = EntropyBottleneck(config.M)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Self:
        """Return a freshly initialised model from a config's dictionary."""
        return cls(FactorizedConfig.from_dict(config, model=cls.name))

    def analyze(self, x: Tensor) -> Tensor:
        """Return the latents y (N, M, h, w) of x (N, 3, H, W) in [0, 1]."""
        y: Tensor = self.g_a(x)
        return y

    def synthesize(self, y_hat: Tensor) -> Tensor:
        """Return x_hat (N, 3, 16 h, 16 w), not clamped, from y_hat (N, M, h, w)."""
        x_hat: Tensor = self.g_s(y_hat)
        return x_hat

    def forward(self, x: Tensor) -> Output:
        """Code x (N, 3, H, W) in theory: noise in training, rounding otherwise."""
        y_hat, likelihoods = self.code(self.analyze(x))
        x_hat = self.synthesize(y_hat)
        return Output(x_hat[..., : x.shape[-2], : x.shape[-1]], likelihoods)

    def code(self, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return y_hat and likelihoods by latent name for y (N, M, h, w): the entropy model."""
        y_hat, likelihoods = self.entropy_bottleneck(y)
        return y_hat, {"y": likelihoods}

    def extend(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W) in a size that `code` can take its latents of: as it is."""
        return x


def bits(likelihoods: dict[str, Tensor]) -> Tensor:
    """Return the information content in bits (scalar) of all likelihoods."""
    return -torch.stack([torch.log2(value).sum() for value in likelihoods.values()]).sum()
