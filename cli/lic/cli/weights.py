"""Models from whatever holds weights: runs, checkpoints, bundles, other projects' files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lic.codec.errors import ConfigError, ModelMismatchError

if TYPE_CHECKING:
    from lic.codec.entropy import Contexts

# What --arch takes beside auto: an architecture, of HPCM with the size.
ARCH_CHOICES: dict[str, tuple[str, str | None]] = {
    "bmshj2018-factorized": ("bmshj2018-factorized", None),
    "bmshj2018-hyperprior": ("bmshj2018-hyperprior", None),
    "hpcm-base": ("hpcm", "base"),
    "hpcm-large": ("hpcm", "large"),
    "hpcm-phi": ("hpcm", "phi"),
    "hpcm-tiny": ("hpcm", "tiny"),
}

# What to tell of a model whose graphs take a minute to make.
TORCH_ONLY = "it runs in torch; lic export {source} -o FOLDER makes one for ONNX Runtime, too"


def load_any(
    source: Path, activation: str = "gdn", *, arch: str = "auto", placement: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return a model and its provenance from a run's folder, a bundle or a foreign checkpoint.

    Args:
        source: where it is.
        activation: of a foreign bmshj2018: what its beta and gamma mean.
        arch: "auto", or the key of ARCH_CHOICES that it must be.
        placement: of a foreign HPCM; None is that of the published files.

    Raises:
        ModelMismatchError: not readable, incomplete, or another architecture than asked for.
        ConfigError: an option that does not exist or has no meaning for this model.
    """
    from lic.codec.bundle import MANIFEST, Bundle
    from lic.codec.models import ACTIVATIONS
    from lic.codec.models.adapters import read_state_dict

    if activation not in ACTIVATIONS:
        raise ConfigError(f"--activation is {activation!r}; expected {', '.join(ACTIVATIONS)}")
    if _is_bundle(source):
        from lic.codec.backends.torch_backend import load_model as load_bundle

        bundle = Bundle.open(source)
        own = {} if bundle.manifest.lmbda is None else {"lmbda": bundle.manifest.lmbda}
        provenance = {"started_from": bundle.label, **own, **bundle.manifest.training}
        model: Any = load_bundle(bundle)
    elif _is_run(source):
        from lic.trainers.checkpoints import load_model
        from lic.trainers.files import CHECKPOINTS

        if source.is_dir() and not (source / CHECKPOINTS).is_dir():
            raise ModelMismatchError(
                f"{source.resolve()}: holds no model; expected {CHECKPOINTS}/ of a training run or "
                f"{MANIFEST} of a bundle in it, or the path of a checkpoint's file"
            )
        model, provenance = load_model(source)
    else:
        state = read_state_dict(source)
        try:
            model = _foreign(state, activation, arch, placement)
        except ModelMismatchError as error:
            raise ModelMismatchError(f"{source}: {error}") from None
        return model, {"imported_from": source.name}
    _check_own(source, model, arch, placement)
    return model, provenance


def contexts_in(source: Path) -> "Contexts | None":
    """Return the contexts of a bundle; whatever else holds weights has none."""
    from lic.codec.bundle import Bundle

    return Bundle.open(source).contexts if _is_bundle(source) else None


def _is_bundle(source: Path) -> bool:
    from lic.codec.bundle import MANIFEST

    return (source / MANIFEST).is_file() or source.suffix == ".zip"


def rate_of(training: dict[str, Any], default: int = 1) -> int:
    """Return the rate point that a run was started with, by the provenance of its model."""
    found: int = training.get("bundle", {}).get("rate", default)
    return found


def is_checkpoint(source: Path) -> bool:
    """Return whether a path is that of weights to make a bundle of: a run, or a checkpoint."""
    from lic.trainers.files import CHECKPOINTS

    if source.is_dir():
        return (source / CHECKPOINTS).is_dir()
    return source.is_file() and source.suffix != ".zip"


def _is_run(source: Path) -> bool:
    from lic.trainers.files import CHECKPOINTS

    return source.is_dir() or (source.suffix == ".pt" and source.parent.name == CHECKPOINTS)


def _foreign(state: Any, activation: str, arch: str, placement: str | None) -> Any:
    """Return the model of a foreign state dict."""
    from lic.codec.models.adapters import (
        detect_architecture,
        factorized_from_state_dict,
        hyperprior_from_state_dict,
    )
    from lic.codec.models.hpcm_files import hpcm_from_state_dict

    found = detect_architecture(state)
    wanted, size = ARCH_CHOICES.get(arch, (found, None))
    if found != wanted:
        raise ModelMismatchError(
            f"the tensors are those of {found}, but --arch is {arch}; leave out --arch"
        )
    if found == "hpcm":
        place: Any = placement or "upstream"
        return hpcm_from_state_dict(state, size, placement=place)
    _refuse_placement(placement, found)
    convert: Any = (
        hyperprior_from_state_dict
        if found == "bmshj2018-hyperprior"
        else factorized_from_state_dict
    )
    return convert(state, normalisation=activation)


def _check_own(source: Path, model: Any, arch: str, placement: str | None) -> None:
    """Refuse options that contradict what a bundle or a run says of itself."""
    if model.name == "hpcm":
        from lic.codec.models.hpcm_files import hpcm_size

        found: tuple[str, str | None] = (model.name, hpcm_size(model.config))
        if placement not in (None, model.config.placement):
            raise ConfigError(
                f"--placement is {placement}, but {source} says {model.config.placement}; leave "
                "out --placement"
            )
    else:
        found = (model.name, None)
        _refuse_placement(placement, model.name)
    if arch != "auto" and found != ARCH_CHOICES[arch]:
        raise ModelMismatchError(
            f"{source}: is {default_name(model.config)}, but --arch is {arch}; leave out --arch"
        )


def check_activation(activation: str | None, model: Any, source: Path) -> None:
    """Refuse an activation where the model has none to tell, or says another itself."""
    if activation is None:
        return
    if model.name == "hpcm":
        raise ConfigError("--activation is for bmshj2018; leave it out with hpcm")
    sides = (model.config.encoder_activation, model.config.decoder_activation)
    if (_is_bundle(source) or _is_run(source)) and activation not in sides:
        raise ConfigError(
            f"--activation is {activation}, but {source} says "
            f"{' and '.join(dict.fromkeys(sides))}; leave out --activation"
        )


def _refuse_placement(placement: str | None, architecture: str) -> None:
    if placement is not None:
        raise ConfigError(f"--placement is for HPCM; leave it out with {architecture}")


def default_name(config: Any, metric: str = "mse") -> str:
    """Return a family name such as bmshj2018-factorized-relu-lite or hpcm-base-ms-ssim."""
    from lic.codec.models import HPCMConfig, HyperpriorConfig

    if isinstance(config, HPCMConfig):
        from lic.codec.models.hpcm_files import hpcm_size

        size = hpcm_size(config) or f"{config.N}-{config.M}"
        corrected = "-corrected" if config.placement == "corrected" else ""
        return f"hpcm-{size}{corrected}" + ("-ms-ssim" if metric == "ms-ssim" else "")
    kind = "hyperprior" if isinstance(config, HyperpriorConfig) else "factorized"
    sides = list(dict.fromkeys((config.encoder_activation, config.decoder_activation)))
    size = "lite" if (config.N, config.M) == (64, 96) else f"{config.N}-{config.M}"
    return f"bmshj2018-{kind}-{'-'.join(sides)}-{size}"
