"""The last check of a bundle: a photo goes from engine to engine."""

from pathlib import Path

import numpy as np
import pytest

from lic.codec.bundle import Bundle
from lic.codec.errors import ExportError, NumericsError
from lic.codec.models import FactorizedPrior
from lic.export.coding_check import check_coding, photo
from lic.export.make_bundle import Description, make_bundle


def test_the_photo_is_one() -> None:
    pixels = photo().pixels
    assert pixels.shape == (160, 224, 3)
    assert 20 < pixels.std() < 100


def test_a_good_bundle_passes(tiny_bundle: Path) -> None:
    check_coding(Bundle.open(tiny_bundle))


def test_pictures_that_differ_are_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lic.codec.backends.ort_backend import OrtBackend

    decode = OrtBackend._decode
    monkeypatch.setattr(
        OrtBackend,
        "_decode",
        lambda self, symbols: np.minimum(decode(self, symbols) + np.float32(0.1), 1),
    )
    with pytest.raises(ExportError, match=r"a photo differs by 2\d levels, coded by torch and"):
        check_coding(Bundle.open(tiny_bundle))


def test_an_engine_that_cannot_decode_is_told(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an engine gets other symbols, which the checksum shows."""
    from lic.codec.backends.ort_backend import OrtBackend

    def refuse(*_: object) -> None:
        raise NumericsError("no")

    monkeypatch.setattr(OrtBackend, "pixels", refuse)
    with pytest.raises(ExportError, match=r"cannot be coded by torch and decoded by onnx .no"):
        check_coding(Bundle.open(tiny_bundle))


def test_a_failed_check_leaves_what_was_there(
    tiny_model: FactorizedPrior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, description = tmp_path / "1", Description(name="tiny", rate_point=1)
    before = make_bundle(tiny_model, target, description).manifest.to_bytes()

    def fail(bundle: Bundle) -> None:
        assert bundle.path != target
        raise ExportError("no")

    monkeypatch.setattr("lic.export.make_bundle.check_coding", fail)
    for name in ("1", "2"):
        with pytest.raises(ExportError, match=r"^no$"):
            make_bundle(tiny_model, tmp_path / name, description, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert Bundle.open(target).manifest.to_bytes() == before
