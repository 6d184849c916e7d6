"""Models with a context on torch: what is decoded is what the model's forward pass computes."""

import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lic.codec.backends import torch_context
from lic.codec.backends.torch_context import TorchContextBackend
from lic.codec.entropy import Reader, Writer
from lic.codec.errors import BitstreamError, NumericsError
from lic.codec.latents import walk
from lic.codec.models import HPCM, ContextModel, ScaleHyperprior, hpcm_config, hyperprior_config
from lic.codec.models.conditional import Conditional
from lic.codec.models.nudges import Nudger

CPU = torch.device("cpu")
MODELS = ["hpcm-tiny", "hpcm-corrected", "hyperprior"]


def _build(kind: str, seed: int = 0) -> ContextModel:
    """Return a model with random weights whose latents take several steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "hyperprior":
            hyperprior = ScaleHyperprior(hyperprior_config("lite", "relu")).eval()
            with torch.no_grad():
                hyperprior.get_parameter("g_a.0.weight").mul_(100)
                hyperprior.get_parameter("h_s.4.bias").add_(1)
            return hyperprior
        size = {"hpcm-tiny": "tiny", "hpcm-corrected": "tiny"}.get(kind, kind)
        config = hpcm_config(size, "corrected" if kind == "hpcm-corrected" else "upstream")
        model = HPCM(config).eval()
        with torch.no_grad():
            model.get_parameter("g_a.branch.0.weight").mul_(12)
            model.get_parameter("h_s.branch.4.bias")[: config.M] += 1
            for prior in ("y_spatial_prior_s1_s2", "y_spatial_prior_s3"):
                last = len(model.get_submodule(f"{prior}.branch_2")) - 1  # type: ignore[arg-type]
                model.get_parameter(f"{prior}.branch_2.{last}.bias")[: config.M] += 1
        return model


@pytest.fixture(scope="module", params=MODELS)
def backend(request: pytest.FixtureRequest) -> TorchContextBackend:
    return TorchContextBackend(_build(request.param), CPU)


def _pictures(height: int, width: int, batch: int = 1) -> NDArray[np.float32]:
    """Return smooth random pictures (B, 3, H, W), each another."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(batch, 3, height // 32, width // 32, generator=generator)
    fine = torch.rand(batch, 3, height, width, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    x: NDArray[np.float32] = (0.8 * smooth + 0.2 * fine).clamp(0, 1).numpy()
    return x


def _encode(
    backend: TorchContextBackend, x: NDArray[np.float32]
) -> tuple[tuple[bytes, ...], int, torch.Tensor]:
    writer = Writer(backend.model.tables())
    state, crc = walk(backend.steps, backend.analyze(x), writer)
    return writer.finish(), crc, backend.model.y_hat(state.progress)


def _decode(
    backend: TorchContextBackend, streams: tuple[bytes, ...], shape: tuple[int, ...]
) -> tuple[torch.Tensor, int, NDArray[np.float32]]:
    reader = Reader(backend.model.tables(), streams)
    blank = backend.blank(shape[2], shape[3])
    blank.shape = (shape[0], *blank.shape[1:])
    state, crc = walk(backend.steps, blank, reader)
    reader.finish()
    return backend.model.y_hat(state.progress), crc, backend.synthesize(state)


@torch.no_grad()
def _forward_y_hat(model: ContextModel, x: NDArray[np.float32]) -> torch.Tensor:
    """Return y_hat as the forward pass hands it to the synthesis."""
    seen = []
    handle = model.get_submodule("g_s").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].clone())
    )
    model(torch.from_numpy(x))
    handle.remove()
    y_hat: torch.Tensor = seen[0]
    assert len(seen) == 1
    return y_hat


@pytest.mark.parametrize(
    ("height", "width", "batch"), [(256, 256, 1), (512, 768, 1), (256, 512, 3)]
)
def test_decoding_gives_exactly_the_forward_pass(
    backend: TorchContextBackend, height: int, width: int, batch: int
) -> None:
    x = _pictures(height, width, batch)
    streams, crc, coded = _encode(backend, x)
    decoded, decoded_crc, x_hat = _decode(backend, streams, x.shape)
    assert crc == decoded_crc
    assert torch.equal(coded, decoded)
    assert torch.equal(decoded, _forward_y_hat(backend.model, x))
    assert len(torch.unique(torch.round(decoded))) > 5, "the latents say nothing"
    assert x_hat.shape == x.shape
    assert x_hat.min() >= 0 and x_hat.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large", "phi"])
def test_published_sizes_too(size: str) -> None:
    backend = TorchContextBackend(_build(size), CPU)
    x = _pictures(256, 256)
    streams, _, coded = _encode(backend, x)
    decoded, _, _ = _decode(backend, streams, x.shape)
    assert torch.equal(coded, decoded)
    assert torch.equal(decoded, _forward_y_hat(backend.model, x))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "phi"])
