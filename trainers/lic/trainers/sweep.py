"""Sweeps: many training runs, each with other options, as the trials of one study.

Several processes may work on one study. What a trial takes on depends on the trials with lower
numbers alone, and each waits until those have said what they took, so that nothing is done twice.
A trial's value is the last val_loss, the plain sum of rate and distortion, whatever it minimised.
"""

import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from lic.codec.errors import ConfigError, LicError, OutputError, TrainingError
from lic.trainers.config import SECTIONS, TrainConfig
from lic.trainers.files import writing
from lic.trainers.search_space import TRIALS, Plan, Values, cells, told
from lic.trainers.sections import option_name
from lic.trainers.studies import (
    CLAIM,
    DATABASE,
    FAILURE,
    PLAN,
    create_study,
    default_url,
    is_lost,
    open_storage,
    plan_of,
    spare,
    writing_to,
)
from lic.trainers.trackers import Tracker
from lic.trainers.trials import TrialSampler, Validations, measured, suggested

Train = Callable[[TrainConfig, Path, Tracker], None]
Say = Callable[[str], object]
Key = tuple[tuple[str, Any], ...]

FAILURES_IN_A_ROW: Final = 3
# Of one set of sampled options: what kills the process would come first each time.
MOST_ATTEMPTS: Final = 3


class Tally(NamedTuple):
    """Trials of a study by how they stand."""

    done: int
    pruned: int
    failed: int
    running: int


