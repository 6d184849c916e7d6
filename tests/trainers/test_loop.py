import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from lic.codec.errors import TrainingError
from lic.codec.models import FactorizedConfig, FactorizedPrior
from lic.trainers import checkpoints
from lic.trainers.config import Optimizer, TrainConfig
from lic.trainers.data import RandomCrops, find_photos
from lic.trainers.loop import METRICS, Trainer
from lic.trainers.losses import Terms
from lic.trainers.objective import RateDistortion

CONFIG = TrainConfig(
    steps=12, batch=2, crop=32, optimizer="adam", start="random", warmup_steps=3, lr=1e-3,
    checkpoint_every=6, log_every=1, ema=0.9,
)  # fmt: skip


class FailsAt(RateDistortion):
    """Gives a loss that is not finite, or one whose gradient alone is not, at one step."""

    def __init__(self, step: int, kind: str) -> None:
        super().__init__(0.013)
        self.step = step
        self.kind = kind

    def loss(self, terms: Terms, step: int) -> Tensor:
        loss = super().loss(terms, step)
        if step != self.step:
            return loss
        if self.kind == "gradient":
            return loss + torch.sqrt((terms.mse - terms.mse.detach()).abs())
        return loss * float(self.kind)


def trainer(
    folder: Path,
    photos: Path,
    config: TrainConfig = CONFIG,
    *,
    n: int = 8,
    device: str = "cpu",
    objective: RateDistortion | None = None,
) -> Trainer:
    torch.manual_seed(1)
    model = FactorizedPrior(
        FactorizedConfig(N=n, M=12, encoder_activation="relu", decoder_activation="relu")
    )
    crops = RandomCrops(find_photos(photos), crop=config.crop, batch=config.batch, seed=config.seed)
    fabric = Fabric(accelerator=device, devices=1)
    return Trainer(model, config, objective or RateDistortion(config.lmbda), crops, folder, fabric)


def quiet(_: dict[str, float]) -> None:
    """Report nothing."""


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in lines]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{path}/{key}")
    else:
        yield path, value


def assert_identical(found: Any, expected: Any) -> None:
    a, b = dict(leaves(found)), dict(leaves(expected))
    assert a.keys() == b.keys()
    for path in a:
        same = torch.equal(a[path], b[path]) if isinstance(a[path], Tensor) else a[path] == b[path]
        assert same, path


def test_training_lowers_the_loss(tmp_path: Path, photos: Path) -> None:
    reports: list[dict[str, float]] = []
    trainer(tmp_path, photos, replace(CONFIG, steps=60, lr=1e-2)).run(reports.append)
    losses = [values["loss"] for values in reports]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_an_interrupted_run_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, photos: Path, optimizer: Optimizer
) -> None:
    config = replace(CONFIG, optimizer=optimizer, steps=16, checkpoint_every=8)
    trainer(tmp_path / "straight", photos, config).run(quiet)

    def stop(values: dict[str, float]) -> None:
        if values["step"] == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "broken", photos, config).run(stop)
    resumed = trainer(tmp_path / "broken", photos, config)
    resumed.resume()
    assert resumed.step == 8
    resumed.run(quiet)

    assert [m["step"] for m in metrics(tmp_path / "broken")] == list(range(1, 17))
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")
    assert_identical(
        *(checkpoints.load(tmp_path / name / checkpoints.NAME) for name in ("broken", "straight"))
    )


