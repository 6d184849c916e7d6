"""What is said of a study: rankings whose right answer is known, and none where there is none."""

import csv
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lic.codec.errors import ConfigError, OutputError, TrainingError
from lic.trainers import recipes
from lic.trainers.analysis import Findings, Measure, Result, find, rank
from lic.trainers.analysis_report import ACROSS, ONE_RUN, PLAIN, write_report
from lic.trainers.config import TrainConfig
from lic.trainers.search_space import Plan, parse_over
from lic.trainers.studies import create_study, default_url, find_study, open_storage
from lic.trainers.sweep import Sweep
from lic.trainers.trackers import Tracker

Measured = Callable[[TrainConfig], tuple[float, float]]

LAMBDAS = (0.0067, 0.013, 0.025, 0.0483)
ALL = "lmbda=" + ",".join(map(str, LAMBDAS))
GAMMAS, RATES = "gamma=0.001,0.003,0.01", "w_lr=0.01,0.025"


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def quality(config: TrainConfig) -> float:
    """Return the PSNR (dB) of a curve on which lambda moves."""
    return 26 + 2 * LAMBDAS.index(config.loss.lmbda)


def found_in(folder: Path, measured: Measured, *over: str, **options: Any) -> Findings:
    """Return what a sweep of a training that gives bpp and dB comes to."""

    def train(config: TrainConfig, _: Path, tracker: Tracker) -> None:
        bpp, psnr = measured(config)
        distortion = config.loss.lmbda * 255**2 * 10 ** (-psnr / 10)
        values = {"val_bpp": bpp, "val_psnr": psnr, "val_ms_ssim": 1 - 10 ** (-psnr / 20)}
        tracker.log(100, {"val_loss": bpp + distortion, **values})

    base = recipes.hpcm().updated({"objective": "balanced", "epochs": 0, "steps": 100})
    plan = Plan(
        model="hpcm",
        base=base.updated(options),
        space=tuple(map(parse_over, over)),
        pruner="none",
    )
    Sweep(plan, folder, train, heartbeat=1, grace=1).run()
    return find(find_study(default_url(folder), folder.name, only=True))


def test_settings_with_four_lambdas_are_ranked_by_bd_rate(tmp_path: Path) -> None:
    factors = {0.001: 1.1, 0.003: 1.0, 0.01: 0.95}

    def measured(config: TrainConfig) -> tuple[float, float]:
        # The same curve at shifted places: at each lambda, the best setting has the most bits.
        shift = 0.5 * (config.gamma.gamma == 0.01)
        rate = 0.1 * 2 ** (LAMBDAS.index(config.loss.lmbda) + shift)
        return factors[config.gamma.gamma] * rate, quality(config) + 2 * shift

    found = found_in(tmp_path / "s", measured, GAMMAS, ALL)
    ranking = found.rankings["mse"]
    assert [dict(ranked.setting)["gamma"] for ranked in ranking] == [0.01, 0.003, 0.001]
    assert [r.percent for r in ranking] == pytest.approx([-5.0, 0.0, 10.0], abs=1e-6)
    assert ranking[1].note == "reference", "the options' default, though it was not first"
    assert ranking[2].note == "26.00 to 32.00 dB, 100% of both curves"
    assert [(pick.measure, dict(pick.setting)) for pick in found.picks] == [(None, {"gamma": 0.01})]


def test_without_the_default_the_first_setting_is_the_reference(tmp_path: Path) -> None:
    def measured(config: TrainConfig) -> tuple[float, float]:
        return 0.1 * 2 ** LAMBDAS.index(config.loss.lmbda) * config.gamma.gamma, quality(config)

    ranking = found_in(tmp_path / "s", measured, "gamma=4,2,6", ALL).rankings["mse"]
    assert [(dict(r.setting)["gamma"], r.percent) for r in ranking] == [
        (2, pytest.approx(-50)), (4, 0.0), (6, pytest.approx(50))
    ]  # fmt: skip


def test_a_curve_that_is_none_has_no_bd_rate_and_comes_last() -> None:
    def result(gamma: float, place: int, bpp: float) -> Result:
        return Result(
            setting=(("gamma", gamma),), measure=Measure("mse", LAMBDAS[place], 0, 0),
            numbers=(place,), val_loss=1, spread=0, bpp=bpp, psnr=26.0 + place, ms_ssim=0.9,
        )  # fmt: skip

    falling = [result(1.0, place, 0.4 - 0.1 * place) for place in range(4)]
    rising = [result(2.0, place, 0.1 + 0.1 * place) for place in range(4)]
    ranking = rank([*falling, *rising], {"gamma": 1.0})
    assert [r.percent for r in ranking] == [0.0, None]
    assert dict(ranking[0].setting) == {"gamma": 2.0}, "a broken default is no reference"
    assert "quality does not rise with its rate" in ranking[1].note
    assert rank([*falling, *rising[:3]], {}) == []
    assert rank(rising, {}) == [], "one curve alone is no ranking"


