"""Sweeps: what is refused before the start, and that each trial is done once, whatever happens."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from lic.codec.errors import ConfigError, OutputError, TrainingError
from lic.trainers import recipes
from lic.trainers.config import TrainConfig
from lic.trainers.search_space import PRESETS, Plan, cells, parse_over, parse_set
from lic.trainers.studies import FAILURE, default_url, find_study, is_lost
from lic.trainers.sweep import Sweep, Tally
from lic.trainers.trackers import Tracker

BASE = recipes.hpcm().updated({"objective": "balanced", "epochs": 0, "steps": 100})
GRID = ("gamma=0.001,0.003", "w_lr=0.01,0.05")


pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def plan(*over: str, **options: Any) -> Plan:
    base = options.pop("base", BASE)
    return Plan(model="hpcm", base=base, space=tuple(map(parse_over, over)), **options)


def validation(loss: float) -> dict[str, float]:
    return {"val_loss": loss, "val_bpp": loss / 2, "val_psnr": 30.0, "val_ms_ssim": 0.9}


def loss_of(config: TrainConfig) -> float:
    return 1 + abs(config.gamma.gamma - 0.003) + abs(config.objective.w_lr - 0.05)


class Fake:
    """A training of no time; `fault` is called with the number of trainings before it."""

    def __init__(self, fault: Callable[[int], None] = lambda _: None) -> None:
        self.configs: list[TrainConfig] = []
        self._fault = fault

    def __call__(self, config: TrainConfig, folder: Path, tracker: Tracker) -> None:
        assert folder.is_dir() and not list(folder.iterdir())
        self.configs.append(config)
        self._fault(len(self.configs) - 1)
        tracker.log(50, {"epoch": 1.0, "loss": 9.0})
        tracker.log(100, validation(loss_of(config)))


def sweep(wanted: Plan, folder: Path, train: Callable[..., None], **options: Any) -> Tally:
    return Sweep(wanted, folder, train, **{"heartbeat": 1, "grace": 1, **options}).run()


def study_in(folder: Path) -> optuna.Study:
    return find_study(default_url(folder), "any", only=True)


def done(folder: Path) -> list[dict[str, Any]]:
    trials = study_in(folder).get_trials(states=(TrialState.COMPLETE,))
    return [trial.params for trial in trials]


def key(values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(values.items()))


def test_a_grid_runs_each_cell_once_and_keeps_what_it_measured(tmp_path: Path) -> None:
    folder, fake = tmp_path / "gammas", Fake()
    assert sweep(plan(*GRID), folder, fake) == Tally(done=4, pruned=0, failed=0, running=0)
    assert sorted(map(key, done(folder))) == sorted(map(key, cells(plan(*GRID).space)))
    assert {config.objective.objective for config in fake.configs} == {"balanced"}
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [
        f"trial-{n:04d}" for n in range(4)
    ]
    study = study_in(folder)
    assert study.study_name == "gammas"
    for trial in study.trials:
        assert trial.value == pytest.approx(loss_of(BASE.updated(trial.params)))
        known = trial.user_attrs
        assert {name: known[name] for name in trial.params} == trial.params
        assert (known["lmbda"], known["val_loss"]) == (0.013, trial.value)
        assert known["val_bpp"] == pytest.approx(known["val_loss"] / 2)
        assert (known["val_psnr"], known["val_ms_ssim"]) == (30.0, 0.9)
        assert known["place"]["folder"] == str(folder / f"trial-{trial.number:04d}")
    sweep(plan(*GRID), folder, fake)
    assert len(fake.configs) == 4, "the same command again has nothing to do"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ("gama=1", "no option is called 'gama'; did you mean gamma?"),
        ("gamma", "expected NAME=VALUE, such as gamma=0.001,0.003"),
        ("gamma=", "no values"),
        ("gamma=0.1,,0.2", "an empty value"),
        ("gamma=0.1,0.1", "comes twice"),
        ("gamma=0.001,-1", "--over gamma -1: --gamma is -1.0; expected a number at least 0"),
        ("gamma=0.001,few", "--gamma is 'few'; expected a finite number"),
        ("gamma=nan", "--gamma is nan; expected a finite number"),
        ("gamma=0.01..0.001", "is empty; expected the lower end first"),
        ("gamma=0..0.1:log", "expected a lower end above 0"),
        ("gamma=0.1..0.2:ln", "expected LOW..HIGH or LOW..HIGH:log"),
        ("gamma=a..b", "expected LOW..HIGH"),
        ("steps=1..2.5", "with two whole numbers"),
        ("enc_kdw=1..5", "--enc-kdw is 2; expected an odd number"),
        ("crop=64..256", "has to be a multiple of 16; list its values"),
        ("scale_weights=0.3,0.4,0.3/1,1", "--scale-weights is '1,1'; expected 3 numbers"),
        ("ema=off", "--ema is 'off'; expected a finite number"),
        ("enc_eca=yes", "--enc-eca is 'yes'; expected true or false"),
        ("optimizer=adam,sgd", "--optimizer is 'sgd'; expected one of adam"),
        ("prefix=a,b", "its value is a list"),
        ("val_count=1,2", "trials on other pictures cannot be compared"),
        ("keep_last=1,2", "changes nothing of the training"),
    ],
)
def test_every_value_is_looked_at_before_the_start(over: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(over, sampler="random")
    assert message in str(caught.value)


def test_values_are_looked_at_beside_each_other() -> None:
    both = ("dec_gmin=0,3", "dec_gmax=2,4")
    with pytest.raises(ConfigError, match=r"dec_gmin 3, dec_gmax 2: --dec-gmin is 3.0"):
        plan(*both)
    plan("dec_gmin=0,1", "dec_gmax=2,4", base=recipes.bmshj2018().updated({"act": "gdnish"}))


def test_what_can_matter_in_no_trial_is_refused() -> None:
    with pytest.raises(ConfigError, match="--w-lr means nothing with --objective standard"):
        plan("w_lr=0.01,0.05", base=recipes.hpcm())
    with pytest.raises(ConfigError, match="--gamma means nothing with --gamma-schedule linear or"):
        plan("gamma=0.001,0.003", "gamma_schedule=linear,cosine")
    plan("gamma=0.001,0.003", "gamma_schedule=fixed,cosine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "best"}, "--sampler is 'best'; expected one of grid, random, tpe"),
        ({"pruner": "all"}, "--pruner is 'all'; expected one of median, none"),
        ({"trials": 0}, "--trials is 0; expected at least 1"),
    ],
)
def test_a_plan_refuses_what_is_not_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(*GRID, **options)


def test_a_grid_has_no_ranges_no_repeats_and_an_end() -> None:
    with pytest.raises(ConfigError, match="is a range, and --sampler grid wants values"):
        plan("gamma=0.001..0.01")
    with pytest.raises(ConfigError, match="--over gamma is given twice"):
        plan("gamma=0.001", "--gamma=0.002")
    with pytest.raises(ConfigError, match="nothing to sweep"):
        plan()
    numbers = ",".join(map(str, range(1, 102)))
    with pytest.raises(ConfigError, match="the grid has 10201 cells"):
        plan(f"steps={numbers}", f"batch={numbers}")


def test_names_and_values_are_read_as_people_write_them() -> None:
    assert parse_over("--w-lr=0.01, 0.05").values == (0.01, 0.05)
    assert parse_over("w_lr=0.01,0.05").text == "0.01,0.05"
    assert parse_over("enc-eca=on,off").values == (True, False)
    assert parse_over("scale_weights=0.3,0.4,0.3/1,1,1").values == ("0.3,0.4,0.3", "1,1,1")
    found = parse_over("lr=1e-4..1e-2:log")
    assert (found.values, found.log, found.text) == ((1e-4, 1e-2), True, "0.0001..0.01:log")
    assert parse_set("steps=20") == ("steps", 20)
    assert parse_set("prefix=a, b") == ("prefix", ("a", "b"))
    assert parse_set("milestones=1,2") == ("milestones", "1,2")


def test_the_presets_are_the_recipes_of_the_ablations() -> None:
    gammas = PRESETS["gamma"]
    grid = cells(plan(*gammas.over, base=recipes.hpcm().updated(gammas.settings)).space)
    assert len(grid) == 12
    assert {cell["gamma"] for cell in grid} == {0.001, 0.003, 0.006, 0.01}
    assert {cell["w_lr"] for cell in grid} == {0.01, 0.025, 0.05}
    default = recipes.hpcm()
    assert {"gamma": default.gamma.gamma, "w_lr": default.objective.w_lr} in grid
    weights = PRESETS["scale-weights"]
    assert (gammas.settings, weights.settings) == (
        {"objective": "balanced"}, {"objective": "hierarchical"}
    )  # fmt: skip
    found = plan(*weights.over, base=default.updated(weights.settings)).space[0].values
    assert len(found) == 5 and default.objective.scale_weights in found
    for text in found:
        assert sum(map(float, str(text).split(","))) == pytest.approx(1)


@pytest.mark.parametrize("name", ["lmbda=0.01,0.02", "loss=mse,ms-ssim"])
def test_tpe_does_not_look_for_the_smallest_lambda(name: str) -> None:
    with pytest.raises(ConfigError, match="changes what val_loss is made of"):
        plan(name, *GRID, sampler="tpe")


@pytest.mark.parametrize(
    ("over", "reason"), [("lmbda=0.01,0.02", "losses"), ("steps=10,20", "steps")]
)
def test_no_trial_is_pruned_where_trials_cannot_be_compared(
    tmp_path: Path, over: str, reason: str
) -> None:
    said: list[str] = []
    made = Sweep(plan(over), tmp_path / "study", Fake(), say=said.append)
    assert said == [f"no trial is pruned: {over.partition('=')[0]} is swept, so that {reason} "
                    "cannot be compared"]  # fmt: skip
    assert isinstance(made.study.pruner, optuna.pruners.NopPruner)


def seven_good_and(bad: Sequence[float], at: int) -> Callable[[TrainConfig, Path, Tracker], None]:
    """Return a training whose first seven trials are good, and whose eighth has these losses."""

    def train(_: TrainConfig, folder: Path, tracker: Tracker) -> None:
        good = folder.name < "trial-0007"
        for place, loss in enumerate([1.0] * len(bad) if good else bad):
            tracker.log(at * (place + 1), validation(loss))

    return train


EIGHT = "gamma=1,2,3,4,5,6,7,8"


@pytest.mark.parametrize(
    ("losses", "at", "pruner", "step"),
    [
        ([3.0, 3.0, 3.0, 3.0], 25, "median", 25),
        # Too early to tell.
        ([3.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 10, "median", None),
        # At the end there is nothing to save.
        ([3.0], 100, "median", None),
        ([3.0, 3.0, 3.0, 3.0], 25, "none", None),
    ],
)
def test_a_trial_worse_than_the_median_ends_early(
    tmp_path: Path, losses: list[float], at: int, pruner: str, step: int | None
) -> None:
    tally = sweep(plan(EIGHT, pruner=pruner), tmp_path / "s", seven_good_and(losses, at))
    assert (tally.done, tally.pruned) == ((8, 0) if step is None else (7, 1))
    last = study_in(tmp_path / "s").trials[7]
    assert max(last.intermediate_values) == (step or at * len(losses))
    assert last.user_attrs["val_loss"] == last.value
    tally = sweep(plan(EIGHT, pruner=pruner), tmp_path / "s", Fake())
    assert tally.done + tally.pruned == 8, "a pruned cell is done with"


def test_a_trial_that_fails_is_written_down_and_the_others_go_on(tmp_path: Path) -> None:
    def fault(number: int) -> None:
        if number in (1, 2):
            raise TrainingError(f"the loss is nan in run {number}")

    said: list[str] = []
    fake = Fake(fault)
    assert sweep(plan(*GRID), tmp_path / "s", fake, say=said.append) == Tally(2, 0, 2, 0)
    failed = study_in(tmp_path / "s").get_trials(states=(TrialState.FAIL,))
    assert [t.user_attrs[FAILURE] for t in failed] == [
        "the loss is nan in run 1", "the loss is nan in run 2"
    ]  # fmt: skip
    assert "trial 1 failed: the loss is nan in run 1" in said
    sweep(plan(*GRID), tmp_path / "s", fake)
    assert len(fake.configs) == 4, "what failed is not tried again unasked"
    assert sweep(plan(*GRID, retry_failed=True), tmp_path / "s", fake).done == 4
    assert len(fake.configs) == 6


def test_three_failures_in_a_row_end_a_sweep(tmp_path: Path) -> None:
    def fault(number: int) -> None:
        # A good one starts the count anew.
        if number != 2:
            raise OutputError("the disk is full")

    fake = Fake(fault)
    with pytest.raises(TrainingError, match="3 trials in a row failed, the last one: the disk"):
        sweep(plan(EIGHT), tmp_path / "s", fake)
    assert len(fake.configs) == 6


@pytest.mark.parametrize(
    ("told", "message"),
    [({}, "no validation was made"), (validation(math.nan), "val_loss is not finite")],
)
def test_a_trial_without_a_value_has_failed(
    tmp_path: Path, told: dict[str, float], message: str
) -> None:
    def train(_: TrainConfig, __: Path, tracker: Tracker) -> None:
        tracker.log(100, told)

    assert sweep(plan("gamma=0.001"), tmp_path / "s", train).failed == 1
    assert message in study_in(tmp_path / "s").trials[0].user_attrs[FAILURE]


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_ctrl_c_ends_it_and_the_same_command_does_what_is_missing(
    tmp_path: Path, sampler: str
) -> None:
    def fault(number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    fake = Fake(fault)
    wanted = plan(*GRID, sampler=sampler, trials=4)
    with pytest.raises(KeyboardInterrupt):
        sweep(wanted, tmp_path / "s", fake)
    assert sweep(wanted, tmp_path / "s", fake).done == 4
    assert len(fake.configs) == 5
    stopped = fake.configs[1]
    assert fake.configs.count(stopped) >= 2, "what was stopped is done after all"
    assert sum(map(is_lost, study_in(tmp_path / "s").trials)) == 1


WORKER = """
import sys, time
from pathlib import Path
from lic.trainers import recipes
from lic.trainers.search_space import Plan, parse_over
from lic.trainers.sweep import Sweep

