"""The options of a training run: sections of plain values, each with its help and its bounds.

The command line, the TOML file of --config and the checkpoint all come from these dataclasses, so
that an option is written down once. No torch here: `lic train --help` reads this module.
"""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Final, Self

from lic.codec.errors import ConfigError
from lic.trainers.model_options import (
    BMSHJ2018,
    ActivationConfig,
    ModelConfig,
    ReplacementConfig,
)
from lic.trainers.objective_options import (
    FinetuneConfig,
    GammaConfig,
    ObjectiveConfig,
    SpectralConfig,
)
from lic.trainers.sections import Need, Section, numbers, option

# What options of the entropy bottleneck, of half precision and of int8 hang on.
_BOTTLENECK: Final[dict[str, Need]] = {
    "arch": BMSHJ2018,
    "train_scope": ("replaced+entropy", "replaced+hyper", "all"),
    "freeze_entropy": False,
}
_HALF: Final = {"amp": ("bf16", "fp16")}
_INT8: Final = {"qat": True}


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Where crops come from."""

    prepared: bool = option(
        False, "The folder holds crops of 'lic data prepare': use them whole, mirrored at random."
    )
    crop: int = option(
        128, "Side of a random crop in pixels.", least=16, multiple=16, needs={"prepared": False}
    )
    batch: int = option(8, "Crops per step and process.", least=1)
    flip_vertical: bool = option(False, "Also mirror crops upside down at random.")
    prefix: tuple[str, ...] = option((), "Use only photos whose name starts so; repeatable.")
    workers: int = option(0, "Processes that prepare batches ahead; 0: none.", least=0, most=256)
    cache_mib: int = option(
        2048, "Memory for decoded photos, per process; its workers share it.", least=0
    )
    val: str = option(
        "", "Folder of pictures to validate on. Default: val2017 beside train2017, or held out."
    )
    val_share: float = option(
        0.02, "Share of the photos held out where no validation folder is; 0: none.",
        least=0, most=0.5, needs={"val": False},
    )  # fmt: skip
    val_count: int = option(24, "Most pictures to validate on.", least=1)


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    """What is minimised."""

    loss: str = option(
        "mse",
        "mse: bpp + lmbda 255^2 MSE; recon: alpha L1 + (1 - alpha)(1 - MS-SSIM); rd: recon + "
        "lambda-bpp bpp; ms-ssim: bpp + lmbda (1 - MS-SSIM).",
        choices=("mse", "ms-ssim", "recon", "rd"),
    )
    lmbda: float = option(0.013, "Weight of the distortion, on CompressAI's scale.", above=0)
    alpha_l1: float = option(0.4, "Share of L1.", least=0, most=1, needs={"loss": ("recon", "rd")})
    lambda_bpp: float = option(0.01, "Weight of the rate.", least=0, needs={"loss": ("rd",)})
    contexts: bool = option(
        False,
        "Rate symbols as the contexts of --init do, a bundle that lic models fit made; fit the "
        "bundle of the run again.",
        needs={"arch": ("factorized",), "init": True, "loss": ("mse", "ms-ssim", "rd")},
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig(Section):
    """Arithmetic of training; losses are float32 always."""

    amp: str = option("off", "Mixed precision.", choices=("off", "bf16", "fp16"))
    local_fp32: str = option(
        "entropy",
        "What stays in float32 under --amp: nothing (rates are wrong then); the entropy models "
        "and the layer that gives the picture; the entropy models and the decoder; the first and "
        "all that normalises or exponentiates; or the classes of --local-fp32-class.",
        choices=("none", "entropy", "entropy+decoder", "all_normexp", "custom"),
        needs=_HALF,
    )
    local_fp32_class: tuple[str, ...] = option(
        (),
        "Name of a module class; repeatable.",
        needs={"local_fp32": ("custom",)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.local_fp32 == "custom") != bool(self.local_fp32_class):
            raise ConfigError(
                f"--local-fp32 is {self.local_fp32!r} and --local-fp32-class names "
                f"{len(self.local_fp32_class)} classes; expected custom with at least one, or none"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """How weights move."""

    optimizer: str = option(
        "soap",
        "Of the transforms. cautious-adam leaves out what the present gradient speaks against; "
        "soap and muon are second order: fewer steps, dearer ones.",
        choices=("adam", "adamw", "cautious-adam", "soap", "muon"),
    )
    lr: float = option(1e-3, "Peak learning rate of the transforms.", above=0)
    entropy_lr: float = option(
        3e-3,
        "Peak learning rate of the entropy model.",
        above=0,
        needs={**_BOTTLENECK, "loss": ("mse", "ms-ssim", "rd")},
    )
    weight_decay: float = option(
        0.0,
        "Decoupled weight decay, of kernels.",
        least=0,
        needs={"optimizer": ("adamw", "cautious-adam", "soap", "muon")},
    )
    schedule: str = option(
        "cosine",
        "Of the learning rates. onecycle moves per step; plateau follows validation; milestones "
        "is that of the published HPCM.",
        choices=("none", "cosine", "onecycle", "plateau", "milestones"),
    )
    milestones: str = option(
        "2750,2850,2950", "Epochs of 3,000 at which the rate changes.",
        count=(1, 2, 3, 4, 5, 6), least=0, needs={"schedule": ("milestones",)},
    )  # fmt: skip
    milestone_factors: str = option(
        "0.3,0.1,0.01", "Shares of the peak from there on.",
        count=(1, 2, 3, 4, 5, 6), above=0, most=1, needs={"schedule": ("milestones",)},
    )  # fmt: skip
    final_lr_fraction: float = option(
        0.01,
        "Share of the peak at the end.",
        least=0,
        most=1,
        needs={"schedule": ("cosine", "onecycle")},
    )
    onecycle_pct_start: float = option(
        0.3, "Share of the run that rises.", above=0, below=1, needs={"schedule": ("onecycle",)}
    )
    plateau_patience: int = option(
        5, "Validations without gain before a cut.", least=0, needs={"schedule": ("plateau",)}
    )
    plateau_factor: float = option(
        0.5, "Factor of a cut.", above=0, below=1, needs={"schedule": ("plateau",)}
    )
    lr_warmup_steps: int = option(100, "Linear rise at the start.", least=0)
    max_grad_norm: float = option(1.0, "Clip of the gradient's norm; 0 = off.", least=0)
    skip_nonfinite: int = option(
        0, "Skip batches whose loss or gradient is not finite, until as many come in a row; 0: "
        "stop at the first.", least=0,
    )  # fmt: skip
    ema: float = option(0.999, "Decay of averaged weights; 0 = off.", least=0, below=1)
    eb_aux: bool = option(
        False,
        "Learn the quantiles of the entropy bottleneck with an optimiser of their own, as "
        "CompressAI does. Off, they are solved for exactly at the end.",
        needs=_BOTTLENECK,
    )
    eb_aux_lr: float = option(
        1e-3, "Learning rate of the quantiles.", above=0, needs={"eb_aux": True}
    )
    overflow_check: bool = option(
        False, "Stop at the first NaN, infinite or outsized value of any layer's output."
    )
    overflow_tol: float = option(
        1e4, "What counts as outsized.", above=0, needs={"overflow_check": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        places, factors = numbers(self.milestones), numbers(self.milestone_factors)
        if len(places) != len(factors) or list(places) != sorted(places):
            raise ConfigError(
                f"--milestones is {self.milestones} and --milestone-factors "
                f"{self.milestone_factors}; expected as many of both, milestones rising"
            )


@dataclass(frozen=True, kw_only=True)
class QatConfig(Section):
    """Quantisation-aware training for int8 NPUs: uint8 activations, int8 weights per channel."""

    qat: bool = option(False, "Train with int8 arithmetic simulated; the entropy part never is.")
    qat_scope: str = option(
        "all", "Sides that are quantised.", choices=("encoder", "decoder", "all"), needs=_INT8
    )
    qat_calibration_steps: int = option(
        100, "Steps at the start that only observe ranges.", least=1, needs=_INT8
    )
    qat_freeze_step: int = option(
        0, "Step from which ranges stay; 0: half of the run.", least=0, needs=_INT8
    )
    qat_init: str = option(
        "moving",
        "How calibration turns values into ranges: extremes, the 99.99th percentile, or a moving "
        "average of extremes.",
        choices=("minmax", "percentile", "moving"),
        needs=_INT8,
    )
    qat_range_margin: float = option(
        0.0, "Share by which ranges are widened.", least=0, most=1, needs=_INT8
    )
    qat_skip_first_conv: bool = option(
        False,
        "Leave the encoder's first convolution in float.",
        needs={"qat_scope": ("encoder", "all")},
    )


@dataclass(frozen=True, kw_only=True)
class WatchConfig(Section):
    """What is shown and written on the way."""

    log_every: int = option(100, "Steps between lines of metrics.", least=1)
    val_every: int = option(0, "Steps between validations; 0: with each checkpoint.", least=0)
    recon_every: int = option(0, "Epochs between reconstructions; 0: none.", least=0)
    recon_count: int = option(
        4,
        "Pictures of the validation that are reconstructed.",
        least=1,
        needs={"recon_every": True},
    )
    tensorboard: bool = option(False, "Also write TensorBoard events.")
    wandb: bool = option(False, "Also log to Weights & Biases; WANDB_MODE=offline works.")
    wandb_project: str = option("lic", "Project at Weights & Biases.", needs={"wandb": True})


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Which checkpoints stay."""

    checkpoint_every: int = option(500, "Steps between checkpoints.", least=1)
    keep_last: int = option(2, "Newest checkpoints that stay.", least=1)
    keep_best: int = option(1, "Best checkpoints that stay besides.", least=0)
    best_metric: str = option(
        "val_loss", "Metric that ranks them.",
        choices=("val_loss", "val_psnr", "val_ms_ssim", "val_bpp", "loss"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Length and seed."""

    steps: int = option(
        20_000,
        "Length in optimiser steps; give these or --epochs.",
        least=1,
        needs={"epochs": False},
    )
    epochs: int = option(
        0,
        "Length in passes over the photos; give these or --steps. Where a file has both, epochs "
        "win unless 0.",
        least=0,
    )
    seed: int = option(0, "Of weights, crops and noise.", least=0, below=2**31)
    compile: bool = option(False, "Compile the networks (torch.compile); slow to start.")


@dataclass(frozen=True, kw_only=True)
class BundleConfig(Section):
    """What the run ends in."""

    rate: int = option(1, "Rate point of the bundle.", least=1, most=255, short="-q")
    dtype: str = option(
        "float16", "Precision of weights in the bundle.", choices=("float16", "float32")
    )


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "activation": ActivationConfig,
    "replacement": ReplacementConfig,
    "run": RunConfig,
    "data": DataConfig,
    "loss": LossConfig,
    "optimizer": OptimizerConfig,
    "objective": ObjectiveConfig,
    "gamma": GammaConfig,
    "spectral": SpectralConfig,
    "finetune": FinetuneConfig,
    "precision": PrecisionConfig,
    "qat": QatConfig,
    "watch": WatchConfig,
    "checkpoint": CheckpointConfig,
    "bundle": BundleConfig,
}
OPTIONS: Final[dict[str, "Field[Any]"]] = {
    item.name: item for kind in SECTIONS.values() for item in fields(kind)
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All sections of one run; `init` names the model it goes on from, for the record."""

    model: ModelConfig = field(default_factory=ModelConfig)
    activation: ActivationConfig = field(default_factory=ActivationConfig)
    replacement: ReplacementConfig = field(default_factory=ReplacementConfig)
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    gamma: GammaConfig = field(default_factory=GammaConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    qat: QatConfig = field(default_factory=QatConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    init: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return sections of JSON and TOML values."""
        sections = {name: getattr(self, name).to_dict() for name in SECTIONS}
        return {**sections, "init": self.init}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], base: Self | None = None) -> Self:
        """Return what `to_dict` gave; sections and options left out are those of `base`.

        Args:
            values: sections by name, each with options by name; and init.
            base: None has the defaults.

        Raises:
            ConfigError: a section or option that does not exist, or a value that cannot work.
        """
        base = cls() if base is None else base
        init = values.get("init", base.init)
        if not isinstance(init, str):
            raise ConfigError(f"init is {init!r}; expected text")
        unknown = [name for name in values if name not in SECTIONS and name != "init"]
        if unknown:
            raise ConfigError(
                f"no section is called {unknown[0]!r}; expected some of {', '.join(SECTIONS)}"
            )
        made = {
            name: _section(name, values[name], getattr(base, name))
            for name in SECTIONS
            if name in values
        }
        return replace(base, init=init, **made)

    def by_name(self) -> dict[str, Any]:
        """Return the values of all options by their unique names, and init."""
        values = {n: v for name in SECTIONS for n, v in vars(getattr(self, name)).items()}
        return {**values, "init": self.init}

    def updated(self, values: Mapping[str, Any]) -> Self:
        """Return this with options, given by their unique names, set to other values."""
        changed = {}
        for name, kind in SECTIONS.items():
            own = {item.name: values[item.name] for item in fields(kind) if item.name in values}
            if own:
                changed[name] = replace(getattr(self, name), **own)
        return replace(self, **changed)


def _section(name: str, values: Any, base: Any) -> Any:
    known = [item.name for item in fields(SECTIONS[name])]
    if not isinstance(values, Mapping):
        raise ConfigError(f"[{name}] is {values!r}; expected a section with options")
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ConfigError(
            f"[{name}] has no option {unknown[0]!r}; expected some of {', '.join(known)}"
        )
    return replace(base, **values)
