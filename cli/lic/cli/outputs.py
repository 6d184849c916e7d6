"""Results of commands: written whole or not at all, and over nothing that nobody gave up."""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from lic.cli import parts
from lic.codec.errors import OutputError

_Made = TypeVar("_Made")


def check_target(target: Path | None, *, force: bool) -> None:
    """Refuse early what writing would refuse late.

    Raises:
        OutputError: the target exists, is a folder, or lies where nobody may look or write.
    """
    if target is None:
        return
    try:
        found = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _check_folder(target)
        return
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None
    if stat.S_ISDIR(found):
        raise OutputError(f"{target}: is a folder; name a file")
    if stat.S_ISREG(found) and not force:
        raise OutputError(f"{target}: exists already; -f overwrites it")


def _check_folder(target: Path) -> None:
    """Refuse a target whose folder neither can be made nor takes new files."""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise OutputError(f"{target}: cannot be written ({folder} is no folder)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{target}: cannot be written (no permission to write into {folder})")


def write_output(data: bytes, target: Path | None, *, force: bool) -> None:
    """Write the whole result or nothing; a pipe or device is written to, not replaced.

    Raises:
        OutputError: the target exists or cannot be written.
    """
    check_target(target, force=force)
    with _output_errors(target):
        if target is None or _is_special(target):
            _write_at_once(data, target)
        else:
            _write_whole(lambda file: file.write(data), target)


def write_made(
    make: Callable[[BinaryIO], _Made], target: Path | None, *, force: bool, streams: bool
) -> _Made:
    """Make a result and write it, whole or not at all, as `write_output` does.

    Args:
        make: writes the result to an empty file, and returns what this returns.
        target: None is stdout.
        force: replace what is there.
        streams: to a pipe or device the result is written as it is made, before it is whole;
            `make` does not seek.

    Raises:
        LicError: it cannot be made.
        OutputError: the target exists or cannot be written.
    """
    check_target(target, force=force)
    if target is not None and not _is_special(target):
        with _output_errors(target):
            return _write_whole(make, target)
    if streams:
        with _output_errors(target), _special(target) as file:
            return make(file)
    whole = io.BytesIO()
    made = make(whole)
    with _output_errors(target):
        _write_at_once(whole.getbuffer(), target)
    return made


def _is_special(target: Path) -> bool:
    return target.exists() and not target.is_file()


@contextlib.contextmanager
def _output_errors(target: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = target or "stdout"
        raise OutputError(f"{where}: cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def _special(target: Path | None) -> Iterator[BinaryIO]:
    """Open stdout, or what is neither file nor folder."""
    if target is not None:
        with target.open("wb") as file:
            yield file
        return
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def _write_at_once(data: bytes | memoryview, target: Path | None) -> None:
    with _special(target) as file:
        file.write(data)


def _write_whole(write: Callable[[BinaryIO], _Made], target: Path) -> _Made:
    """Write under a short temporary name in the same folder, then rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part, file = parts.create(target.parent)
    try:
        with file:
            made = write(file)
            parts.publish(part, file, target)
    finally:
        part.unlink(missing_ok=True)
    return made
