"""What people and scripts see: messages on stderr, results on stdout, exit codes."""

import json
import sys
import traceback
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from lic.codec.errors import (
    BitstreamError,
    ConfigError,
    ExportError,
    ImageError,
    LicError,
    LimitError,
    ModelMismatchError,
    NumericsError,
    OutputError,
    TargetError,
    TrainingError,
    UnreachableError,
    WorkerError,
)

if TYPE_CHECKING:
    from rich.console import Console


class Exit(IntEnum):
    """Exit codes; numbers never change their meaning."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    INPUT = 3
    CORRUPT = 4
    MODEL = 5
    LIMIT = 6
    OUTPUT = 7
    BATCH = 8
    WORK = 9
    INTERRUPTED = 130


EXITS: dict[type[LicError], Exit] = {
    ImageError: Exit.INPUT,
    BitstreamError: Exit.CORRUPT,
    ModelMismatchError: Exit.MODEL,
    NumericsError: Exit.MODEL,
    LimitError: Exit.LIMIT,
    TargetError: Exit.LIMIT,
    OutputError: Exit.OUTPUT,
    ConfigError: Exit.USAGE,
    WorkerError: Exit.UNEXPECTED,
    ExportError: Exit.WORK,
    TrainingError: Exit.WORK,
    UnreachableError: Exit.WORK,
}


def exit_code(error: BaseException) -> Exit:
    """Return the exit code of an error."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    if isinstance(error, MemoryError):
        return Exit.LIMIT
    return next((code for kind, code in EXITS.items() if isinstance(error, kind)), Exit.UNEXPECTED)


def message(error: BaseException) -> str:
    """Return what to tell the user about an error."""
    if isinstance(error, LicError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "not enough memory for this picture; use a machine with more, or a smaller picture"
    return (
        f"unexpected {type(error).__name__}: {error} (this is a bug in lic; please report it with "
        "the output of the same command and -vv)"
    )


def note_precision(out: "Output", precision: str, device: str) -> None:
    """Say where half precision costs time rather than saves it."""
    if precision == "bfloat16" and device == "cpu":
        out.note("--precision bfloat16 is meant for CUDA and usually slower on a CPU")


class Output:
    """Where a command writes.

    Args:
        verbosity: -1 for --quiet, else the number of -v.
        as_json: results as one JSON object a line on stdout.
    """

    def __init__(self, verbosity: int = 0, as_json: bool = False) -> None:
        self.verbosity = verbosity
        self.as_json = as_json

    @property
    def err(self) -> "Console":
        """Rich console on stderr; it respects NO_COLOR and knows whether it is a terminal."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    @property
    def out(self) -> "Console":
        """Rich console on stdout, for tables that were asked for."""
        from rich.console import Console

        width = None if sys.stdout.isatty() else 120
        return Console(highlight=False, width=width)

    def note(self, text: str) -> None:
        """Say something useful, unless --quiet."""
        if self.verbosity >= 0:
            self._line(text)

    def error(self, error: BaseException, subject: str = "") -> None:
        """Report an error; -vv adds the traceback."""
        prefix = f"{subject}: " if subject and subject not in message(error) else ""
        self._line(f"lic: error: {prefix}{message(error)}")
        if self.verbosity >= 2:
            sys.stderr.write("".join(traceback.format_exception(error)))

    def result(self, values: dict[str, Any], text: str) -> None:
        """Write one result: JSON on stdout when asked for, else a line for people on stderr."""
        if self.as_json:
            sys.stdout.write(json.dumps(values) + "\n")
            sys.stdout.flush()
        elif self.verbosity >= 0:
            self._line(text)

    def _line(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
