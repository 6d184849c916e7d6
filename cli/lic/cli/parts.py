"""Results that are being written: under a name of their own, locked, and swept up when abandoned.

A process that is killed cannot remove what it was writing. The system lets go of its locks, though,
on whatever machine and in whatever container it ran, so that a file with such a name that nobody
has locked is nobody's. Where there are no locks, nothing is swept up.
"""

import contextlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_NAME = re.compile(r"\.lic-[0-9a-f]{16}\.part")


def create(folder: Path) -> tuple[Path, BinaryIO]:
    """Return a new file in a folder under a short temporary name, to be written and read.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        part = folder / f".lic-{secrets.token_hex(8)}.part"
        file = part.open("x+b")
        try:
            # Between those two lines a sweeper may have taken it for abandoned.
            if not _lock(file) or os.fstat(file.fileno()).st_nlink:
                return part, file
        except BlockingIOError:
            part.unlink(missing_ok=True)
        except BaseException:
            file.close()
            part.unlink(missing_ok=True)
            raise
        file.close()


def publish(part: Path, file: BinaryIO, target: Path) -> None:
    """Give a whole result its name, in place of what has it, and close it.

    Raises:
        OSError: it cannot be done.
    """
    if sys.platform == "win32":
        # An open file cannot be renamed there.
        file.close()
        part.replace(target)
    else:
        file.flush()
        part.replace(target)
        file.close()


def sweep(folders: Iterable[Path], *, before: float | None = None) -> int:
    """Remove what processes that are gone were writing into folders; returns how many files.

    Only files with a name as `create` gives, and that no process has locked.

    Args:
        folders: those that are not there have nothing.
        before: seconds since the epoch; leave later files alone as well.
    """
    if sys.platform == "win32":
        return 0
    found = 0
    for folder in folders:
        # Where nobody may look, nobody may remove.
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _NAME.fullmatch(entry.name)]
            found += sum(_remove(folder / name, before) for name in names)
    return found


def _remove(part: Path, before: float | None) -> bool:
    """Remove one file if it is abandoned."""
    if sys.platform == "win32":
        return False
    with contextlib.suppress(OSError):
        # Without waiting: somebody may have made a pipe of this name.
        fd = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or (before and found.st_mtime >= before):
                return False
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its writer may have finished meanwhile: then this is a result, and has another name.
            if os.path.samestat(found, part.lstat()):
                part.unlink()
                return True
        finally:
            os.close(fd)
    return False


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed; returns whether that can be done here.

    Raises:
        BlockingIOError: somebody else has it.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
