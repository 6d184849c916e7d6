"""lic train: checkpoints and bundles from folders of photos."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from lic.cli import options
from lic.cli.console import Output
from lic.cli.extras import require
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
    size: Annotated[
        str | None,
        typer.Option(
            help="lite, or a quality 1 to 8 of CompressAI. Default: lite, or that of --init."
        ),
    ] = None,
    act: Annotated[
        str | None,
        typer.Option(help="relu, gdn or igdn1, on both sides. Default: relu, or those of --init."),
    ] = None,
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
    # Not after hours of training.
    if dtype not in ("float32", "float16"):
        raise ConfigError(f"--dtype is {dtype!r}; expected float32 or float16")
    require("train", "torch", "lightning_fabric", "onnxscript")
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
    _bundle(output, rate, cast(Literal["float32", "float16"], dtype), out)


def _new_model(size: str | None, act: str | None, init: Path | None) -> "FactorizedPrior":
    """Return a new model, or that of `init`, which size and activation must not contradict."""
    from lic.codec.models import FactorizedPrior, factorized_config

    wanted = factorized_config(size or "lite", cast(Any, act or "relu"))
    if init is None:
        return FactorizedPrior(wanted)
    from lic.cli.models import load_any

    # The tensors of a foreign checkpoint do not tell GDN from GDN1; --act does.
    model = load_any(init, "igdn1" if act == "igdn1" else "gdn")[0]
    if not isinstance(model, FactorizedPrior):
        raise ConfigError(
            f"--init {init} is {model.name}; this command trains {FactorizedPrior.name} only, "
            "models with a context cannot be trained yet"
        )
    found = model.config
    if size is not None and (found.N, found.M) != (wanted.N, wanted.M):
        raise ConfigError(
            f"--size {size} means N = {wanted.N}, M = {wanted.M}, but {init} has N = {found.N}, "
            f"M = {found.M}; leave out --size"
        )
    sides = (found.encoder_activation, found.decoder_activation)
    if act is not None and sides != (act, act):
        raise ConfigError(
            f"--act is {act}, but {init} has {sides[0]} in its encoder and {sides[1]} in its "
            "decoder; leave out --act"
        )
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
    _check_writable(folder)
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


def _check_writable(folder: Path) -> None:
    """Make the folder of the run, or say now what its first checkpoint would run into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None


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
        # Standard output is for results, whatever else shows on the terminal.
        with Progress(*columns, console=out.err, redirect_stdout=False) as progress:
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


def _bundle(folder: Path, rate: int, dtype: Literal["float32", "float16"], out: Output) -> None:
    from lic.cli.models import default_name
    from lic.export.make_bundle import Description, make_bundle
    from lic.trainers.checkpoints import NAME, load_model

    model, training = load_model(folder / NAME)
    description = Description(
        name=default_name(model.config), rate_point=rate, lmbda=training["lmbda"], training=training
    )
    bundle = make_bundle(model, folder / "bundle", description, dtype=dtype, overwrite=True)
    out.note(f"{bundle.label} -> {bundle.path}")
