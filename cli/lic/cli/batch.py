"""Files in, files out: one or many, atomically, with one error never losing the others' results."""

import contextlib
import io
import os
import pickle
import stat
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from lic.cli import parts
from lic.cli.console import Exit, Output, exit_code, message
from lic.cli.outputs import check_target, write_made, write_output
from lic.codec.errors import ConfigError, ImageError, LicError, OutputError

STREAM = "-"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One input and where its result goes; None for a path stands for stdin or stdout."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """What messages call the input."""
        return str(self.source) if self.source else "stdin"


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished job: the result's bytes, and what to say of it."""

    data: bytes
    values: dict[str, Any]
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Deferred:
    """A job whose result is written as it is made.

    Attributes:
        write: makes the result, writes it to a file that can seek, and tells of it; `data` of what
            it returns is empty.
        streams: the file need not seek, and the result may be too large to hold: a pipe gets it at
            once, not when it is whole.
    """

    write: Callable[[BinaryIO], Done]
    streams: bool = False


@dataclass(frozen=True)
class Skipped:
    """A job whose result was there already."""


@dataclass(frozen=True)
class CannotOpen:
    """Why no job can be done at all."""

    error: Exception


Work = Callable[[Job], Done | Deferred]
OpenWork = Callable[[], Work]
Outcome = Done | Skipped | CannotOpen | Exception


def plan(
    inputs: Sequence[str], output: str | None, *, accept: frozenset[str], suffix: str
) -> list[Job]:
    """Return the jobs of the inputs; folders are mirrored, without hidden files.

    Args:
        inputs: files, folders, or "-".
        output: file, folder (exists, or ends with a slash), "-", or None for a neighbour of each
            input.
        accept: suffixes (lower case) that count within folders.
        suffix: of results, such as ".lic".

    Raises:
        ConfigError: the combination makes no sense, or two inputs would have one result.
        ImageError: an input does not exist or cannot be looked at.
    """
    if STREAM in inputs:
        if len(inputs) > 1:
            raise ConfigError("- (stdin) must be the only input")
        if output is None:
            raise ConfigError("- (stdin) needs -o FILE or -o - (stdout)")
        return [Job(source=None, target=None if output == STREAM else Path(output))]
    try:
        return _distinct(_plan_paths([Path(text) for text in inputs], output, accept, suffix))
    except FileNotFoundError as error:
        raise ImageError(f"{error.filename}: no such file or folder") from None
    except OSError as error:
        raise ImageError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _plan_paths(
    paths: list[Path], output: str | None, accept: frozenset[str], suffix: str
) -> list[Job]:
    folders = [stat.S_ISDIR(path.stat().st_mode) for path in paths]
    many = len(paths) > 1 or folders[0]
    if output == STREAM:
        if many:
            raise ConfigError("-o - (stdout) takes one input file")
        return [Job(source=paths[0], target=None)]
    root = Path(output) if output else None
    if many and root and root.is_file():
        raise ConfigError(f"-o {root} is a file; several inputs need a folder")
    into = many or bool(output and output.endswith(("/", os.sep))) or bool(root and _is(root))
    jobs: list[Job] = []
    for path, is_folder in zip(paths, folders, strict=True):
        if is_folder:
            jobs += _expand_folder(path, root or path, accept, suffix)
        else:
            jobs.append(Job(source=path, target=_target(path, root, into, suffix)))
    return jobs


def _is(folder: Path) -> bool:
    """Return whether a result's path is a folder that exists; False where nobody may look."""
    try:
        return folder.is_dir()
    except OSError:
        return False


def _expand_folder(path: Path, root: Path, accept: frozenset[str], suffix: str) -> Iterator[Job]:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in accept and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise ImageError(f"{path}: the folder holds none of {', '.join(sorted(accept))}")
    for file in files:
        place = root / file.relative_to(path)
        yield Job(source=file, target=place.with_suffix(suffix))


def _target(path: Path, root: Path | None, into: bool, suffix: str) -> Path:
    """Return where a file's result goes; `into` says that `root` is a folder."""
    if root is not None and not into:
        return root
    return (root / path.name if root else path).with_suffix(suffix)


