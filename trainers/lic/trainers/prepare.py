"""Crops of photos, made once, for many trainings: smaller to store and quicker to read.

The crops of a photo depend on the seed and on its path alone, so neither the number of processes
nor a run that was killed nor photos that were added later change any of them.

Shapes: H W pixels of a photo, upright; C channels (1 gray, 3 RGB).
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lic.codec.errors import ConfigError, OutputError, TrainingError
from lic.codec.image_io import orient, read_picture
from lic.trainers.crop_manifest import (
    JOURNAL,
    Crop,
    Entry,
    Journal,
    Manifest,
    read_journal,
    read_manifest,
)
from lic.trainers.files import TEMPORARY, write_whole, writing
from lic.trainers.photos import (
    COCO,
    MANIFEST,
    PREPARED,
    find_photos,
    list_pictures,
    training_part,
)
from lic.trainers.sections import Section, option, option_name
from lic.trainers.workers import begin_worker, worker_context

# Of zlib: 2 % larger files than its default 6, in a third of the time.
_COMPRESSION = 1
# More than this Windows cannot wait for.
_MOST_JOBS = 61


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Section):
    """What crops are like."""

    width: int = option(224, "Width of a crop in pixels.", least=16, multiple=16)
    height: int = option(224, "Height of a crop.", least=16, multiple=16)
    per_photo: int = option(1, "Most crops of one photo, at different places.", least=1, most=4096)
    scale_short_side: int = option(
        0,
        "Shrink photos whose short side is longer to this length first, so that crops show more "
        "and less of JPEG's traces; 0: never.",
        least=0,
    )
    seed: int = option(0, "Of the places.", least=0, below=2**31)
    prefix: tuple[str, ...] = option((), "Use only photos whose name starts so; repeatable.")

    def __post_init__(self) -> None:
        super().__post_init__()
        longer = max(self.width, self.height)
        if 0 < self.scale_short_side < longer:
            raise ConfigError(
                f"--scale-short-side is {self.scale_short_side}; expected 0, or at least the "
                f"crop's longer side, {longer}"
            )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What came of a run.

    Attributes:
        photos: looked at, now or before.
        crops: that are there.
        made: of them, by this run.
        skipped: photos that gave none, and why.
    """

    photos: int
    crops: int
    made: int
    skipped: dict[Path, str]


Progress = Callable[[int, int], None]


