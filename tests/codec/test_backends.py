"""Engines: what was asked for and what really runs."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from lic.codec.architectures import Margin, Margins, window_margins
from lic.codec.backends import base
from lic.codec.backends.ort_backend import open_ort_backend
from lic.codec.backends.ort_sessions import Sessions
from lic.codec.bundle import Bundle
from lic.codec.errors import ConfigError, ModelMismatchError, NumericsError
from lic.codec.image_io import Picture
from lic.codec.library import select
from lic.codec.pipeline import Codec
from lic.codec.tiling import Padding, to_network

if TYPE_CHECKING:
    from lic.codec.backends.torch_backend import TorchBackend


def test_a_provider_that_is_missing_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"TensorrtExecutionProvider.*available: .*CPU"):
        open_ort_backend(Bundle.open(tiny_bundle), device="tensorrt")


def test_a_provider_by_its_full_name(tiny_bundle: Path, photo: NDArray[np.uint8]) -> None:
    codec = Codec(Bundle.open(tiny_bundle), device="CPUExecutionProvider")
    assert codec.compress(Picture(pixels=photo)).notes == ()


def test_a_fallback_is_reported(
    tiny_bundle: Path, photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime silently uses the CPU where a provider fails to start."""
    available = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    session = onnxruntime.InferenceSession

    def without_cuda(model: bytes, options: Any, *, providers: list[str]) -> Any:
        assert providers[0] == "CUDAExecutionProvider"
        return session(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    codec = Codec(Bundle.open(tiny_bundle), backend="onnx", device="cuda")
    (note,) = codec.compress(Picture(pixels=photo)).notes
    assert "asked for CUDAExecutionProvider" in note
    assert "runs on CPUExecutionProvider" in note
    assert codec.backend.provider == "CPUExecutionProvider"


@pytest.mark.skipif(
    "AzureExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="a provider that takes no operator, which PyPI's Linux and Windows builds have",
)
def test_operators_that_fall_back_are_counted(tiny_bundle: Path, photo: NDArray[np.uint8]) -> None:
    codec = Codec(Bundle.open(tiny_bundle), backend="onnx", device="AzureExecutionProvider")
    (note,) = codec.compress(Picture(pixels=photo)).notes
    assert re.fullmatch(
        r"encoder\.onnx: (\d+) of \1 operators run on CPUExecutionProvider in place of "
        r"AzureExecutionProvider \(.*Conv, .*\)",
        note,
    )
    assert codec.backend.provider == "CPUExecutionProvider"


def test_running_out_of_memory_is_not_a_fault_of_the_numbers(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_ort_backend(Bundle.open(tiny_bundle))

    class Session:
        def __init__(self, text: str) -> None:
            self.text = text

        def run(self, *_: object) -> None:
            raise RuntimeError(self.text)

    x = np.zeros((1, 3, 16, 16), np.float32)
    monkeypatch.setattr(Sessions, "_session", lambda *_: Session("Failed to allocate memory for 9"))
    with pytest.raises(MemoryError):
        backend.analyze(x)
    monkeypatch.setattr(Sessions, "_session", lambda *_: Session("Conv: invalid something"))
    with pytest.raises(NumericsError, match=r"encoder\.onnx failed"):
        backend.analyze(x)


def test_a_graph_that_does_not_load_is_the_bundles_fault(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    read = bundle.read
    monkeypatch.setattr(bundle, "read", lambda name: b"?" if name.endswith("onnx") else read(name))
    with pytest.raises(ModelMismatchError, match=r"encoder\.onnx.*cannot load"):
        open_ort_backend(bundle).analyze(np.zeros((1, 3, 16, 16), np.float32))


def see_at_most(monkeypatch: pytest.MonkeyPatch, latents: int) -> None:
    """Have networks see so many latents at once."""
    monkeypatch.setattr(base, "ANALYSIS_PIXELS", latents * 256)
    monkeypatch.setattr(base, "SYNTHESIS_PIXELS", latents * 256)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("latents", [1, 20, 35])
def test_windows_give_what_the_whole_picture_gives(
    photo: NDArray[np.uint8],
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    latents: int,
) -> None:
    """However small they are, only rounding may differ: the margin covers the receptive field."""
    backend = Codec(select(), backend=engine).backend
    x = to_network(photo, Padding(multiple=16))
    symbols = backend.analyze(x)
    x_hat = backend.synthesize(symbols)
    see_at_most(monkeypatch, latents)
    in_windows = backend.analyze(x)
    assert in_windows.shape == symbols.shape
    assert np.abs(in_windows - symbols).max() <= 1
    assert np.count_nonzero(in_windows != symbols) <= symbols.size / 500
    np.testing.assert_allclose(backend.synthesize(symbols), x_hat, atol=1e-5)


@pytest.mark.parametrize("margin", [Margin(0, 2), Margin(1, 1)])
def test_a_thinner_margin_would_not_do(
    photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, margin: Margin
) -> None:
    backend = Codec(select()).backend
    x = to_network(photo, Padding(multiple=16))
    symbols = backend.analyze(x)
    whole = backend.synthesize(symbols)
    see_at_most(monkeypatch, 20)
    monkeypatch.setattr(backend, "_margins", Margins(Margin(2, 1), margin))
    assert np.abs(backend.synthesize(symbols) - whole).max() > 1e-3


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ({}, {}),
        ({"kdw": 3}, {"k": 3}),
        ({"kdw": 5, "residual": False}, {"k": 1}),
        ({"kdw": 9}, {"k": 7}),
        ({"eca": True}, {"k": 15}),
    ],
)
def test_margins_are_what_the_networks_reach_and_no_wider(
    encoder: dict[str, Any], decoder: dict[str, Any]
) -> None:
    """One pixel or latent is made NaN, and whatever it touches with it."""
    import torch

    from lic.codec.models import FactorizedPrior

    config: dict[str, Any] = {"N": 2, "M": 2}
    for side, gain in (("encoder", encoder), ("decoder", decoder)):
        config[f"{side}_activation"] = "gdnish" if gain else "relu"
        config.update({f"{side}_gain": gain} if gain else {})
    model = FactorizedPrior.from_dict(config).eval()
    margins = window_margins(model.config.to_dict())
    rows = 24
    with torch.no_grad():
        x, y = torch.zeros(1, 3, 16 * rows, 16), torch.zeros(1, 2, rows, 1)
        reach = set()
        for pixel in range(16 * 12, 16 * 13):
            x[:, :, pixel] = torch.nan
            touched = model.analyze(x)[0, 0, :, 0].isnan().nonzero().flatten()
            # A window of whole latents needs row 12 if it keeps a latent that row 12 touches.
            reach |= {int(row) - 12 for row in touched}
            x.zero_()
        y[:, :, 12] = torch.nan
        touched = model.synthesize(y)[0, 0, :, 0].isnan().nonzero().flatten()
    if encoder.get("eca"):
        assert margins.encoder is None and max(reach) >= 11
    else:
        # What touches the rows below it is before those.
        assert margins.encoder == Margin(before=max(reach), after=-min(reach))
    rows_of_pixels = {int(row) // 16 - 12 for row in touched}
    assert margins.decoder == Margin(before=max(rows_of_pixels), after=-min(rows_of_pixels))


@pytest.mark.parametrize(
    "options",
    [{"encoder_gain": 3}, {"decoder_gain": None}, {"decoder_gain": {"k": 10**9}},
     {"encoder_gain": {"kdw": "3", "eca": True}}],
)  # fmt: skip
def test_options_that_no_model_has_are_the_bundles_fault(
    tiny_bundle: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime needs no model, so that nothing else looks at them."""
    bundle = Bundle.open(tiny_bundle)
    config = {**bundle.manifest.config, **options}
    monkeypatch.setattr(bundle, "manifest", replace(bundle.manifest, config=config))
    with pytest.raises(ModelMismatchError, match=r"manifest\.json: .*; expected"):
        open_ort_backend(bundle)


def test_options_left_out_of_a_config_are_the_blocks_own() -> None:
    from lic.codec.models import FactorizedConfig

    config = FactorizedConfig(encoder_activation="gdnish", decoder_activation="gdnish").to_dict()
    assert window_margins({**config, "encoder_gain": {}, "decoder_gain": {}}) == window_margins(
        config
    )
    assert window_margins(config) == Margins(Margin(3, 2), Margin(2, 3))
    assert window_margins({}) == Margins(Margin(2, 1), Margin(1, 2))


def gain_backend(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, *, eca: bool) -> "TorchBackend":
    """Return a model of GDN-ish blocks on torch, which `bundle` says that it is from then on."""
    import torch

    from lic.codec.backends.torch_backend import TorchBackend
    from lic.codec.models import FactorizedConfig, FactorizedPrior
    from lic.codec.models.gdnish import EncoderGain

    torch.manual_seed(0)
    config = FactorizedConfig(
        N=8, M=12, encoder_activation="gdnish", decoder_activation="gdnish",
        encoder_gain=EncoderGain(eca=eca),
    )  # fmt: skip
    model = FactorizedPrior(config).eval()
    with torch.no_grad():
        for parameter in [*model.g_a.parameters(), *model.g_s.parameters()]:
            parameter.add_(0.3 * torch.rand_like(parameter) - 0.15)
    manifest = replace(bundle.manifest, config=config.to_dict())
    monkeypatch.setattr(bundle, "manifest", manifest)
    return TorchBackend(bundle, model, torch.device("cpu"))


@pytest.mark.parametrize("eca", [False, True])
def test_windows_of_gain_blocks_give_what_the_whole_picture_gives(
    photo: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, eca: bool, tiny_bundle: Path
) -> None:
    """A gate sees the picture's averages, so that its encoder gets the picture in one piece."""
    backend = gain_backend(Bundle.open(tiny_bundle), monkeypatch, eca=eca)
    x = to_network(photo, Padding(multiple=16))
    symbols = backend.analyze(x)
    assert np.unique(symbols).size > 3, "too little to prove it"
    x_hat = backend.synthesize(symbols)
    see_at_most(monkeypatch, 36)
    in_windows = backend.analyze(x)
    assert np.count_nonzero(in_windows != symbols) <= symbols.size / 500
    np.testing.assert_allclose(backend.synthesize(symbols), x_hat, atol=1e-5)


def test_memory_of_a_large_picture_is_bounded() -> None:
    """12 megapixels: without windows the networks' inner tensors alone would take gigabytes."""
    code = """
import resource, sys
import subprocess
import sys

import numpy as np
from lic.codec import Picture, decompress, open_codec
rng = np.random.default_rng(0)
small = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
pixels = np.kron(small, np.ones((100, 100, 1), np.uint8))
assert pixels.shape == (3000, 4000, 3)
data = open_codec(threads=1).compress(Picture(pixels=pixels)).data
assert decompress(data).picture.pixels.shape == pixels.shape
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert int(done.stdout) < 1500, f"{done.stdout} MiB"
