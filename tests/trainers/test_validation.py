import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from lic.codec.bundle import Bundle
from lic.codec.errors import TrainingError
from lic.codec.metrics import psnr
from lic.codec.models import FactorizedPrior, HyperpriorConfig, ScaleHyperprior, bits
from lic.codec.pipeline import Codec
from lic.trainers.config import LossConfig
from lic.trainers.validation import final_files, validate
from tests.trainers.conftest import pink

MSE = LossConfig(lmbda=0.02)


def picture(folder: Path, height: int, width: int, channels: int = 3) -> Path:
    pixels = np.rint(pink(height, 256)[:, :height, :width] * 255).astype(np.uint8)
    path = folder / f"{height}x{width}x{channels}.png"
    Image.fromarray(pixels.transpose(1, 2, 0) if channels == 3 else pixels[0]).save(path)
    return path


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


def changed(model: FactorizedPrior) -> FactorizedPrior:
    """Return a copy whose latents' centres are far from those that its quantiles claim."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        torch.manual_seed(4)
        other.entropy_bottleneck.quantiles.copy_(
            torch.rand_like(other.entropy_bottleneck.quantiles) * 9
        )
    return other


def test_the_estimate_is_what_the_bundle_gives(
    tiny_model: FactorizedPrior, tiny_bundle: Path, tmp_path: Path
) -> None:
    pictures = [picture(tmp_path, 96, 80), picture(tmp_path, 50, 71)]
    found = validate(changed(tiny_model), pictures, MSE)
    real = final_files(tiny_bundle, pictures)
    assert found["val_psnr"] == pytest.approx(real["psnr"], abs=0.01)
    assert found["val_ms_ssim"] == pytest.approx(real["ms_ssim"], abs=1e-4)
    assert found["val_bpp"] == pytest.approx(real["estimated_bpp"], rel=1e-3)


def test_the_final_numbers_are_those_of_whole_files(tiny_bundle: Path, tmp_path: Path) -> None:
    from lic.codec.benchmark.datasets import read_plain

    paths = [picture(tmp_path, 96, 80), picture(tmp_path, 50, 71)]
    codec = Codec(Bundle.open(tiny_bundle), backend="torch")
    sizes = [len(codec.compress(read_plain(path)).data) for path in paths]
    found = final_files(tiny_bundle, paths)
    assert found["pictures"] == 2
    assert found["bpp"] == pytest.approx((sizes[0] / 96 / 80 + sizes[1] / 50 / 71) * 8 / 2)
    assert found["estimated_bpp"] < found["bpp"]


def test_pictures_that_cannot_be_read_are_left_out(tiny_bundle: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    paths = [picture(tmp_path, 32, 32), tmp_path / "gone.png"]
    assert final_files(tiny_bundle, paths, say=notes.append)["pictures"] == 1
    assert "left out" in notes[0]
    with pytest.raises(TrainingError, match="none of 1 pictures to validate on can be read"):
        final_files(tiny_bundle, paths[1:])


def test_the_model_and_the_random_numbers_are_left_as_they_were(
    tiny_model: FactorizedPrior, photos: Path
) -> None:
    model = changed(tiny_model).train()
    model.g_s.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    validate(model, sorted(photos.iterdir()), MSE)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # Nothing of it may reach the next step's gradient.
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_failure_on_the_way_leaves_the_model_training(
    tiny_model: FactorizedPrior, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = changed(tiny_model).train()
    quantiles = model.entropy_bottleneck.quantiles.detach().clone()

    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(model, "synthesize", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        validate(model, sorted(photos.iterdir()), MSE)
    assert model.training
    assert torch.equal(model.entropy_bottleneck.quantiles, quantiles)


def test_distortion_is_that_of_the_picture_without_its_padding(
    tiny_model: FactorizedPrior, tmp_path: Path
) -> None:
    path = picture(tmp_path, 20, 37)
    pixels = pixels_of(path)
    padded = np.pad(pixels, ((0, 12), (0, 11), (0, 0)), mode="edge")
    x = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
    model = copy.deepcopy(tiny_model)
    model.entropy_bottleneck.solve_quantiles()
    with torch.no_grad():
        output = model(x)
    x_hat = output.x_hat[0, :, :20, :37].permute(1, 2, 0)
    rate = float(bits(output.likelihoods)) / (20 * 37)
    mse = float((x_hat - torch.from_numpy(pixels) / 255).square().mean())
    levels = (x_hat.clamp(0, 1) * 255).round().byte().numpy()
    found = validate(tiny_model, [path], MSE)
    assert found["val_psnr"] == pytest.approx(psnr(pixels, levels), abs=1e-3)
    assert found["val_bpp"] == pytest.approx(rate, rel=1e-4)
    assert found["val_loss"] == pytest.approx(rate + 0.02 * 255**2 * mse, rel=1e-4)


@pytest.mark.parametrize("loss", ["mse", "recon", "rd"])
@pytest.mark.parametrize("size", [(1, 1), (9, 40), (170, 161)])
def test_pictures_of_any_size_have_every_loss(
    tiny_model: FactorizedPrior, tmp_path: Path, loss: str, size: tuple[int, int]
) -> None:
    found = validate(tiny_model, [picture(tmp_path, *size)], LossConfig(loss=loss))
    assert all(math.isfinite(value) for value in found.values())
    assert list(found) == ["val_psnr", "val_ms_ssim", "val_bpp", "val_loss"]


def test_gray_pictures_count_as_gray(tiny_model: FactorizedPrior, tmp_path: Path) -> None:
    path = picture(tmp_path, 48, 48, channels=1)
    with Image.open(path) as image:
        image.convert("RGB").save(tmp_path / "colour.png")
    gray = validate(tiny_model, [path], MSE)
    colour = validate(tiny_model, [tmp_path / "colour.png"], MSE)
    assert gray["val_bpp"] == colour["val_bpp"]
    assert gray["val_psnr"] > colour["val_psnr"]


def test_of_a_large_picture_the_middle_counts(tiny_model: FactorizedPrior, tmp_path: Path) -> None:
    path = picture(tmp_path, 96, 160)
    Image.fromarray(pixels_of(path)[24:72, 40:120]).save(tmp_path / "middle.png")
    whole = validate(tiny_model, [path], MSE, max_pixels=48 * 80)
    assert whole == validate(tiny_model, [tmp_path / "middle.png"], MSE)


def test_a_picture_that_cannot_be_read_is_left_out_and_named(
    tiny_model: FactorizedPrior, photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no picture")
    notes: list[str] = []
    usable = photos / "a.png"
    found = validate(tiny_model, [broken, usable], MSE, say=notes.append)
    assert found == validate(tiny_model, [usable], MSE)
    assert len(notes) == 1
    assert str(broken) in notes[0]
    assert all(math.isnan(value) for value in validate(tiny_model, [broken], MSE).values())


def test_weights_that_are_no_numbers_give_metrics_that_are_none(
    tiny_model: FactorizedPrior, photos: Path
) -> None:
    model, notes = changed(tiny_model), list[str]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    found = validate(model, [photos / "a.png"], MSE, say=notes.append)
    assert all(math.isnan(value) for value in found.values())
    assert "medians" in notes[0]


def test_a_hyperprior_is_validated_in_multiples_of_its_own_stride(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = ScaleHyperprior(HyperpriorConfig(N=4, M=6))
    found = validate(model, [picture(tmp_path, 70, 30)], MSE)
    assert all(math.isfinite(value) for value in found.values())
    assert model.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same(tiny_model: FactorizedPrior, photos: Path) -> None:
    pictures = sorted(photos.iterdir())
    there = validate(copy.deepcopy(tiny_model).cuda(), pictures, MSE)
    assert there == pytest.approx(validate(tiny_model, pictures, MSE), rel=1e-3)
