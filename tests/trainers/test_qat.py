import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lic.codec.errors import ConfigError, TrainingError
from lic.trainers.qat import prepare_qat
from lic.trainers.qat.simulation import Phase
from tests.trainers.quantised import (
    STEPS,
    calibrated,
    config,
    factorized,
    forward,
    hyperprior,
    pictures,
    train,
)


def test_calibration_computes_what_the_float_model_computes() -> None:
    model = factorized()
    expected = forward(model, 0)
    qat = prepare_qat(model, config())
    qat.at_step(0, STEPS)
    assert torch.equal(forward(model, 0), expected)


def test_after_calibration_the_output_is_that_of_eight_bits() -> None:
    model = factorized().eval()
    expected = forward(model, 0)
    model.train()
    calibrated(model)
    found = forward(model.eval(), 0)
    assert 20 < -10 * torch.log10((found - expected).square().mean() / expected.var()) < 60


def test_convolutions_inside_of_blocks_are_quantised() -> None:
    names = {layer.name for layer in prepare_qat(factorized("gdnish"), config()).layers}
    assert {"g_a.1.expand", "g_a.1.depthwise", "g_a.1.project", "g_s.5.pointwise"} <= names


def test_each_phase_comes_at_its_step() -> None:
    def phases(**options: Any) -> list[Phase]:
        qat = prepare_qat(factorized(), config(**options))
        found = []
        for step in range(STEPS):
            qat.at_step(step, STEPS)
            found.append(qat.phase)
        return found

    calibration, training, frozen = Phase
    assert phases() == [calibration] * 2 + [training] * 2 + [frozen] * 4
    assert phases(qat_freeze_step=7) == [calibration] * 2 + [training] * 5 + [frozen]
    assert phases(qat_freeze_step=1) == [calibration] * 2 + [frozen] * 6


def test_a_calibration_longer_than_the_run_is_refused() -> None:
    qat = prepare_qat(factorized(), config(qat_calibration_steps=STEPS))
    with pytest.raises(ConfigError, match="--qat-calibration-steps is 8; expected fewer than"):
        qat.at_step(0, STEPS)


def test_ranges_move_until_they_are_frozen() -> None:
    model = factorized()
    qat = prepare_qat(model, config(qat_init="moving"))
    found = []
    for last in (2, 4, 6):
        train(model, qat, last - 2, last)
        found.append(qat.state_dict())
    calibrated_, trained, frozen = found
    for name in ("g_s.2.input", "g_s.2.mean"):
        assert not torch.equal(calibrated_[name], trained[name])
        assert torch.equal(trained[name], frozen[name])


def test_evaluation_moves_no_range() -> None:
    model = factorized()
    qat = prepare_qat(model, config())
    qat.at_step(0, STEPS)
    forward(model, 0)
    before = qat.state_dict()
    forward(model.eval(), 1)
    after = qat.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("scope", "skip", "expected"),
    [
        ("encoder", False, {"g_a"}),
        ("decoder", False, {"g_s"}),
        ("all", False, {"g_a", "g_s"}),
        ("encoder", True, {"g_a"}),
    ],
)
def test_scope_tells_which_layers_are_quantised(scope: str, skip: bool, expected: set[str]) -> None:
    qat = prepare_qat(factorized(), config(qat_scope=scope, qat_skip_first_conv=skip))
    names = [layer.name for layer in qat.layers]
    assert {name.partition(".")[0] for name in names} == expected
    assert ("g_a.0" in names) == ("g_a" in expected and not skip)
    assert len(names) == 4 * len(expected) - skip


