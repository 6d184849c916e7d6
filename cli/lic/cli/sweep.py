"""lic train sweep and lic train analyze: many runs with other options, and what they say."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lic.cli import options
from lic.cli.config_options import Offer, read_config, write_config
from lic.cli.console import Output
from lic.cli.extras import require
from lic.cli.training import CONFIG, DEVICES, OFFERS
from lic.codec.errors import ConfigError, TrainingError
from lic.trainers import recipes
from lic.trainers.config import SECTIONS, TrainConfig
from lic.trainers.needs import check_needs
from lic.trainers.search_space import (
    PRESETS,
    PRUNERS,
    RECIPES,
    SAMPLERS,
    TRIALS,
    Dimension,
    Plan,
    parse_over,
    parse_set,
    told,
)
from lic.trainers.sections import option_name

if TYPE_CHECKING:
    from lic.trainers.trackers import Tracker

_Storage = Annotated[
    str | None,
    typer.Option(
        help="SQLAlchemy's URL of a database, for processes on several machines. "
        "[default: sqlite:///STUDY/study.db]"
    ),
]
_Study = Annotated[
    str | None, typer.Option(help="Name of the study there. [default: that of the folder]")
]

# What trials have of the options, by model: --loss, as there is no --metric here, but nothing of
# models that were trained before.
_OFFERS = {
    "hpcm": replace(
        OFFERS["hpcm"],
        omit=OFFERS["hpcm"].omit - {"loss"} | {"finetune_lr"},
        choices={**OFFERS["hpcm"].choices, "loss": ("mse", "ms-ssim")},
    ),
    "bmshj2018": Offer(
        sections=tuple(name for name in SECTIONS if name != "replacement"),
        omit=OFFERS["bmshj2018"].omit | {"finetune_lr"},
        choices={**OFFERS["bmshj2018"].choices, "objective": ("standard", "balanced")},
    ),
}


def register(app: typer.Typer) -> None:
    """Add the commands to those of lic train."""
    app.command()(sweep)
    app.command()(analyze)


def sweep(
    images: options.Photos,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the study; each trial has one in it.")
    ],
    model: Annotated[str, typer.Option(metavar="|".join(RECIPES), help="What is trained.")],
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Option of the training and its values: gamma=0.001,0.003; a range such as "
            "lr=1e-4..1e-2:log; slashes between texts, scale_weights=0.3,0.4,0.3/1,1,1. "
            "Repeatable.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PRESETS),
            help="Sweep with a name: gamma and w_lr of --objective balanced, or the scale_weights "
            "of hierarchical. --over replaces its values.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Option that all trials have: steps=20000. Repeatable.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of options; those given beside it win.")
    ] = None,
    sampler: Annotated[
        str,
        typer.Option(
            metavar="|".join(SAMPLERS),
            help="grid: all combinations; random; tpe: where val_loss was small before.",
        ),
    ] = "grid",
    trials: Annotated[
        int | None,
        typer.Option(help=f"Trials in all. [default: the whole grid, {TRIALS} of others]"),
    ] = None,
    pruner: Annotated[
        str,
        typer.Option(
            metavar="|".join(PRUNERS),
            help="median ends trials that are worse than the median of others at the same step.",
        ),
    ] = "median",
    storage: _Storage = None,
    study: _Study = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also try trials again that failed before.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Train with many settings. The same command goes on, and others may help it elsewhere.

    A trial's value is its last val_loss: rate plus lambda times distortion, whatever it minimised.
    'lic train analyze' compares the trials.
    """  # fmt: skip
    if device not in DEVICES:
        raise ConfigError(f"--device is {device!r}; expected one of {', '.join(DEVICES)}")
    given, space = _asked(over or [], preset, set_ or [])
    base = _base(model, given, space, config)
    plan = Plan(
        model=model, base=base, space=tuple(space), sampler=sampler, trials=trials, pruner=pruner,
        retry_failed=retry_failed,
    )  # fmt: skip
    require("train", "torch", "lightning_fabric", "tomli_w")
    require("sweep", "optuna")
    from lic.trainers.sweep import Sweep

    out = Output(-1 if quiet else 0)
    _check_pictures(base, images)
    trial = _Trial(images, device, out)
    tally = Sweep(plan, output, trial.train, url=storage, name=study, say=out.note).run()
    failed = f", {tally.failed} failed (--retry-failed tries them again)" if tally.failed else ""
    out.note(
        f"{tally.done} trials finished, {tally.pruned} pruned{failed}; 'lic train analyze {output}'"
        " compares them"
    )


def analyze(
    study: Annotated[Path, typer.Argument(help="Folder of a sweep; with --storage also a name.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the report. [default: STUDY/report]"),
    ] = None,
    storage: _Storage = None,
    quiet: options.Quiet = False,
) -> None:
    """Compare the trials of a sweep: report, pictures, recommended options.

    Settings with four lambdas are ranked by BD-rate, others by val_loss at each lambda. Different
    lambdas are never ranked against each other.
    """
    require("train", "tomli_w")
    require("sweep", "optuna")
    from lic.trainers.analysis import find
    from lic.trainers.analysis_report import REPORT, write_report
    from lic.trainers.studies import default_url, find_study, reading

    out = Output(-1 if quiet else 0)
    url = storage or default_url(study)
    with reading(url):
        found = find(find_study(url, study.resolve().name, only=storage is None))
    folder = output or study / "report"
    for text in write_report(found, folder):
        out.note(text)
    for pick in found.picks:
        out.note(f"recommended: {told(dict(pick.setting))} ({pick.reason})")
    out.note(f"report -> {folder / REPORT}")


