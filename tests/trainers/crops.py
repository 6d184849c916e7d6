"""Photos to make crops of, and a look at the crops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lic.trainers.prepare import PrepareConfig

SMALL = PrepareConfig(width=32, height=16)


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def five_photos(folder: Path) -> Path:
    """Write five photos of 48x40 in two folders; two have the same name."""
    (folder / "sub").mkdir(parents=True)
    names = ("a.png", "b.png", "sub/a.png", "two words ünï.png", "sub/c.bmp")
    for seed, name in enumerate(names):
        picture(seed).save(folder / name)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def crops_of(folder: Path) -> list[Path]:
    return sorted((folder / "train").iterdir())


def entry_of(folder: Path, photo: str) -> Any:
    photos = json.loads((folder / "lic-crops.json").read_text())["photos"]
    return next(entry for entry in photos if entry["photo"] == photo)