folder, url, seconds, *over = sys.argv[1:]

def train(config, own, tracker):
    (own / "marker").touch(exist_ok=False)
    time.sleep(float(seconds))
    tracker.log(100, {"val_loss": 1.0})

base = recipes.hpcm().updated({"objective": "balanced", "epochs": 0, "steps": 100})
plan = Plan(model="hpcm", base=base, space=tuple(map(parse_over, over)))
Sweep(plan, Path(folder), train, url=url, name="both", heartbeat=1, grace=2).run()
"""


def worker(folder: Path, url: str, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WORKER, str(folder), url, str(seconds), *GRID]
    return subprocess.Popen(command)


def test_what_a_killed_process_had_is_done_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    process = worker(folder, default_url(folder), 60)
    until = time.monotonic() + 60
    while not (folder / "trial-0000" / "marker").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.wait(10)
    fake = Fake()
    assert sweep(plan(*GRID), folder, fake, name="both") == Tally(4, 0, 0, 0)
    trials = study_in(folder).trials
    assert is_lost(trials[0]) and len(trials) == 5
    assert trials[4].params == trials[0].params, "what may kill comes last"


def test_workers_share_a_study_without_doing_anything_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    # The same folder for two of them, another for the third, as on another machine.
    workers = [worker(tmp_path / name, url, 0.3) for name in ("here", "here", "there")]
    assert [process.wait(120) for process in workers] == [0, 0, 0]
    trials = find_study(url, "both", only=False).trials
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(finished) == len({key(trial.params) for trial in finished}) == 4
    markers = sorted(path.parent.name for path in tmp_path.glob("*/trial-*/marker"))
    assert markers == sorted(f"trial-{trial.number:04d}" for trial in finished)


def test_a_trial_taken_as_dead_elsewhere_does_not_end_the_sweep(tmp_path: Path) -> None:
    folder, said = tmp_path / "s", list[str]()

    def fault(number: int) -> None:
        if number == 0:
            study_in(folder).tell(0, state=TrialState.FAIL)

    assert sweep(plan(*GRID), folder, Fake(fault), say=said.append).done == 4
    assert any("took it as dead" in text for text in said)


def test_random_points_depend_on_the_seed_and_the_trial_alone(tmp_path: Path) -> None:
    over = ("gamma=1e-4..1e-2:log", "update_every=1..8")
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        wanted = plan(*over, sampler="random", trials=3, base=BASE.updated({"seed": seed}))
        sweep(wanted, tmp_path / name, Fake())
        found.append(done(tmp_path / name))
    assert found[0] == found[1] != found[2]
    assert len({point["gamma"] for point in found[0]}) == 3
    assert all(1e-4 <= p["gamma"] <= 1e-2 and 1 <= p["update_every"] <= 8 for p in found[0])
    wanted = plan(*over, sampler="random", trials=5)
    sweep(wanted, tmp_path / "a", Fake())
    assert len(done(tmp_path / "a")) == 5 and len({p["gamma"] for p in done(tmp_path / "a")}) == 5


def test_tpe_comes_closer_to_the_least_loss_than_chance(tmp_path: Path) -> None:
    def train(config: TrainConfig, _: Path, tracker: Tracker) -> None:
        tracker.log(100, validation(1 + (math.log10(config.gamma.gamma) + 3) ** 2))

    means = {}
    for sampler in ("random", "tpe"):
        wanted = plan("gamma=1e-6..1:log", sampler=sampler, trials=24)
        sweep(wanted, tmp_path / sampler, train)
        losses = [t.value or math.inf for t in study_in(tmp_path / sampler).trials[12:]]
        means[sampler] = sum(losses) / len(losses)
    assert means["tpe"] < 0.7 * means["random"]


def test_another_plan_does_not_go_on_with_a_study(tmp_path: Path) -> None:
    sweep(plan(*GRID), tmp_path / "s", Fake())
    for other, names in (
        (plan(*GRID, base=BASE.updated({"batch": 4, "seed": 2})), "--seed, --batch"),
        (plan("gamma=0.001,0.004"), "--over"),
    ):
        with pytest.raises(ConfigError, match=f"was started with other values of {names};"):
            Sweep(other, tmp_path / "s", Fake())


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(OutputError, match="holds other files"):
        Sweep(plan(*GRID), tmp_path, Fake())
    with pytest.raises(OutputError, match="cannot be written"):
        Sweep(plan(*GRID), tmp_path / "a.png", Fake())
    (tmp_path / "s" / "trial-0000").mkdir(parents=True)
    with pytest.raises(OutputError, match="is there already, from another study"):
        sweep(plan(*GRID), tmp_path / "s", Fake())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "--storage is no URL of a database"),
        ("redis://host", "--storage is no URL of a database"),
        ("sqlite://", "--storage names no file"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened .unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_said(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sweep(plan(*GRID), tmp_path / "s", Fake(), url=url)


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    url = "mysql+pymysql://me:secret@host/studies"
    with pytest.raises(ConfigError) as caught:
        Sweep(plan(*GRID), tmp_path / "s", Fake(), url=url)
    assert "secret" not in str(caught.value)


def test_a_study_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such study; expected the folder"):
        find_study(default_url(tmp_path), "s", only=True)
    assert list(tmp_path.iterdir()) == []
    sweep(plan("gamma=0.001"), tmp_path / "s", Fake())
    with pytest.raises(ConfigError, match="has no study called t; it has s"):
        find_study(default_url(tmp_path / "s"), "t", only=False)
