import copy
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from lic.codec.errors import ConfigError
from lic.codec.models import (
    HPCM,
    FactorizedConfig,
    FactorizedPrior,
    HyperpriorConfig,
    Output,
    ScaleHyperprior,
    bits,
    hpcm_config,
)
from lic.codec.models.likelihood import EntropyBottleneck
from lic.trainers.config import PrecisionConfig
from lic.trainers.precision import fabric_precision, keep_float32, release_float32


def config(local: str, *classes: str, amp: str = "bf16") -> PrecisionConfig:
    return PrecisionConfig(amp=amp, local_fp32=local, local_fp32_class=classes)


def factorized(kind: Any = "gdn") -> FactorizedPrior:
    torch.manual_seed(0)
    made = FactorizedConfig(N=8, M=8, encoder_activation=kind, decoder_activation=kind)
    return FactorizedPrior(made).train()


def hyperprior() -> ScaleHyperprior:
    torch.manual_seed(0)
    return ScaleHyperprior(HyperpriorConfig(N=8, M=8)).train()


def forward(model: nn.Module, *, amp: bool = True, scale: float = 1.0) -> Output:
    torch.manual_seed(1)
    x = scale * torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        output: Output = model(x)
    return output


class _Recorder:
    """Notes in which dtype modules compute."""

    def __init__(self, model: nn.Module) -> None:
        self.dtypes: dict[str, torch.dtype] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def note(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.dtypes[name] = output.dtype

        return note


@pytest.mark.parametrize(
    ("amp", "device", "name"),
    [
        ("off", "cpu", "32-true"),
        ("off", "cuda", "32-true"),
        ("bf16", "cpu", "bf16-mixed"),
        ("bf16", "auto", "bf16-mixed"),
        ("fp16", "cuda", "16-mixed"),
        ("fp16", "mps", "16-mixed"),
    ],
)
def test_fabric_gets_a_name_it_knows(amp: str, device: str, name: str) -> None:
    assert fabric_precision(PrecisionConfig(amp=amp), device) == name
    if device == "cpu":
        Fabric(accelerator="cpu", devices=1, precision=name)  # type: ignore[arg-type]


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="--amp fp16 on a CPU; expected bf16 or off"):
        fabric_precision(PrecisionConfig(amp="fp16"), "cpu")


@pytest.mark.parametrize("found", [True, False])
def test_auto_is_what_the_machine_has(found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if found:
        assert fabric_precision(PrecisionConfig(amp="fp16"), "auto") == "16-mixed"
    else:
        with pytest.raises(ConfigError, match="fp16 on a CPU"):
            fabric_precision(PrecisionConfig(amp="fp16"), "auto")


def test_without_mixed_precision_nothing_is_wrapped() -> None:
    model = factorized()
    assert keep_float32(model, config("all_normexp", amp="off")) == []
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("local", "names"),
    [
        ("none", []),
        ("entropy", ["g_s.6", "entropy_bottleneck", "gaussian_conditional"]),
        ("entropy+decoder", ["g_s", "entropy_bottleneck", "gaussian_conditional"]),
        (
            "all_normexp",
            ["g_a.1", "g_a.3", "g_a.5", "g_s.1", "g_s.3", "g_s.5", "g_s.6", "entropy_bottleneck",
             "gaussian_conditional"],
        ),
    ],
)  # fmt: skip
def test_each_choice_has_its_modules(local: str, names: list[str]) -> None:
    assert keep_float32(hyperprior(), config(local)) == names


def test_classes_can_be_chosen_by_name() -> None:
    model = factorized()
    chosen = keep_float32(model, config("custom", "ConvTranspose2d", "EntropyBottleneck"))
    assert chosen == ["g_s.0", "g_s.2", "g_s.4", "g_s.6", "entropy_bottleneck"]


def test_a_class_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'Conv3d'; expected one of Conv2d, .*, GDN, ") as error:
        keep_float32(factorized(), config("custom", "GDN", "Conv3d"))
    assert error.match("--local-fp32-class")


def test_likelihoods_in_bfloat16_are_wrong_and_kept_ones_are_not() -> None:
    """The rate of latents that bfloat16 holds exactly, so that only the entropy model differs."""
    torch.manual_seed(0)
    bottleneck = EntropyBottleneck(8).eval()
    bottleneck.init_scales(torch.full((8,), 64.0))
    y = torch.randn(2, 8, 16, 16).mul(64).clamp(-128, 127).round().bfloat16().round()

    def rate() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _, likelihoods = bottleneck(y)
        return float(bits({"y": likelihoods.detach().float()}))

    exact = float(bits({"y": bottleneck(y.float())[1].detach()}))
    assert keep_float32(bottleneck, config("none")) == []
    assert abs(rate() / exact - 1) > 0.05
    keep_float32(bottleneck, config("entropy"))
    assert rate() == exact


