"""lic train: checkpoints and bundles from folders of photos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.codec.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from lic.codec.models import FactorizedPrior
    from lic.trainers.config import TrainConfig

app = typer.Typer(no_args_is_help=True, help="Train models.")


@app.callback()
def _group() -> None:
    """Train models."""


@app.command()
def bmshj2018(
    images: options.Folder,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the run: checkpoint, metrics, bundle.")
    ],
    lmbda: Annotated[float, typer.Option("--lmbda", help="bpp + lmbda 255^2 MSE.")] = 0.013,
    size: Annotated[str, typer.Option(help="lite, or a quality 1 to 8 of CompressAI.")] = "lite",
    act: Annotated[str, typer.Option(help="relu, gdn or igdn1, on both sides.")] = "relu",
    init: Annotated[
        Path | None, typer.Option(help="Start from this run, checkpoint or bundle instead.")
    ] = None,
    start: Annotated[str, typer.Option(help="pca or random, without --init.")] = "pca",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Crops per step.")] = 8,
    crop: Annotated[int, typer.Option(help="Side of a crop in pixels.")] = 128,
    lr: Annotated[float, typer.Option(help="Peak learning rate of the transforms.")] = 1e-3,
    entropy_lr: Annotated[float, typer.Option(help="That of the entropy model.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help="soap or adam.")] = "soap",
    warmup_steps: Annotated[int, typer.Option(help="Linear warm-up.")] = 100,
    max_grad_norm: Annotated[float, typer.Option(help="Clip; 0 = off.")] = 1.0,
    ema: Annotated[float, typer.Option(help="Decay of averaged weights; 0 = off.")] = 0.999,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    seed: Annotated[int, typer.Option(help="Of crops and noise.")] = 0,
    prefix: Annotated[
        list[str] | None, typer.Option(help="Use only photos whose name starts so; repeatable.")
    ] = None,
    rate: Annotated[
        int, typer.Option("-q", "--rate", min=1, max=255, help="Rate point of the bundle.")
    ] = 1,
    dtype: Annotated[str, typer.Option(help="Weights in the bundle: float32 or float16.")] = (
        "float16"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train bmshj2018-factorized with a rate-distortion loss, then write its bundle."""
    from lic.cli.models import _require

    for package in ("torch", "lightning_fabric", "onnxscript"):
        _require(package, "train")
    from lic.trainers.config import TrainConfig

    config = TrainConfig(
        lmbda=lmbda, steps=steps, batch=batch, crop=crop, lr=lr, entropy_lr=entropy_lr,
        optimizer=cast(Any, optimizer), start=cast(Any, start), warmup_steps=warmup_steps,
        max_grad_norm=max_grad_norm, ema=ema, checkpoint_every=checkpoint_every, seed=seed,
        init=init.name if init else "",
    )  # fmt: skip
    out = Output(-1 if quiet else 0)
    model = _new_model(size, act, init)
    _train(model, config, images, output, prefix or [], init is None, device, resume, out)
    _bundle(output, rate, dtype, out)


def _new_model(size: str, act: str, init: Path | None) -> "FactorizedPrior":
    from lic.codec.models import FactorizedPrior, factorized_config

    if init is None:
        return FactorizedPrior(factorized_config(size, cast(Any, act)))
    from lic.cli.models import load_any

    model: FactorizedPrior = load_any(init)[0]
    return model


def _train(
    model: "FactorizedPrior",
    config: "TrainConfig",
    images: Path,
    folder: Path,
    prefixes: list[str],
    fresh: bool,
    device: str,
    resume: bool,
    out: Output,
) -> None:
    import torch
    from lightning_fabric import Fabric

    from lic.trainers.checkpoints import NAME
    from lic.trainers.data import RandomCrops, find_photos
    from lic.trainers.loop import Trainer
    from lic.trainers.objective import RateDistortion
    from lic.trainers.start import prepare

    if (folder / NAME).exists() and not resume:
        raise OutputError(f"{folder}: holds a run already; --resume goes on with it")
    crops = RandomCrops(
        find_photos(images, prefixes), crop=config.crop, batch=config.batch, seed=config.seed
    )
    torch.manual_seed(config.seed)
    if not resume:
        prepare(model, crops, config, fresh=fresh)
    fabric = Fabric(accelerator=device, devices=1)
    trainer = Trainer(model, config, RateDistortion(config.lmbda), crops, folder, fabric)
    if resume:
        trainer.resume()
    with _bar(config.steps, trainer.step, out) as report:
        trainer.run(report)
    for path, reason in crops.unreadable.items():
        out.note(f"left out {path}: {reason}")


def _bar(steps: int, done: int, out: Output) -> Any:
    """Return a context that gives a reporter: a bar on a terminal, lines elsewhere."""
    import contextlib
    import sys
    from collections.abc import Iterator

    @contextlib.contextmanager
    def lines() -> Iterator[Any]:
        yield lambda v: out.note(_line(v, steps))

    @contextlib.contextmanager
    def bar() -> Iterator[Any]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Eta

        columns = (BarColumn(), MofNCompleteColumn(), Eta(), TextColumn("{task.description}"))
        with Progress(*columns, console=out.err) as progress:
            task = progress.add_task("", total=steps, completed=done)
            yield lambda v: progress.update(
                task, completed=v["step"], description=_line(v, steps).split(": ", 1)[1]
            )

    return bar() if sys.stderr.isatty() and out.verbosity >= 0 else lines()


def _line(values: dict[str, float], steps: int) -> str:
    return (
        f"step {values['step']:.0f} of {steps}: loss {values['loss']:.4f}, "
        f"{values['bpp']:.4f} bpp, mse {values['mse'] * 255**2:.1f}, "
        f"{values['seconds_per_step']:.3f} s a step"
    )


def _bundle(folder: Path, rate: int, dtype: str, out: Output) -> None:
    from lic.cli.models import default_name
    from lic.export.make_bundle import Description, make_bundle
    from lic.trainers.checkpoints import NAME, load_model

    if dtype not in ("float32", "float16"):
        raise ConfigError(f"--dtype is {dtype!r}; expected float32 or float16")
    model, training = load_model(folder / NAME)
    description = Description(
        name=default_name(model.config), rate_point=rate, lmbda=training["lmbda"], training=training
    )
    kind = cast(Literal["float32", "float16"], dtype)
    bundle = make_bundle(model, folder / "bundle", description, dtype=kind, overwrite=True)
    out.note(f"{bundle.label} -> {bundle.path}")