def test_fewer_lambdas_are_ranked_one_by_one_with_a_warning(tmp_path: Path) -> None:
    best = {0.0067: 0.001, 0.013: 0.01}

    def measured(config: TrainConfig) -> tuple[float, float]:
        lmbda = config.loss.lmbda
        return 0.2 + (config.gamma.gamma != best[lmbda]) * 0.01 + lmbda, 30 + 100 * lmbda

    folder = tmp_path / "s"
    found = found_in(folder, measured, "gamma=0.001,0.01", "lmbda=0.0067,0.013")
    assert found.rankings == {}
    assert [(p.measure and p.measure.lmbda, dict(p.setting)["gamma"]) for p in found.picks] == [
        (0.0067, 0.001), (0.013, 0.01)
    ]  # fmt: skip
    assert write_report(found, folder / "report") == [PLAIN, ACROSS, ONE_RUN]
    text = (folder / "report" / "report.md").read_text()
    assert "ranked by val_loss, the plain R + lambda D, whatever the trials minimised" in text
    assert "Different lambdas are not ranked against each other" in text
    assert "No one setting is best at every lambda." in text
    for title in ("## At lambda 0.0067", "## At lambda 0.013"):
        ranks = [
            line.split(" | ")[0]
            for line in text.partition(f"{title}\n")[2].partition("\n\n![")[0].splitlines()
            if line.startswith(("| 1", "| 2", "| 3"))
        ]
        assert ranks[:2] == ["| 1", "| 2"]
    names = {path.name for path in (folder / "report").glob("recommended*")}
    assert names == {"recommended-0.0067.toml", "recommended-0.013.toml"}
    options = tomllib.loads((folder / "report" / "recommended-0.013.toml").read_text())
    assert (options["loss"]["lmbda"], options["gamma"]["gamma"]) == (0.013, 0.01)


def test_one_setting_best_at_every_lambda_leaves_lambda_open(tmp_path: Path) -> None:
    def measured(config: TrainConfig) -> tuple[float, float]:
        return 0.2 + config.gamma.gamma + config.loss.lmbda, 30 + 100 * config.loss.lmbda

    folder = tmp_path / "s"
    found = found_in(folder, measured, "gamma=0.003,0.01", "lmbda=0.0067,0.013", "seed=0,1")
    write_report(found, folder)
    options = tomllib.loads((folder / "recommended.toml").read_text())
    assert options["gamma"] == {"gamma": 0.003}, "the winner, though it is the default"
    assert "loss" not in options and "seed" not in options["run"]
    assert options["objective"] == {"objective": "balanced"}
    wanted = {"gamma": 0.003, "objective": "balanced", "epochs": 0, "steps": 100}
    loaded = TrainConfig.from_dict(options, recipes.hpcm())
    assert loaded == recipes.hpcm().updated(wanted)
    assert recipes.completed(loaded, options["optimizer"]) == loaded, "it trains as the trials did"


