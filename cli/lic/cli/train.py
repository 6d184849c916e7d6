"""lic train: checkpoints and bundles from folders of photos."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import options
from lic.cli.config_options import SectionedCommand, with_config
from lic.cli.console import Output
from lic.cli.training import Run, starting_model
from lic.codec.errors import ConfigError
from lic.trainers import recipes
from lic.trainers.config import TrainConfig

if TYPE_CHECKING:
    from lic.trainers.models import Codec

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

_SHARED = ("run", "data", "loss", "optimizer", "precision", "qat", "watch", "checkpoint", "bundle")
HPCM_SECTIONS = (
    "objective", "gamma", "spectral", "finetune", *(name for name in _SHARED if name != "qat"),
)  # fmt: skip
# Of other models, or of losses without a lambda.
NOT_HPCM = frozenset(
    ("arch", "start", "loss", "alpha_l1", "lambda_bpp", "entropy_lr", "eb_aux", "eb_aux_lr")
)


@app.callback()
def _group() -> None:
    """Train models."""


@app.command(cls=SectionedCommand)
@with_config(recipes.bmshj2018(), ("model", "activation", *_SHARED), Run)
def bmshj2018(
    run: Run,
    given: dict[str, Any],
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from this run, checkpoint or bundle instead; with a larger --size, widened."
        ),
    ] = None,
) -> None:
    """Train bmshj2018 from scratch, or go on from a model, then write its bundle."""

    def model(wanted: TrainConfig) -> "tuple[Codec, TrainConfig]":
        return starting_model(wanted, given, init, "bmshj2018")

    run.go(recipes.bmshj2018(), given, init, model, command="bmshj2018")


@app.command(cls=SectionedCommand)
@with_config(recipes.relu(), ("activation", "replacement", *_SHARED), Run)
def relu(
    run: Run,
    given: dict[str, Any],
    init: Annotated[
        Path | None,
        typer.Option(
            help="The trained model: a checkpoint of CompressAI (.pth.tar, .safetensors), a run or "
            "a bundle."
        ),
    ] = None,
) -> None:
    """Replace the GDN of a trained bmshj2018 by what NPUs run, train on, and write its bundle."""

    def model(wanted: TrainConfig) -> "tuple[Codec, TrainConfig]":
        from lic.cli.weights import load_any
        from lic.trainers.models import described, trainable

        if init is None:
            raise ConfigError(
                "lic train relu needs --init, the trained model whose GDN it replaces; 'lic train "
                "bmshj2018 --act relu' starts from scratch"
            )
        loaded = trainable(load_any(init)[0], str(init), "bmshj2018")
        return loaded, described(loaded, wanted)

    run.go(recipes.relu(), given, init, model, command="relu")


@app.command(cls=SectionedCommand)
@with_config(recipes.hpcm(), ("model", *HPCM_SECTIONS), Run, omit=NOT_HPCM)
def hpcm(
    run: Run,
    given: dict[str, Any],
    metric: Annotated[
        str | None, typer.Option(help="Distortion: mse or ms-ssim. [default: mse]")
    ] = None,
    cautious: Annotated[
        bool | None,
        typer.Option(
            "--cautious/--no-cautious",
            help="Adam that leaves out what the present gradient speaks against. [default: with "
            "--objective balanced]",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from this run, checkpoint or bundle, with the usual recipe."),
    ] = None,
    finetune: Annotated[
        Path | None,
        typer.Option(
            help="Go on from the weights of this one in small steps: --finetune-lr, 500 epochs."
        ),
    ] = None,
) -> None:
    """Train HPCM, then write its bundle: the published recipe, or balanced, hierarchical, spectral.

    Standard training is the published recipe: 3,000 epochs of Adam, 32 crops of 256x256 a step.
    All lengths shrink with --epochs or --steps.
    """
    if metric is not None:
        if metric not in ("mse", "ms-ssim"):
            raise ConfigError(f"--metric is {metric!r}; expected mse or ms-ssim")
        given = {**given, "loss": metric}
    given = with_caution(given, cautious)
    if init and finetune:
        raise ConfigError("--init and --finetune both name a model to start from; give one of them")
    source = finetune or init
    recipe = recipes.hpcm()
    if finetune:
        recipe = recipes.hpcm_finetune()
    if "finetune_lr" in given:
        if not finetune or "lr" in given:
            raise ConfigError(
                "--finetune-lr is the learning rate of --finetune; without that, or beside --lr, "
                "it means nothing. Leave it out"
            )
        given = {**given, "lr": given["finetune_lr"]}

    def model(wanted: TrainConfig) -> "tuple[Codec, TrainConfig]":
        from lic.codec.models.hpcm_files import published_rate_point

        made, config = starting_model(wanted, given, source, "hpcm")
        if "rate" not in given:
            known = published_rate_point(config.loss.lmbda, config.loss.loss)
            config = config.updated({"rate": known[1] if known else 1})
        return made, config

    run.go(recipe, given, source, model, command="hpcm")


def with_caution(given: dict[str, Any], cautious: bool | None) -> dict[str, Any]:
    """Return the options with the optimiser that --cautious or the balanced recipe asks for."""
    if cautious is None:
        balanced = given.get("objective") == "balanced" and "optimizer" not in given
        return {**given, "optimizer": "cautious-adam"} if balanced else given
    wanted = "cautious-adam" if cautious else "adam"
    if given.get("optimizer", "adam") not in ("adam", wanted):
        flag = "--cautious" if cautious else "--no-cautious"
        raise ConfigError(
            f"{flag} and --optimizer {given['optimizer']} contradict each other; {flag} is for "
            "--optimizer adam, leave one of them out"
        )
    return {**given, "optimizer": wanted}


@dataclass(kw_only=True)
class _Plot:
    """Where the courses of gamma are drawn."""

    plot: Annotated[Path, typer.Option(help="Picture to write, .png.")]
    epochs: Annotated[float, typer.Option(min=1, help="Length of the run.")] = 3000.0
    quiet: options.Quiet = False


@app.command(cls=SectionedCommand)
@with_config(recipes.hpcm(), ("gamma",), _Plot, omit=("gamma_schedule",))
def schedules(run: _Plot, given: dict[str, Any]) -> None:
    """Draw how gamma moves over a run, for every --gamma-schedule."""
    from lic.trainers.gamma_plot import plot

    plot(run.plot, recipes.hpcm().updated(given).gamma, run.epochs)
    Output(-1 if run.quiet else 0).note(f"schedules of gamma -> {run.plot}")


from lic.cli import sweep  # noqa: E402

sweep.register(app)
