"""Random crops of a folder of photos, as a pure function of the step.

Shapes: B batch, S crop side, H W pixels as stored, C channels (1 gray, 3 RGB).
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.codec.errors import TrainingError
from lic.codec.image_io import READABLE_SUFFIXES, read_picture


def find_photos(folder: Path, prefixes: Sequence[str] = ()) -> list[Path]:
    """Return the pictures below `folder` in name order; `prefixes` keeps names that start so.

    Hidden files do not count: macOS leaves a `._a.jpg` beside every a.jpg on foreign disks.

    Raises:
        TrainingError: there is none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in READABLE_SUFFIXES
        and not path.name.startswith(".")
        and (not prefixes or path.name.startswith(tuple(prefixes)))
    )
    if not found:
        wanted = f" whose name starts with {', '.join(prefixes)}" if prefixes else ""
        raise TrainingError(f"{folder}: found no pictures{wanted}; expected a folder of photos")
    return found


class RandomCrops:
    """Batches of random, randomly mirrored crops.

    `batch(step)` depends on nothing but the arguments and the step, so a resumed run goes on with
    the very crops it would have seen. Decoded photos stay in a cache of bounded size.
    """

    def __init__(
        self, photos: Sequence[Path], *, crop: int, batch: int, seed: int, cache_bytes: int = 2**31
    ) -> None:
        self.crop = crop
        self.batch_size = batch
        self.seed = seed
        self.unreadable: dict[Path, str] = {}
        self._photos = list(photos)
        self._cache: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._cached = 0
        self._cache_bytes = cache_bytes

    def batch(self, step: int, *, rank: int = 0) -> Tensor:
        """Return the crops of `step`, (B, 3, S, S) float32 in [0, 1]."""
        rng = np.random.default_rng((self.seed, step, rank))
        crops = np.stack([self._crop(rng) for _ in range(self.batch_size)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)

    def wider(self, *, crop: int, batch: int) -> "RandomCrops":
        """Return batches of other sizes from the same photos, for statistics before training.

        Where few photos are that large, the crop stays as it is.
        """
        other = self._with(crop, batch)
        usable = sum(other._load(path) is not None for path in self._photos[:64])
        return other if usable >= min(len(self._photos), 64) / 2 else self._with(self.crop, batch)

    def _with(self, crop: int, batch: int) -> "RandomCrops":
        return RandomCrops(
            self._photos,
            crop=crop,
            batch=batch,
            seed=self.seed + 1,
            cache_bytes=self._cache_bytes,
        )

    def _crop(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Draw photos until one is large enough and readable."""
        for _ in range(1000):
            photo = self._load(self._photos[int(rng.integers(len(self._photos)))])
            if photo is None:
                continue
            top = int(rng.integers(photo.shape[0] - self.crop + 1))
            left = int(rng.integers(photo.shape[1] - self.crop + 1))
            window = photo[top : top + self.crop, left : left + self.crop]
            # Gray is kept as one channel, which is a third of the cache.
            window = np.broadcast_to(window, (self.crop, self.crop, 3))
            return window[:, ::-1] if rng.random() < 0.5 else window
        raise TrainingError(
            f"no photo gave a {self.crop}x{self.crop} crop in 1000 draws; "
            f"{len(self.unreadable)} of {len(self._photos)} are unreadable or too small"
        )

    def _load(self, path: Path) -> NDArray[np.uint8] | None:
        """Return pixels (H, W, C), or None for a photo that is of no use."""
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        if path in self.unreadable:
            return None
        try:
            pixels = read_picture(path).pixels
        # Whatever is wrong with one photo must not end a run of hours.
        except Exception as error:
            self.unreadable[path] = str(error).removeprefix(f"{path}: ") or type(error).__name__
            return None
        if min(pixels.shape[:2]) < self.crop:
            self.unreadable[path] = f"{pixels.shape[1]}x{pixels.shape[0]} is under the crop size"
            return None
        self._cache[path] = pixels
        self._cached += pixels.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1].nbytes
        return pixels