def prepare(
    source: Path,
    target: Path,
    config: PrepareConfig,
    *,
    include_val: bool = False,
    force: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Prepared:
    """Make crops of the photos below `source` in `target`, and go on where a killed run stopped.

    Args:
        source: folder of photos, or one with train2017 in it.
        target: gets train/, val/ and a manifest; made if missing.
        config: what crops are like.
        include_val: also make crops of val2017.
        force: remove the crops that are there, such as those made with other settings.
        jobs: processes; 1: this one.
        progress: is told how many photos are done, and of how many.

    Raises:
        ConfigError: `source` lies in `target`, or there is no val2017.
        TrainingError: no photos, or a process died.
        OutputError: `target` holds something else, or cannot be written.
    """
    if source.resolve().is_relative_to(target.resolve()):
        raise ConfigError(
            f"{target}: is the folder of the photos, or holds it; name a folder for crops only"
        )
    tasks = _find(source, target, config, include_val)
    manifest = _open(target, {"source": str(source.resolve()), **config.to_dict()}, force=force)
    todo = [task for task in tasks if not _is_done(task, manifest)]
    made = 0
    with Journal(manifest) as book:
        for number, entry in enumerate(_work(todo, jobs), len(tasks) - len(todo) + 1):
            _remove_stale(manifest, entry)
            book.add(entry)
            made += len(entry.crops)
            if progress:
                progress(number, len(tasks))
    skipped = {t.path: manifest.entries[t.key].skipped for t in tasks}
    return Prepared(
        photos=len(tasks),
        crops=sum(len(entry.crops) for entry in manifest.entries.values()),
        made=made,
        skipped={path: reason for path, reason in skipped.items() if reason},
    )


@dataclass(frozen=True)
class _Task:
    """One photo; `root` is the folder that its path in the manifest starts from."""

    root: Path
    path: Path
    part: str
    target: Path
    config: PrepareConfig

    @property
    def photo(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def key(self) -> tuple[str, str]:
        return self.part, self.photo

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.photo.encode("utf-8", "surrogateescape")).digest()

    def crop_name(self, number: int) -> str:
        """Return a name that no crop of another photo has, whatever folders they lie in."""
        stem = re.sub(r"[^\w.-]", "_", self.path.stem)[:48]
        return f"{self.part}/{stem}-{self.digest.hex()[:10]}-{number}.png"


def _find(source: Path, target: Path, config: PrepareConfig, include_val: bool) -> list[_Task]:
    """Return all photos, without what was made of them: `target` may lie below `source`."""
    root = training_part(source)
    found = {PREPARED[0]: (root, find_photos(source, config.prefix))}
    if include_val:
        val = source / COCO[1]
        if root == source or not val.is_dir():
            raise ConfigError(
                f"--include-val: {source} holds no {' and '.join(COCO)}; expected folders of these "
                "names"
            )
        found[PREPARED[1]] = (val, list_pictures(val))
    return [
        _Task(top, path, part, target, config)
        for part, (top, paths) in found.items()
        for path in paths
    ]


def _open(target: Path, settings: dict[str, Any], *, force: bool) -> Manifest:
    """Return the manifest of a folder, with what is done; a new one if it is empty.

    Raises:
        OutputError: it holds what this command did not make, or crops of other settings.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        manifest = read_manifest(target)
        _remove_leftovers(target, MANIFEST)
        if manifest is None and any(not p.name.startswith(".") for p in target.iterdir()):
            raise OutputError(
                f"{target}: holds files but no {MANIFEST}; expected a new or empty folder, or one "
                "that this command made"
            )
        if manifest is not None:
            read_journal(manifest)
            if force:
                _remove_crops(manifest)
            else:
                _check_settings(manifest, settings)
        for part in PREPARED:
            _remove_leftovers(target / part, "*.png")
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    if manifest is None or force:
        manifest = Manifest(target, settings)
    manifest.complete = False
    manifest.write()
    (target / JOURNAL).unlink(missing_ok=True)
    return manifest


def _remove_leftovers(folder: Path, name: str) -> None:
    """Remove what a killed run was writing under names such as `name`."""
    for leftover in folder.glob(f"{name}.*{TEMPORARY}"):
        leftover.unlink()


def _check_settings(manifest: Manifest, settings: dict[str, Any]) -> None:
    """Refuse crops of other settings.

    Raises:
        OutputError: there are; the message names the first setting that differs.
    """
    for name, now in settings.items():
        before = manifest.settings.get(name)
        if before != now:
            what = "photos in" if name == "source" else option_name(name)
            raise OutputError(
                f"{manifest.folder}: holds crops made with {what} {before}, not {now}; name "
                "another folder, or remove these crops with --force"
            )


def _remove_crops(manifest: Manifest) -> None:
    """Remove what a manifest says was made; the manifest stays until another takes its place."""
    for entry in manifest.entries.values():
        for crop in entry.crops:
            (manifest.folder / crop.file).unlink(missing_ok=True)
    (manifest.folder / JOURNAL).unlink(missing_ok=True)


def _is_done(task: _Task, manifest: Manifest) -> bool:
    """Return whether a photo was read, is what it was then, and its crops are there.

    What could not be read is tried again: it takes little time, and may have been a matter of
    permissions.
    """
    entry = manifest.entries.get(task.key)
    if entry is None or entry.size is None or entry.bytes != _bytes(task.path):
        return False
    try:
        return all((task.target / c.file).stat().st_size == c.bytes for c in entry.crops)
    except OSError:
        return False


def _bytes(path: Path) -> int:
    """Return the size of a photo's file; one that nobody can look at has none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _remove_stale(manifest: Manifest, entry: Entry) -> None:
    """Remove crops of what a photo was before, where it gives fewer now."""
    before = manifest.entries.get((entry.part, entry.photo))
    files = {crop.file for crop in entry.crops}
    for crop in before.crops if before else ():
        if crop.file not in files:
            (manifest.folder / crop.file).unlink(missing_ok=True)


def _work(tasks: Sequence[_Task], jobs: int) -> Iterator[Entry]:
    """Yield what becomes of each photo, as they get done.

    Raises:
        OutputError: a crop cannot be written.
        TrainingError: a process died.
    """
    for folder in {task.target / task.part for task in tasks}:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    jobs = min(jobs, _MOST_JOBS, len(tasks))
    if jobs <= 1:
        yield from map(_make, tasks)
        return
    try:
        yield from _work_in_processes(tasks, jobs)
    except BrokenProcessPool:
        raise TrainingError(
            "a process that makes crops died; if memory ran out, take fewer --jobs. The same "
            "command goes on from here"
        ) from None


def _work_in_processes(tasks: Sequence[_Task], jobs: int) -> Iterator[Entry]:
    pool = ProcessPoolExecutor(jobs, mp_context=worker_context(__name__), initializer=begin_worker)
    pending: set[Future[Entry]] = set()
    try:
        for task in tasks:
            pending.add(pool.submit(_make, task))
            # A hundred thousand photos that wait would take more memory than the work.
            if len(pending) >= 4 * jobs:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in as_completed(pending))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _make(task: _Task) -> Entry:
    """Make the crops of one photo.

    Raises:
        OutputError: one cannot be written.
    """
    config = task.config
    entry = partial(Entry, part=task.part, photo=task.photo, bytes=_bytes(task.path))
    try:
        pixels = _read(task.path, config.scale_short_side)
    # Whatever is wrong with one photo must not keep the others from being used.
    except Exception as error:
        return entry(skipped=str(error).removeprefix(f"{task.path}: ") or type(error).__name__)
    height, width = pixels.shape[:2]
    if width < config.width or height < config.height:
        wanted = f"{config.width}x{config.height}"
        found = f"{width}x{height} is smaller than a crop of {wanted}"
        return entry(size=(width, height), skipped=found)
    crops = []
    for number, (left, top) in enumerate(_places(task, width, height)):
        box = (left, top, left + config.width, top + config.height)
        data = _png(pixels[top : box[3], left : box[2]])
        name = task.crop_name(number)
        _write(task.target / name, data)
        digest = hashlib.sha256(data).hexdigest()
        crops.append(Crop(file=name, box=box, bytes=len(data), sha256=digest))
    return entry(size=(width, height), crops=tuple(crops))


def _read(path: Path, short_side: int) -> NDArray[np.uint8]:
    """Return pixels (H, W, C), upright, shrunk if `short_side` says so; alpha is left out."""
    picture = read_picture(path)
    pixels = orient(picture.pixels, picture.orientation)
    height, width = pixels.shape[:2]
    if not 0 < short_side < min(height, width):
        return pixels
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    image = _image(pixels).resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(size[1], size[0], -1)


def _places(task: _Task, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield left and top of different windows; a photo of a crop's very size has one."""
    columns = width - task.config.width + 1
    count = columns * (height - task.config.height + 1)
    words = np.frombuffer(task.digest, "<u4")
    rng = np.random.default_rng((task.config.seed, *words.tolist()))
    for place in rng.choice(count, size=min(task.config.per_photo, count), replace=False):
        yield int(place) % columns, int(place) // columns


def _write(path: Path, data: bytes) -> None:
    with writing(path, stays=""):
        write_whole(path, lambda file: file.write(data), sync=False)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    output = io.BytesIO()
    _image(pixels).save(output, format="PNG", compress_level=_COMPRESSION)
    return output.getvalue()


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    # (H, W, 1) is no gray picture to Pillow.
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