def _distinct(jobs: list[Job]) -> list[Job]:
    """Give inputs that differ in their suffix only their whole name, as in a.jpg.lic.

    Raises:
        ConfigError: two inputs would still have one result, or one would replace its input.
    """
    _folder_key.cache_clear()
    keys = [_key(job.target) for job in jobs]
    counts = Counter(keys)
    renamed = []
    seen: dict[str, Job] = {}
    for job, key in zip(jobs, keys, strict=True):
        if counts[key] > 1 and job.source and job.target:
            name = job.source.name + job.target.suffix
            job = replace(job, target=job.target.with_name(name))
            key = _key(job.target)
        renamed.append(job)
        if key in seen:
            raise ConfigError(
                f"{seen[key].name} and {job.name} would both become {job.target}; give one another "
                "name, or code them into different folders"
            )
        if key == _key(job.source):
            raise ConfigError(
                f"{job.name}: input and output would be the same file; name another -o (lic "
                "compress reads pictures, lic decompress reads .lic files)"
            )
        seen[key] = job
    return renamed


def _key(path: Path | None) -> str:
    """Return what two spellings of one path have in common, on file systems without case too."""
    if path is None:
        return STREAM
    try:
        whole = path.is_symlink() or not path.name
    except OSError:
        whole = True
    if whole:
        return _folder_key(str(path))
    return f"{_folder_key(str(path.parent))}{os.sep}{path.name.casefold()}"


@lru_cache(maxsize=1024)
def _folder_key(path: str) -> str:
    """Return `_key` of a folder, or of whatever there is; many files have few folders."""
    try:
        return str(Path(path).resolve()).casefold().rstrip(os.sep)
    except (OSError, RuntimeError):
        return str(Path(path).absolute()).casefold().rstrip(os.sep)


def read_input(job: Job) -> bytes:
    """Return the input's bytes.

    Raises:
        ImageError: it cannot be read.
    """
    with open_input(job) as file:
        return file.read()


@contextlib.contextmanager
def open_input(job: Job) -> Iterator[BinaryIO]:
    """Open the input; from a pipe it is read to its end first, as all else can seek.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        if job.source:
            file: BinaryIO = job.source.open("rb")
        elif sys.stdin is None:
            raise ImageError("stdin: is closed")
        else:
            file = sys.stdin.buffer
        with file if job.source else contextlib.nullcontext():
            yield file if file.seekable() else io.BytesIO(file.read())
    except OSError as error:
        raise ImageError(f"{job.name}: cannot be read ({error.strerror or error})") from None


class Task:
    """What is done with each job, in any thread; other processes get a copy that opens its own.

    Args:
        open_work: makes a model ready and returns what codes with it; other processes can import
            it.
        force: replace results that exist.
        skip_existing: let jobs be whose result has come to be there, from wherever.
        write: results are wanted.
    """

    def __init__(
        self, open_work: OpenWork, *, force: bool, skip_existing: bool, write: bool
    ) -> None:
        self._open_work = open_work
        self._force, self._skip_existing, self._write = force, skip_existing, write
        self._work: Work | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "force": self._force, "skip_existing": self._skip_existing, "write": self._write
        }  # fmt: skip
        return _task, (self._open_work, options)

    def open(self) -> Work:
        """Return what codes, opened once.

        Raises:
            LicError: it cannot be opened.
        """
        with self._lock:
            if self._work is None:
                self._work = self._open_work()
            return self._work

    def settle(self, job: Job) -> Outcome:
        """Do a job; whatever becomes of it is returned."""
        try:
            work = self.open()
        except Exception as error:
            return CannotOpen(_told(error))
        try:
            return self.complete(job, work)
        except Exception as error:
            # Another process, or machine, may have had the same job.
            if isinstance(error, OutputError) and self._there(job):
                return Skipped()
            return _told(error)

    def complete(self, job: Job, work: Work) -> Done | Skipped:
        """Do a job and put its result where it belongs.

        Raises:
            LicError: it cannot be done.
        """
        if self._there(job):
            return Skipped()
        if self._write:
            check_target(job.target, force=self._force)
        done = work(job)
        if isinstance(done, Deferred):
            return write_made(done.write, job.target, force=self._force, streams=done.streams)
        if self._write:
            write_output(done.data, job.target, force=self._force)
        # The bytes are on disk; keeping those of a whole folder would fill the memory.
        return replace(done, data=b"")

    def _there(self, job: Job) -> bool:
        return self._skip_existing and job.target is not None and job.target.exists()


def _task(open_work: OpenWork, options: dict[str, bool]) -> Task:
    return Task(open_work, **options)


def _told(error: Exception) -> Exception:
    """Return an error that other processes can be told, without what it holds on to.

    A traceback keeps the picture that it happened over in memory.
    """
    told = "".join(traceback.format_exception(error))
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(told)
    return error


Engine = Callable[[Sequence[Job], Task], Generator[tuple[Job, Outcome]]]


def run(
    jobs: Sequence[Job],
    open_work: OpenWork,
    output: Output,
    engine: Engine,
    *,
    force: bool = False,
    skip_existing: bool = False,
    write: bool = True,
) -> Exit:
    """Run jobs, report each, and return the exit code.

    One job that fails ends with its own code; in a batch the others go on, failures are listed at
    the end, and the code is 8. On Ctrl-C jobs under way are dropped and leave nothing behind.

    Args:
        jobs: what to do.
        open_work: makes a model ready and returns what codes with it; see `Task`.
        output: where to report to.
        engine: settles several jobs; see `folder_engine`.
        force: replace results that exist.
        skip_existing: let jobs be whose result exists.
        write: results are wanted.

    Raises:
        LicError: nothing can be done at all.
    """
    if output.as_json and write and any(job.target is None for job in jobs):
        raise ConfigError("--json and -o - would both write to stdout; use one of them")
    folders = {job.target.parent for job in jobs if job.target and write and len(jobs) > 1}
    if swept := parts.sweep(folders, before=time.time()):
        output.note(f"removed {swept} half-written file(s) of a run that was killed")
    if skip_existing:
        kept = [job for job in jobs if job.target is None or not job.target.exists()]
        if len(kept) < len(jobs):
            output.note(f"skipped {len(jobs) - len(kept)} whose result exists")
        jobs = kept
    task = Task(open_work, force=force, skip_existing=skip_existing, write=write)
    if len(jobs) == 1:
        return _run_one(jobs[0], task, output)
    if not jobs:
        output.note("nothing to do")
        return Exit.OK
    try:
        return _run_many(jobs, task, output, engine)
    finally:
        # Of processes that died, or were ended on Ctrl-C.
        parts.sweep(folders)


def _run_one(job: Job, task: Task, output: Output) -> Exit:
    """Do the only job; its error is reported here, with the file's name, and as JSON if asked."""
    work = task.open()
    try:
        outcome = task.complete(job, work)
        if isinstance(outcome, Done):
            _report(outcome, output)
    except (LicError, MemoryError) as error:
        _report_failure(job, error, output)
        return exit_code(error)
    return Exit.OK