def test_the_entropy_part_stays_in_float() -> None:
    model = hyperprior()
    y = torch.randn(1, 8, 8, 8)
    z = torch.randn(1, 8, 2, 2)
    before = [model.h_a(y), model.h_s(z), *model.entropy_bottleneck(z, training=False)]
    qat = calibrated(model)
    assert {layer.name.partition(".")[0] for layer in qat.layers} == {"g_a", "g_s"}
    after = [model.h_a(y), model.h_s(z), *model.entropy_bottleneck(z, training=False)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_latents_and_reconstruction_are_no_eight_bit_values() -> None:
    model = factorized()
    calibrated(model)
    x = torch.rand(1, 3, 128, 128)
    assert model.g_a(x).unique().numel() == 8 * 8 * 8
    assert model.g_s(torch.randn(1, 8, 8, 8)).unique().numel() > 10_000


@pytest.mark.parametrize("layer", ["g_a.2", "g_s.2"], ids=["plain", "transposed"])
def test_biases_take_back_the_mean_error_of_rounded_weights(layer: str) -> None:
    model = factorized().eval()
    convolution = model.get_submodule(layer)
    x = torch.rand(4, 8, 24, 24)
    expected = convolution(x)
    qat = prepare_qat(model.train(), config())
    qat.at_step(0, STEPS)
    forward(model, 0)
    seen = {f"{layer}.input": torch.tensor([0.0, 1.0]), f"{layer}.mean": x.mean((0, 2, 3))}
    qat.load_state_dict({**qat.state_dict(), **seen})
    qat.freeze()

    def error() -> float:
        # Without the border, where padding changes the mean.
        difference = (convolution(x) - expected)[..., 3:-3, 3:-3].mean((0, 2, 3))
        return float(difference.detach().abs().mean())

    with_shift = error()
    qat.load_state_dict({**qat.state_dict(), f"{layer}.mean": torch.zeros(8)})
    assert with_shift < 0.2 * error()


def test_the_mean_of_each_input_channel_is_observed() -> None:
    model = factorized()
    qat = prepare_qat(model, config())
    for step in range(2):
        qat.at_step(step, STEPS)
        forward(model, step)
    both = torch.cat([pictures(0), pictures(1)])
    assert torch.allclose(qat.state_dict()["g_a.0.mean"], both.mean((0, 2, 3)))


def test_a_picture_is_quantised_to_its_own_eight_bits() -> None:
    qat = calibrated(factorized())
    first = qat.layers[0]
    values = torch.arange(256) / 255
    assert first.name == "g_a.0"
    assert torch.allclose(first.input.simulate(values), values, rtol=0, atol=1e-7)


def test_margin_widens_each_range_by_its_share() -> None:
    found = [calibrated(factorized(), qat_range_margin=m).state_dict() for m in (0.0, 0.25)]
    for layer in calibrated(factorized()).layers[1:]:
        plain, wide = (state[f"{layer.name}.input"] for state in found)
        assert float(plain[1]) > float(plain[0])
        assert torch.allclose(wide, plain * 1.25, rtol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stops_the_run_with_the_layers_name(value: float) -> None:
    model = factorized()
    qat = prepare_qat(model, config())
    qat.at_step(0, STEPS)
    with torch.no_grad():
        model.state_dict()["g_a.2.bias"][0] = value
    with pytest.raises(TrainingError, match=r"g_a\.4\.input: values reach"):
        forward(model, 0)


def test_a_copy_of_the_model_computes_the_same() -> None:
    model = factorized()
    calibrated(model)
    copied = copy.deepcopy(model)
    assert torch.equal(forward(copied, 0), forward(model, 0))


def test_gradients_reach_the_weights_through_the_rounding() -> None:
    model = factorized()
    calibrated(model)
    forward(model, 0).square().mean().backward()  # type: ignore[no-untyped-call]
    for layer in (model.g_a[0], model.g_a[6], model.g_s[0], model.g_s[6]):
        gradient = layer.weight.grad
        assert isinstance(gradient, Tensor)
        assert float((gradient != 0).float().mean()) > 0.5


def test_the_state_dict_keeps_names_and_float_weights() -> None:
    model = factorized()
    before = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    calibrated(model)
    forward(model, 0)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(dict(model.named_parameters())[name] is p for name, p in parameters.items())


def test_an_error_inside_a_layer_leaves_the_parameter_in_place() -> None:
    model = factorized()
    calibrated(model)
    with pytest.raises(RuntimeError):
        model.g_a(torch.zeros(1, 4, 32, 32))
    assert isinstance(model.g_a[0].weight, nn.Parameter)


def test_detach_gives_the_float_model_back_to_the_bit() -> None:
    model = factorized().eval()
    expected = forward(model, 0)
    qat = calibrated(model.train())
    qat.detach()
    assert torch.equal(forward(model.eval(), 0), expected)
    assert not model.g_a[0]._forward_hooks


def test_a_resumed_run_repeats_the_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    # Stopped amid calibration, training and frozen steps.
    whole = factorized()
    whole_qat = prepare_qat(whole, config(qat_init="moving"))
    train(whole, whole_qat, 0, STEPS)
    resumed = factorized()
    qat = prepare_qat(resumed, config(qat_init="moving"))
    for first, last in ((0, 1), (1, 3), (3, 6), (6, STEPS)):
        train(resumed, qat, first, last)
        torch.save([resumed.state_dict(), qat.state_dict()], tmp_path / "state.pt")
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        resumed = factorized()
        resumed.load_state_dict(weights)
        qat = prepare_qat(resumed, config(qat_init="moving"))
        qat.load_state_dict(state)
    a, b = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    c, d = whole_qat.state_dict(), qat.state_dict()
    assert all(torch.equal(c[name], d[name]) for name in c)


def test_ranges_of_another_scope_are_refused() -> None:
    state = calibrated(factorized(), qat_scope="encoder").state_dict()
    with pytest.raises(TrainingError, match=r"has no range for g_s\.0\.input"):
        prepare_qat(factorized(), config()).load_state_dict(state)


def test_simulation_before_any_calibration_says_what_is_missing() -> None:
    model = factorized()
    prepare_qat(model, config(qat_scope="decoder")).freeze()
    with pytest.raises(TrainingError, match=r"g_s\.0\.input: .*no range was observed"):
        forward(model, 0)


def test_what_stays_in_float_is_named() -> None:
    assert prepare_qat(factorized(), config()).notes == []
    qat = prepare_qat(factorized("gdn"), config(qat_scope="decoder", qat_skip_first_conv=True))
    kept, meaningless = qat.notes
    assert kept == "int8: g_s keeps in float: g_s.1 (GDN), g_s.3 (GDN), g_s.5 (GDN)"
    assert "--qat-skip-first-conv" in meaningless


def test_what_no_relu_follows_is_quantised_on_its_way_out() -> None:
    def outputs(activation: str) -> list[str]:
        layers = prepare_qat(factorized(activation), config()).layers
        return [layer.name for layer in layers if layer.output]

    assert outputs("relu") == []
    assert outputs("gdnish") == outputs("gdn")
    assert outputs("gdn") == ["g_a.0", "g_a.2", "g_a.4", "g_s.0", "g_s.2", "g_s.4"]


def test_autocast_simulates_in_float32() -> None:
    model = factorized()
    qat = calibrated(model)
    seen: list[Tensor] = []
    model.g_a[2].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        forward(model, 0)
    assert seen[0].dtype == torch.float32
    steps = seen[0] / qat.layers[1].input.parameters[0]
    assert torch.allclose(steps, steps.round(), rtol=0, atol=1e-3)


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="--qat knows bmshj2018 models; found Linear"):
        prepare_qat(nn.Linear(2, 2), config())
