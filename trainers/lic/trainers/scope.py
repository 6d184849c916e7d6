"""Which parameters of a model learn."""

from collections.abc import Iterator, Sequence

from torch import nn

from lic.codec.errors import ConfigError
from lic.codec.models import ScaleHyperprior
from lic.trainers.model_options import ReplacementConfig
from lic.trainers.models import Balle2018


def apply_scope(
    model: Balle2018,
    replaced: Sequence[str],
    replacement: ReplacementConfig,
) -> list[str]:
    """Set `requires_grad` of all parameters as --train-scope and --freeze-entropy ask for.

    The entropy model is the bottleneck and, with a hyperprior, the networks h_a and h_s: all that
    decides how many bits given latents take. Quantiles share the bottleneck's lot; no rate has a
    gradient for them, so that only an optimiser of their own moves them.

    Args:
        model: its parameters change in nothing else.
        replaced: names of modules, such as "g_a.1", as `replace_activations` returns them.
        replacement: the options.

    Returns:
        What the user should know, in sentences.

    Raises:
        ConfigError: nothing is left to train.
    """
    scope = replacement.train_scope
    if scope != "all" and not replaced:
        raise ConfigError(
            f"--train-scope is {scope}, but no layer was replaced, so nothing would learn; take all"
        )
    hyper = isinstance(model, ScaleHyperprior)
    parts = {
        "replaced": [],
        "replaced+entropy": ["entropy_bottleneck"],
        "replaced+hyper": ["entropy_bottleneck", "h_a", "h_s"],
        "all": [""],
    }[scope]
    frozen = ["entropy_bottleneck", "h_a", "h_s"] if replacement.freeze_entropy else []
    learning = [*parts, *(_learner(model, name) for name in replaced)]
    for name, parameter in model.named_parameters():
        inside = any(_belongs(name, part) for part in learning)
        parameter.requires_grad_(inside and not any(_belongs(name, part) for part in frozen))
    return list(_notes(scope, replacement.freeze_entropy, hyper))


def _learner(model: nn.Module, name: str) -> str:
    """Return the module that learns in place of one without parameters: the one before it."""
    if any(True for _ in model.get_submodule(name).parameters()):
        return name
    transform, _, number = name.rpartition(".")
    return f"{transform}.{int(number) - 1}"


def _belongs(name: str, part: str) -> bool:
    return not part or name.startswith(f"{part}.")


def _notes(scope: str, freeze: bool, hyper: bool) -> Iterator[str]:
    if scope == "replaced+hyper" and not hyper:
        yield (
            "--train-scope replaced+hyper: this model has no hyper networks, so that the replaced "
            "layers and the entropy bottleneck learn"
        )
    if freeze and scope in ("replaced+entropy", "replaced+hyper"):
        yield f"--freeze-entropy takes back what --train-scope {scope} adds: as with replaced"
    if freeze:
        names = "entropy bottleneck, h_a and h_s stay" if hyper else "entropy bottleneck stays"
        yield f"--freeze-entropy: the {names} as loaded, and nothing is fitted before training"
