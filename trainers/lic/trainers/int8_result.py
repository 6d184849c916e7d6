"""What a run with simulated int8 arithmetic leaves beside its float checkpoints."""

from pathlib import Path
from typing import cast

from lic.trainers.loop import Trainer
from lic.trainers.models import Balle2018
from lic.trainers.qat import convert, save_converted

INT8 = "int8.safetensors"


def save_int8(trainer: Trainer) -> Path | None:
    """Write what simulated int8 arithmetic came to beside the float checkpoints, if there is any.

    The model is a plain one afterwards.
    """
    if trainer.qat is None:
        return None
    path = trainer.folder / INT8
    with trainer.ema.in_place(trainer.bare):
        cast(Balle2018, trainer.bare).entropy_bottleneck.solve_quantiles()
        save_converted(path, convert(trainer.bare, trainer.qat))
    trainer.qat.detach()
    return path
