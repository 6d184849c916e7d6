"""Every published size of HPCM, and the other models with a context, at every awkward picture size.

    python -m tests.codec.hpcm_round_trips

Minutes, hence no test of its own: `make round-trips` runs it. Each picture becomes a whole .lic
file and is decoded again; y_hat of encoder, decoder and forward pass must be equal bit for bit.
Weights are those of the reference run, or random where there is no such run.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lic.codec import Picture
from lic.codec.backends.torch_context import TorchContextBackend
from lic.codec.bundle import Bundle
from lic.codec.container import parse
from lic.codec.entropy import Reader, Writer
from lic.codec.latents import walk
from lic.codec.models import (
    HPCM,
    ContextModel,
    ScaleHyperprior,
    hpcm_config,
    hyperprior_config,
)
from lic.codec.models.blocks import Activation
from lic.codec.pipeline import Codec
from lic.codec.tiling import to_network
from lic.export.make_bundle import Description, make_bundle
from tests.golden.hpcm_reference import reference_state

PICTURES = ((256, 256, 3), (512, 768, 3), (317, 441, 3), (1, 1, 3), (512, 768, 1))


def _models() -> dict[str, ContextModel]:
    torch.manual_seed(0)
    models: dict[str, ContextModel] = {}
    for size in ("base", "large", "phi", "tiny"):
        models[f"hpcm-{size}"] = HPCM(hpcm_config(size))
    models["hpcm-tiny corrected"] = HPCM(hpcm_config("tiny", "corrected"))
    for model in models.values():
        assert isinstance(model, HPCM)
        model.load_state_dict(reference_state(model), strict=False)
    kinds: tuple[Activation, ...] = ("gdn", "relu")
    for kind in kinds:
        hyperprior = ScaleHyperprior(hyperprior_config("5", kind))
        with torch.no_grad():
            # Latents of many steps, and scales that suit them.
            hyperprior.get_parameter("g_a.6.weight").mul_(1000)
            hyperprior.get_parameter("h_s.4.bias").add_(2)
        models[f"hyperprior {kind}"] = hyperprior
    return models


def _picture(height: int, width: int, channels: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 16 + 2, width // 16 + 2, channels))
    smooth = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    noise = rng.random((height, width, channels))
    return np.rint(255 * (0.8 * smooth + 0.2 * noise)).astype(np.uint8)


class _Watched:
    """Keeps the y_hat that a model's synthesis was given."""

    def __init__(self, model: ContextModel) -> None:
        self.seen: list[Tensor] = []
        model.get_submodule("g_s").register_forward_pre_hook(
            lambda _, inputs: self.seen.append(inputs[0].clone())
        )

    def take(self) -> Tensor:
        (y_hat,) = self.seen
        self.seen.clear()
        return y_hat


def _check_files(name: str, bundle: Bundle) -> None:
    codec = Codec(bundle)
    backend = codec.backend
    assert isinstance(backend, TorchContextBackend)
    watched = _Watched(backend.model)
    for seed, (height, width, channels) in enumerate(PICTURES):
        pixels = _picture(height, width, channels, seed)
        since = time.perf_counter()
        encoded = codec.compress(Picture(pixels=pixels))
        decoded = codec.decompress(parse(encoded.data)).picture.pixels
        spent = time.perf_counter() - since
        y_hat = watched.take()
        x = to_network(pixels, bundle.manifest.padding)
        writer = Writer(bundle.tables)
        state, _ = walk(backend.steps, backend.analyze(x), writer)
        with torch.no_grad():
            backend.model(torch.from_numpy(x))
        forward = watched.take()
        where = f"{name} {height}x{width}x{channels}"
        # The file is that of this very walk, so its y_hat is what the file's encoder had.
        assert parse(encoded.data).tiles[0].streams == writer.finish(), f"{where}: another file"
        encoder = backend.model.y_hat(state.progress)
        assert torch.equal(y_hat, encoder), f"{where}: y_hat is not the encoder's"
        assert torch.equal(y_hat, forward), f"{where}: y_hat is not the forward's"
        assert decoded.shape == pixels.shape
        sys.stdout.write(
            f"{name:20} {height}x{width}x{channels}: {len(encoded.data)} bytes, y_hat equal, "
            f"{y_hat.min():.0f} to {y_hat.max():.0f}, {spent:.1f} s\n"
        )
        sys.stdout.flush()


def _check_batch(name: str, model: ContextModel) -> None:
    backend = TorchContextBackend(model, torch.device("cpu"))
    watched = _Watched(model)
    pictures = [_picture(model.stride, 2 * model.stride, 3, seed) for seed in range(3)]
    x = np.stack([p.transpose(2, 0, 1) for p in pictures]).astype(np.float32) / np.float32(255)
    writer = Writer(model.tables())
    state, crc = walk(backend.steps, backend.analyze(x), writer)
    blank = backend.blank(*x.shape[2:])
    blank.shape = (len(x), *blank.shape[1:])
    decoded, other = walk(backend.steps, blank, Reader(model.tables(), writer.finish()))
    with torch.no_grad():
        model(torch.from_numpy(x))
    assert crc == other
    assert torch.equal(model.y_hat(state.progress), model.y_hat(decoded.progress))
    assert torch.equal(model.y_hat(decoded.progress), watched.take())
    sys.stdout.write(f"{name:20} batch of 3: y_hat equal\n")


def main() -> None:
    """Raise AssertionError at the first picture that does not come back."""
    for name, model in _models().items():
        model.eval()
        _check_batch(name, model)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "bundle"
            make_bundle(model, target, Description(name="trial", rate_point=1))
            _check_files(name, Bundle.open(target))


if __name__ == "__main__":
    main()
