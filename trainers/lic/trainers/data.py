"""Batches of crops of photos, as a pure function of the step.

Shapes: B batch of one process, H W pixels of a crop (H = W = S for random ones), C channels of a
photo (1 gray, 3 RGB).
"""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lic.codec.errors import ImageError, TrainingError, UnreachableError
from lic.codec.image_io import READABLE, read_picture
from lic.codec.image_io.reader import open_image
from lic.trainers.config import DataConfig
from lic.trainers.crop_manifest import read_manifest
from lic.trainers.photos import find_photos, find_pictures, split_validation
from lic.trainers.shards import Member, Photo
from lic.trainers.workers import begin_worker, worker_context

__all__ = ["TrainingData", "find_photos", "find_pictures", "split_validation"]

MIN_SIDE = 32
# In a row, not to be fetched. With a server gone each costs seconds; with one shard gone, the next
# photo may well lie in another.
_MOST_UNREACHABLE = 3
_MOST_MISSING = 50

# Crops, files that turned out to be of no use, and what went wrong.
_Item = tuple[Tensor, dict[Photo, str], str]


class TrainingData:
    """Batches of randomly mirrored crops: random windows, or crops of 'lic data prepare' whole.

    Sample g of a run, counted over steps and processes, is photo g of an endless row of shuffled
    epochs; its window and side come from (seed, g). So a resumed run goes on with the very crops
    it would have seen, and two processes see what one with twice the batch sees.

    Attributes:
        height: of crops in pixels.
        width: of crops.
        batch_size: crops per step and process.
        photos: how many there are.
        unreadable: files of no use that were met so far, and why. Another photo took their place.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        config: DataConfig,
        seed: int,
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Make batches.

        Args:
            photos: at least one; files, or members of shards.
            config: how.
            seed: of order, windows and sides.
            size: width and height of prepared crops; None looks them up.

        Raises:
            TrainingError: `--prepared` with photos that are no finished crops.
        """
        self.config = config
        self.seed = seed
        self.batch_size = config.batch
        self.unreadable: dict[Photo, str] = {}
        self.width, self.height = config.crop, config.crop
        if config.prepared:
            self.width, self.height = size or _prepared_size(photos)
        # Of shards, they are made as they are asked for.
        self._photos = photos
        self._missed = 0
        self._cache: dict[Photo, NDArray[np.uint8]] = {}
        self._cached = 0
        self._cache_bytes = config.cache_mib * 2**20
        self._shuffled: tuple[int, NDArray[np.intp]] | None = None

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Tensor:
        """Return the crops of a step, uint8 (B, 3, H, W), channels last in memory.

        Args:
            step: from 0.
            rank: this process.
            world: number of processes.

        Raises:
            TrainingError: no photo is of use; a prepared crop has another size than the rest; or
                the server of the shards is gone.
        """
        first = (step * world + rank) * self.batch_size
        crops = np.empty((self.batch_size, self.height, self.width, 3), np.uint8)
        for i in range(self.batch_size):
            crops[i] = self._sample(first + i)
        return torch.from_numpy(crops).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self._photos)

    @property
    def digest(self) -> str:
        """Tells these photos from others by their names, in order."""
        names = "\n".join(photo.name for photo in self._photos)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]

    def steps_per_epoch(self, world: int = 1) -> int:
        """Return how many steps of `world` processes see every photo."""
        return -(-len(self._photos) // (self.batch_size * world))

    def loader(
        self,
        start: int,
        stop: int,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int | None = None,
        pin: bool | None = None,
    ) -> Iterator[tuple[Tensor, dict[Photo, str]]]:
        """Yield the batches of steps start to stop, each with the unreadable files it revealed.

        The batches are those of `batch`, whatever the number of workers. Workers share the memory
        for decoded photos between them; they end with this process, however it ends.

        Args:
            start: first step.
            stop: the step after the last one.
            rank: this process.
            world: number of processes.
            workers: that prepare batches ahead; 0: this process when asked. Default: the config's.
            pin: whether batches lie where a GPU reads them fastest. Default: if there is one.

        Raises:
            TrainingError: as in `batch`; or a worker died.
        """
        workers = self.config.workers if workers is None else workers
        data = self._with(cache_mib=self.config.cache_mib // workers) if workers else self
        batches: DataLoader[_Item] = DataLoader(
            _Batches(data, rank, world),
            batch_size=None,
            sampler=range(start, stop),
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=begin_worker if workers else None,
            multiprocessing_context=worker_context(__name__) if workers else None,
            pin_memory=torch.cuda.is_available() if pin is None else pin,
            # Or else the loader takes a number from the generator of the model's noise.
            generator=torch.Generator(),
        )
        known = set(self.unreadable)
        for crops, unreadable, error in _without_dead_workers(batches):
            if error:
                raise TrainingError(error)
            # Each worker comes across them by itself.
            found = {photo: why for photo, why in unreadable.items() if photo not in known}
            known.update(found)
            self.unreadable.update(found)
            yield crops, found

    def wider(self, *, crop: int, batch: int) -> "TrainingData":
        """Return batches of other sizes from the same photos, for statistics before training.

        Prepared crops stay as they are, and so do random ones where few photos are that large.
        """
        other = self._with(crop=crop, batch=batch)
        looked_at = self._photos[:64]
        usable = sum(other._fits(_size(_source(photo))) for photo in looked_at)
        if usable < len(looked_at) / 2:
            other = self._with(batch=batch)
        other.seed = self.seed + 1
        return other

    def _with(self, **options: Any) -> "TrainingData":
        """Return the same with some options changed, nothing decoded yet."""
        config = replace(self.config, **options)
        return TrainingData(self._photos, config, self.seed, size=(self.width, self.height))

    def _sample(self, number: int) -> NDArray[np.uint8]:
        """Return one crop (H, W, 3 or 1); the next photo stands in for one that is of no use."""
        count = len(self._photos)
        order = self._order(number // count)
        for place in range(number % count, number % count + count):
            photo = self._load(self._photos[order[place % count]])
            if photo is not None:
                return self._window(photo, np.random.default_rng((self.seed, 1, number)))
        path, why = next(iter(self.unreadable.items()))
        raise TrainingError(
            f"no photo gave a {self.width}x{self.height} crop; {len(self.unreadable)} of {count} "
            f"are unreadable or too small, such as {path}: {why}"
        )

    def _order(self, epoch: int) -> NDArray[np.intp]:
        if self._shuffled is None or self._shuffled[0] != epoch:
            rng = np.random.default_rng((self.seed, 0, epoch))
            self._shuffled = epoch, rng.permutation(len(self._photos))
        return self._shuffled[1]

    def _window(self, photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        top = int(rng.integers(photo.shape[0] - self.height + 1))
        left = int(rng.integers(photo.shape[1] - self.width + 1))
        window = photo[top : top + self.height, left : left + self.width]
        if rng.random() < 0.5:
            window = window[:, ::-1]
        if self.config.flip_vertical and rng.random() < 0.5:
            window = window[::-1]
        return window

    def _load(self, photo: Photo) -> NDArray[np.uint8] | None:
        """Return pixels (H, W, C), or None for a photo that is of no use."""
        if photo in self._cache or photo in self.unreadable:
            return self._cache.get(photo)
        source = photo if isinstance(photo, Path) else self._fetch(photo)
        if source is None:
            return None
        # The header tells the size at a hundredth of the time that pixels take.
        size = _size(source)
        if size is not None and not self._fits(size):
            self.unreadable[photo] = f"{size[0]}x{size[1]} is under the crop size"
            return None
        try:
            pixels = _pixels(source, str(photo))
        # Whatever is wrong with one photo must not end a run of hours.
        except Exception as error:
            self.unreadable[photo] = str(error).removeprefix(f"{photo}: ") or type(error).__name__
            return None
        self._keep(photo, pixels)
        return pixels

    def _fetch(self, photo: Member) -> io.BytesIO | None:
        """Return the bytes of a photo in a shard, None where only this one's cannot be had."""
        try:
            data = photo.read()
        except (ImageError, UnreachableError) as error:
            self._missed += 1
            most = _MOST_UNREACHABLE if isinstance(error, UnreachableError) else _MOST_MISSING
            if self._missed >= most:
                raise TrainingError(
                    f"{self._missed} photos in a row could not be fetched; the last, {error}. A "
                    "run goes on from its last checkpoint with --resume"
                ) from None
            self.unreadable[photo] = str(error).removeprefix(f"{photo.place}: ")
            return None
        self._missed = 0
        return io.BytesIO(data)

    def _fits(self, size: tuple[int, int] | None) -> bool:
        """Return whether a photo (width, height) is large enough.

        Raises:
            TrainingError: it is a prepared crop of another size.
        """
        if size is None:
            return False
        if self.config.prepared and size != (self.width, self.height):
            raise TrainingError(
                f"found a crop of {size[0]}x{size[1]} pixels among those of "
                f"{self.width}x{self.height}; expected one size for --prepared, which takes crops "
                "whole. Leave it out to train on windows of pictures of any size"
            )
        return size[0] >= self.width and size[1] >= self.height

    def _keep(self, photo: Photo, pixels: NDArray[np.uint8]) -> None:
        """Keep decoded pixels while there is room.

        What came first stays: every photo comes once an epoch, so that nothing tells which of
        them comes next, and making room would only lose what is there.
        """
        if self._cached + pixels.nbytes <= self._cache_bytes:
            self._cache[photo] = pixels
            self._cached += pixels.nbytes


class _Batches(Dataset[_Item]):
    """Batches by step, for a loader's workers; what goes wrong comes along as a value."""

    def __init__(self, data: TrainingData, rank: int, world: int) -> None:
        self._data = data
        self._place = {"rank": rank, "world": world}
        self._told = 0

    def __getitem__(self, step: int) -> _Item:
        error = ""
        try:
            crops = self._data.batch(step, **self._place)
        # Raised here, its message would reach the user with a traceback inside.
        except TrainingError as found:
            crops, error = torch.empty(0), str(found)
        unreadable = dict(list(self._data.unreadable.items())[self._told :])
        self._told += len(unreadable)
        return crops, unreadable, error


def _as_it_is(item: Any) -> Any:
    return item


def _without_dead_workers(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the items.

    Raises:
        TrainingError: a worker is gone.
    """
    try:
        yield from items
    # The last two where a worker dies before its last batches were fetched from it.
    except (RuntimeError, OSError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"a process that prepares batches died ({type(error).__name__}: {error}); if memory "
            "ran out, take fewer --workers or a smaller --cache-mib"
        ) from None


def measurable(paths: Sequence[Path], say: Callable[[str], object]) -> list[Path]:
    """Return the pictures whose rate says something: of smaller ones, a file is mostly its header.

    Those whose size cannot be read stay: whoever reads them says why not.
    """
    kept = []
    for path in paths:
        size = _size(path)
        if size is not None and min(size) < MIN_SIDE:
            say(f"not measured, {path}: {size[0]}x{size[1]}; expected {MIN_SIDE} pixels a side")
        else:
            kept.append(path)
    return kept


def _source(photo: Photo) -> Path | io.BytesIO | None:
    """Return what to read a photo from, None where a shard does not have it."""
    try:
        return photo if isinstance(photo, Path) else io.BytesIO(photo.read())
    except ImageError:
        return None


def _pixels(source: Path | io.BytesIO, name: str) -> NDArray[np.uint8]:
    """Return pixels (H, W, C), or let out whatever is wrong with a picture."""
    if isinstance(source, Path):
        return read_picture(source).pixels
    return read_picture(source, name=name).pixels


def _size(source: Path | io.BytesIO | None) -> tuple[int, int] | None:
    """Return width and height by a picture's header, None where it has none to read."""
    if source is None:
        return None
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            return open_image(stream, READABLE).size
    # Reading the picture says what is wrong, and in better words.
    except Exception:
        return None


def _prepared_size(photos: Sequence[Photo]) -> tuple[int, int]:
    """Return the width and height that crops were made with.

    Raises:
        TrainingError: they are not finished, not readable, or of a size that models cannot take.
    """
    first = photos[0]
    manifest = read_manifest(first.parent.parent) if isinstance(first, Path) else None
    if manifest is not None:
        if not manifest.complete:
            raise TrainingError(
                f"{manifest.folder}: its crops are not complete; run the same 'lic data prepare' "
                "again, which goes on where it stopped"
            )
        return manifest.settings["width"], manifest.settings["height"]
    size = next(filter(None, (_size(_source(photo)) for photo in photos)), None)
    if size is None:
        folder = first.parent if isinstance(first, Path) else first.place
        raise TrainingError(f"{folder}: none of {len(photos)} crops can be read")
    if size[0] % 16 or size[1] % 16:
        raise TrainingError(
            f"{first}: is {size[0]}x{size[1]}; expected sides that 16 divides for --prepared. "
            "Make crops with 'lic data prepare', or leave out --prepared"
        )
    return size