def test_the_gaussians_are_kept_too() -> None:
    model = hyperprior()
    seen = []
    gaussian = model.gaussian_conditional.lower_bound_scale
    gaussian.register_forward_hook(lambda _, args, __: seen.append(args[0].dtype))
    forward(model)
    assert keep_float32(model, config("entropy"))
    output = forward(model)
    assert seen == [torch.bfloat16, torch.float32]
    assert output.likelihoods["y"].dtype == output.likelihoods["z"].dtype == torch.float32


def test_the_picture_is_not_rounded_to_bfloat16() -> None:
    """Near white that alone would be a squared error of (1/256)^2 / 12, 1 % of it at 38 dB."""
    model = factorized("relu")
    inputs: list[Tensor] = []
    last = model.get_submodule("g_s.6")
    last.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    with torch.no_grad():
        last.get_parameter("bias").fill_(0.75)
    errors = {}
    for local in ("none", "entropy", "all_normexp"):
        keep_float32(model, config(local))
        x_hat = forward(model).x_hat.detach().float()
        exact = last(inputs[-1].detach().float()).detach()
        errors[local] = float((x_hat - exact).square().mean())
    assert errors["none"] == pytest.approx(1 / 256**2 / 12, rel=0.5)
    assert errors["entropy"] == errors["all_normexp"] == 0


def test_the_layer_that_gives_the_picture_is_hpcms_as_well() -> None:
    model = HPCM(hpcm_config("tiny"))
    assert keep_float32(model, config("entropy")) == ["entropy_estimation", "g_s.branch.7"]
    last = model.get_submodule("g_s.branch.7")
    assert isinstance(last, nn.ConvTranspose2d) and last.out_channels == 3


def test_a_decoder_that_is_kept_computes_in_single_and_the_encoder_does_not() -> None:
    model = factorized()
    recorder = _Recorder(model)
    keep_float32(model, config("entropy+decoder"))
    assert forward(model).x_hat.dtype == torch.float32
    assert {name: str(dtype) for name, dtype in recorder.dtypes.items()} == {
        **{f"g_a.{i}": "torch.bfloat16" for i in (0, 2, 4, 6)},
        **{f"g_s.{i}": "torch.float32" for i in (0, 2, 4, 6)},
    }


def test_layers_behind_a_kept_one_are_half_again() -> None:
    model = factorized()
    recorder = _Recorder(model)
    keep_float32(model, config("all_normexp"))
    forward(model)
    assert recorder.dtypes.pop("g_s.6") == torch.float32
    assert set(recorder.dtypes.values()) == {torch.bfloat16}


def test_an_error_inside_leaves_autocast_as_it_was() -> None:
    model = factorized()
    keep_float32(model, config("entropy+decoder"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError):
            model.g_s(torch.rand(1, 5, 4, 4))
        assert torch.is_autocast_enabled("cpu")
        assert model.g_a(torch.rand(1, 3, 32, 32)).dtype == torch.bfloat16


def test_without_autocast_no_number_changes() -> None:
    plain, kept = factorized(), factorized()
    keep_float32(kept, config("all_normexp"))
    one, two = forward(plain, amp=False), forward(kept, amp=False)
    assert torch.equal(one.x_hat, two.x_hat)
    assert torch.equal(one.likelihoods["y"], two.likelihoods["y"])


def test_gradients_reach_what_is_before_a_kept_module() -> None:
    model = factorized()
    keep_float32(model, config("entropy+decoder"))
    output = forward(model)
    loss = output.x_hat.float().square().mean() + bits(output.likelihoods)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if name != "entropy_bottleneck.quantiles":
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
            assert float(parameter.grad.abs().sum()) > 0, name


def test_names_and_classes_stay() -> None:
    plain, kept = factorized(), factorized()
    keep_float32(kept, config("all_normexp"))
    assert list(plain.state_dict()) == list(kept.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in kept.modules()]


def test_a_copy_keeps_its_own_modules_in_single() -> None:
    model = factorized()
    keep_float32(model, config("entropy+decoder"))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert forward(twin).x_hat.dtype == torch.float32
    assert float(forward(twin).x_hat.detach().abs().max()) > 0
    release_float32(twin)
    assert forward(twin).x_hat.dtype == torch.bfloat16
    assert forward(model).x_hat.dtype == torch.float32


def test_it_can_be_undone_and_chosen_again() -> None:
    model = factorized()
    for _ in range(2):
        keep_float32(model, config("entropy+decoder"))
        assert forward(model).x_hat.dtype == torch.float32
    keep_float32(model, config("none"))
    assert forward(model).x_hat.dtype == torch.bfloat16
    release_float32(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_fabric_wraps_a_model_that_keeps_modules() -> None:
    model = factorized()
    keep_float32(model, config("entropy"))
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    wrapped: Any = fabric.setup(model)
    recorder = _Recorder(model)
    output = wrapped(torch.rand(1, 3, 32, 32))
    # Fabric hands out single precision whatever was computed in.
    assert output.x_hat.dtype == torch.float32
    assert recorder.dtypes.pop("g_s.6") == torch.float32
    assert set(recorder.dtypes.values()) == {torch.bfloat16}
