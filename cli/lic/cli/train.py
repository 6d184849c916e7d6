"""lic train: checkpoints and bundles from folders of photos."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import options, sweep
from lic.cli.config_options import PANELS, Offer, SectionedCommand, with_config
from lic.cli.console import Output
from lic.cli.training import OFFERS, Run, starting_model, with_caution
from lic.codec.errors import ConfigError
from lic.trainers import recipes
from lic.trainers.config import TrainConfig

if TYPE_CHECKING:
    from lic.trainers.models import Codec

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Train models."""


@app.command(cls=SectionedCommand)
@with_config(recipes.bmshj2018(), OFFERS["bmshj2018"], Run)
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
@with_config(recipes.relu(), OFFERS["relu"], Run)
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
@with_config(recipes.hpcm(), OFFERS["hpcm"], Run)
def hpcm(
    run: Run,
    given: dict[str, Any],
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="mse|ms-ssim",
            help="Distortion: 255^2 MSE or 1 - MS-SSIM; each has --lmbda of its own. "
            "[default: mse]",
            rich_help_panel=PANELS["loss"],
        ),
    ] = None,
    cautious: Annotated[
        bool | None,
        typer.Option(
            "--cautious/--no-cautious",
            help="The same as --optimizer cautious-adam, or adam.",
            show_default=False,
            rich_help_panel=PANELS["optimizer"],
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Start from this run, checkpoint, bundle or published file, with the usual recipe."
        ),
    ] = None,
    finetune: Annotated[
        Path | None,
        typer.Option(
            help="Go on from the weights of one in small steps: --finetune-lr, --schedule none, "
            "--gamma-schedule cosine from 0.002, 500 epochs."
        ),
    ] = None,
) -> None:
    """Train HPCM, then write its bundle: the published recipe, or balanced, hierarchical, spectral.

    Without options it is the published recipe: size base, 3,000 epochs of Adam, 32 crops of
    256x256 a step. A run that --epochs or --steps make shorter goes through the same schedules:
    what is told in epochs of 3,000 shrinks with it.
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
        made, config = starting_model(wanted, given, source, "hpcm")
        return made, _followed(config, run.named, finetune=finetune is not None)

    run.go(recipe, given, source, model, command="hpcm")


def _followed(config: TrainConfig, named: Collection[str], *, finetune: bool) -> TrainConfig:
    """Return the options of HPCM with those that follow from others, unless somebody named them."""
    from lic.codec.models.hpcm_files import published_rate_point

    if finetune and "finetune_lr" in named and "lr" not in named:
        config = config.updated({"lr": config.finetune.finetune_lr})
    if "rate" not in named:
        known = published_rate_point(config.loss.lmbda, config.loss.loss)
        config = config.updated({"rate": known[1] if known else 1})
    return config


@dataclass(kw_only=True)
class _Plot:
    """Where the courses of gamma are drawn."""

    plot: Annotated[Path, typer.Option(help="Picture to write, .png.")]
    epochs: Annotated[float, typer.Option(min=1, help="Length of the run.")] = 3000.0
    quiet: options.Quiet = False


@app.command(cls=SectionedCommand)
@with_config(recipes.hpcm(), Offer(sections=("gamma",), omit=frozenset(("gamma_schedule",))), _Plot)
def schedules(run: _Plot, given: dict[str, Any]) -> None:
    """Draw how gamma moves over a run, for every --gamma-schedule."""
    from lic.trainers.gamma_plot import plot

    plot(run.plot, recipes.hpcm().updated(given).gamma, run.epochs)
    Output(-1 if run.quiet else 0).note(f"schedules of gamma -> {run.plot}")


sweep.register(app)
