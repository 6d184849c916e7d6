"""What the commands of lic train have in common: one run, from its options to its bundle."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from lic.cli import options
from lic.cli.config_options import Offer, read_config, write_config
from lic.cli.console import Output
from lic.cli.extras import require
from lic.codec.errors import ConfigError, OutputError
from lic.trainers.config import TrainConfig
from lic.trainers.model_options import BMSHJ2018, BMSHJ2018_SIZES, CUSTOM, HPCM_SIZES
from lic.trainers.needs import check_needs, of_others
from lic.trainers.recipes import completed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from lic.trainers.loop import Trainer
    from lic.trainers.models import Codec

CONFIG = "config.toml"
DEVICES = ("auto", "cpu", "cuda", "mps")

_SHARED = ("run", "data", "loss", "optimizer", "precision", "qat", "watch", "checkpoint", "bundle")
# By command. lic train hpcm has --metric in place of --loss, and no int8 simulation.
OFFERS = {
    "bmshj2018": Offer(
        sections=("model", "activation", *_SHARED),
        omit=of_others(*BMSHJ2018),
        choices={"arch": BMSHJ2018, "size": (*BMSHJ2018_SIZES, CUSTOM)},
        more={
            "size": "lite is N = 64, M = 96; the others are the qualities of CompressAI: 1 to 5 "
            "have N = 128, M = 192, and 6 to 8 have N = 192, M = 320."
        },
    ),
    "relu": Offer(
        sections=("activation", "replacement", *_SHARED),
        choices={"act": ("relu", "gdnish", "igdn1")},
    ),
    "hpcm": Offer(
        sections=(
            "model", "objective", "gamma", "spectral", "finetune",
            *(name for name in _SHARED if name != "qat"),
        ),
        omit=of_others("hpcm") | {"arch", "loss", "alpha_l1", "lambda_bpp"},
        choices={"size": (*HPCM_SIZES, CUSTOM)},
        more={
            "lmbda": "Published are 0.0018, 0.0035, 0.0067, 0.013, 0.025 and 0.0483; with --metric "
            "ms-ssim 2.4, 4.58, 8.73, 16.64, 31.73 and 60.5.",
            "size": "base, large and phi are the published ones; tiny is for small devices.",
        },
        defaults={
            "steps": "--epochs count",
            "optimizer": "adam; cautious-adam with --objective balanced",
            "update_every": "1; 16 with --objective hierarchical",
            "lmbda": "0.013; 16.64 with --metric ms-ssim",
            "rate": "that of a published --lmbda, else 1",
        },
    ),
}  # fmt: skip


@dataclass(kw_only=True)
class Run:
    """Options that the training commands have in common, and what they do."""

    images: options.Photos
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder of the run: checkpoints, metrics, bundle."),
    ]
    config: Annotated[
        Path | None, typer.Option(help="TOML file of options; those given beside it win.")
    ] = None
    save_config: Annotated[
        Path | None, typer.Option(help="Also write all options to this TOML file, then train.")
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto"
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine, one a device.")
    ] = 1
    nodes: Annotated[int, typer.Option(min=1, help="Machines; start each by torchrun.")] = 1
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint, with its options.")
    ] = False
    quiet: options.Quiet = False

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(f"--device is {self.device!r}; expected one of {', '.join(DEVICES)}")
        require("train", "torch", "lightning_fabric", "onnxscript", "tomli_w")
        from lic.trainers.runs import Place

        self.out = Output(-1 if self.quiet else 0)
        self._said: set[str] = set()
        # Options that the line or its file names, known once `go` has read that.
        self.named: Collection[str] = ()
        self.place = Place(
            images=self.images,
            folder=self.output,
            device=self.device,
            devices=self.devices,
            nodes=self.nodes,
        )

    def options(self, recipe: TrainConfig, *, command: str) -> tuple[TrainConfig, frozenset[str]]:
        """Return the recipe with what a file of options says, and the names of what it says."""
        if self.config and self.resume:
            raise ConfigError("--resume goes on with the run's own options; leave out --config")
        config, named = read_config(self.config, recipe)
        if command != "relu" and config.replacement != recipe.replacement:
            raise ConfigError(f"{self.config}: [replacement] is for lic train relu; take it out")
        return config, named

    def say(self, text: str) -> None:
        """Say something useful, once."""
        if text not in self._said:
            self._said.add(text)
            self.out.note(text)

    def go(
        self,
        recipe: TrainConfig,
        given: dict[str, Any],
        init: Path | None,
        model: "Callable[[TrainConfig], tuple[Codec, TrainConfig]]",
        *,
        command: str,
    ) -> None:
        """Train, then write the bundle.

        Args:
            recipe: the command's own options.
            given: those asked for by name.
            init: where a model comes from.
            model: makes it, and the options as it bears them out.
            command: name of the command, which runs hold to.
        """
        from lic.cli.weights import contexts_in
        from lic.trainers import runs
        from lic.trainers.stopping import peers_told_apart

        folder = self.place.folder
        base, in_file = self.options(recipe, command=command)
        self.named = in_file | given.keys()
        if "steps" in self.named and "epochs" not in self.named and not self.resume:
            given = {**given, "epochs": 0}
        if self.resume:
            state = runs.last_state(folder, given, self.say, command=command)
            config = TrainConfig.from_dict(state["config"])
            check_needs(given, config)
            fabric = self._open(config)
            trainer = runs.resume(state, self.place, fabric, self.say)
        else:
            if base.init and init is None:
                raise ConfigError(
                    f"--config is of a run that went on from {base.init}; name that with --init, "
                    "or take the line out of the file"
                )
            config = completed(base.updated(given), self.named)
            config = replace(config, init=_called(init) if init else "")
            if init is None:
                check_needs(given, config)
            fabric = self._open(config)
            with peers_told_apart(), _new_folder(folder, fabric):
                start_from, config = model(config)
                # What a model is, it may have told only now.
                check_needs(given, config)
                if fabric.is_global_zero:
                    write_config(config, folder / CONFIG, self.out)
                trainer = runs.start(
                    start_from, config, self.place, fabric, self.say,
                    fresh=init is None, command=command, widen_to_size=command == "bmshj2018",
                    contexts=contexts_in(init) if config.loss.contexts and init else None,
                )  # fmt: skip
        if self.save_config and fabric.is_global_zero:
            write_config(config, self.save_config, self.out)
        self._train(trainer)

    def _open(self, config: TrainConfig) -> "Fabric":
        """Return the devices; of several processes, only the first speaks from here on."""
        from lic.trainers.runs import open_fabric

        fabric = open_fabric(config, self.place)
        if not fabric.is_global_zero:
            self.out = Output(-1)
        return fabric

    def _train(self, trainer: "Trainer") -> None:
        from lic.trainers.int8_result import save_int8
        from lic.trainers.stopping import Interrupted

        try:
            with _bar(trainer.steps, trainer.step, self.out) as report:
                trainer.run(report)
        except Interrupted as stopped:
            self.out.note(str(stopped))
            raise
        for path, reason in trainer.data.unreadable.items():
            self.say(f"left out {path}: {reason}")
        if trainer.fabric.is_global_zero:
            int8 = save_int8(trainer)
            if int8:
                self.out.note(f"int8 weights and ranges -> {int8}")
            self._bundle(trainer)

    def _bundle(self, trainer: "Trainer") -> None:
        from lic.cli.weights import TORCH_ONLY, default_name
        from lic.export.make_bundle import Description, make_bundle
        from lic.trainers.checkpoints import load_model
        from lic.trainers.validation import final_files

        folder = self.place.folder
        model, training = load_model(folder)
        loss = trainer.config.loss
        metric: Literal["mse", "ms-ssim"] = "ms-ssim" if loss.loss == "ms-ssim" else "mse"
        description = Description(
            name=default_name(model.config, metric),
            rate_point=trainer.config.bundle.rate,
            lmbda=loss.lmbda if loss.loss in ("mse", "ms-ssim") else None,
            metric=metric,
            training=training,
        )
        dtype = cast(Literal["float32", "float16"], trainer.config.bundle.dtype)
        bundle = make_bundle(model, folder / "bundle", description, dtype=dtype, overwrite=True)
        self.out.note(f"{bundle.label} -> {bundle.path}")
        if not bundle.has_graphs:
            self.out.note(TORCH_ONLY.format(source=folder))
        if trainer.validation:
            values = final_files(
                bundle.path,
                trainer.validation,
                device=trainer.fabric.device.type,
                say=self.say,
            )
            self.out.note(
                f"real files, {values['pictures']:.0f} pictures: {values['bpp']:.4f} bpp, "
                f"{values['psnr']:.2f} dB, MS-SSIM {values['ms_ssim']:.4f}"
            )


def with_caution(given: dict[str, Any], cautious: bool | None) -> dict[str, Any]:
    """Return the options with the optimiser that --cautious or --no-cautious asks for."""
    if cautious is None:
        return given
    wanted = "cautious-adam" if cautious else "adam"
    if given.get("optimizer", "adam") not in ("adam", wanted):
        flag = "--cautious" if cautious else "--no-cautious"
        raise ConfigError(
            f"{flag} and --optimizer {given['optimizer']} contradict each other; {flag} is for "
            "--optimizer adam, leave one of them out"
        )
    return {**given, "optimizer": wanted}


def starting_model(
    config: TrainConfig, given: dict[str, Any], init: Path | None, command: str
) -> "tuple[Codec, TrainConfig]":
    """Return a new model, or that of `init`, which the options given must not contradict."""
    from lic.trainers.models import TRAINS, describe, new_model, trainable

    if init is None:
        if config.model.arch not in TRAINS[command]:
            raise ConfigError(
                f"arch is {config.model.arch!r}, which lic train {command} does not train; "
                f"expected {' or '.join(TRAINS[command])}"
            )
        return new_model(config), config
    from lic.cli.weights import load_any

    # The tensors of a foreign checkpoint do not tell GDN from GDN1; --act does.
    normalisation = "igdn1" if config.activation.act == "igdn1" else "gdn"
    loaded = load_any(init, normalisation, placement=given.get("placement"))[0]
    model = trainable(loaded, str(init), command)
    return model, describe(model, config, given, str(init))


def _called(source: Path) -> str:
    """Return what a model to start from is called in records; never where it lies."""
    from lic.codec.bundle import MANIFEST

    source = source.resolve()
    # The rate points of a family are folders called 1, 2, 3.
    point = source.name.isdigit() and (source / MANIFEST).is_file()
    return f"{source.parent.name} q{source.name}" if point else source.name


@contextlib.contextmanager
def _new_folder(folder: Path, fabric: "Fabric") -> Iterator[None]:
    """Have the first process make the folder of a run, before any goes on.

    What fails before the first step leaves no new folder behind.

    Raises:
        OutputError: it holds a run or something else already, or cannot be written.
    """
    new = fabric.is_global_zero and not folder.exists()
    if fabric.is_global_zero:
        _make_folder(folder)
    fabric.barrier()
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _make_folder(folder: Path) -> None:
    from lic.trainers.files import CHECKPOINTS

    if any((folder / CHECKPOINTS).glob("*.pt")):
        raise OutputError(f"{folder}: holds a run already; --resume goes on with it")
    try:
        if folder.exists() and not (folder / CONFIG).exists() and any(folder.iterdir()):
            raise OutputError(f"{folder}: holds other files; name a new or empty folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _bar(steps: int, done: int, out: Output) -> Any:
    """Return a context that gives a reporter: a bar on a terminal, lines elsewhere."""
    import sys

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
