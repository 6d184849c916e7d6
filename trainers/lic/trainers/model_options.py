"""The options of a model: what it is, its non-linearities, and which of them are replaced.

No torch here: `lic train --help` reads this module.
"""

from dataclasses import dataclass
from typing import Final

from lic.codec.errors import ConfigError
from lic.trainers.sections import Section, option, option_name

BMSHJ2018 = ("factorized", "hyperprior")
BMSHJ2018_SIZES = ("lite", *"12345678")
HPCM_SIZES = ("base", "large", "phi", "tiny")
# Of models from elsewhere that have widths of their own.
CUSTOM = "custom"

# What options of the GDN-ish blocks hang on.
_ENCODER: Final = {"act": ("gdnish",), "replace_parts": ("all", "encoder")}
_DECODER: Final = {"act": ("gdnish",), "replace_parts": ("all", "decoder")}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """What a model trained from scratch is."""

    arch: str = option(
        "factorized",
        "factorized: latents have fixed densities; hyperprior: their scales are coded, too.",
        choices=(*BMSHJ2018, "hpcm"),
    )
    size: str = option(
        "lite",
        "Widths by name; custom says that those of --init have none.",
        choices=(*BMSHJ2018_SIZES, *HPCM_SIZES, CUSTOM),
    )
    placement: str = option(
        "upstream",
        "Where the second scale gets its hyper parameters: upstream, as the published "
        "models, or corrected, at their own sites.",
        choices=("upstream", "corrected"),
        needs={"arch": ("hpcm",)},
    )
    start: str = option(
        "pca",
        "Without --init. pca: the transforms start as a block transform of the photos' principal "
        "components.",
        choices=("pca", "random"),
        needs={"arch": BMSHJ2018, "init": False},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != CUSTOM and (self.arch == "hpcm") != (self.size in HPCM_SIZES):
            raise ConfigError(
                f"--size is {self.size} and --arch {self.arch}; expected one of "
                f"{', '.join(HPCM_SIZES)} for hpcm, and lite or 1 to 8 for the others"
            )


@dataclass(frozen=True, kw_only=True)
class ActivationConfig(Section):
    """The non-linearities, and the shape of the GDN-ish blocks."""

    act: str = option(
        "relu",
        "Non-linearity. gdnish: gain blocks of convolutions, ReLU6 and products; igdn1: GDN "
        "without squares and roots.",
        choices=("relu", "gdnish", "igdn1", "gdn"),
        needs={"arch": BMSHJ2018},
    )
    enc_t: int = option(2, "Encoder: expansion of its first 1x1.", least=1, most=16, needs=_ENCODER)
    enc_kdw: int = option(
        3, "Encoder: side of its depthwise kernel.", least=1, most=15, needs=_ENCODER
    )
    enc_eca: bool = option(False, "Encoder: channel gate of pooled neighbours.", needs=_ENCODER)
    enc_residual: bool = option(True, "Encoder: add the input.", needs=_ENCODER)
    dec_k: int = option(
        3, "Decoder: side of its depthwise kernel.", least=1, most=15, needs=_DECODER
    )
    dec_gmin: float = option(0.0, "Decoder: smallest gain.", least=-64, most=64, needs=_DECODER)
    dec_gmax: float = option(4.0, "Decoder: largest gain.", least=-64, most=64, needs=_DECODER)
    dec_residual: bool = option(False, "Decoder: add the input.", needs=_DECODER)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("enc_kdw", "dec_k"):
            if getattr(self, name) % 2 == 0:
                found = getattr(self, name)
                raise ConfigError(f"{option_name(name)} is {found}; expected an odd number")
        if self.dec_gmin >= self.dec_gmax:
            raise ConfigError(
                f"--dec-gmin is {self.dec_gmin}; expected below --dec-gmax, {self.dec_gmax}"
            )


@dataclass(frozen=True, kw_only=True)
class ReplacementConfig(Section):
    """Which non-linearities of a trained model are replaced, how, and what learns after that."""

    replace_parts: str = option(
        "all",
        "Sides whose non-linearities are replaced: encoder is what a sending NPU needs, decoder "
        "what a viewer needs.",
        choices=("encoder", "decoder", "all"),
    )
    replace_init: str = option(
        "fit",
        "fit: the new layers start as the best linear stand-in of the old ones on the photos; "
        "plain: as they are made.",
        choices=("fit", "plain"),
    )
    train_scope: str = option(
        "all",
        "What learns: the replaced layers (and the convolutions that feed a ReLU), with the "
        "entropy model, with the hyper networks (factorized: the entropy bottleneck), or all.",
        choices=("replaced", "replaced+entropy", "replaced+hyper", "all"),
    )
    freeze_entropy: bool = option(False, "Keep the entropy model as it is, whatever the scope.")
