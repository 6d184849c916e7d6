import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lic.codec.errors import ConfigError
from lic.codec.models.blocks import activation
from lic.codec.models.gdnish import (
    ChannelGate,
    DecoderBlock,
    DecoderGain,
    EncoderBlock,
    EncoderGain,
    decoder_gain_of,
    encoder_gain_of,
)

ENCODERS = [
    EncoderGain(t=t, kdw=kdw, eca=eca, residual=residual)
    for t, kdw in itertools.product((1, 2, 3, 4), (1, 5))
    for eca, residual in itertools.product((False, True), repeat=2)
]
DECODERS = [
    DecoderGain(k=k, gmin=gmin, gmax=gmax, residual=residual)
    for k, (gmin, gmax), residual in itertools.product(
        (1, 3), ((0.0, 4.0), (0.5, 2.0), (-1.0, 1.5)), (False, True)
    )
]


def _input(channels: int = 6, size: float = 5.9) -> Tensor:
    x = torch.rand(2, channels, 7, 9, generator=torch.Generator().manual_seed(0))
    return size * (2 * x - 1)


@torch.no_grad()
def _stirred(block: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in block.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return block


@pytest.mark.parametrize("gain", ENCODERS)
def test_a_fresh_encoder_block_is_the_identity(gain: EncoderGain) -> None:
    x = _input()
    torch.testing.assert_close(EncoderBlock(6, gain)(x), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gain", DECODERS)
def test_a_fresh_decoder_block_is_the_identity_as_far_as_its_range_goes(gain: DecoderGain) -> None:
    x = _input()
    y = DecoderBlock(6, gain)(x).detach()
    least, most = (g + gain.residual for g in (gain.gmin, gain.gmax))
    if least + 0.2 < 1 < most - 0.2:
        torch.testing.assert_close(y, x, rtol=0, atol=1e-5)
    else:
        # As near as an end of the range where something can still learn.
        edge = 0.05 * (most - least)
        gains = y / x
        assert float(gains.min()) >= least + edge - 1e-4
        assert float(gains.max()) <= max(least + edge, 1) + 1e-4


@pytest.mark.parametrize("residual", [False, True])
def test_inputs_of_any_size_pass_an_identity_that_was_made_for_them(residual: bool) -> None:
    x = 100 * _input()
    block = EncoderBlock(6, EncoderGain(residual=residual))
    with torch.no_grad():
        if not residual:
            assert float((block(x) - x).abs().max()) > 100
        block.make_identity(x.abs().amax(dim=(0, 2, 3)))
        torch.testing.assert_close(block(x), x, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("gain", [DecoderGain(gmin=0.5, gmax=2), DecoderGain(residual=True)])
def test_gains_stay_within_their_range_whatever_the_weights(gain: DecoderGain) -> None:
    block = _stirred(_stirred(DecoderBlock(6, gain)))
    x = 50 * _input()
    gains = (block(x).detach() / x)[x.abs() > 1]
    low, high = gain.gmin + gain.residual, gain.gmax + gain.residual
    assert float(gains.min()) >= low - 1e-4 and float(gains.max()) <= high + 1e-4
    assert float(gains.max() - gains.min()) > 0.9 * (high - low), "too little to prove it"


def test_the_encoder_block_is_the_formula() -> None:
    block = _stirred(EncoderBlock(4, EncoderGain(t=3, kdw=5, eca=True)))
    assert isinstance(block, EncoderBlock) and block.gate is not None
    x = _input(4)
    y = F.relu6(F.conv2d(x, block.expand.weight, block.expand.bias))
    y = F.relu6(F.conv2d(y, block.depthwise.weight, block.depthwise.bias, padding=2, groups=12))
    y = F.conv2d(y, block.project.weight, block.project.bias)
    taps = block.gate.weight.flatten().tolist()
    means = F.pad(y.mean(dim=(2, 3)), (2, 2))
    steps = sum(tap * means[:, i : i + 4] for i, tap in enumerate(taps)) + block.gate.bias
    gated = y * (steps.clamp(0, 6) / 3)[:, :, None, None]
    torch.testing.assert_close(block(x), x + gated)


def test_the_decoder_block_is_the_formula() -> None:
    block = _stirred(DecoderBlock(4, DecoderGain(k=5, gmin=-0.5, gmax=2, residual=True)))
    assert isinstance(block, DecoderBlock)
    x = _input(4)
    y = F.relu6(F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=2, groups=4))
    steps = F.conv2d(y, block.pointwise.weight, block.pointwise.bias)
    gains = -0.5 + 2.5 * steps.clamp(0, 6) / 6
    torch.testing.assert_close(block(x), x + x * gains)


def test_a_gate_is_one_convolution_of_the_averages() -> None:
    gate = _stirred(ChannelGate())
    assert isinstance(gate, ChannelGate)
    for channels in (1, 3, 8):
        x = _input(channels)
        weight, bias = gate.as_matrix(channels)
        steps = F.conv2d(x.mean(dim=(2, 3), keepdim=True), weight, bias)
        torch.testing.assert_close(gate(x), x * steps.clamp(0, 6) / 3)


@pytest.mark.parametrize("inverse", [False, True])
def test_blocks_leave_their_input_as_it_was(inverse: bool) -> None:
    """Training starts and quantisation look at the values before a non-linearity."""
    x = _input()
    before = x.clone()
    _stirred(activation("gdnish", 6, inverse=inverse))(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("block", "waiting"),
    [
        # Their gradients pass through weights that are nought at first.
        (EncoderBlock(6, EncoderGain(eca=True)), {"expand", "depthwise", "gate"}),
        (EncoderBlock(6, EncoderGain(eca=True, residual=False)), set[str]()),
        (DecoderBlock(6, DecoderGain()), {"depthwise"}),
    ],
)
def test_all_of_a_block_learns_from_the_second_step_on(block: nn.Module, waiting: set[str]) -> None:
    x = _input(size=3)
    goal = torch.tanh(x) + 0.3 * x.roll(1, dims=1).abs()
    optimizer = torch.optim.Adam(block.parameters(), lr=0.01)
    losses = []
    for step in range(60):
        optimizer.zero_grad()
        loss = F.mse_loss(block(x), goal)
        torch.autograd.backward(loss)
        idle = {name.split(".")[0] for name, p in block.named_parameters() if not p.grad.any()}  # type: ignore[union-attr]
        assert idle == (waiting if step == 0 else set()) or step > 1
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("gain", ENCODERS)
def test_an_encoder_blocks_tensors_tell_its_options(gain: EncoderGain) -> None:
    state = {f"g_a.1.{k}": v for k, v in EncoderBlock(6, gain).state_dict().items()}
    assert encoder_gain_of(state, "g_a.1") == gain


@pytest.mark.parametrize("gain", [*DECODERS, DecoderGain(gmin=0.1, gmax=3.7)])
def test_a_decoder_blocks_tensors_tell_its_options(gain: DecoderGain) -> None:
    state = {f"g_s.1.{k}": v for k, v in DecoderBlock(6, gain).state_dict().items()}
    assert decoder_gain_of(state, "g_s.1") == gain


def test_tensors_of_no_block_are_named() -> None:
    state = {f"a.{k}": v for k, v in DecoderBlock(6, DecoderGain()).state_dict().items()}
    with pytest.raises(ConfigError, match=r"expected a.expand.weight and a.depthwise.weight and 1"):
        encoder_gain_of(state, "a")
    state["a.options"] = torch.zeros(2)
    with pytest.raises(ConfigError, match=r"and 3 a.options"):
        decoder_gain_of(state, "a")


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (EncoderGain, {"t": 0}, "enc_t is 0; expected 1 to 16"),
        (EncoderGain, {"t": 2.0}, "enc_t is 2.0"),
        (EncoderGain, {"kdw": 4}, "enc_kdw is 4; expected an odd number from 1 to 15"),
        (EncoderGain, {"eca": 1}, "enc_eca is 1; expected true or false"),
        (EncoderGain, {"residual": None}, "enc_residual is None"),
        (DecoderGain, {"k": 17}, "dec_k is 17"),
        (DecoderGain, {"gmin": 4}, "dec_gmin is 4.0; expected below dec_gmax, 4.0"),
        (DecoderGain, {"gmax": float("nan")}, "dec_gmax is nan; expected a number from -64 to 64"),
        (DecoderGain, {"gmin": True}, "dec_gmin is True"),
        (DecoderGain, {"residual": "no"}, "dec_residual is 'no'"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(
    kind: Any, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        kind(**options)


@pytest.mark.parametrize("values", [{"width": 3}, [1], None, "gdnish", {"t": 2, "k": 3}])
def test_dictionaries_that_are_no_options_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"options of a GDN-ish block are .*expected t, kdw, eca"):
        EncoderGain.from_dict(values)


def test_options_survive_their_dictionary_and_whole_numbers_are_the_same_options() -> None:
    for gain in (*ENCODERS, *DECODERS):
        assert type(gain).from_dict(gain.to_dict()) == gain
    assert DecoderGain(gmin=0, gmax=4).to_dict() == DecoderGain().to_dict()
    assert type(DecoderGain(gmax=3).to_dict()["gmax"]) is float
