"""lic train hpcm and schedules: options, fine-tuning, and what is refused."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lic.cli.training import Run
from lic.codec.bundle import Bundle
from lic.codec.models import HPCM, FactorizedConfig, FactorizedPrior
from lic.codec.models.hpcm_config import SIZES
from lic.codec.models.hpcm_files import LMBDAS
from lic.trainers.checkpoints import find_checkpoint, load, save
from lic.trainers.files import CHECKPOINTS
from tests.trainers.small_runs import MINI, last, metrics

Lic = Callable[..., Any]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:  # noqa: ARG001
    monkeypatch.setitem(SIZES, "tiny", replace(MINI, placement="upstream"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two photos, large enough for crops of 128."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open("samples/kodim23.png") as image:
        for number in range(2):
            image.crop((160 * number, 100, 160 * number + 160, 260)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A state dict of the published kind, of a small HPCM."""
    torch.manual_seed(5)
    path = tmp_path / "hpcm.pth.tar"
    torch.save({"state_dict": HPCM(MINI).state_dict()}, path)
    return path


def config(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = last(run)["config"]
    return found


def command(photos: Path, run: Path, *more: object) -> list[object]:
    return [
        "train", "hpcm", photos, "-o", run, "--size", "tiny", "--placement", "corrected",
        "--crop", 128, "--batch", 1, "--steps", 2, "--log-every", 1, "--device", "cpu", *more,
    ]  # fmt: skip


def written(run: Path) -> dict[str, Any]:
    """Return the options that a run wrote before its first step."""
    return tomllib.loads((run / "config.toml").read_text())


def test_a_run_ends_in_a_bundle_that_codes(lic: Lic, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = lic(*command(photos, run, "--lmbda", 0.025, "--objective", "hierarchical"))
    assert done.code == 0, done.err
    bundle = Bundle.open(run / "bundle")
    # The fifth of the published lambdas, and the balanced recipe's optimiser only with balanced.
    assert (bundle.manifest.rate_point, bundle.manifest.lmbda) == (5, 0.025)
    assert config(run)["optimizer"]["optimizer"] == "adam"
    coded = tmp_path / "a.lic"
    assert lic("compress", photos / "0.png", "-o", coded, "-m", run / "bundle").code == 0
    assert lic("decompress", coded, "-o", tmp_path / "b.png", "-m", run / "bundle").code == 0
    again = command(photos, run, "--lmbda", 0.025, "--resume")
    assert lic(*again).code == 0
    done = lic(*again, "--recon-count", 2)
    assert done.code == 2 and "--recon-count means nothing with --recon-every 0" in done.err


def test_the_defaults_are_the_published_recipe(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    saved = tmp_path / "all.toml"
    arguments = ["train", "hpcm", photos, "-o", run, "--size", "tiny", "--placement", "corrected"]
    small = ("--crop", 128, "--batch", 1, "--epochs", 1, "--device", "cpu")
    assert lic(*arguments, *small, "--save-config", saved).code == 0
    assert no_export
    found = config(run)
    optimizer = found["optimizer"]
    assert (optimizer["optimizer"], optimizer["lr"], optimizer["ema"]) == ("adam", 1e-4, 0.0)
    assert (optimizer["schedule"], optimizer["milestones"]) == ("milestones", "2750,2850,2950")
    assert (optimizer["milestone_factors"], optimizer["max_grad_norm"]) == ("0.3,0.1,0.01", 1.0)
    assert found["data"]["flip_vertical"] and optimizer["skip_nonfinite"] == 10
    assert found["run"]["epochs"] == 1
    help_text = " ".join(lic("train", "hpcm", "--help").out.split())
    assert "[default: 3000]" in help_text and "[default: 256]" in help_text
    assert "--eb-aux" not in help_text and "--arch" not in help_text


def test_help_is_that_of_hpcm_and_begins_with_what_every_run_wants(lic: Lic) -> None:
    text = " ".join(lic("train", "hpcm", "--help").out.split())
    assert "--size base|large|phi|tiny|custom " in text and "CompressAI:" not in text
    assert "--epochs. [default: --epochs count]" in text
    assert "[default: adam; cautious-adam with --objective balanced]" in text
    assert "[default: 1; 16 with --objective hierarchical]" in text
    assert "[default: that of a published --lmbda, else 1]" in text
    assert "[with --objective balanced or hierarchical] [default: famo]" in text
    assert "--metric ms-ssim 2.4, 4.58, 8.73, 16.64, 31.73 and 60.5." in text
    for lmbdas in LMBDAS.values():
        assert f"{', '.join(map(str, lmbdas[:-1]))} and {lmbdas[-1]}" in text
    titles = ("Run:", "Model:", "Length:", "Loss:", "--metric", "Optimisation:", "Objective:")
    places = [text.index(f" {title} ") for title in titles]
    assert places == sorted(places)


BALANCED = '[objective]\nobjective = "balanced"\n'


@pytest.mark.parametrize(
    ("file", "options", "optimizer"),
    [
        ("", ("--objective", "balanced"), "cautious-adam"),
        ("", ("--objective", "balanced", "--no-cautious"), "adam"),
        ("", ("--objective", "balanced", "--optimizer", "soap"), "soap"),
        ("", ("--cautious",), "cautious-adam"),
        ("", (), "adam"),
        (BALANCED, (), "cautious-adam"),
        (BALANCED, ("--no-cautious",), "adam"),
        (BALANCED, ("--objective", "standard"), "adam"),
        (BALANCED + '[optimizer]\noptimizer = "adam"\n', (), "adam"),
        ('[optimizer]\noptimizer = "soap"\n', ("--objective", "balanced"), "soap"),
    ],
)
def test_caution_belongs_to_the_balanced_recipe(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    file: str, options: tuple[str, ...], optimizer: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(Run, "_train", lambda *_: None)
    (tmp_path / "a.toml").write_text(file)
    done = lic(*command(photos, tmp_path / "run", "--config", tmp_path / "a.toml", *options))
    assert done.code == 0, done.err
    found = written(tmp_path / "run")
    assert found["optimizer"]["optimizer"] == optimizer


@pytest.mark.parametrize(
    ("options", "every"),
    [
        (("--objective", "hierarchical"), 16),
        (("--objective", "hierarchical", "--update-every", 1), 1),
        (("--objective", "hierarchical", "--balanced-solver", "fixed"), 1),
        (("--objective", "balanced"), 1),
    ],
)
def test_hierarchical_training_looks_at_every_16th_step(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], every: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(Run, "_train", lambda *_: None)
    done = lic(*command(photos, tmp_path / "run", *options))
    assert done.code == 0, done.err
    assert written(tmp_path / "run")["objective"]["update_every"] == every


def test_a_file_may_name_the_length_and_the_rate_point(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "_train", lambda *_: None)
    (tmp_path / "a.toml").write_text("[run]\nsteps = 7\n[bundle]\nrate = 5\n")
    run = tmp_path / "run"
    done = lic(
        "train", "hpcm", photos, "-o", run, "--size", "tiny", "--placement", "corrected",
        "--crop", 128, "--batch", 1, "--device", "cpu", "--config", tmp_path / "a.toml",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (written(run)["run"]["steps"], written(run)["run"]["epochs"]) == (7, 0)
    assert written(run)["bundle"]["rate"] == 5


@pytest.mark.parametrize(
    ("options", "lmbda"),
    [
        ((), 0.013),
        (("--metric", "ms-ssim"), 16.64),
        (("--metric", "ms-ssim", "--lmbda", 2.4), 2.4),
    ],
)
def test_lambda_is_on_the_scale_of_the_metric(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], lmbda: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(Run, "_train", lambda *_: None)
    done = lic(*command(photos, tmp_path / "run", *options))
    assert done.code == 0, done.err
    assert written(tmp_path / "run")["loss"]["lmbda"] == lmbda


def test_fine_tuning_takes_weights_alone(
    lic: Lic, photos: Path, tmp_path: Path, weights: Path, no_export: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    more = ("--finetune", weights, "--objective", "balanced", "--balanced-solver", "qp")
    done = lic(*command(photos, run, *more, "--freeze", "h_a,h_s", "--lr-scale", "context=0.5"))
    assert done.code == 0, done.err
    assert no_export
    found, state = config(run), last(run)
    assert (found["optimizer"]["lr"], found["optimizer"]["schedule"]) == (1e-5, "none")
    assert found["gamma"]["gamma_schedule"] == "cosine"
    assert found["init"] == weights.name
    before = torch.load(weights, weights_only=True)["state_dict"]
    for name, value in state["model"].items():
        if name.startswith(("h_a.", "h_s.")):
            assert torch.equal(value, before[name]), name
    moved = (state["model"]["g_a.branch.0.weight"] - before["g_a.branch.0.weight"]).abs().max()
    assert 0 < float(moved) < 1e-4
    assert [row["lr"] for row in metrics(run)] == [1e-5, 1e-5]
    again = tmp_path / "again"
    assert lic(*command(photos, again, "--finetune", run, "--finetune-lr", 1e-4)).code == 0
    assert config(again)["optimizer"]["lr"] == 1e-4


def test_metrics_tell_of_tasks_and_regularisation(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    more = (
        "--objective", "balanced", "--spectral-reg", "--truncation-epochs", 1000,
        "--inter-scale-reg", "--tensorboard",
    )  # fmt: skip
    done = lic(*command(photos, tmp_path / "run", *more, "--val-share", 0.5))
    assert done.code == 0, done.err
    assert no_export
    assert done.err.count("loss: D, R by progress (FAMO), of bpp + 0.013 * 255^2 * MSE") == 1
    first, second = (row for row in metrics(tmp_path / "run") if "loss" in row)
    assert first["tau"] == pytest.approx(0.05) and second["tau"] is None
    assert -0.1 <= second["inter_scale"] <= 0 and "inter_scale" not in first
    for name in ("z/D", "omega/R", "delta/D", "logit/R", "gamma/R", "lambda_eff", "progress/D"):
        assert name in second, name
    table = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "lambda_eff" in table[0].split(",")
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_the_literal_form_warns(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    more = ("--inter-scale-reg", "--inter-scale-form", "literal")
    done = lic(*command(photos, tmp_path / "run", *more))
    assert done.code == 0 and "literal has no lower bound" in done.err
    assert no_export


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--lmbda", 0), "--lmbda is 0.0; expected a number above 0"),
        (("--lmbda", -1), "--lmbda is -1.0"),
        (("--metric", "psnr"), "--metric is 'psnr'; expected mse or ms-ssim"),
        (("--size", "lite"), "--size is 'lite'; expected one of base, large, phi, tiny, custom"),
        (("--min-losses", "x"), "--min-losses is 'x'; expected 1 or 2 or 5 or 7 numbers"),
        (("--objective", "balanced", "--min-losses", "-1,-1,-1,-1,-1"), "expected 1, or 2"),
        (("--cautious", "--optimizer", "soap"), "--cautious and --optimizer soap contradict"),
        (("--freeze", "nonsense"), "--freeze has 'nonsense'"),
        (("--finetune-lr", 1e-4), "--finetune-lr is the learning rate of --finetune"),
        (("--milestones", "3000,10", "--milestone-factors", "1,1"), "expected as many of both"),
        (("--gamma-schedule", "hierarchical", "--objective", "balanced"), "--gamma-schedule"),
        (("--crop", 64), "crops are 64 pixels wide; expected a multiple of 128"),
        (("--update-every", 1), "--update-every means nothing with --objective standard; expected"),
        (("--gamma", 1, "--objective", "hierarchical"), "--gamma means nothing with --objective h"),
        (("--no-truncation-continuous",), "--truncation-continuous means nothing with --no-spect"),
        (("--wandb-project", "x"), "--wandb-project means nothing with --no-wandb"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(
    lic: Lic, photos: Path, tmp_path: Path, options: Any, said: str
) -> None:
    done = lic(*command(photos, tmp_path / "run", *options))
    assert done.code == 2, done.err
    assert said in done.err
    assert not (tmp_path / "run").exists()


def test_bad_sources_are_refused(lic: Lic, photos: Path, tmp_path: Path, weights: Path) -> None:
    small = tmp_path / "factorized.pth.tar"
    torch.save(FactorizedPrior(FactorizedConfig(N=8, M=12)).state_dict(), small)
    run = tmp_path / "run"
    for more, code, said in (
        (("--finetune", small), 2, "leave it out with bmshj2018-factorized"),
        (("--finetune", weights, "--size", "base"), 2, "--size is base, but"),
        (("--finetune", tmp_path / "none.pth.tar"), 5, "none.pth.tar"),
        (("--finetune", weights, "--init", weights), 2, "--init and --finetune both"),
    ):
        done = lic(*command(photos, run, *more))
        assert done.code == code and said in done.err, done.err
    done = lic("train", "bmshj2018", photos, "-o", run, "--init", weights, "--crop", 128)
    assert done.code == 2 and "is hpcm; expected bmshj2018-factorized or" in done.err
    assert not run.exists()


def test_a_file_cannot_ask_for_another_model(lic: Lic, photos: Path, tmp_path: Path) -> None:
    options = tmp_path / "a.toml"
    options.write_text('[model]\narch = "factorized"\nsize = "lite"\n')
    arguments = ["train", "hpcm", photos, "-o", tmp_path / "run", "--config", options]
    done = lic(*arguments, "--device", "cpu")
    assert done.code == 2 and "arch is 'factorized', which lic train hpcm does not" in done.err
    assert not (tmp_path / "run").exists()


def test_no_photos_is_said_before_anything_is_made(lic: Lic, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, said in (
        (tmp_path / "empty", "holds no pictures"),
        (tmp_path / "none", "no such folder"),
        (photos / "0.png", "is a file"),
    ):
        done = lic(*command(source, tmp_path / "run"))
        assert done.code == 3 and str(source) in done.err and said in done.err, done.err
    assert not (tmp_path / "run").exists()


def checkpoints(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / CHECKPOINTS).iterdir()}


def test_a_checkpoint_of_another_size_is_refused_and_stays(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert lic(*command(photos, run)).code == 0
    assert no_export
    before = checkpoints(run)
    for folder, more, said in (
        (run, ("--resume", "--size", "base"), "other values of --size"),
        (other, ("--init", run, "--size", "base"), "--size is base, but"),
        (other, ("--finetune", run, "--size", "base"), "--size is base, but"),
    ):
        done = lic(*command(photos, folder, *more))
        assert done.code == 2 and said in done.err, done.err
        assert checkpoints(run) == before and not other.exists()
    # One whose weights are not of the size that it tells.
    path = find_checkpoint(run)
    state = load(path)
    sizes = {**MINI.to_dict(), "placement": "corrected", "widths": (8, 8, 12)}
    save(path, {**state, "model_config": sizes})
    before = checkpoints(run)
    for folder, how in ((run, ("--resume",)), (other, ("--init", run))):
        done = lic(*command(photos, folder, *how, "--quiet"))
        assert done.code == 9 and "size mismatch for g_a.branch" in done.err, done.err
        # Not one for every tensor.
        assert len(done.err.splitlines()) == 1
        assert checkpoints(run) == before and not other.exists()


def test_a_bound_that_losses_fall_below_ends_the_run_with_its_checkpoint(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    """Without a bound, distortions are 255, 226, 183 and 148."""
    run = tmp_path / "run"
    more = (
        "--objective", "balanced", "--batch", 2, "--lr", 1e-2, "--val-share", 0, "--steps", 6,
        "--checkpoint-every", 1,
    )  # fmt: skip
    said = r"the loss of task D is (\S+); expected above its lower bound, {}\. Lower --min-losses"
    for bound in (1000, 160):
        # What was begun in vain is in nobody's way.
        assert not (run / CHECKPOINTS).exists()
        done = lic(*command(photos, run, *more, "--min-losses", f"{bound},-1"))
        assert done.code == 9 and re.search(said.format(bound), done.err), done.err
    assert last(run)["step"] == len(metrics(run)) == 2
    assert lic(*command(photos, tmp_path / "on", *more, "--init", run)).code == 0
    assert no_export


def test_a_full_disk_keeps_the_last_checkpoint(
    lic: Lic, photos: Path, tmp_path: Path, full_disk: Any
) -> None:
    run = tmp_path / "run"
    more = ("--objective", "balanced", "--ema", 0.9, "--steps", 4, "--checkpoint-every", 2)
    with full_disk(2, 100_000):
        done = lic(*command(photos, run, *more))
    assert done.code == 7
    full = run / CHECKPOINTS / "step-00000004.pt"
    assert f"{full}: cannot be written (File too large)" in done.err
    assert list(checkpoints(run)) == ["step-00000002.pt"] and last(run)["step"] == 2


def test_one_broken_photo_among_many_is_left_out(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    done = lic(*command(photos, tmp_path / "run", "--val-share", 0, "--steps", 4))
    assert done.code == 0, done.err
    assert f"left out {photos / 'broken.png'}: " in done.err
    assert no_export


def test_a_run_is_resumed_by_its_own_command(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    assert lic(*command(photos, tmp_path / "run")).code == 0
    assert no_export
    done = lic("train", "bmshj2018", photos, "-o", tmp_path / "run", "--resume")
    assert done.code == 2 and "is a run of lic train hpcm; resume it by that command" in done.err


def test_schedules_are_drawn(lic: Lic, tmp_path: Path) -> None:
    picture = tmp_path / "gamma.png"
    done = lic("train", "schedules", "--plot", picture, "--gamma-initial", 0.01)
    assert done.code == 0, done.err
    with Image.open(picture) as image:
        assert image.width > 600
    missing = lic("train", "schedules", "--plot", tmp_path / "none" / "a.png")
    assert missing.code == 7 and "cannot be written" in missing.err