@pytest.mark.parametrize("changed", [{"update_every": 1}, {"update_every": 8, "optimizer": "soap"}])
def test_what_is_recommended_trains_as_the_trials_did(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Left out, hierarchical training would look at every 16th step, whatever the trials did."""
    folder, over = tmp_path / "s", "scale_weights=0.3,0.4,0.3/0.25,0.25,0.5"
    found = found_in(folder, lambda _: (0.3, 30.0), over, objective="hierarchical", **changed)
    write_report(found, folder)
    options = tomllib.loads((folder / "recommended.toml").read_text())
    named = {name for section in options.values() for name in section}
    loaded = recipes.completed(TrainConfig.from_dict(options, recipes.hpcm()), named)
    assert loaded == found.base


def test_seeds_are_runs_of_one_setting(tmp_path: Path) -> None:
    def measured(config: TrainConfig) -> tuple[float, float]:
        return {0.003: 0.3, 0.01: 0.32}[config.gamma.gamma] + 0.03 * config.run.seed, 30.0

    found = found_in(tmp_path / "s", measured, "gamma=0.01,0.003", "seed=0,1,2")
    (results,) = found.results.values()
    assert [dict(result.setting) for result in results] == [{"gamma": 0.003}, {"gamma": 0.01}]
    assert [result.bpp for result in results] == pytest.approx([0.33, 0.35])
    assert [result.spread for result in results] == pytest.approx([0.06, 0.06])
    assert [len(result.numbers) for result in results] == [3, 3]
    assert ONE_RUN not in write_report(found, tmp_path / "s" / "report")


def test_models_for_ms_ssim_are_ranked_by_it(tmp_path: Path) -> None:
    def measured(config: TrainConfig) -> tuple[float, float]:
        return 0.1 * 2 ** LAMBDAS.index(config.loss.lmbda), quality(config)

    found = found_in(tmp_path / "s", measured, "gamma=0.003,0.01", ALL, loss="ms-ssim")
    (result, *_) = next(iter(found.results.values()))
    assert result.quality == pytest.approx(result.psnr / 2)
    assert result.measure.label == "loss ms-ssim, lmbda 0.0067"
    assert result.measure.slug == "ms-ssim-0.0067"
    assert found.rankings["ms-ssim"][0].percent == 0.0


def test_what_failed_was_pruned_or_stopped_is_told_and_not_ranked(tmp_path: Path) -> None:
    def measured(config: TrainConfig) -> tuple[float, float]:
        if config.gamma.gamma == 0.01 and config.objective.w_lr == 0.025:
            raise TrainingError("the loss is nan | and more\nof it")
        return config.gamma.gamma + config.objective.w_lr, 30.0

    folder = tmp_path / "s"
    found = found_in(folder, measured, GAMMAS, RATES)
    write_report(found, folder / "report")
    text = (folder / "report" / "report.md").read_text()
    assert "Trials: 5 finished, 1 failed." in text
    assert "| 5 | the loss is nan \\| and more of it |" in text
    (results,) = found.results.values()
    assert len(results) == 5
    assert dict(results[0].setting) == {"gamma": 0.001, "w_lr": 0.01}
    with (folder / "report" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished"] * 5 + ["failed"]
    assert rows[0]["gamma"] == "0.001" and rows[0]["lmbda"] == "0.013"
    assert float(rows[0]["val_bpp"]) == pytest.approx(0.011)
    assert rows[5]["val_loss"] == "" and rows[0]["folder"].endswith("trial-0000")


def colours(path: Path) -> set[Any]:
    with Image.open(path) as image:
        found = image.convert("RGB").getcolors(1 << 24)
    assert found is not None
    return {colour for _, colour in found}


def test_the_heat_map_shows_the_best_cell_dark_and_edged(tmp_path: Path) -> None:
    def measured(config: TrainConfig) -> tuple[float, float]:
        return 0.2 + config.gamma.gamma, 30.0

    folder = tmp_path / "s"
    write_report(found_in(folder, measured, GAMMAS, RATES), folder)
    shown = colours(folder / "heatmap-0.013.png")
    # The ends of the scale, and the edge of the best.
    assert {(68, 1, 84), (253, 231, 37), (209, 96, 26)} <= shown
    with Image.open(folder / "val_loss-0.013.png") as image:
        assert image.width > 300 and image.height == 56 + 6 * 24 + 52
    text = (folder / "report.md").read_text()
    assert "![heatmap-0.013.png](heatmap-0.013.png)" in text


def test_pictures_are_only_of_what_was_swept(tmp_path: Path) -> None:
    def measured(config: TrainConfig) -> tuple[float, float]:
        return 0.1 * 2 ** LAMBDAS.index(config.loss.lmbda), quality(config)

    folder = tmp_path / "s"
    found = found_in(folder, measured, ALL)
    write_report(found, folder / "report")
    names = {path.name for path in (folder / "report").iterdir()}
    assert names == {"report.md", "trials.csv", "rate-distortion.png"}
    text = (folder / "report" / "report.md").read_text()
    assert "Nothing: there are no two settings to choose from." in text
    assert (40, 100, 168) in colours(folder / "report" / "rate-distortion.png")


def test_a_study_without_results_or_of_others_is_refused(tmp_path: Path) -> None:
    def measured(_: TrainConfig) -> tuple[float, float]:
        raise TrainingError("no")

    with pytest.raises(ConfigError, match="none of 1 trials has finished"):
        found_in(tmp_path / "s", measured, "gamma=0.003")
    url = f"sqlite:///{tmp_path / 'other.db'}"
    import optuna

    create_study(
        open_storage(url), "other", sampler=optuna.samplers.RandomSampler(0),
        pruner=optuna.pruners.NopPruner(),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="study other is not one of 'lic train sweep'"):
        find(find_study(url, "other", only=False))


def test_a_report_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    found = found_in(tmp_path / "s", lambda _: (0.3, 30.0), "gamma=0.003,0.01")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(found, tmp_path / "file")
