"""Which files are photos to train on, and which are kept to validate on; no torch here.

Two layouts are known by their folders: that of COCO2017 (`train2017/`, `val2017/`), and what `lic
data prepare` writes (`train/`, `val/` beside its manifest). Photos in shards are trained on whole.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from lic.codec.errors import ImageError, TrainingError
from lic.codec.image_io import READABLE_SUFFIXES
from lic.trainers.config import DataConfig
from lic.trainers.shards import Photo, Say, entering, locate, open_members

MANIFEST = "lic-crops.json"
COCO = ("train2017", "val2017")
PREPARED = ("train", "val")

# Of crops: what the photo was called, a digest of its place, and which crop of it this is.
CROP_NAME = re.compile(r"(.+-[0-9a-f]{10})-\d+\.png")


def find_pictures(place: Path, config: DataConfig, say: Say) -> tuple[Sequence[Photo], list[Path]]:
    """Return the photos to train on and those to validate on.

    Args:
        place: a folder of photos or of shards; a shard; an index of shards.
        config: says which.
        say: takes notes for the user.

    Raises:
        LicError: as `find_photos`, `split_validation` and `open_members`.
    """
    shards = locate(place)
    # Archives beside pictures may be what these were unpacked from; an index is there on purpose.
    archives = bool(shards) and shards[0].suffix != ".json"
    if not shards or (archives and list_pictures(training_part(place))):
        return split_validation(place, find_photos(place, config.prefix), config)
    members = open_members(shards, config.prefix, say)
    if config.val:
        return members, _first(_given(Path(config.val)), config.val_count)
    say(
        f"{place}: all photos of shards are trained on, and none is held out to validate on; name "
        "a folder of other pictures for --val"
    )
    return members, []


def find_photos(folder: Path, prefixes: Sequence[str] = ()) -> list[Path]:
    """Return the pictures below `folder` in name order; `prefixes` keeps names that start so.

    Of a folder in a known layout, these are the pictures of its training part. Hidden files do
    not count: macOS leaves a `._a.jpg` beside every a.jpg on foreign disks. Neither do crops that
    were made into a folder below: each shows a part of a photo that is counted already.

    Raises:
        ImageError: there is none, or the folder may not be entered.
    """
    found = list_pictures(training_part(folder), prefixes)
    if not found:
        raise ImageError(f"{folder}: {_nothing(folder, prefixes)}; expected a folder of photos")
    return found


def _nothing(folder: Path, prefixes: Sequence[str] = ()) -> str:
    """Say why a folder gave no pictures."""
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "is a file"
    return "holds no pictures" + (f" whose name starts with {', '.join(prefixes)}" * bool(prefixes))


def list_pictures(folder: Path, prefixes: Sequence[str] = ()) -> list[Path]:
    """Return what `find_photos` does, of this very folder, and nothing where there is none."""
    paths = list(folder.rglob("*"))
    inner = {path.parent for path in paths if path.name == MANIFEST} - {folder}
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in READABLE_SUFFIXES
        and not path.name.startswith(".")
        and (not prefixes or path.name.startswith(tuple(prefixes)))
        and not (inner and inner.intersection(path.parents))
    )


def training_part(folder: Path) -> Path:
    """Return the folder of the pictures to train on: a part of a known layout, else itself."""
    layout = _layout(folder)
    return folder / layout[0] if layout else folder


def validation_part(folder: Path) -> Path | None:
    """Return the folder that a known layout keeps for validation, if it is there.

    `folder` is a whole layout, or its training part.
    """
    folder = folder.absolute()
    for root in (folder, folder.parent):
        layout = _layout(root)
        if layout and folder in (root, root / layout[0]) and (root / layout[1]).is_dir():
            return root / layout[1]
    return None


def _layout(folder: Path) -> tuple[str, str] | None:
    with entering(folder):
        if (folder / COCO[0]).is_dir():
            return COCO
        if (folder / MANIFEST).is_file() and (folder / PREPARED[0]).is_dir():
            return PREPARED
    return None


def split_validation(
    folder: Path, photos: Sequence[Path], config: DataConfig
) -> tuple[list[Path], list[Path]]:
    """Return the photos to train on and those to validate on, which have none in common.

    Validation is on the folder of `--val`, else on the layout's own part, else on photos held out
    by their names: each name decides for itself, so that a photo stays on its side when others
    are added, and crops of one photo stay together. All that is held out stays out of training;
    at most `val_count` are validated on.

    Args:
        folder: where the photos were found.
        photos: as `find_photos` gave them.
        config: says which.

    Raises:
        TrainingError: nothing would be left to train on.
        ImageError: `--val` holds no pictures.
    """
    own = validation_part(folder)
    if config.val:
        held = _given(Path(config.val))
    elif own:
        held = list_pictures(own)
    else:
        held = _held_out(photos, config.val_share)
    kept_out = set(_resolved(held))
    training = [
        path for path, place in zip(photos, _resolved(photos), strict=True) if place not in kept_out
    ]
    if not training:
        raise TrainingError(
            f"{folder}: all {len(photos)} photos are for validation, none is left to train on; "
            "name another folder for --val"
        )
    return training, _first(held, config.val_count)


def _first(held: Sequence[Path], count: int) -> list[Path]:
    """Return so many, the same ones whatever others there are, in name order."""
    return sorted(sorted(held, key=_place)[:count])


def _given(folder: Path) -> list[Path]:
    held = list_pictures(validation_part(folder) or folder)
    if not held:
        raise ImageError(f"--val {folder}: {_nothing(folder)}; expected a folder of photos")
    return held


def _resolved(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return a name for each file that all ways to its folder share."""
    # Folders are few; to resolve each of a hundred thousand files takes seconds.
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    return [(folders[path.parent], path.name) for path in paths]


def _held_out(photos: Sequence[Path], share: float) -> list[Path]:
    """Return the photos whose names fall below `share`; at least one of ten, never all."""
    places = {path: _place(path) for path in photos}
    first, last = min(places.values()), max(places.values())
    # Of fewer than ten photos, one is too much to lose without being asked.
    if share and first >= share and len(photos) >= 10:
        return [path for path in photos if places[path] == first]
    return [path for path in photos if places[path] < min(share, last)]


def _place(path: Path) -> float:
    """Return where in [0, 1) a photo's name falls; all crops of one photo fall on one place."""
    crop = CROP_NAME.fullmatch(path.name)
    name = crop[1] if crop else path.name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
