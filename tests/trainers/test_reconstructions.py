import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lic.codec.errors import OutputError
from lic.codec.metrics import psnr
from lic.codec.models import FactorizedPrior
from lic.trainers.config import LossConfig
from lic.trainers.reconstructions import (
    CELL,
    CONTACT,
    FOLDER,
    GAP,
    MOST_EPOCHS,
    Reconstructions,
    spread,
)
from lic.trainers.validation import validate
from tests.trainers.conftest import pink


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A landscape, a portrait and a gray picture."""
    made = []
    for name, height, width in (("wide", 40, 120), ("tall", 120, 40), ("gray", 64, 64)):
        pixels = np.rint(pink(len(name), 128)[:, :height, :width] * 255).astype(np.uint8)
        plane = pixels[0] if name == "gray" else pixels.transpose(1, 2, 0)
        made.append(tmp_path / f"{name}.png")
        Image.fromarray(plane).save(made[-1])
    return made


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def names(run: Path) -> set[str]:
    return {path.name for path in (run / FOLDER).iterdir()}


def blurred(model: FactorizedPrior) -> FactorizedPrior:
    """Return a copy that reconstructs worse."""
    worse = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in worse.g_s.parameters():
            parameter.mul_(0.8)
    return worse


def test_originals_are_written_once_and_reconstructions_with_every_epoch(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ours = Reconstructions(run, 2)
    ours.add(tiny_model, pictures, epoch=5)
    assert names(run) == {
        "original-00.png", "original-01.png", "epoch-0005-00.png", "epoch-0005-01.png", CONTACT
    }  # fmt: skip
    stamp = (run / FOLDER / "original-00.png").stat().st_mtime_ns
    ours.add(tiny_model, pictures, epoch=10)
    assert names(run) > {"epoch-0005-00.png", "epoch-0010-00.png", "epoch-0010-01.png"}
    assert (run / FOLDER / "original-00.png").stat().st_mtime_ns == stamp
    assert np.array_equal(pixels_of(run / FOLDER / "original-01.png"), pixels_of(pictures[1]))


def test_a_reconstruction_is_what_the_validation_measures(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    Reconstructions(tmp_path / "run", 3).add(tiny_model, pictures, epoch=1)
    for index, path in enumerate(pictures):
        own = tmp_path / "run" / FOLDER / f"epoch-0001-{index:02d}.png"
        expected = validate(tiny_model, [path], LossConfig())
        assert psnr(pixels_of(path), pixels_of(own)) == pytest.approx(expected["val_psnr"])
        with Image.open(own) as image:
            assert float(image.info["psnr"]) == pytest.approx(expected["val_psnr"], abs=0.006)
            assert float(image.info["bpp"]) == pytest.approx(expected["val_bpp"], abs=6e-4)


def test_the_sheet_has_a_column_for_each_epoch_and_a_row_for_each_picture(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ours = Reconstructions(run, 3)
    first = ours.add(tiny_model, pictures, epoch=1)
    second = ours.add(blurred(tiny_model), pictures, epoch=2)
    assert first.shape[1] == GAP + 2 * (CELL + GAP)
    assert second.shape == (first.shape[0], first.shape[1] + CELL + GAP, 3)
    # What was there is drawn again from the files, the new column at its right.
    assert np.array_equal(second[:, : first.shape[1]], first)
    assert np.array_equal(pixels_of(run / FOLDER / CONTACT), second)
    # Pictures of 120, 120 and 64 pixels keep their shape and stand above one another.
    assert 40 + 120 + 3 * 64 < first.shape[0] < 40 + 120 + 3 * 64 + 150


def test_a_long_run_shows_the_first_the_last_and_some_between(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    ours = Reconstructions(tmp_path / "run", 1)
    for epoch in range(1, 15):
        sheet = ours.add(tiny_model, pictures[2:], epoch=epoch)
    assert sheet.shape[1] == GAP + (1 + MOST_EPOCHS) * (CELL + GAP)
    assert spread(range(1, 15), 10)[0] == 1
    assert spread(range(1, 15), 10)[-1] == 14
    assert spread(range(0, 101), 5) == [0, 25, 50, 75, 100]
    assert spread([3, 4], 5) == [3, 4]


def test_a_resumed_run_goes_on_with_the_sheet_and_redoes_later_epochs(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for epoch in (1, 2, 3):
        Reconstructions(run, 2).add(tiny_model, pictures, epoch=epoch)
    foreign = run / FOLDER / "epoch-notes.png"
    foreign.write_bytes(b"mine")
    # Even without the photos themselves.
    for path in pictures:
        path.rename(path.with_suffix(".gone"))
    sheet = Reconstructions(run, 2).add(blurred(tiny_model), pictures, epoch=2)
    assert sheet.shape[1] == GAP + 3 * (CELL + GAP)
    assert {name for name in names(run) if name.startswith("epoch")} == {
        "epoch-0001-00.png", "epoch-0001-01.png", "epoch-0002-00.png", "epoch-0002-01.png",
        foreign.name,
    }  # fmt: skip


def test_pictures_that_cannot_be_read_are_left_out(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    notes: list[str] = []
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    ours = Reconstructions(tmp_path / "run", 2, say=notes.append)
    ours.add(tiny_model, [broken, *pictures], epoch=1)
    assert np.array_equal(
        pixels_of(tmp_path / "run" / FOLDER / "original-00.png"), pixels_of(pictures[0])
    )
    assert str(broken) in notes[0]
    nothing = Reconstructions(tmp_path / "empty", 2).add(tiny_model, [broken], epoch=1)
    assert nothing.shape[2] == 3


def test_what_someone_damaged_is_made_again_or_left_blank(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = Reconstructions(run, 1).add(tiny_model, pictures, epoch=1)
    for name in ("original-00.png", "epoch-0001-00.png"):
        (run / FOLDER / name).write_bytes(b"no picture")
    second = Reconstructions(run, 1).add(tiny_model, pictures, epoch=2)
    assert np.array_equal(second[:, : CELL + GAP], first[:, : CELL + GAP])
    assert not np.array_equal(second[:, : first.shape[1]], first)


def test_weights_that_are_no_numbers_leave_a_note_and_no_picture(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    notes: list[str] = []
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        next(model.g_s.parameters()).fill_(math.nan)
    Reconstructions(tmp_path / "run", 1, say=notes.append).add(model, pictures, epoch=1)
    assert names(tmp_path / "run") == {"original-00.png", CONTACT}
    assert "epoch 1: picture 0" in notes[0]


def test_a_folder_that_cannot_be_written_is_named(
    tiny_model: FactorizedPrior, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(OutputError, match=r"original-00\.png: cannot be written"):
        Reconstructions(tmp_path, 1).add(tiny_model, pictures, epoch=1)


def test_large_names_and_panoramas_have_room(tiny_model: FactorizedPrior, tmp_path: Path) -> None:
    path = tmp_path / ("a long name " * 12 + ".png")
    Image.fromarray(np.zeros((3, 900, 3), np.uint8)).save(path)
    sheet = Reconstructions(tmp_path / "run", 1).add(tiny_model, [path], epoch=1)
    # Nothing is drawn into the gaps between and beside the cells.
    for place in range(3):
        left = place * (CELL + GAP)
        assert sheet[:, left + 1 : left + GAP - 1].min() == 255