class Sweep:
    """One process's work on a study.

    Args:
        plan: what to do.
        folder: of this process's trials, trial-0000 and on.
        train: runs one training in a folder of its own, telling the tracker of each validation.
        url: database of SQLAlchemy; None: in the folder.
        name: of the study; None: the folder's.
        say: takes what the user should know of.
        heartbeat: seconds between signs of life.
        grace: seconds without one after which a trial of another process is taken as dead.

    Raises:
        ConfigError: a database that cannot be opened, or a study of another plan.
        OutputError: the folder holds something else or cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        train: Train,
        *,
        url: str | None = None,
        name: str | None = None,
        say: Say = lambda _: None,
        heartbeat: int = 30,
        grace: int = 120,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self._train = train
        self._say = say
        self._grace = grace
        self._in_a_row = 0
        self._number = -1
        self._silent: set[int] = set()
        _check_folder(folder)
        self.url = url or default_url(folder)
        with writing(folder, ""):
            folder.mkdir(parents=True, exist_ok=True)
        self._sampler = TrialSampler(plan.sampler, plan.base.run.seed)
        self._prunes = plan.pruner == "median" and not plan.unprunable()
        pruners = optuna.pruners
        storage = open_storage(self.url, heartbeat=heartbeat, grace=grace)
        with writing_to(self.url):
            self.study = create_study(
                storage,
                name or folder.resolve().name,
                sampler=self._sampler,
                pruner=pruners.MedianPruner() if self._prunes else pruners.NopPruner(),
            )
            self._agree()
            failed = [t.number for t in self._trials() if FAILURE in t.user_attrs]
        self._again = frozenset(failed if plan.retry_failed else ())
        if plan.unprunable():
            say(plan.unprunable())

    def run(self) -> Tally:
        """Run trials until none is missing; what another process runs is left to it.

        Raises:
            TrainingError: as many trials in a row have failed as to make the next one pointless.
            OutputError: the database or the folder of a trial cannot be written.
        """
        with writing_to(self.url):
            while self._missing():
                try:
                    self.study.optimize(self._trial, n_trials=1, catch=(_Failed, _Spare))
                except KeyboardInterrupt:
                    self._say("stopped; the same command goes on with what is missing")
                    raise
                # Optuna tells the end of a trial even where it was taken away.
                except (UpdateFinishedTrialError, ValueError):
                    if not self._taken_away():
                        raise
            return self.tally()

    def tally(self) -> Tally:
        """Return how the study's trials stand."""
        trials = self._trials()
        states = [trial.state for trial in trials]
        return Tally(
            done=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=sum(FAILURE in trial.user_attrs for trial in trials),
            running=states.count(TrialState.RUNNING),
        )

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _taken_away(self) -> bool:
        """Return whether the present trial was ended by another process, and say so."""
        number = self._number
        trial = next(trial for trial in self._trials() if trial.number == number)
        if not is_lost(trial):
            return False
        self._say(
            f"trial {number}: another process took it as dead after {self._grace} s without a "
            "sign of life; its result does not count"
        )
        return True

    def _agree(self) -> None:
        """Write what the study is, or refuse to mix it with something else."""
        mine: dict[str, Any] = {
            "model": self.plan.model,
            "base": self.plan.base.to_dict(),
            "over": {d.name: d.text for d in self.plan.space},
        }
        if PLAN not in self.study.user_attrs and not self._trials():
            self.study.set_user_attr(PLAN, mine)
            return
        known = plan_of(self.study)
        # An option that came since has its default there, as it had then.
        base = TrainConfig.from_dict(known["base"]).to_dict()
        differing = [f"--{n}" for n in ("model", "over") if known[n] != mine[n]] + [
            option_name(name)
            for section in SECTIONS
            for name, value in base[section].items()
            if value != mine["base"][section][name]
        ]
        if differing:
            raise ConfigError(
                f"study {self.study.study_name} was started with other values of "
                f"{', '.join(differing)}; give them as then, or name a new --study and folder"
            )

    def _missing(self) -> bool:
        """Return whether there is something to do, after a wait for what may be dead elsewhere."""
        # Whatever is dead is found to be so in that time; databases count in whole seconds.
        until = time.monotonic() + self._grace + 2
        waits = False
        while True:
            with warnings.catch_warnings(action="ignore"):
                fail_stale_trials(self.study)
            trials = self._trials()
            if self._next(trials) is not None:
                return True
            if not any(t.state == TrialState.RUNNING for t in trials):
                return False
            if time.monotonic() > until:
                self._say("the trials that are left run in other processes")
                return False
            if not waits:
                self._say(f"waiting up to {self._grace} s for trials of other, or dead, processes")
                waits = True
            time.sleep(min(1.0, self._grace / 10))

    def _next(self, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """Return what is to be done after these trials, None where nothing is.

        Its "values" are those fixed, "again" is the number of the trial that it repeats.
        """
        counted = [trial for trial in trials if self._counts(trial)]
        if self.plan.sampler == "grid":
            return self._next_cell(trials, counted)
        if len(counted) >= (self.plan.trials or TRIALS):
            return None
        repeated = {trial.user_attrs.get(CLAIM, {}).get("again") for trial in trials}
        for trial in trials:
            attempt = trial.user_attrs.get(CLAIM, {}).get("attempt", 1)
            lost = is_lost(trial) and trial.params and attempt < MOST_ATTEMPTS
            if (lost or trial.number in self._again) and trial.number not in repeated:
                values = dict(trial.params)
                return {"values": values, "again": trial.number, "attempt": attempt + 1}
        return {"values": {}}

    def _next_cell(
        self, trials: Sequence[FrozenTrial], counted: Sequence[FrozenTrial]
    ) -> dict[str, Any] | None:
        taken = {_cell(trial) for trial in counted}
        begun = Counter(_cell(trial) for trial in trials)
        missing = [cell for cell in cells(self.plan.space) if _key(cell) not in taken]
        if not missing or (self.plan.trials and len(taken) >= self.plan.trials):
            return None
        # What was begun and lost comes last: it may be what kills the process.
        return {"values": min(missing, key=lambda cell: begun[_key(cell)])}

    def _counts(self, trial: FrozenTrial) -> bool:
        """Return whether nobody has to do a trial's work again."""
        if trial.state == TrialState.RUNNING:
            return CLAIM in trial.user_attrs and not spare(trial)
        if trial.state == TrialState.FAIL:
            return FAILURE in trial.user_attrs and trial.number not in self._again
        return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)

    def _trial(self, trial: optuna.Trial) -> float:
        self._number = trial.number
        claim = self._next(self._earlier(trial.number))
        trial.set_user_attr(CLAIM, {"spare": True} if claim is None else claim)
        if claim is None:
            raise _Spare
        self._sampler.fixed = claim["values"]
        values = {d.name: suggested(trial, d) for d in self.plan.space}
        folder = self._new_folder(trial.number)
        self._describe(trial, values, folder)
        self._say(f"trial {trial.number}: {told(values)}")
        return self._value(trial, values, folder)

    def _value(self, trial: optuna.Trial, values: Values, folder: Path) -> float:
        """Train, and return the last val_loss."""
        tracker = Validations(trial, self.plan.base, prunes=self._prunes, say=self._say)
        try:
            config = self.plan.base.updated(values)
            tracker.config = config
            self._train(config, folder, tracker)
            value = tracker.value()
        except LicError as error:
            self._fail(trial, error)
            raise _Failed from error
        except optuna.TrialPruned:
            self._in_a_row = 0
            raise
        finally:
            for name, found in tracker.last.items():
                trial.set_user_attr(name, found)
        self._in_a_row = 0
        self._say(f"trial {trial.number}: {measured(tracker.last)}")
        return value

    def _fail(self, trial: optuna.Trial, error: LicError) -> None:
        """Write down why a trial failed.

        Raises:
            TrainingError: it was one too many.
        """
        trial.set_user_attr(FAILURE, str(error))
        self._say(f"trial {trial.number} failed: {error}")
        self._in_a_row += 1
        if self._in_a_row >= FAILURES_IN_A_ROW:
            raise TrainingError(
                f"{self._in_a_row} trials in a row failed, the last one: {error}; mend that, then "
                "the same command with --retry-failed goes on"
            ) from error

    def _earlier(self, number: int) -> list[FrozenTrial]:
        """Return the trials with lower numbers, once each has said what it took on."""
        until = time.monotonic() + min(10.0, self._grace)
        while True:
            trials = [trial for trial in self._trials() if trial.number < number]
            silent = {
                t.number
                for t in trials
                if t.state == TrialState.RUNNING and CLAIM not in t.user_attrs
            } - self._silent
            if not silent:
                return trials
            if time.monotonic() > until:
                # Killed between its first two words to the database.
                self._silent |= silent
                return trials
            time.sleep(0.05)

    def _new_folder(self, number: int) -> Path:
        folder = self.folder / f"trial-{number:04d}"
        try:
            with writing(folder, ""):
                folder.mkdir()
        except OutputError as error:
            if folder.exists():
                raise OutputError(
                    f"{folder}: is there already, from another study; name a new folder with -o"
                ) from None
            raise error from None
        return folder

    def _describe(self, trial: optuna.Trial, values: Values, folder: Path) -> None:
        place = {"folder": str(folder.resolve()), "host": platform.node()}
        lmbda = self.plan.base.loss.lmbda
        for name, value in {"lmbda": lmbda, **values, "place": place}.items():
            trial.set_user_attr(name, value)


class _Failed(Exception):
    """A trial that failed and is written down as that."""


class _Spare(Exception):
    """A trial for which nothing was left."""


def _cell(trial: FrozenTrial) -> Key:
    """Return the values that a trial has or took on."""
    return _key({**trial.user_attrs.get(CLAIM, {}).get("values", {}), **trial.params})


def _key(values: Mapping[str, Any]) -> Key:
    return tuple(sorted(values.items()))


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a study.

    Raises:
        OutputError: it does, or it is a file.
    """
    with writing(folder, ""):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names and DATABASE not in names and not any(n.startswith("trial-") for n in names):
        raise OutputError(f"{folder}: holds other files; name a new or empty folder")
