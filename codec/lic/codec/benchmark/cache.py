"""Rows that were measured before, by the hash of all that decides them.

An entry is one small file. It is written under another name and renamed, so that a process that is
killed leaves it whole or not at all; what is damaged all the same counts as not there.
"""

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lic.codec
from lic.codec.benchmark.schema import Row, from_plain
from lic.codec.errors import ConfigError, OutputError

FORMAT = "lic-bench-row"
# Sources outside of the benchmark decide what is coded; of the benchmark these decide the numbers.
_BENCHMARK = ("cache.py", "classic.py", "datasets.py", "perceptual.py", "rd.py", "systems.py")


def user_cache() -> Path:
    """Return where rows are kept unless told otherwise.

    Raises:
        ConfigError: this user has no home, as in some containers.
    """
    windows = sys.platform == "win32"
    # Set to nothing means not set (XDG base directory specification).
    base = os.environ.get("LOCALAPPDATA" if windows else "XDG_CACHE_HOME")
    if base:
        return Path(base) / "lic" / "bench"
    try:
        home = Path.home()
    except RuntimeError:
        raise ConfigError(
            "this user has no home folder for measurements; name one with --cache, or leave it out "
            "with --no-cache"
        ) from None
    return home / ("AppData/Local" if windows else ".cache") / "lic" / "bench"


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the key of a row: 64 hexadecimal digits of what decides it.

    Args:
        identity: the picture's hash, and the system's identity.
    """
    whole = {
        "picture and system": identity,
        "code": code_digest(),
        # One decodes the pictures, the other sums up their errors.
        "libraries": {name: _version(name) for name in ("numpy", "pillow")},
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Return a hash of the sources that decide files and numbers: versions alone do not tell."""
    (folder,) = lic.codec.__path__
    root = Path(folder)
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.c")]):
        name = path.relative_to(root)
        if name.parts[0] != "benchmark" or name.name in _BENCHMARK:
            digest.update(f"{name.as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


class Cache:
    """A folder of rows.

    Raises:
        OutputError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{secrets.token_hex(8)}.part"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(f"--cache {folder}: cannot be written ({error.strerror})") from None

    def get(self, key: str, picture: str) -> Row | None:
        """Return a row, called after the picture; None where there is none that is whole."""
        try:
            values = json.loads(self._path(key).read_bytes())
            row = values["row"]
            if (values["format"], values["key"], values["sha256"]) != (FORMAT, key, _digest(row)):
                return None
            return replace(from_plain(Row, row, key), picture=picture)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):
            return None

    def put(self, key: str, row: Row) -> None:
        """Keep a row.

        Raises:
            OutputError: it cannot be written, as on a full disk.
        """
        plain = asdict(replace(row, picture=""))
        values = {"format": FORMAT, "key": key, "row": plain, "sha256": _digest(plain)}
        path = self._path(key)
        temporary = path.with_name(f".{secrets.token_hex(8)}.part")
        try:
            path.parent.mkdir(exist_ok=True)
            temporary.write_text(json.dumps(values, allow_nan=False))
            temporary.replace(path)
        except OSError as error:
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); name another --cache, or go on "
                "with --no-cache"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _digest(row: Any) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()
