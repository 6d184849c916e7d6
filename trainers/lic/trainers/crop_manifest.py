"""The record of a folder of crops: what they were made of, and which are done.

`lic-crops.json` holds the settings and one line for each photo. While crops are being made, a
journal beside it takes each photo as it is done, so that a run that was killed goes on from there;
the last step writes the journal's lines into the manifest.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from lic.codec.errors import OutputError
from lic.trainers.files import write_whole, writing
from lic.trainers.photos import CROP_NAME, MANIFEST, PREPARED

JOURNAL = ".lic-crops.jsonl"
_FORMAT = "lic crops"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One crop.

    Attributes:
        file: below the folder of the manifest, as in train/cat-0123456789-0.png.
        box: left, top, right, bottom in the photo, upright and scaled as `Entry.size` says.
        bytes: of the file.
        sha256: of the file.
    """

    file: str
    box: tuple[int, int, int, int]
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What became of one photo.

    Attributes:
        part: train or val.
        photo: path below the folder of that part's photos, with forward slashes.
        bytes: of the photo's file.
        size: width and height of what the crops were cut from; None if nothing was.
        crops: made of it.
        skipped: why there are none, or nothing.
    """

    part: str
    photo: str
    bytes: int
    size: tuple[int, int] | None = None
    crops: tuple[Crop, ...] = ()
    skipped: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Entry":
        """Return what `asdict` and JSON made values of.

        Raises:
            KeyError, TypeError, ValueError: of something else.
        """
        crops = tuple(Crop(**{**crop, "box": tuple(crop["box"])}) for crop in values["crops"])
        size = values["size"] and tuple(values["size"])
        entry = cls(**{**values, "crops": crops, "size": size})
        for crop in crops:
            part, _, name = crop.file.partition("/")
            # These names are deleted where --force asks for it.
            if part not in PREPARED or not CROP_NAME.fullmatch(name) or set(name) & set("/\\"):
                raise ValueError(f"{crop.file!r} is no name of a crop")
        return entry


Key = tuple[str, str]


@dataclass
class Manifest:
    """A manifest in memory; `entries` by part and photo."""

    folder: Path
    settings: dict[str, Any]
    entries: dict[Key, Entry] = field(default_factory=dict)
    complete: bool = False

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.folder / MANIFEST

    def add(self, entry: Entry) -> None:
        """Take what became of a photo, in place of what was known of it."""
        self.entries[entry.part, entry.photo] = entry

    def write(self) -> None:
        """Write the file, whole or not at all, in an order that does not depend on the work's.

        Raises:
            OutputError: it cannot be written.
        """
        head = {
            "format": _FORMAT,
            "version": _VERSION,
            "complete": self.complete,
            "settings": self.settings,
        }
        lines = ",\n".join(json.dumps(asdict(self.entries[key])) for key in sorted(self.entries))
        text = json.dumps(head, indent=1)[:-2] + f',\n "photos": [\n{lines}\n]\n}}\n'
        with writing(self.path, stays=""):
            write_whole(self.path, lambda file: file.write(text.encode()))


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, None if it has none.

    Raises:
        OutputError: it is damaged, or of a version to come.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from None
    try:
        values = json.loads(text)
        if (values["format"], values["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"found {values['format']!r} of version {values['version']!r}")
        manifest = Manifest(folder, dict(values["settings"]), complete=values["complete"] is True)
        if not all(isinstance(manifest.settings[side], int) for side in ("width", "height")):
            raise ValueError("its settings give no size")
        for entry in values["photos"]:
            manifest.add(Entry.from_dict(entry))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"{path}: is damaged or of another version of lic ({error}); make the crops in a new "
            "folder, or remove this one"
        ) from None
    return manifest


def read_journal(manifest: Manifest) -> None:
    """Add what the journal of a run that was killed holds; a line cut off does not count."""
    try:
        lines = (manifest.folder / JOURNAL).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in lines.splitlines():
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError):
            manifest.add(Entry.from_dict(json.loads(line)))


class Journal:
    """Takes what became of photos, one by one, to disk and to the manifest in memory.

    As a context: work that ends well finishes the manifest and removes the journal.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Open the journal of a manifest.

        Raises:
            OutputError: it cannot be written.
        """
        self._manifest = manifest
        self._path = manifest.folder / JOURNAL
        with writing(self._path, stays=""):
            self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What could not be written then cannot be now; that was told already.
        with contextlib.suppress(OSError):
            self._file.close()
        if kind is None:
            self._manifest.complete = True
            self._manifest.write()
            self._path.unlink(missing_ok=True)

    def add(self, entry: Entry) -> None:
        """Record one photo; from now on it is done.

        Raises:
            OutputError: that cannot be written.
        """
        with writing(self._path, stays=""):
            # Its own line, even after one that was cut off.
            self._file.write("\n" + json.dumps(asdict(entry)))
            self._file.flush()
        self._manifest.add(entry)
