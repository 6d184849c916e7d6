import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lic.codec.bundle import Bundle
from lic.codec.codec_cache import CodecCache
from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.library import VARIABLE
from lic.codec.pipeline import Codec


def test_a_codec_stays_open_for_both_directions(tiny_bundle: Path) -> None:
    cache = CodecCache()
    codec = cache.encoder(str(tiny_bundle), threads=1)
    assert cache.encoder(str(tiny_bundle), threads=1) is codec
    # Known by its fingerprint, though no folder that is searched has it.
    assert cache.decoder(codec.bundle.fingerprint, None, threads=1) is codec
    assert cache.encoder(str(tiny_bundle), threads=2) is not codec
    with pytest.raises(ModelMismatchError):
        cache.decoder(codec.bundle.fingerprint, None, threads=3)


def test_only_those_used_last_are_kept(tiny_bundle: Path) -> None:
    cache = CodecCache(limit=2)
    codecs = [cache.encoder(str(tiny_bundle), threads=n) for n in (1, 2)]
    assert cache.encoder(str(tiny_bundle), threads=1) is codecs[0]
    cache.encoder(str(tiny_bundle), threads=3)
    assert cache.encoder(str(tiny_bundle), threads=1) is codecs[0]
    assert cache.encoder(str(tiny_bundle), threads=2) is not codecs[1]


def test_a_bundle_that_was_made_anew_is_opened_anew(
    tiny_bundle: Path, tiny_bundle_2: Path, tmp_path: Path
) -> None:
    cache = CodecCache()
    path = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, path)
    first = cache.encoder(str(path))
    assert cache.decoder(first.bundle.fingerprint, None) is first
    shutil.rmtree(path)
    shutil.copytree(tiny_bundle_2, path)
    second = cache.encoder(str(path))
    assert second.bundle.fingerprint == Bundle.open(tiny_bundle_2).fingerprint
    assert cache.decoder(first.bundle.fingerprint, None) is first


def test_failures_are_not_kept(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CodecCache()
    with pytest.raises(ConfigError):
        cache.encoder(str(tiny_bundle), backend="abacus")
    fingerprint = Bundle.open(tiny_bundle).fingerprint
    with pytest.raises(ModelMismatchError):
        cache.decoder(fingerprint, None)
    shutil.copytree(tiny_bundle, tmp_path / "shelf" / "1")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "shelf"))
    assert cache.decoder(fingerprint, None).bundle.fingerprint == fingerprint


def test_threads_wait_for_one_that_opens_but_not_for_another_model(
    tiny_bundle: Path, tiny_bundle_2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    other_is_there = threading.Event()

    def slow(self: Codec, bundle: Bundle, **options: Any) -> None:
        opened.append(bundle.label)
        if bundle.path == tiny_bundle:
            assert other_is_there.wait(30)
            time.sleep(0.05)
        construct(self, bundle, **options)

    construct = Codec.__init__
    monkeypatch.setattr(Codec, "__init__", slow)
    cache = CodecCache()
    with ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(cache.encoder, str(tiny_bundle)) for _ in range(8)]
        pool.submit(cache.encoder, str(tiny_bundle_2)).result(30)
        other_is_there.set()
        assert len({id(future.result(30)) for future in waiting}) == 1
    assert sorted(opened) == ["tiny-relu q1", "tiny-relu q2"]
