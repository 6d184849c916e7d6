"""From options and folders to a Trainer that is ready to run: new, or where it stopped."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from lic.codec.entropy import Contexts
from lic.codec.errors import ConfigError, TrainingError
from lic.codec.models import HPCM, MODELS
from lic.codec.models.bmshj2018 import SIZES
from lic.trainers.balanced import (
    MinNorm,
    Position,
    Reduce,
    build_training_objective,
    objective_notes,
)
from lic.trainers.checkpoints import ENTRIES, CheckpointManager, in_short, load
from lic.trainers.config import SECTIONS, CheckpointConfig, TrainConfig
from lic.trainers.context_rate import arrays_of, contexts_of, rate_by_contexts
from lic.trainers.data import TrainingData, find_pictures, measurable
from lic.trainers.inter_scale import warning
from lic.trainers.loop import Trainer, run_length
from lic.trainers.losses import ms_ssim_note
from lic.trainers.models import Codec, can_widen, trainable
from lic.trainers.objective import Objective, no_rate_note, unreached
from lic.trainers.precision import fabric_precision, keep_float32
from lic.trainers.qat import prepare_qat
from lic.trainers.replacement import replace_activations
from lic.trainers.scope import apply_scope
from lic.trainers.sections import option_name
from lic.trainers.start import prepare, sample
from lic.trainers.trackers import build_trackers
from lic.trainers.widen import widen

Say = Callable[[str], None]

# What may differ when a run goes on: none of it changes a weight, see `_free`.
FREE = frozenset(
    [item.name for name in ("watch", "checkpoint", "bundle") for item in fields(SECTIONS[name])]
    + ["workers", "cache_mib"]
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run reads, writes and computes.

    Attributes:
        images: folder of photos.
        folder: of the run.
        device: auto, cpu, cuda or mps.
        devices: processes on this machine, one for each device.
        nodes: machines.
    """

    images: Path
    folder: Path
    device: str = "auto"
    devices: int = 1
    nodes: int = 1


def open_fabric(config: TrainConfig, place: Place) -> Fabric:
    """Return the devices of a run, launched: from here on every process runs this code.

    Raises:
        ConfigError: a device or precision that this machine does not have.
    """
    # It tells of precision and processes on every start.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # A 1x1 kernel is the same bytes in both memory formats, and torch minds which it is called.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    strategy = "ddp" if place.devices * place.nodes > 1 else "auto"
    try:
        fabric = Fabric(
            accelerator=place.device,
            devices=place.devices,
            num_nodes=place.nodes,
            strategy=strategy,
            precision=fabric_precision(config.precision, place.device),  # type: ignore[arg-type]
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--device {place.device} --devices {place.devices}: {error}") from None
    return fabric


def start(
    model: Codec,
    config: TrainConfig,
    place: Place,
    fabric: Fabric,
    say: Say,
    *,
    fresh: bool,
    command: str = "bmshj2018",
    widen_to_size: bool = False,
    contexts: Contexts | None = None,
) -> Trainer:
    """Return a new run.

    Args:
        model: what it goes on from.
        config: its options.
        place: where.
        fabric: as launched.
        say: takes notes for the user.
        fresh: whether the model is untrained and wants the start of `config.model`.
        command: bmshj2018, hpcm, or relu, which replaces the model's non-linearities first.
        widen_to_size: make a bmshj2018 that is narrower than `config.model` as wide first.
        contexts: what --contexts rates symbols by.

    Raises:
        ConfigError: options that do not go with the model.
        TrainingError: photos of which none is of use.
    """
    data, validation = _pictures(config, place, say)
    torch.manual_seed(config.run.seed)
    replaced: list[str] = []
    if command == "relu":
        assert not isinstance(model, HPCM)
        say(f"replacing non-linearities, with a look at {len(data)} photos")
        result = replace_activations(model, config.activation, config.replacement, sample(data))
        model, replaced = result.model, result.modules
        _say_all(say, result.notes)
    if not isinstance(model, HPCM):
        if widen_to_size and can_widen(model, config.model.size):
            n, m = SIZES[config.model.size]
            say(f"widening to N = {n}, M = {m}: the same function at first")
            model = widen(model, n, m, sample(data))
        if config.loss.contexts:
            rate_by_contexts(model, contexts)
        _say_all(say, apply_scope(model, replaced, config.replacement))
        prepare(model, data, config, fresh=fresh, say=say)
    facts = {
        "replaced": replaced,
        "command": command,
        "processes": fabric.world_size,
        "photos": data.digest,
        "contexts": arrays_of(contexts) if config.loss.contexts else {},
    }
    trainer = _trainer(model, config, place, fabric, say, data, validation, facts)
    _track(trainer)
    return trainer


def resume(state: dict[str, Any], place: Place, fabric: Fabric, say: Say) -> Trainer:
    """Return the run of a checkpoint's state as it was then.

    Raises:
        TrainingError: a state that no run of this version wrote.
    """
    config = TrainConfig.from_dict(state["config"])
    data, validation = _pictures(config, place, say)
    with _fitting(place.folder):
        missing = ENTRIES.keys() - state.keys()
        if missing:
            raise KeyError(", ".join(sorted(missing)))
    _check_same(state["facts"], place, fabric, data)
    with _fitting(place.folder):
        made = MODELS[state["architecture"]].from_dict(state["model_config"])
        model = trainable(made, str(place.folder))
        if config.loss.contexts:
            rate_by_contexts(model, contexts_of(state["facts"]["contexts"]))
        if not isinstance(model, HPCM):
            apply_scope(model, state["facts"]["replaced"], config.replacement)
    trainer = _trainer(model, config, place, fabric, say, data, validation, state["facts"])
    with _fitting(place.folder):
        trainer.restore(state)
    _track(trainer)
    return trainer


@contextlib.contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Say of a state that cannot be taken back whose it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, RuntimeError, ValueError, ConfigError) as error:
        raise TrainingError(
            f"{folder}: its checkpoint does not fit this version of lic ({in_short(error)})"
        ) from None