def test_a_line_of_metrics_that_a_crash_cut_off_is_dropped(tmp_path: Path, photos: Path) -> None:
    trainer(tmp_path, photos).run(quiet)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 1')
    trainer(tmp_path, photos).resume()
    assert [m["step"] for m in metrics(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, photos: Path, kind: str) -> None:
    run = trainer(tmp_path, photos, objective=FailsAt(8, kind))
    with pytest.raises(TrainingError, match=f"step 8: the loss is {kind}.*checkpoint is kept"):
        run.run(quiet)
    assert checkpoints.load(tmp_path / checkpoints.NAME)["step"] == 6


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    tmp_path: Path, photos: Path, max_grad_norm: float
) -> None:
    config = replace(CONFIG, max_grad_norm=max_grad_norm)
    run = trainer(tmp_path, photos, config, objective=FailsAt(11, "gradient"))
    with pytest.raises(TrainingError, match=r"step 12: g_.* is not finite"):
        run.run(quiet)
    state = checkpoints.load(tmp_path / checkpoints.NAME)
    assert state["step"] == 6
    assert all(bool(v.isfinite().all()) for v in state["model"].values())


@pytest.mark.parametrize(
    ("changed", "n", "named"),
    [
        ({"lmbda": 0.02}, 8, "lmbda"),
        ({"seed": 5, "steps": 24}, 8, "steps, seed"),
        ({}, 6, "N"),
    ],
)
def test_a_run_goes_on_only_with_the_same_options(
    tmp_path: Path, photos: Path, changed: dict[str, Any], n: int, named: str
) -> None:
    trainer(tmp_path, photos, replace(CONFIG, steps=1)).run(quiet)
    other = trainer(tmp_path, photos, replace(CONFIG, **{"steps": 1, **changed}), n=n)
    with pytest.raises(TrainingError, match=f"other values of {named}; resume with the same"):
        other.resume()


def test_nothing_to_resume_is_said(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(TrainingError, match="no such checkpoint"):
        trainer(tmp_path, photos).resume()


def test_the_checkpoint_gives_the_averaged_model_and_its_provenance(
    tmp_path: Path, photos: Path
) -> None:
    run = trainer(tmp_path, photos)
    run.run(quiet)
    model, provenance = checkpoints.load_model(tmp_path / checkpoints.NAME)
    assert provenance == {**CONFIG.to_dict(), "steps_done": 12}
    assert not model.training
    assert run.ema is not None
    assert torch.equal(model.g_a[0].weight, run.ema.shadow["g_a.0.weight"])  # type: ignore[arg-type]
    assert not torch.equal(model.g_a[0].weight, run._bare.g_a[0].weight)  # type: ignore[arg-type]


def test_without_averaging_the_weights_themselves_are_shipped(tmp_path: Path, photos: Path) -> None:
    run = trainer(tmp_path, photos, replace(CONFIG, ema=0, steps=2))
    run.run(quiet)
    model, _ = checkpoints.load_model(tmp_path / checkpoints.NAME)
    assert torch.equal(model.g_a[0].weight, run._bare.g_a[0].weight)  # type: ignore[arg-type]


def test_the_rate_follows_the_schedule_and_the_norm_is_logged(tmp_path: Path, photos: Path) -> None:
    trainer(tmp_path, photos, replace(CONFIG, max_grad_norm=0)).run(quiet)
    found = metrics(tmp_path)
    assert [m["lr"] for m in found[:4]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3])
    assert found[-1]["lr"] < 1e-4
    assert all(m["grad_norm"] > 0 for m in found)


def test_after_a_run_small_numbers_are_themselves_again(tmp_path: Path, photos: Path) -> None:
    trainer(tmp_path, photos, replace(CONFIG, steps=1)).run(quiet)
    assert float(torch.tensor(1e-38) / 1000) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_goes_on_where_it_stopped(tmp_path: Path, photos: Path) -> None:
    for steps in (3, 6):
        run = trainer(tmp_path, photos, replace(CONFIG, checkpoint_every=3), device="cuda")
        if steps == 6:
            run.resume()
            assert run.step == 3
        assert run.ema is not None
        assert run.ema.shadow["g_a.0.weight"].is_cuda
        while run.step < steps:
            run._train_step()
            run.step += 1
        run.save()
    assert checkpoints.load(tmp_path / checkpoints.NAME)["step"] == 6
