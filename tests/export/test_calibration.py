"""What calibration looks at, and the ranges that come of it."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from lic.codec.entropy import Writer, build_tables
from lic.codec.errors import ConfigError, ExportError, ImageError
from lic.codec.tiling import Padding
from lic.export.calibration import METHODS, calibration_crops, channel_means, observe, ranges_of
from lic.export.rate_distortion import symbol_bits

PADDING = Padding(multiple=16)


def _save(folder: Path, name: str, height: int, width: int) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)


def graph() -> onnx.ModelProto:
    """Return y = 2 x."""
    size = ["N", "C", "H", "W"]
    made = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["double"]),
            helper.make_node("Relu", ["double"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, size)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_crops_are_the_same_every_time_and_of_whole_latents(tmp_path: Path) -> None:
    for i in range(5):
        _save(tmp_path / "a", f"{i}.png", 70, 90)
    _save(tmp_path / "a", "small.png", 10, 20)
    first = calibration_crops(tmp_path / "a", padding=PADDING, count=3, side=50)
    again = calibration_crops(tmp_path / "a", padding=PADDING, count=3, side=50)
    assert [c.shape for c in first] == [(1, 3, 48, 48)] * 3
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    every = calibration_crops(tmp_path / "a", padding=PADDING, count=9, side=64)
    assert [c.shape for c in every] == [(1, 3, 64, 64)] * 5 + [(1, 3, 16, 32)]
    assert all(0 <= c.min() and c.max() <= 1 for c in every)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no pictures"):
        calibration_crops(tmp_path, padding=PADDING)


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    _save(tmp_path, "a.png", 32, 32)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"b\.png"):
        calibration_crops(tmp_path, padding=PADDING)


@pytest.mark.parametrize(("count", "side"), [(0, 256), (4, 8)])
def test_crops_that_cannot_be_are_refused(count: int, side: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least"):
        calibration_crops(tmp_path, padding=PADDING, count=count, side=side)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_lie_within_what_was_seen(
    method: Any, photo: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    x = photo.transpose(2, 0, 1)[None].astype(np.float32) / 255 - np.float32(0.25)
    found = ranges_of(method, graph(), ["double"], [x, 0.5 * x])
    low, high = found["double"]
    assert 2 * x.min() <= low < 0 < high <= 2 * x.max() + 1e-6
    if method in ("minmax", "rd"):
        assert (low, high) == (2 * x.min(), 2 * x.max())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("method", METHODS)
def test_what_never_answers_has_no_range(method: Any) -> None:
    """As behind dead channels; on one picture, or on all."""
    black, grey = np.zeros((1, 1, 4, 4), np.float32), np.full((1, 1, 4, 4), 0.5, np.float32)
    assert ranges_of(method, graph(), ["double", "y"], [black]) == {
        "double": (0, 0), "y": (0, 0)
    }  # fmt: skip
    assert ranges_of(method, graph(), ["double"], [black, grey])["double"][1] > 0.99


def test_nan_is_refused_by_name() -> None:
    x = np.full((1, 1, 2, 2), np.nan, np.float32)
    with pytest.raises(ExportError, match="double: NaN or infinite values"):
        list(observe(graph(), ["double"], [x]))


def test_means_are_over_all_pictures_pixels() -> None:
    inputs = [np.ones((1, 2, 2, 2), np.float32), np.full((1, 2, 2, 4), 4, np.float32)]
    assert channel_means(graph(), ["double"], inputs)["double"].tolist() == [6, 6]


def test_bits_are_what_the_coder_writes() -> None:
    mass = np.array([0.05, 0.2, 0.5, 0.2, 0.04, 0.01])
    tables = build_tables([mass, mass], [-2, -2])
    drawn = np.random.default_rng(0).choice(5, (1, 2, 60, 50), p=mass[:5] / mass[:5].sum())
    symbols = (drawn - 2).astype(np.int16)
    writer = Writer(tables)
    indexes = np.broadcast_to(np.arange(2, dtype=np.uint16)[:, None, None], symbols.shape[1:])
    writer.code(symbols[0], indexes)
    assert abs(symbol_bits(symbols, tables) / 8 - sum(map(len, writer.finish()))) < 20


def test_nothing_to_look_at_is_nothing_to_run() -> None:
    """As of GDN, no pair of whose layers can be equalised."""
    assert list(observe(onnx.ModelProto(), [], [np.zeros((1, 3, 16, 16), np.float32)])) == []