def _asked(
    over: list[str], preset: str | None, settings: list[str]
) -> tuple[dict[str, Any], list[Dimension]]:
    """Return the options that all trials have, and what is swept.

    Raises:
        ConfigError: names or values that cannot be, or an option that is both.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"--preset is {preset!r}; expected one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset] if preset else None
    dimensions = [parse_over(text) for text in over]
    own = {dimension.name for dimension in dimensions}
    if chosen:
        dimensions += [d for d in map(parse_over, chosen.over) if d.name not in own]
    swept = {dimension.name for dimension in dimensions}
    fixed = dict(map(parse_set, settings))
    both = sorted(swept & fixed.keys())
    if both:
        raise ConfigError(f"{both[0]} is given by --set and swept; leave one of them out")
    given = {**(chosen.settings if chosen else {}), **fixed}
    return {name: value for name, value in given.items() if name not in swept}, dimensions


def _base(
    model: str, given: dict[str, Any], space: Sequence[Dimension], config: Path | None
) -> TrainConfig:
    """Return the options that trials start from.

    Raises:
        ConfigError: options that mean nothing here, or contradict each other.
    """
    if model not in RECIPES:
        raise ConfigError(f"--model is {model!r}; expected one of {', '.join(RECIPES)}")
    base, named = read_config(config, RECIPES[model]())
    if base.init:
        raise ConfigError(
            f"{config} is of a run that went on from {base.init}, and a sweep trains from scratch; "
            "take the line out of the file"
        )
    if (base.model.arch == "hpcm") != (model == "hpcm"):
        raise ConfigError(f"{config}: arch is {base.model.arch!r}, and --model {model}; change one")
    asked = {*given, *(dimension.name for dimension in space)}
    _check_meaning(model, given, space)
    if "steps" in named | asked and "epochs" not in named | asked:
        given = {**given, "epochs": 0}
    base = recipes.completed(base.updated(given), named | asked)
    _check_comparable(model, space, named | asked)
    check_needs(given, base, {dimension.name: dimension.tried() for dimension in space})
    return base


def _check_comparable(model: str, space: Sequence[Dimension], named: Collection[str]) -> None:
    """Refuse to compare what has other defaults besides, unless those are named for all."""
    objectives = {value for d in space if d.name == "objective" for value in d.values}
    if model == "hpcm" and "balanced" in objectives and "optimizer" not in named:
        raise ConfigError(
            "--over objective: lic train hpcm takes cautious-adam for balanced and adam for the "
            "others, so that two things would change at once; name one for all by --set "
            "optimizer=adam, or sweep it as well"
        )
    losses = {value for d in space if d.name == "loss" for value in d.values}
    if "ms-ssim" in losses and "lmbda" not in named:
        raise ConfigError(
            "--over loss: the lambdas of mse and ms-ssim are on different scales; make a study of "
            "each, or name one for both by --set lmbda=VALUE"
        )


def _check_meaning(model: str, given: dict[str, Any], space: Sequence[Dimension]) -> None:
    """Refuse options and values that are of other models: all of their trials would be the same."""
    pairs = [*given.items(), *((d.name, value) for d in space for value in d.values)]
    for name, value in sorted(pairs, key=lambda pair: pair[0]):
        if name not in _OFFERS[model].names:
            raise ConfigError(f"{option_name(name)} means nothing to --model {model}; leave it out")
        _OFFERS[model].check(name, value)


def _check_pictures(config: TrainConfig, images: Path) -> None:
    """Refuse folders that no trial could train on, or be measured on."""
    from lic.trainers.data import find_pictures, measurable

    held = find_pictures(images, config.data, lambda _: None)[1]
    if not measurable(held, lambda _: None):
        raise TrainingError(
            f"{images}: no pictures to validate on, and a trial's value is its val_loss; name a "
            "folder by --set val=FOLDER, or hold photos out by --set val_share=0.1"
        )


class _Trial:
    """Trains the trials of a sweep, without a bundle at their end."""

    def __init__(self, images: Path, device: str, out: Output) -> None:
        self._images = images
        self._device = device
        self._out = out
        self._said: set[str] = set()

    def train(self, config: TrainConfig, folder: Path, tracker: "Tracker") -> None:
        """Run one training in its folder.

        Raises:
            TrainingError: it went wrong, or there is not enough memory for it.
        """
        import torch

        from lic.trainers import runs
        from lic.trainers.models import new_model

        place = runs.Place(images=self._images, folder=folder, device=self._device)
        command = "hpcm" if config.model.arch == "hpcm" else "bmshj2018"
        try:
            fabric = runs.open_fabric(config, place)
            write_config(config, folder / CONFIG, Output(-1))
            trainer = runs.start(
                new_model(config), config, place, fabric, self._say, fresh=True, command=command
            )
            trainer.trackers.append(tracker)
            trainer.run(_nothing)
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = str(error).partition("\n")[0] or "no memory"
            raise TrainingError(f"not enough memory for this trial ({reason})") from error

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._out.note(text)


def _nothing(_: Mapping[str, float]) -> None:
    """Leave lines of metrics to the trial's own folder."""