def _check_same(facts: Mapping[str, Any], place: Place, fabric: Fabric, data: TrainingData) -> None:
    """Refuse other processes or photos than before, which would mean other crops."""
    if facts["processes"] != fabric.world_size:
        raise ConfigError(
            f"{place.folder}: the run was started with {facts['processes']} processes, and now "
            f"there are {fabric.world_size}; give --devices and --nodes as then, or start in a "
            "new folder"
        )
    if facts["photos"] != data.digest:
        raise ConfigError(
            f"{place.images}: holds other photos than the run was started on; name the same folder "
            f"as then, or start in a new one with --init {place.folder}"
        )


def _track(trainer: Trainer) -> None:
    """Give the first process its trackers; what they were told of later steps is forgotten."""
    if trainer.fabric.is_global_zero:
        trainer.checkpoints.remove_later(trainer.step)
        trainer.trackers = build_trackers(
            trainer.folder,
            trainer.config.watch,
            trainer.config.to_dict(),
            resume_step=trainer.step,
        )


def last_state(
    folder: Path, given: Mapping[str, Any], say: Say, *, command: str = "bmshj2018"
) -> dict[str, Any]:
    """Return the state of a run's last checkpoint, the options that are free set as given.

    Raises:
        ConfigError: no readable checkpoint, a run of another command, or an option that differs and
            would make it another run.
    """
    path = CheckpointManager(folder, CheckpointConfig(), say).latest()
    if path is None:
        raise ConfigError(f"{folder}: no run with a checkpoint; leave out --resume to start one")
    state = load(path)
    with _fitting(folder):
        found = state["facts"]["command"]
    if found != command:
        raise ConfigError(f"{folder}: is a run of lic train {found}; resume it by that command")
    config = TrainConfig.from_dict(state["config"])
    other = [name for name in given if name not in _free(config)]
    differing = [name for name in other if config.updated({name: given[name]}) != config]
    if differing:
        raise ConfigError(
            f"{folder}: the run was started with other values of "
            f"{', '.join(option_name(name) for name in differing)}; leave them out, or start in "
            "a new folder"
        )
    return {**state, "config": config.updated(given).to_dict()}


def _free(config: TrainConfig) -> frozenset[str]:
    """Return the options that change no weight of a run, whatever they are."""
    if not any(_follows_validations(config).values()):
        return FREE
    return FREE - {"val_every", *([] if config.watch.val_every else ["checkpoint_every"])}


def _follows_validations(config: TrainConfig) -> dict[str, bool]:
    """Return, of options by which validations change weights, whether the run has them so."""
    return {
        "--schedule plateau": config.optimizer.schedule == "plateau",
        "--gamma-schedule adaptive": config.gamma.gamma_schedule == "adaptive"
        and config.objective.objective != "standard",
        "--scale-patience": config.finetune.scale_patience > 0,
    }


def _pictures(config: TrainConfig, place: Place, say: Say) -> tuple[TrainingData, list[Path]]:
    training, validation = find_pictures(place.images, config.data, say)
    data = TrainingData(training, config.data, seed=config.run.seed)
    return data, measurable(validation, say)


