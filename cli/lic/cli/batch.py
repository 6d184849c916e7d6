"""Files in, files out: one or many, atomically, with one error never losing the others' results."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lic.cli.console import Exit, Output, exit_code, message
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


Work = Callable[[Job], Done]


def plan(
    inputs: Sequence[str], output: str | None, *, accept: frozenset[str], suffix: str
) -> list[Job]:
    """Return the jobs of the inputs; folders are mirrored.

    Args:
        inputs: files, folders, or "-".
        output: file, folder, "-", or None for a neighbour of each input.
        accept: suffixes (lower case) that count within folders.
        suffix: of results, such as ".lic".

    Raises:
        ConfigError: the combination makes no sense, or two inputs would have one result.
        ImageError: an input does not exist.
    """
    if STREAM in inputs:
        if len(inputs) > 1:
            raise ConfigError("- (stdin) must be the only input")
        if output is None:
            raise ConfigError("- (stdin) needs -o FILE or -o - (stdout)")
        return [Job(source=None, target=None if output == STREAM else Path(output))]
    paths = [Path(text) for text in inputs]
    for path in paths:
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder")
    many = len(paths) > 1 or paths[0].is_dir()
    if output == STREAM:
        if many:
            raise ConfigError("-o - (stdout) takes one input file")
        return [Job(source=paths[0], target=None)]
    root = Path(output) if output else None
    if many and root and root.is_file():
        raise ConfigError(f"-o {root} is a file; several inputs need a folder")
    jobs = [job for path in paths for job in _expand(path, root, many, accept, suffix)]
    _refuse_collisions(jobs)
    return jobs


def _expand(
    path: Path, root: Path | None, many: bool, accept: frozenset[str], suffix: str
) -> Iterator[Job]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in accept and p.is_file())
        if not files:
            raise ImageError(f"{path}: the folder holds none of {', '.join(sorted(accept))}")
        for file in files:
            place = (root or path) / file.relative_to(path)
            yield Job(source=file, target=place.with_suffix(suffix))
    elif root is None:
        yield Job(source=path, target=path.with_suffix(suffix))
    elif many or root.is_dir() or root.name == "":
        yield Job(source=path, target=(root / path.name).with_suffix(suffix))
    else:
        yield Job(source=path, target=root)


def _refuse_collisions(jobs: list[Job]) -> None:
    seen: dict[Path, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        key = job.target.absolute()
        if key in seen:
            raise ConfigError(
                f"{seen[key].name} and {job.name} would both become {job.target}; rename one, or "
                "code them separately"
            )
        if job.source and job.source.absolute() == key:
            raise ConfigError(f"{job.name}: input and output are the same file; name another -o")
        seen[key] = job


def read_input(job: Job) -> bytes:
    """Return the input's bytes.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return job.source.read_bytes() if job.source else sys.stdin.buffer.read()
    except OSError as error:
        raise ImageError(f"{job.name}: cannot be read ({error.strerror or error})") from None


def check_target(target: Path | None, *, force: bool) -> None:
    """Refuse early what writing would refuse late.

    Raises:
        OutputError: the target exists, or is a folder.
    """
    if target is not None and target.is_dir():
        raise OutputError(f"{target}: is a folder; name a file")
    if target is not None and target.exists() and not force:
        raise OutputError(f"{target}: exists already; -f overwrites it, --skip-existing leaves it")


def write_output(data: bytes, target: Path | None, *, force: bool) -> None:
    """Write the whole result or nothing.

    Raises:
        OutputError: the target exists or cannot be written.
    """
    if target is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    check_target(target, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}.", suffix=".part"
        )
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def run(
    jobs: Sequence[Job],
    work: Work,
    output: Output,
    *,
    force: bool = False,
    skip_existing: bool = False,
    workers: int = 1,
    write: bool = True,
) -> Exit:
    """Run jobs, report each, and return the exit code.

    One job that fails ends with its own code; in a batch the others go on, failures are listed at
    the end, and the code is 8. On Ctrl-C jobs under way are dropped and leave nothing behind.

    Raises:
        LicError: the only job failed.
    """
    if skip_existing:
        kept = [job for job in jobs if job.target is None or not job.target.exists()]
        if len(kept) < len(jobs):
            output.note(f"skipped {len(jobs) - len(kept)} whose result exists")
        jobs = kept
    stop = threading.Event()

    def one(job: Job) -> Done:
        if stop.is_set():
            raise KeyboardInterrupt
        if write:
            check_target(job.target, force=force)
        done = work(job)
        if write and not stop.is_set():
            write_output(done.data, job.target, force=force)
        return done

    if len(jobs) == 1:
        _report(_named(one, jobs[0]), output)
        return Exit.OK
    return _run_many(jobs, one, output, workers, stop)


def _named(one: Work, job: Job) -> Done:
    """Do a job; an error that does not name the file gets its name."""
    try:
        return one(job)
    except LicError as error:
        if job.name in str(error):
            raise
        raise type(error)(f"{job.name}: {error}") from error


def _run_many(
    jobs: Sequence[Job], one: Work, output: Output, workers: int, stop: threading.Event
) -> Exit:
    failures: list[tuple[Job, BaseException]] = []
    pool = ThreadPoolExecutor(workers)
    try:
        futures: dict[Future[Done], Job] = {pool.submit(one, job): job for job in jobs}
        with _progress(len(jobs), output) as advance:
            for future in as_completed(futures):
                job = futures[future]
                error = future.exception()
                if error is None:
                    _report(future.result(), output)
                else:
                    failures.append((job, error))
                    _report_failure(job, error, output)
                advance()
    except KeyboardInterrupt:
        stop.set()
        finished = sum(f.done() and not f.cancelled() and not f.exception() for f in futures)
        output.note(f"{finished} of {len(jobs)} done; --skip-existing goes on from there")
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    output.note(f"{len(jobs) - len(failures)} of {len(jobs)} done")
    if failures:
        output.note("failed:")
        for job, error in failures:
            output.note(f"  {job.name}: {message(error)}")
    return Exit.BATCH if failures else Exit.OK


def _report(done: Done, output: Output) -> None:
    output.result(done.values, done.text)
    for note in done.notes:
        output.note(f"  note: {note}")


def _report_failure(job: Job, error: BaseException, output: Output) -> None:
    if output.as_json:
        values = {"input": job.name, "error": message(error), "exit_code": int(exit_code(error))}
        output.result(values, "")
    if not isinstance(error, LicError) or output.verbosity > 0:
        output.error(error, job.name)


@contextlib.contextmanager
def _progress(total: int, output: Output) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr where that is a terminal and nobody asked for silence."""
    if output.verbosity != 0 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=output.err, transient=True
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
