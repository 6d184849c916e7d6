"""Studies of sweeps in a database: opened, found, and what lic itself writes into them."""

import contextlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from lic.codec.errors import ConfigError, OutputError

# In a study's folder, where no other storage is named.
DATABASE: Final = "study.db"

# User attribute of a study: the model's name, the base options and what is swept.
PLAN: Final = "lic"
# User attribute of a trial: what of the study it took on.
CLAIM: Final = "claim"
# The same: why it failed.
FAILURE: Final = "failure"

# Seconds that a process waits for another one's writing to SQLite.
_LOCKED: Final = 60
# Two processes may make the tables at the same time; the second finds them the next time.
_MAKING: Final = 5


def default_url(folder: Path) -> str:
    """Return the storage in a study's own folder.

    Raises:
        ConfigError: a name that cannot be a part of a URL.
    """
    path = (folder / DATABASE).resolve().as_posix()
    odd = [letter for letter in "?#{}" if letter in path]
    if odd:
        raise ConfigError(
            f"{folder}: its path has {odd[0]!r}, which a database's URL cannot have; name another "
            "folder, or a --storage"
        )
    return f"sqlite:///{path}"


def shown(url: str) -> str:
    """Return a URL that may be shown: without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "--storage"


def open_storage(url: str, *, heartbeat: int | None = None, grace: int | None = None) -> RDBStorage:
    """Return a database to write studies to.

    Args:
        url: of SQLAlchemy.
        heartbeat: seconds between signs of life of a running trial; None has none.
        grace: seconds without one after which a trial is taken as dead.

    Raises:
        ConfigError: no URL, a driver that is not installed, or a database that cannot be opened.
    """
    return _open(url, heartbeat_interval=heartbeat, grace_period=grace)


def create_study(
    storage: RDBStorage,
    name: str,
    *,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
) -> optuna.Study:
    """Return a study that is new, or there already."""
    return optuna.create_study(
        storage=storage, study_name=name, sampler=sampler, pruner=pruner, load_if_exists=True
    )


def find_study(url: str, name: str, *, only: bool) -> optuna.Study:
    """Return a study to read.

    Args:
        url: of the database, which is not made where it is not there.
        name: of the study.
        only: whether to take a single study whatever its name, as that of a folder which was
            given another name since.

    Raises:
        ConfigError: no such database or study; the message lists those that there are.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise ConfigError(
            f"{parsed.database}: no such study; expected the folder of a 'lic train sweep', or "
            "its --storage"
        )
    storage = _open(url, skip_table_creation=True)
    with reading(url):
        names = optuna.get_all_study_names(storage)
        if name not in names and only and len(names) == 1:
            name = names[0]
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ConfigError(f"{shown(url)} has no study called {name}; it has {known}")
        return optuna.load_study(study_name=name, storage=storage)


def plan_of(study: optuna.Study) -> dict[str, Any]:
    """Return what a sweep wrote of itself: model, base and over.

    Raises:
        ConfigError: another program's study.
    """
    plan = study.user_attrs.get(PLAN)
    if not isinstance(plan, dict) or not plan.keys() >= {"model", "base", "over"}:
        raise ConfigError(
            f"study {study.study_name} is not one of 'lic train sweep'; name another study"
        )
    return plan


def is_lost(trial: FrozenTrial) -> bool:
    """Return whether a trial ended without a result and without a fault: stopped or killed."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs and not spare(trial)


def spare(trial: FrozenTrial) -> bool:
    """Return whether a trial found that others do all there is to do."""
    return bool(trial.user_attrs.get(CLAIM, {}).get("spare"))


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Tell a database's own errors as that it cannot be read.

    Raises:
        ConfigError: in their place.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ConfigError(f"{shown(url)}: cannot be read ({_reason(error)})") from None


@contextlib.contextmanager
def writing_to(url: str) -> Iterator[None]:
    """Tell a database's own errors as that it cannot be written.

    Raises:
        OutputError: in their place.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise OutputError(
            f"{shown(url)}: cannot be written ({_reason(error)}); finished trials are kept, and "
            "the same command goes on"
        ) from error


def _open(url: str, **options: Any) -> RDBStorage:
    _parsed(url)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Trials last for hours: no connection is kept that a server, or a fork, could break.
    settings: dict[str, Any] = {"poolclass": NullPool}
    if make_url(url).get_backend_name() == "sqlite":
        settings["connect_args"] = {"timeout": _LOCKED}
    for attempt in range(_MAKING):
        try:
            # Heartbeats count as experimental.
            with warnings.catch_warnings(action="ignore"):
                return RDBStorage(url, engine_kwargs=dict(settings), **options)
        except ImportError as error:
            cause = error.__cause__ or error
            raise ConfigError(
                f"{shown(url)}: its driver is not installed ({cause}); install it, or take sqlite"
            ) from None
        except (SQLAlchemyError, RuntimeError) as error:
            reason = _reason(error)
            raced = any(word in reason.lower() for word in ("exist", "unique", "locked"))
            if not raced or attempt == _MAKING - 1:
                raise ConfigError(f"{shown(url)}: cannot be opened ({reason})") from None
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("unreachable")


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigError(
            f"--storage is no URL of a database ({_reason(error)}); expected one such as "
            "sqlite:///sweep.db or postgresql://user@host/name"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ConfigError("--storage names no file; expected one such as sqlite:///sweep.db")
    return parsed


def _reason(error: BaseException) -> str:
    """Return the first line of what went wrong, in the database's own words."""
    cause = error.__cause__ if isinstance(error.__cause__, DBAPIError) else error
    told = cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause
    return str(told).strip().partition("\n")[0] or type(told).__name__
