"""lic train: checkpoints and bundles from folders of photos."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from lic.cli import options
from lic.cli.config_options import SectionedCommand, read_config, with_config, write_config
from lic.cli.console import Output
from lic.cli.extras import require
from lic.codec.errors import ConfigError, OutputError
from lic.trainers import recipes
from lic.trainers.config import TrainConfig

if TYPE_CHECKING:
    from lic.trainers.loop import Trainer
    from lic.trainers.models import Codec

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)

_SHARED = ("run", "data", "loss", "optimizer", "precision", "qat", "watch", "checkpoint")

RunFolder = Annotated[
    Path,
    typer.Option("-o", "--output", help="Folder of the run: checkpoints, metrics, bundle."),
]
Config = Annotated[
    Path | None, typer.Option(help="TOML file of options; those given beside it win.")
]
SaveConfig = Annotated[
    Path | None, typer.Option(help="Also write all options to this TOML file, then train.")
]
RatePoint = Annotated[
    int, typer.Option("-q", "--rate", min=1, max=255, help="Rate point of the bundle.")
]
Dtype = Annotated[str, typer.Option(help="Weights in the bundle: float32 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]
Devices = Annotated[int, typer.Option(min=1, help="Processes on this machine, one a device.")]
Nodes = Annotated[int, typer.Option(min=1, help="Machines; start each by torchrun.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint, with its options.")
]


@app.callback()
def _group() -> None:
    """Train models."""


@app.command(cls=SectionedCommand)
@with_config(recipes.bmshj2018(), ("model", "activation", *_SHARED))
def bmshj2018(
    images: options.Folder,
    output: RunFolder,
    given: dict[str, Any],
    init: Annotated[
        Path | None, typer.Option(help="Start from this run, checkpoint or bundle instead.")
    ] = None,
    config: Config = None,
    save_config: SaveConfig = None,
    rate: RatePoint = 1,
    dtype: Dtype = "float16",
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    resume: Resume = False,
    quiet: options.Quiet = False,
) -> None:
    """Train bmshj2018 from scratch, or go on from a model, then write its bundle."""
    run = _Run(images, output, device, devices, nodes, rate, dtype, quiet)
    base = run.options(config, recipes.bmshj2018(), resume=resume)

    def model(wanted: TrainConfig) -> "tuple[Codec, TrainConfig]":
        return starting_model(wanted, given, init)

    run.go(base, given, init, model, resume=resume, save=save_config, replaces=False)


@app.command(cls=SectionedCommand)
@with_config(recipes.relu(), ("activation", "replacement", *_SHARED))
def relu(
    images: options.Folder,
    output: RunFolder,
    given: dict[str, Any],
    init: Annotated[
        Path | None,
        typer.Option(
            help="The trained model: a checkpoint of CompressAI (.pth.tar, .safetensors), a run or "
            "a bundle."
        ),
    ] = None,
    config: Config = None,
    save_config: SaveConfig = None,
    rate: RatePoint = 1,
    dtype: Dtype = "float16",
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    resume: Resume = False,
    quiet: options.Quiet = False,
) -> None:
    """Replace the GDN of a trained bmshj2018 by what NPUs run, train on, and write its bundle."""
    run = _Run(images, output, device, devices, nodes, rate, dtype, quiet)
    base = run.options(config, recipes.relu(), resume=resume)

    def model(wanted: TrainConfig) -> "tuple[Codec, TrainConfig]":
        from lic.cli.models import load_any
        from lic.trainers.models import described, trainable

        if init is None:
            raise ConfigError(
                "lic train relu needs --init, the trained model whose GDN it replaces; 'lic train "
                "bmshj2018 --act relu' starts from scratch"
            )
        loaded = trainable(load_any(init)[0], str(init))
        return loaded, described(loaded, wanted)

    run.go(base, given, init, model, resume=resume, save=save_config, replaces=True)


def starting_model(
    config: TrainConfig, given: dict[str, Any], init: Path | None
) -> "tuple[Codec, TrainConfig]":
    """Return a new model, or that of `init`, which the options given must not contradict."""
    from lic.trainers.models import describe, new_model, trainable

    if init is None:
        return new_model(config), config
    from lic.cli.models import load_any

    # The tensors of a foreign checkpoint do not tell GDN from GDN1; --act does.
    loaded = load_any(init, "igdn1" if config.activation.act == "igdn1" else "gdn")[0]
    model = trainable(loaded, str(init))
    return model, describe(model, config, given, str(init))


class _Run:
    """What the training commands have in common."""

    def __init__(
        self, images: Path, output: Path, device: str, devices: int, nodes: int, rate: int,
        dtype: str, quiet: bool,
    ) -> None:  # fmt: skip
        # Not after hours of training.
        if dtype not in ("float32", "float16"):
            raise ConfigError(f"--dtype is {dtype!r}; expected float32 or float16")
        require("train", "torch", "lightning_fabric", "onnxscript", "tomli_w")
        from lic.trainers.runs import Place

        self.out = Output(-1 if quiet else 0)
        self.rate = rate
        self.dtype = cast(Literal["float32", "float16"], dtype)
        self.place: Place = Place(
            images=images, folder=output, device=device, devices=devices, nodes=nodes
        )

    def options(self, file: Path | None, recipe: TrainConfig, *, resume: bool) -> TrainConfig:
        """Return the recipe with what a file of options says."""
        if file and resume:
            raise ConfigError("--resume goes on with the run's own options; leave out --config")
        return read_config(file, recipe) if file else recipe

    def go(
        self,
        base: TrainConfig,
        given: dict[str, Any],
        init: Path | None,
        model: "Callable[[TrainConfig], tuple[Codec, TrainConfig]]",
        *,
        resume: bool,
        save: Path | None,
        replaces: bool,
    ) -> None:
        """Train, then write the bundle."""
        from dataclasses import replace

        from lic.trainers import runs

        folder = self.place.folder
        if resume:
            state = runs.last_state(folder, given, self.out.note)
            fabric = runs.open_fabric(TrainConfig.from_dict(state["config"]), self.place)
            self._quiet_but_first(fabric)
            if save and fabric.is_global_zero:
                write_config(TrainConfig.from_dict(state["config"]), save, self.out)
            trainer = runs.resume(state, self.place, fabric, self.out.note)
        else:
            config = replace(base.updated(given), init=init.name if init else base.init)
            fabric = runs.open_fabric(config, self.place)
            self._quiet_but_first(fabric)
            _check_new(folder)
            fabric.barrier()
            start_from, config = model(config)
            if fabric.is_global_zero:
                for path in filter(None, (save, folder / "config.toml")):
                    write_config(config, path, self.out)
            trainer = runs.start(
                start_from, config, self.place, fabric, self.out.note,
                fresh=init is None, replaces=replaces,
            )  # fmt: skip
        self._train(trainer)

    def _quiet_but_first(self, fabric: Any) -> None:
        """Let one process of several speak."""
        if not fabric.is_global_zero:
            self.out = Output(-1)

    def _train(self, trainer: "Trainer") -> None:
        from lic.trainers.runs import save_int8
        from lic.trainers.stopping import Interrupted

        try:
            with _bar(trainer.steps, trainer.step, self.out) as report:
                trainer.run(report)
        except Interrupted as stopped:
            self.out.note(str(stopped))
            raise
        for path, reason in trainer.data.unreadable.items():
            self.out.note(f"left out {path}: {reason}")
        if trainer.fabric.is_global_zero:
            int8 = save_int8(trainer)
            if int8:
                self.out.note(f"int8 weights and ranges -> {int8}")
            self._bundle(trainer)

    def _bundle(self, trainer: "Trainer") -> None:
        from lic.cli.models import default_name
        from lic.export.make_bundle import Description, make_bundle
        from lic.trainers.checkpoints import load_model
        from lic.trainers.validation import final_files

        folder = self.place.folder
        model, training = load_model(folder)
        loss = trainer.config.loss
        description = Description(
            name=default_name(model.config),
            rate_point=self.rate,
            lmbda=loss.lmbda if loss.loss == "mse" else None,
            training=training,
        )
        bundle = make_bundle(
            model, folder / "bundle", description, dtype=self.dtype, overwrite=True
        )
        self.out.note(f"{bundle.label} -> {bundle.path}")
        if trainer.validation:
            values = final_files(
                bundle.path,
                trainer.validation,
                device=trainer.fabric.device.type,
                say=self.out.note,
            )
            self.out.note(
                f"real files, {len(trainer.validation)} pictures: {values['bpp']:.4f} bpp, "
                f"{values['psnr']:.2f} dB, MS-SSIM {values['ms_ssim']:.4f}"
            )


def _check_new(folder: Path) -> None:
    """Make the folder of a run, or say now what its first checkpoint would run into."""
    from lic.trainers.files import CHECKPOINTS

    if any((folder / CHECKPOINTS).glob("*.pt")):
        raise OutputError(f"{folder}: holds a run already; --resume goes on with it")
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
        yield lambda v: out.note(f"step {v['step']:.0f} of {steps}: {_line(v)}")

    @contextlib.contextmanager
    def bar() -> Iterator[Any]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Eta

        columns = (BarColumn(), MofNCompleteColumn(), Eta(), TextColumn("{task.description}"))
        # Standard output is for results, whatever else shows on the terminal.
        with Progress(*columns, console=out.err, redirect_stdout=False) as progress:
            task = progress.add_task("", total=steps, completed=done)
            yield lambda v: progress.update(task, completed=v["step"], description=_line(v))

    return bar() if sys.stderr.isatty() and out.verbosity >= 0 else lines()


def _line(values: dict[str, float]) -> str:
    parts = [f"loss {values['loss']:.4f}", f"{values['bpp']:.4f} bpp"]
    if "mse" in values:
        parts.append(f"mse {values['mse'] * 255**2:.1f}")
    if "ms_ssim" in values:
        parts.append(f"MS-SSIM {values['ms_ssim']:.4f}")
    parts.append(f"{values['images_per_second']:.1f} images/s")
    if values["data_wait"] > 0.02:
        parts.append(f"{values['data_wait']:.0%} waiting for data")
    return ", ".join(parts)
