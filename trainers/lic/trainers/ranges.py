"""Bytes of files by their place, a path or a URL; what may pass by itself is tried again.

Each process opens files when it wants them: nothing that is open goes from one to another.
Paths need the standard library alone, URLs need fsspec.
"""

import io
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lic.codec.errors import ConfigError, ImageError, LicError, TrainingError, UnreachableError

# Seconds before the second try and those that follow.
WAITS: tuple[float, ...] = (1.0, 3.0, 9.0)
MOST_OPEN = 32
# Statuses of HTTP that ask for another try, of those that say that the request is at fault.
_COME_AGAIN = (408, 425, 429)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

_open: "OrderedDict[str, io.FileIO]" = OrderedDict()


def is_url(place: str) -> bool:
    """Return whether a place is a URL, of any kind that fsspec knows."""
    return "://" in place


def is_http(place: str) -> bool:
    """Return whether a place is on a web server."""
    return place.startswith(("http://", "https://"))


def join(base: str, name: str) -> str:
    """Return the place of what is called `name`, with forward slashes, below `base`."""
    if not is_url(base):
        return str(Path(base) / name)
    return f"{base.rstrip('/')}/{quote(name) if is_http(base) else name}"


def read(place: str, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on.

    Raises:
        ImageError: no such file, or none that may be read, or it ends before.
        UnreachableError: a server did not answer in several tries.
        TrainingError: a server that does not send parts of files.
        ConfigError: a URL of a kind that no installed package reads.
    """
    if not size:
        return b""
    data = _read_url(place, offset, size) if is_url(place) else _read_path(place, offset, size)
    if len(data) != size:
        raise ImageError(
            f"{place}: bytes {offset} to {offset + size} were wanted and {len(data)} are there; "
            "the file was cut off or replaced"
        )
    return data


def size_of(place: str) -> int:
    """Return the size of a file in bytes.

    Raises:
        ImageError, UnreachableError, ConfigError: as `read`.
        TrainingError: a server that does not tell.
    """
    if not is_url(place):
        try:
            return Path(place).stat().st_size
        except OSError as error:
            raise _no_file(place, error) from None
    size = _tried(place, lambda: _ask_size(place))
    if not isinstance(size, int):
        raise TrainingError(
            f"{place}: the server does not tell its size; expected one that gives Content-Length"
        )
    return size


def forget(place: str | None = None) -> None:
    """Close a file that reading left open, or all: another may have come under its name."""
    for name in [place] if place else list(_open):
        handle = _open.pop(name, None)
        if handle:
            handle.close()


class Window:
    """A file that is read from its beginning to its end, a piece at a time.

    Attributes:
        size: of the file in bytes.
    """

    def __init__(self, place: str) -> None:
        """Look at a file.

        Raises:
            LicError: as `size_of`.
        """
        forget(place)
        self.size = size_of(place)
        self._place = place
        # A request costs as much time as megabytes do, a look at a disk as much as one page.
        self._ahead = 2**22 if is_url(place) else 2**12
        self._start, self._piece = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` on, fewer at the end of the file.

        Raises:
            LicError: as `read` of this module.
        """
        size = max(0, min(size, self.size - offset))
        if not self._start <= offset <= offset + size <= self._start + len(self._piece):
            ahead = min(max(size, self._ahead), self.size - offset)
            self._start, self._piece = offset, read(self._place, offset, max(0, ahead))
        first = offset - self._start
        return self._piece[first : first + size]


def _read_path(place: str, offset: int, size: int) -> bytes:
    try:
        handle = _open.get(place)
        if handle is None:
            handle = _open[place] = io.FileIO(place)
        _open.move_to_end(place)
        while len(_open) > MOST_OPEN:
            _open.popitem(last=False)[1].close()
        handle.seek(offset)
        # Without a buffer, the system may give less than was asked for.
        parts = []
        while size and (part := handle.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
    except OSError as error:
        raise _no_file(place, error) from None


def _no_file(place: str, error: OSError) -> ImageError:
    return ImageError(f"{place}: cannot be read ({error.strerror or error})")


def _read_url(place: str, offset: int, size: int) -> bytes:
    def attempt() -> Any:
        filesystem, path = _filesystem(place)
        if not is_http(place):
            return filesystem.cat_file(path, start=offset, end=offset + size)
        # Its cat_file would take in a whole file from a server that does not know ranges. With a
        # size given, nothing is asked of the server but the bytes.
        end = offset + size
        with filesystem.open(path, "rb", block_size=size, cache_type="none", size=end) as file:
            file.seek(offset)
            return file.read(size)

    return bytes(_tried(place, attempt))


def _ask_size(place: str) -> Any:
    filesystem, path = _filesystem(place)
    try:
        return filesystem.size(path)
    except FileNotFoundError as error:
        # Over HTTP, whatever goes wrong is raised as this.
        raise error.__cause__ or error from None


def _filesystem(place: str) -> tuple[Any, str]:
    try:
        from fsspec import config  # type: ignore[import-untyped]
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        options: dict[str, Any] = {}
        kinds = ("http", "https")
        if is_http(place) and not any("client_kwargs" in config.conf.get(k, {}) for k in kinds):
            from aiohttp import ClientTimeout

            # Of its own, it gives up on a large member after five minutes, and knows no proxies.
            timeout = ClientTimeout(total=None, sock_connect=20, sock_read=60)
            options = {"client_kwargs": {"timeout": timeout, "trust_env": True}}
        filesystem, path = url_to_fs(place, **options)
    except ImportError as error:
        raise ConfigError(
            f"{place}: {error}; in lic's own folder: pip install '.[shards]', which reads http "
            "and https; s3:// wants s3fs besides, gs:// wants gcsfs"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{place}: {error}; expected http, https, s3 or gs") from None
    return filesystem, str(path)


def _tried(place: str, attempt: Callable[[], Any]) -> Any:
    """Return what `attempt` does, which may fail a few times."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except LicError:
            raise
        except ValueError as error:
            raise TrainingError(
                f"{place}: cannot be read in parts ({error}); expected a server that answers range "
                "requests. Copy the shards to this machine, or to one that does"
            ) from None
        # Packages for servers raise what they like.
        except Exception as error:
            reason = str(error) or type(error).__name__
            if _is_final(error):
                raise ImageError(f"{place}: cannot be read ({reason})") from None
            if wait is None:
                raise UnreachableError(
                    f"{place}: no answer in {len(WAITS) + 1} tries ({reason}); expected a server "
                    "that can be reached: check the network, the address and who may read it"
                ) from None
        time.sleep(wait)
    raise AssertionError


def _is_final(error: Exception) -> bool:
    """Return whether another try would end as this one did."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _COME_AGAIN
    return isinstance(error, _FINAL)
