"""Files that are there whole or not at all, and errors that say which one could not be written."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lic.codec.errors import OutputError

# Where the checkpoints of a run lie in its folder.
CHECKPOINTS = "checkpoints"
TEMPORARY = ".tmp"


def write_whole(path: Path, fill: Callable[[BinaryIO], object], *, sync: bool = True) -> None:
    """Write `path` through another name in its folder; until the end it is what it was.

    A process that is killed leaves the other name, which starts with that of `path` and ends in
    TEMPORARY.

    Args:
        path: of the file.
        fill: writes its bytes.
        sync: have it survive a power cut; for thousands of small files that takes too long.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            fill(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have a new name survive a power cut, where the system can: Windows opens no folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def writing(path: Path, stays: str = "; the last checkpoint is kept") -> Iterator[None]:
    """Tell what goes wrong inside as that `path` cannot be written, and what is not lost.

    Raises:
        OutputError: in place of the system's error, or of torch's about one.
    """
    try:
        yield
    # On a full disk torch's writer raises one of its own while the system's error is under way.
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
        raise OutputError(f"{path}: cannot be written ({reason}){stays}") from error
