"""Codecs that stay open between calls, for any number of threads."""

import os
import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from lic.codec.bundle import Bundle
from lic.codec.container import Model
from lic.codec.library import for_fingerprint, select
from lic.codec.pipeline import Codec


@dataclass(kw_only=True, eq=False)
class _Slot:
    """A codec that is open, or about to be."""

    bundle: Bundle
    options: dict[str, Any]
    _codec: Codec | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def holds(self, bundle: Bundle, options: dict[str, Any]) -> bool:
        # The manifest has the hashes of all files: one that was made anew differs.
        same = self.bundle.path == bundle.path and self.bundle.manifest == bundle.manifest
        return same and self.options == options

    def ready(self, *, encoder: bool = False, decoder: bool = False) -> Codec:
        with self._lock:
            if self._codec is None:
                self._codec = Codec(self.bundle, **self.options)
            self._codec.backend.load(encoder=encoder, decoder=decoder)
            return self._codec


class CodecCache:
    """Opens each codec once, and keeps those that were used last.

    Threads that ask for a codec that is being opened wait for it; others do not.

    Args:
        limit: codecs to keep. One that is let go lives on with whoever uses it.
    """

    def __init__(self, limit: int = 4) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Let all codecs go."""
        self._lock = threading.Lock()
        self._slots: list[_Slot] = []

    def encoder(
        self, model: str | None = None, rate_point: int | None = None, **options: Any
    ) -> Codec:
        """Return the codec of an installed model or a bundle's path, ready to compress.

        Arguments and errors are those of `open_codec`.
        """
        return self._slot(select(model, rate_point), options).ready(encoder=True)

    def decoder(
        self, fingerprint: bytes, hint: Model | None, *, model: str | None = None, **options: Any
    ) -> Codec:
        """Return the codec for a file, ready to decompress.

        Args:
            fingerprint: of the file's HEAD.
            hint: what the file says about its model, for messages.
            model: search no other bundle or family than this, unless a codec that fits is open.
            **options: of `Codec`.

        Raises:
            ModelMismatchError: no bundle has this fingerprint, or it was changed.
            ConfigError: no such backend or device.
        """
        slot = self._known(fingerprint, options)
        if slot is None:
            slot = self._slot(for_fingerprint(fingerprint, hint, model=model), options)
        return slot.ready(decoder=True)

    def _known(self, fingerprint: bytes, options: dict[str, Any]) -> _Slot | None:
        """Return the slot of a model that need not be searched for on disk again."""
        with self._lock:
            for slot in self._slots:
                if fingerprint in slot.bundle.fingerprints.values() and slot.options == options:
                    return self._used(slot)
        return None

    def _slot(self, bundle: Bundle, options: dict[str, Any]) -> _Slot:
        with self._lock:
            for slot in self._slots:
                if slot.holds(bundle, options):
                    return self._used(slot)
            return self._used(_Slot(bundle=bundle, options=options))

    def _used(self, slot: _Slot) -> _Slot:
        others = [other for other in self._slots if other is not slot]
        self._slots = [*others, slot][-self._limit :]
        return slot


SHARED = CodecCache()
"""Of the functions that take no codec: `encode`, `decode`, and Pillow's plugin."""

_inherited: list[object] = []


def _begin_anew() -> None:
    """Leave the codecs of the process that was forked alone.

    The engines' threads did not come along, so that to run them, or to free them, may wait forever.
    """
    _inherited.append(SHARED._slots)
    SHARED.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_begin_anew)