def test_another_number_of_threads_decodes_the_same_symbols(size: str) -> None:
    """Wide layers sum in another order then: scales differ in their last bits, tables do not."""
    backend = TorchContextBackend(_build(size), CPU)
    x = _pictures(256, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        streams, crc, coded = _encode(backend, x)
        torch.set_num_threads(1)
        decoded, decoded_crc, _ = _decode(backend, streams, x.shape)
    finally:
        torch.set_num_threads(before)
    assert decoded_crc == crc
    torch.testing.assert_close(decoded, coded, rtol=1e-5, atol=1e-5)


def test_a_nudge_that_no_encoder_writes_is_refused(backend: TorchContextBackend) -> None:
    state = backend.blank(256, 256)
    writer = Writer(backend.model.tables())
    x = _pictures(256, 256)
    encoder = backend.analyze(x)
    symbols, indexes = backend.steps.propose(0, encoder)
    writer.code(symbols, indexes)
    state = backend.steps.accept(0, state, writer.code(symbols, indexes))
    backend.steps.propose(1, state)
    for nudge in (-1, 64, 32767):
        with pytest.raises(BitstreamError, match="nudge"):
            backend.steps.accept(1, state, np.array([0, nudge], np.int16))


def test_groups_are_named(backend: TorchContextBackend) -> None:
    names = list(dict.fromkeys(backend.steps.groups))
    assert len(backend.steps.groups) == 1 + 2 * len(backend.model.steps)
    assert names == (["z", "y"] if backend.model.name != "hpcm" else ["z", "s1", "s2", "s3"])


def _density(model: ContextModel) -> Conditional:
    """Return what y's likelihoods come from."""
    if isinstance(model, HPCM):
        return model.entropy_estimation
    assert isinstance(model, ScaleHyperprior)
    return model.gaussian_conditional


@torch.no_grad()
def test_streams_are_as_long_as_the_tables_scales_say(backend: TorchContextBackend) -> None:
    model = backend.model
    density = _density(model)
    nudger = Nudger(model.levels)
    x = torch.from_numpy(_pictures(512, 768))
    streams, _, _ = _encode(backend, x.numpy())
    y = model.analyze(x)
    z = model.hyper_analyze(y)
    bits = -float(torch.log2(model(x).likelihoods["z"]).sum())
    progress = model.begin(torch.round(z))
    for step in range(len(model.steps)):
        scales, means = model.parameters_of(step, progress)
        q = torch.round(model.select(step, y) - means)
        scales = model.levels[nudger.levels(scales, nudger.choose(scales))]
        bits -= float(torch.log2(density(q, scales)).sum())
        model.accept(step, progress, q + means)
    size = 8 * sum(map(len, streams))
    # Random weights give latents far out, where likelihoods are bounded and symbols escapes.
    assert 0.99 * bits < size < 1.01 * bits + 200


def test_another_weight_is_noticed(backend: TorchContextBackend) -> None:
    """A decoder that computes something else gets another CRC or runs out of stream."""
    x = _pictures(256, 256)
    streams, crc, _ = _encode(backend, x)
    kind = "hyperprior" if backend.model.name != "hpcm" else "hpcm-tiny"
    other = TorchContextBackend(_build(kind), CPU)
    with torch.no_grad():
        other.model.load_state_dict(backend.model.state_dict())
        name = "h_s.4.bias" if kind == "hyperprior" else "y_spatial_prior_s3.branch_2.1.bias"
        other.model.get_parameter(name)[0] += 0.5
    try:
        _, decoded_crc, _ = _decode(other, streams, x.shape)
    except BitstreamError:
        return
    assert decoded_crc != crc


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_latents_that_cannot_be_coded_are_named(value: float) -> None:
    backend = TorchContextBackend(_build("hpcm-tiny"), CPU)
    with torch.no_grad():
        backend.model.get_parameter("g_a.branch.0.bias").fill_(value)
    with pytest.raises(NumericsError, match="latent tensor"):
        _encode(backend, _pictures(256, 256))


def test_bfloat16_changes_the_transforms_only(backend: TorchContextBackend) -> None:
    half = TorchContextBackend(backend.model, CPU, half=True)
    x = _pictures(256, 256)
    streams, _, coded = _encode(half, x)
    # Whoever decodes in float32 has the very same latents, and a picture that is close.
    decoded, _, x_hat = _decode(backend, streams, x.shape)
    assert torch.equal(coded, decoded)
    _, _, rough = _decode(half, streams, x.shape)
    assert x_hat.dtype == rough.dtype == np.float32
    assert 0 < np.abs(x_hat - rough).mean() < 0.02


@pytest.mark.parametrize("named", [True, False])
def test_settings_of_cuda_hold_while_any_thread_needs_them(
    named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the process, with or without a device; older torch has other names."""
    settings = torch_context._Float32()
    if named and not settings._named():
        pytest.skip("this torch does not name precisions")
    monkeypatch.setattr(torch_context._Float32, "_named", lambda _: named)
    loose = ("tf32", "tf32", True, False) if named else (True, True, True, False)
    exact = ("ieee", "ieee", False, True) if named else (False, False, False, True)
    before = settings._settings()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with settings:
            inside.set()
            leave.wait(10)

    settings._set(*loose)
    try:
        thread = threading.Thread(target=other)
        with settings:
            thread.start()
            inside.wait(10)
            assert settings._settings() == exact
        # The first has left, the other is still at work.
        assert settings._settings() == exact
        leave.set()
        thread.join()
        assert settings._settings() == loose
    finally:
        leave.set()
        settings._set(*before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_decodes_its_own_files_and_leaves_settings_alone() -> None:
    before = torch_context._float32._settings()
    cuda = TorchContextBackend(_build("hpcm-tiny"), torch.device("cuda"))
    x = _pictures(512, 768)
    streams, crc, coded = _encode(cuda, x)
    decoded, decoded_crc, _ = _decode(cuda, streams, x.shape)
    assert crc == decoded_crc
    assert torch.equal(coded, decoded)
    assert torch_context._float32._settings() == before
