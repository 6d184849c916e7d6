"""Which bundles are there: embedded ones, the user's, and those of LIC_BUNDLES.

A bundle is found by a path, by family name and rate point, or by the fingerprint in a file.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lic.codec.bundle import EMBEDDED, MANIFEST, Bundle
from lic.codec.container import Model
from lic.codec.errors import ConfigError, ModelMismatchError

VARIABLE = "LIC_BUNDLES"
DEFAULT_MODEL = "bmshj2018-factorized-relu-lite"


def user_folder() -> Path:
    """Return where `lic models import` puts bundles unless told otherwise.

    Raises:
        ConfigError: this user has no home, as in some containers.
    """
    windows = sys.platform == "win32"
    # Set to nothing means not set (XDG base directory specification).
    base = os.environ.get("LOCALAPPDATA" if windows else "XDG_DATA_HOME")
    if not base:
        try:
            home = Path.home()
        except RuntimeError:
            raise ConfigError(
                f"this user has no home folder for bundles; set {VARIABLE} or HOME, or name a path"
            ) from None
        base = str(home / "AppData" / "Local" if windows else home / ".local" / "share")
    return Path(base) / "lic" / "bundles"


def search_path() -> list[Path]:
    """Return the folders that are searched, in order: LIC_BUNDLES, the user's, the embedded."""
    named = [Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p]
    with contextlib.suppress(ConfigError):
        named.append(user_folder())
    return [*named, EMBEDDED]


def all_bundles() -> list[Bundle]:
    """Return every readable bundle on the search path, by name and rate point."""
    found: dict[tuple[str, int], Bundle] = {}
    for folder in search_path():
        for bundle in _bundles_in(folder):
            found.setdefault((bundle.manifest.name, bundle.manifest.rate_point), bundle)
    return [found[key] for key in sorted(found)]


def unreadable_bundles() -> list[str]:
    """Return path and reason of every bundle on the search path that cannot be read."""
    skipped: list[str] = []
    for folder in search_path():
        for _ in _bundles_in(folder, skipped):
            pass
    return skipped


def _bundles_in(folder: Path, skipped: list[str] | None = None) -> Iterator[Bundle]:
    """Yield bundles in `folder` and one level of family folders below it.

    Those that cannot be read are named, with the reason, in `skipped`.
    Read anew every time: bundles come and go while a process lives, and a manifest is small.
    """
    try:
        # A leading dot is how unfinished bundles are named.
        paths = sorted(folder.glob("[!.]*")) + sorted(folder.glob("[!.]*/[!.]*"))
    except OSError:
        # Another user's home, say: what cannot be entered holds no bundles for this one.
        return
    for path in paths:
        try:
            if path.suffix == ".zip" or (path.is_dir() and (path / MANIFEST).is_file()):
                yield Bundle.open(path)
        except (ModelMismatchError, OSError) as error:
            # One broken bundle must not hide the others.
            if skipped is not None:
                reason = str(error).removeprefix(f"{path / MANIFEST}: ").removeprefix(f"{path}: ")
                skipped.append(f"{path} ({reason})")


def _told(skipped: Sequence[str]) -> str:
    """Return the end of a message that tells which bundles could not be read."""
    return f"; skipped: {', '.join(skipped)}" if skipped else ""


def select(model: str | None = None, rate_point: int | None = None) -> Bundle:
    """Return the bundle that a user means.

    Args:
        model: path of a bundle, of a folder of rate points, or a family's name; None is lic's own.
        rate_point: None takes the middle of what the family has.

    Raises:
        ModelMismatchError: there is no such bundle.
        ConfigError: the family has no such rate point.
    """
    if rate_point is not None:
        return family(model, [rate_point])[0]
    bundles = family(model)
    return bundles[len(bundles) // 2]


def family(model: str | None = None, rate_points: Sequence[int] | None = None) -> list[Bundle]:
    """Return a family's bundles by rate point, all of them or those named; errors as `select`."""
    name = model or DEFAULT_MODEL
    found = _named(name)
    names = sorted({b.manifest.name for b in found})
    if len(names) > 1:
        raise ConfigError(f"{name} holds bundles of several models: {', '.join(names)}; name one")
    rates = {b.manifest.rate_point: b for b in found}
    for wanted in rate_points or ():
        if wanted not in rates:
            points = ", ".join(str(r) for r in sorted(rates))
            raise ConfigError(f"{name} has no rate point {wanted}; it has {points}")
    return [rates[r] for r in sorted(rate_points or rates)]


def for_fingerprint(
    fingerprint: bytes, hint: Model | None = None, *, model: str | None = None
) -> Bundle:
    """Return the bundle that a file was made with.

    Args:
        fingerprint: of the file's HEAD.
        hint: what the file says about its model, for the message.
        model: restrict the search to this bundle or family.

    Raises:
        ModelMismatchError: no bundle has this fingerprint; the message names the wanted one.
    """
    wanted = fingerprint.hex() + (f" ({hint.name})" if hint else "")
    if model is not None:
        candidates = _named(model)
    else:
        candidates = [b for folder in search_path() for b in _bundles_in(folder)]
    for bundle in candidates:
        if fingerprint in bundle.fingerprints.values():
            return bundle
    if model is not None:
        found = ", ".join(f"{b.file_fingerprint.hex()} ({b.label})" for b in candidates[:4])
        raise ModelMismatchError(
            f"the file was made with model {wanted}, but {model} is {found}; leave out --model to "
            "search all installed bundles"
        )
    where = ", ".join(str(p) for p in search_path())
    source = f"get it from {hint.source}, " if hint and hint.source else ""
    raise ModelMismatchError(
        f"the file was made with model {wanted}, which is not installed (searched {where}); "
        f"{source}import its checkpoint with `lic models import`, name its bundle with -m PATH, or "
        f"name the folder that holds it in {VARIABLE}{_told(unreadable_bundles())}"
    )


def _named(model: str) -> list[Bundle]:
    """Return the bundles that a path or a family's name stands for; at least one."""
    path = Path(model)
    if path.is_file() or (path / MANIFEST).is_file():
        return [Bundle.open(path)]
    skipped: list[str] = []
    found = list(_bundles_in(path, skipped)) if path.is_dir() else []
    # A folder that happens to be called like a model, such as that of a training run, hides none.
    found = found or [b for b in all_bundles() if b.manifest.name == model]
    if not found:
        names = ", ".join(sorted({b.manifest.name for b in all_bundles()})) or "none"
        skipped += unreadable_bundles()
        raise ModelMismatchError(
            f"no bundle {model!r}: expected the path of one, or the name of an installed model "
            f"(installed: {names}){_told(list(dict.fromkeys(skipped)))}"
        )
    return found