def _trainer(
    model: Codec,
    config: TrainConfig,
    place: Place,
    fabric: Fabric,
    say: Say,
    data: TrainingData,
    validation: Sequence[Path],
    facts: dict[str, Any],
) -> Trainer:
    _leave_out_unreached(model, config, say)
    _check_stride(model, data)
    _check_validation(config, validation, say)
    objective = build_training_objective(
        config.loss,
        config.objective,
        config.gamma,
        _position(config, data, fabric),
        reduce=_mean_over(fabric),
    )
    _check_scales(model, config, objective)
    _say_all(
        say, [warning(config.spectral.inter_scale_form)] if config.spectral.inter_scale_reg else []
    )
    say(f"loss: {objective.formula}")
    _say_all(say, objective_notes(config.objective))
    note = ms_ssim_note(min(data.height, data.width)) if config.loss.loss != "mse" else ""
    if note:
        say(note)
    kept = keep_float32(model, config.precision)
    if kept:
        say(f"in float32: {', '.join(kept)}")
    qat = prepare_qat(model, config.qat) if config.qat.qat else None
    _say_all(say, qat.notes if qat else [])
    trainer = Trainer(
        model, config, objective, data, place.folder, fabric,
        validation=validation, facts=facts, qat=qat, say=say,
    )  # fmt: skip
    if qat:
        # Lengths that cannot work are refused before the first step.
        qat.at_step(0, trainer.steps)
    return trainer


def _check_scales(model: Codec, config: TrainConfig, objective: Objective) -> None:
    """Refuse what needs the scales of HPCM with other models, and what does not go together."""
    wants = {
        "--objective hierarchical": objective.splits,
        "--inter-scale-reg": config.spectral.inter_scale_reg,
        "--scale-patience": config.finetune.scale_patience > 0,
    }
    for name, wanted in wants.items():
        if wanted and not isinstance(model, HPCM):
            raise ConfigError(f"{name} needs the scales of hpcm, not {model.name}; leave it out")
    if isinstance(objective, MinNorm) and (config.precision.amp != "off" or config.run.compile):
        raise ConfigError(
            "--balanced-solver qp takes gradients task by task, which neither --amp nor --compile "
            "can; leave them out, or take famo"
        )
    if config.spectral.inter_scale_reg and isinstance(objective, MinNorm):
        raise ConfigError(
            "--inter-scale-reg has no place beside --balanced-solver qp, whose weights come from "
            "two gradients alone; expected famo or fixed"
        )


def _position(config: TrainConfig, data: TrainingData, fabric: Fabric) -> Position:
    """Return what tells epoch and epochs at a step."""
    steps, epoch = run_length(config, data, fabric.world_size)
    return lambda step: (step / epoch, steps / epoch)


def _mean_over(fabric: Fabric) -> Reduce:
    """Return what makes means over all processes."""
    if fabric.world_size == 1:
        return lambda losses: losses
    # In place, and what comes in may share its memory with a loss that is still to be used.
    return lambda losses: cast(Tensor, fabric.all_reduce(losses.clone()))


def _check_stride(model: Codec, data: TrainingData) -> None:
    """Refuse crops that the model's transforms would have to pad."""
    for name, side in (("wide", data.width), ("high", data.height)):
        if side % model.stride:
            raise ConfigError(
                f"crops are {side} pixels {name}; expected a multiple of {model.stride} for "
                f"{model.name}, such as {-(-side // model.stride) * model.stride}"
            )


def _check_validation(config: TrainConfig, validation: Sequence[Path], say: Say) -> None:
    """Refuse what follows a validation where there is none, and tell of what has no pictures."""
    if validation:
        return
    remedy = "name a folder for --val; of a folder of photos --val-share holds some out"
    for name, wanted in _follows_validations(config).items():
        if wanted:
            raise ConfigError(f"{name}: no pictures to validate on; {remedy}")
    if config.watch.recon_every:
        say(f"--recon-every: no pictures to validate on, so there is nothing to show; {remedy}")


def _leave_out_unreached(model: Codec, config: TrainConfig, say: Say) -> None:
    """Freeze what no gradient reaches: processes and gradient scalers would wait for it."""
    names = unreached(model, config.loss)
    for name, parameter in model.named_parameters():
        if name in names and not name.endswith("quantiles"):
            parameter.requires_grad_(False)
    note = no_rate_note(names, config.loss)
    if note:
        say(note)


def _say_all(say: Say, notes: Sequence[str]) -> None:
    for note in filter(None, notes):
        say(note)
