from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lic.codec.bundle import Bundle
from lic.codec.models import (
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
)
from lic.codec.models.gdnish import DecoderBlock, EncoderBlock, EncoderGain
from lic.export.make_bundle import Description, make_bundle


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """On tensors this small, threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Together they have every activation on both sides, and both precisions.
KINDS: dict[str, tuple[str, str, str]] = {
    "gdn": ("gdn", "gdn", "float32"),
    "igdn1-half": ("igdn1", "igdn1", "float16"),
    "relu-half": ("relu", "relu", "float16"),
    "gdnish": ("gdnish", "gdnish", "float32"),
}


def model_of(encoder: Any, decoder: Any, n: int = 8, m: int = 12) -> FactorizedPrior:
    """Return a model whose latents spread over several steps."""
    torch.manual_seed(3)
    gain = EncoderGain(eca=True) if encoder == "gdnish" else None
    config = FactorizedConfig(
        N=n, M=m, encoder_activation=encoder, decoder_activation=decoder, encoder_gain=gain
    )
    model = FactorizedPrior(config).eval()
    with torch.no_grad():
        model.g_a[-1].weight.mul_(40)  # type: ignore[operator]
        model.g_s[0].weight.mul_(0.5)  # type: ignore[operator]
        for block in model.modules():
            if isinstance(block, EncoderBlock | DecoderBlock):
                for parameter in block.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def spread_hyperprior() -> ScaleHyperprior:
    """Return a small hyperprior whose symbols and scales spread over many values."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = ScaleHyperprior(HyperpriorConfig(N=8, M=12))
        model.get_parameter("g_a.6.weight").mul_(40)
        model.get_parameter("h_a.4.weight").mul_(10)
        model.get_parameter("h_s.4.bias").uniform_(0, 3)
    return model.eval()


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path
) -> Callable[[str], tuple[Bundle, str]]:
    """Return the bundle of a kind and its precision; each is made once."""
    done: dict[str, tuple[Bundle, str]] = {"relu": (Bundle.open(tiny_bundle), "float32")}

    def build(kind: str) -> tuple[Bundle, str]:
        if kind not in done:
            encoder, decoder, dtype = KINDS[kind]
            target = tmp_path_factory.mktemp("built") / kind
            description = Description(name=f"tiny-{kind}", rate_point=1)
            model = model_of(encoder, decoder)
            done[kind] = make_bundle(model, target, description, dtype=dtype), dtype  # type: ignore[arg-type]
        return done[kind]

    return build