def _run_many(jobs: Sequence[Job], task: Task, output: Output, engine: Engine) -> Exit:
    done = skipped = 0
    failed: list[str] = []
    start = time.perf_counter()
    try:
        with _progress(len(jobs), output) as advance, contextlib.closing(engine(jobs, task)) as all:
            for job, outcome in all:
                match outcome:
                    case CannotOpen(error=error):
                        raise error
                    case Done():
                        done += 1
                        _report(outcome, output)
                    case Skipped():
                        skipped += 1
                    case error:
                        failed.append(job.name)
                        _report_failure(job, error, output)
                advance()
    except KeyboardInterrupt:
        output.note(f"{done} of {len(jobs)} done; --skip-existing goes on from there")
        raise
    seconds = time.perf_counter() - start
    others = f", {skipped} skipped whose result has come to exist" if skipped else ""
    rate = f"{len(jobs) / seconds:.1f} a second"
    output.note(f"{done} of {len(jobs)} done{others}, in {seconds:.1f} s, {rate}")
    if failed:
        more = f" and {len(failed) - 20} more" if len(failed) > 20 else ""
        output.note(f"{len(failed)} failed: {', '.join(failed[:20])}{more}")
    return Exit.BATCH if failed else Exit.OK


def _report(done: Done, output: Output) -> None:
    output.result(done.values, done.text)
    for note in done.notes:
        output.note(f"  note: {note}")


def _report_failure(job: Job, error: BaseException, output: Output) -> None:
    """Say what failed, whatever the verbosity: --quiet means errors only, not none."""
    if output.as_json:
        values = {"input": job.name, "error": message(error), "exit_code": int(exit_code(error))}
        output.result(values, "")
    output.error(error, job.name)


@contextlib.contextmanager
def _progress(total: int, output: Output) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr where that is a terminal and nobody asked for silence."""
    if output.verbosity != 0 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    # Results on stdout are data for other programs: the bar must leave them alone.
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=output.err,
        transient=True,
        redirect_stdout=False,
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
