"""Options of how the parts of a loss are weighed against each other, and of what is added to it.

Lengths are in epochs. What is written for a run of 3,000, as upstream's, is scaled to the run.
"""

from dataclasses import dataclass
from typing import Final

from lic.codec.errors import ConfigError
from lic.trainers.sections import Need, Section, option

# Length of the run that milestones and knots are told for: that of the published HPCM.
EPOCHS: Final = 3000
# Of HPCM; as `lic.codec.models.hierarchy` has them, whose import would bring torch along.
SCALES: Final = ("s1", "s2", "s3")

# What options of tasks, their weights and gamma, the filter and the scales hang on.
_WEIGHED: Final = {"objective": ("balanced", "hierarchical")}
_FAMO: Final = {"balanced_solver": ("famo",)}
_BY_SCALE: Final = {"objective": ("hierarchical",)}
_FILTERED: Final = {"spectral_reg": True}
_APART: Final = {"inter_scale_reg": True}


def _gamma_of(*schedules: str) -> dict[str, Need]:
    """Return what options of one gamma for two tasks need."""
    return {"objective": ("balanced",), "gamma_schedule": schedules}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section):
    """What is done with rate and distortion."""

    objective: str = option(
        "standard",
        "standard: rate plus lambda times distortion; balanced: these two as tasks whose relative "
        "progress is evened out; hierarchical: the same with both split by scales.",
        choices=("standard", "balanced", "hierarchical"),
    )
    balanced_solver: str = option(
        "famo",
        "famo: weights learn from the progress of each task; qp: the closed form from both "
        "gradients, for fine-tuning; fixed: weights that stay, the control.",
        choices=("famo", "qp", "fixed"),
        needs=_WEIGHED,
    )
    w_lr: float = option(0.025, "Learning rate of the weights' logits.", above=0, needs=_FAMO)
    min_losses: str = option(
        "-1", "Lower bound of each task's loss, or one for all: logarithms are taken above it.",
        count=(1, 2, 5, 7), needs=_WEIGHED,
    )  # fmt: skip
    update_every: int = option(
        1,
        "Steps between looks at what a step did, each a forward pass without gradients.",
        least=1,
        needs=_FAMO,
    )
    tasks: str = option(
        "exact5",
        "exact5 and exact7 split the true loss by scales; fixed5 takes fixed shares of the whole "
        "rate and distortion.",
        choices=("exact5", "exact7", "fixed5"),
        needs=_BY_SCALE,
    )
    renormalise: bool = option(
        False,
        "Make the shares of the distortion add up to one, so that lambda stays.",
        needs={"tasks": ("fixed5",)},
    )
    scale_weights: str = option(
        "0.3,0.4,0.3", "Prior shares of s1, s2, s3 that weights are drawn towards.",
        count=(3,), above=0, needs=_BY_SCALE,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GammaConfig(Section):
    """How fast task weights forget: gamma draws them towards their prior, it is no importance."""

    gamma: float = option(0.003, "How fast weights forget.", least=0, needs=_gamma_of("fixed"))
    gamma_schedule: str = option(
        "fixed",
        "Course of gamma over the run: fixed, linear, cosine or adaptive; of balanced also step, "
        "hpcm, hpcm_step and adaptive_snr, of hierarchical also hierarchical. 'lic train "
        "schedules' draws them.",
        choices=(
            "fixed", "linear", "cosine", "step", "adaptive", "hpcm", "hpcm_step", "adaptive_snr",
            "hierarchical",
        ), needs=_FAMO,
    )  # fmt: skip
    gamma_initial: float = option(
        0.006,
        "Gamma at the start.",
        least=0,
        needs=_gamma_of(
            "linear", "cosine", "step", "adaptive", "hpcm", "hpcm_step", "adaptive_snr"
        ),
    )
    gamma_final: float = option(
        0.001,
        "Gamma at the end, or its lower bound.",
        least=0,
        needs=_gamma_of("linear", "cosine", "step", "adaptive", "hpcm", "adaptive_snr"),
    )
    gamma_warmup: float = option(
        0.0,
        "Epochs of 3,000 before gamma moves.",
        least=0,
        below=3000,
        needs={"gamma_schedule": ("linear", "cosine", "adaptive", "adaptive_snr")},
    )
    gamma_milestones: str = option(
        "1000,2000",
        "Epochs of 3,000 at which gamma is cut.",
        count=(1, 2, 3, 4, 5, 6),
        least=0,
        needs=_gamma_of("step"),
    )
    gamma_factor: float = option(0.5, "Factor of a cut.", above=0, below=1, needs=_gamma_of("step"))
    gamma_window: int = option(
        50,
        "Validations that are looked at; of adaptive_snr, steps that were (--update-every).",
        least=2,
        needs={"gamma_schedule": ("adaptive", "adaptive_snr")},
    )
    gamma_threshold: float = option(
        0.01,
        "Variation of the validation loss below which gamma is lowered.",
        above=0,
        needs={"gamma_schedule": ("adaptive",)},
    )
    scale_gammas: str = option(
        "0.008,0.006,0.004",
        "Gammas of s1, s2, s3 at the start.",
        count=(3,),
        least=0,
        needs={**_BY_SCALE, **_FAMO},
    )
    scale_gammas_final: str = option(
        "",
        "The same at the end. Default: half of the start.",
        count=(0, 3),
        least=0,
        needs={**_BY_SCALE, "gamma_schedule": ("linear", "cosine", "adaptive")},
    )


@dataclass(frozen=True, kw_only=True)
class SpectralConfig(Section):
    """Spectral regularisation (ICLR 2026) as far as one latent allows; only while training."""

    spectral_reg: bool = option(
        False, "Show low frequencies first: pictures are low-pass filtered for some epochs."
    )
    tau_init: float = option(
        0.05, "Radius of the filter at the start.", above=0, most=1, needs=_FILTERED
    )
    tau_final: float = option(1.0, "Radius at the end.", above=0, most=1, needs=_FILTERED)
    truncation_epochs: float = option(
        100.0, "Epochs of 3,000 that are filtered.", above=0, below=3000, needs=_FILTERED
    )
    truncation_continuous: bool = option(
        False,
        "Blend the picture in as the filter opens: without, the end is a jump.",
        needs=_FILTERED,
    )
    truncation_target: str = option(
        "truncated", "What is compared with: the filtered picture or the original.",
        choices=("truncated", "original"), needs=_FILTERED,
    )  # fmt: skip
    inter_scale_reg: bool = option(
        False,
        "Keep the scales of the latents apart, after the filtered epochs.",
        needs={"arch": ("hpcm",)},
    )
    delta: float = option(0.1, "Weight of that term.", above=0, needs=_APART)
    inter_scale_form: str = option(
        "rel_l2",
        "rel_l2, cos2, innovation: bounded forms; literal: minus the squared difference, which "
        "has no bound and can diverge.",
        choices=("rel_l2", "cos2", "innovation", "literal"),
        needs=_APART,
    )
    align_lr: float = option(
        1e-3,
        "Learning rate of what aligns the scales.",
        above=0,
        needs={"inter_scale_form": ("rel_l2", "literal")},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_init > self.tau_final:
            raise ConfigError(
                f"--tau-init is {self.tau_init}; expected at most --tau-final, {self.tau_final}: "
                "the filter opens"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Section):
    """Which layers learn how fast; groups are g_a, g_s, h_a, h_s, context and entropy."""

    finetune_lr: float = option(1e-5, "Learning rate of --finetune, in place of --lr.", above=0)
    lr_scale: str = option(
        "",
        "Factors of the learning rate of groups (g_a, g_s, h_a, h_s, context, entropy) or modules, "
        "such as context=1.0,entropy=0.1; others have 1.",
    )
    freeze: str = option("", "Groups or modules that stay as they are, such as h_a,h_s.")
    unfreeze: str = option(
        "", "When frozen ones begin to learn, in shares of the run, such as h_a=0.2,h_s=0.5."
    )
    scale_patience: int = option(
        0, "Validations without gain in the bits of a scale until its layers stop; 0: never.",
        least=0, needs={"arch": ("hpcm",)},
    )  # fmt: skip
