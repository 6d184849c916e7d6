import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lic.codec.errors import ModelMismatchError
from lic.codec.models import FactorizedPrior, ScaleHyperprior
from lic.codec.models.adapters import (
    detect_architecture,
    factorized_from_state_dict,
    hyperprior_from_state_dict,
    read_state_dict,
)
from lic.codec.models.blocks import Activation
from lic.codec.models.gdnish import DecoderGain, EncoderGain

MakeModel = Callable[..., FactorizedPrior]
MakeHyperprior = Callable[..., ScaleHyperprior]
State = dict[str, Tensor]

# The bottleneck's names in CompressAI's checkpoints, newest first: prefix and number's separator.
GENERATIONS: dict[str, dict[str, str]] = {
    "matrices.0": {},
    "_matrix0": {"matrices.": "_matrix", "biases.": "_bias", "factors.": "_factor"},
    "_matrices.0": {"matrices.": "_matrices.", "biases.": "_biases.", "factors.": "_factors."},
}


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> FactorizedPrior:
    return make_model()


@pytest.fixture
def state(model: FactorizedPrior) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def hyperprior(make_hyperprior: MakeHyperprior) -> ScaleHyperprior:
    return make_hyperprior()


@pytest.fixture
def hyper_state(hyperprior: ScaleHyperprior) -> State:
    return {name: value.clone() for name, value in hyperprior.state_dict().items()}


@pytest.mark.parametrize("tables", [False, True], ids=["bare", "updated"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_names_loads(
    model: FactorizedPrior, state: State, generation: str, prefix: str, tables: bool
) -> None:
    if tables:
        state |= _filled_tables(12)
    foreign = {prefix + _rename(k, GENERATIONS[generation]): v for k, v in state.items()}
    assert any(generation in name for name in foreign)
    loaded = factorized_from_state_dict(foreign)
    assert not loaded.training
    _assert_same_model(loaded, model)


@pytest.mark.parametrize("tables", [False, True], ids=["bare", "updated"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_of_names_loads_with_a_hyperprior(
    hyperprior: ScaleHyperprior, hyper_state: State, generation: str, prefix: str, tables: bool
) -> None:
    if tables:
        hyper_state |= _filled_tables(8) | _filled_tables(64, "gaussian_conditional")
    else:
        hyper_state["gaussian_conditional.scale_table"] = torch.empty(0)
    foreign = {prefix + _rename(k, GENERATIONS[generation]): v for k, v in hyper_state.items()}
    assert any(generation in name for name in foreign)
    loaded = hyperprior_from_state_dict(foreign)
    assert not loaded.training
    _assert_same_model(loaded, hyperprior)


def test_files_without_a_scale_table_get_the_standard_one(
    hyperprior: ScaleHyperprior, hyper_state: State
) -> None:
    del hyper_state["gaussian_conditional.scale_table"]
    _assert_same_model(hyperprior_from_state_dict(hyper_state), hyperprior)


def test_a_scale_table_of_their_own_is_kept(hyper_state: State) -> None:
    scales = torch.linspace(0.3, 30, 40)
    hyper_state["gaussian_conditional.scale_table"] = scales
    loaded = hyperprior_from_state_dict(hyper_state)
    assert torch.equal(loaded.state_dict()["gaussian_conditional.scale_table"], scales)
    assert len(loaded.tables()) == 8 + 40 + 1


def test_files_without_any_table_buffers_load(model: FactorizedPrior, state: State) -> None:
    for name in _filled_tables(12):
        del state[name]
    _assert_same_model(factorized_from_state_dict(state), model)


def test_half_precision_files_give_single_precision_models(state: State) -> None:
    half = {name: value.half() for name, value in state.items()}
    loaded = factorized_from_state_dict(half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_loading_leaves_the_callers_tensors_alone(state: State) -> None:
    before = {name: value.clone() for name, value in state.items()}
    loaded = factorized_from_state_dict(state)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize("decoder", ["gdn", "igdn1", "relu", "gdnish"])
@pytest.mark.parametrize("encoder", ["gdn", "igdn1", "relu", "gdnish"])
def test_sides_may_differ_in_their_activations(
    make_model: MakeModel, encoder: Activation, decoder: Activation
) -> None:
    kinds = {encoder, decoder} - {"relu", "gdnish"}
    if len(kinds) == 2:
        return  # GDN and GDN1 have the same tensors: a file with both cannot tell which is where.
    model = make_model(encoder, decoder)
    (normalisation,) = kinds or {"gdn"}
    loaded = factorized_from_state_dict(model.state_dict(), normalisation=normalisation)
    assert loaded.config == model.config
    _assert_same_model(loaded, model)


@pytest.mark.parametrize("architecture", [FactorizedPrior, ScaleHyperprior])
def test_options_of_gain_blocks_are_read_off_the_tensors(
    architecture: type[FactorizedPrior | ScaleHyperprior],
) -> None:
    config = {
        "N": 8,
        "M": 12,
        "encoder_activation": "gdnish",
        "encoder_gain": EncoderGain(t=3, kdw=5, eca=True, residual=False).to_dict(),
        "decoder_activation": "gdnish",
        "decoder_gain": DecoderGain(k=1, gmin=0.1, gmax=2.3, residual=True).to_dict(),
    }
    model = architecture.from_dict(config).eval()
    factorized = architecture is FactorizedPrior
    convert = factorized_from_state_dict if factorized else hyperprior_from_state_dict
    assert detect_architecture(model.state_dict()) == architecture.name
    loaded = convert(model.state_dict())
    assert loaded.config.to_dict() == config
    _assert_same_model(loaded, model)


@pytest.mark.parametrize("name", ["g_a.1.options", "g_s.1.pointwise.weight"])
def test_gain_blocks_that_lack_a_tensor_are_told(make_model: MakeModel, name: str) -> None:
    state = dict(make_model("gdnish", "gdnish").state_dict())
    del state[name]
    with pytest.raises(ModelMismatchError, match=f"not a bmshj2018-factorized .*{name[:6]}"):
        factorized_from_state_dict(state)


@pytest.mark.parametrize("name", ["g_s.4.weight", "g_a.3.gamma", "entropy_bottleneck.biases.4"])
def test_missing_tensors_are_named(state: State, name: str) -> None:
    del state[name]
    with pytest.raises(ModelMismatchError, match=f"state dict: missing {name}$"):
        factorized_from_state_dict(state)


@pytest.mark.parametrize(
    "name",
    [
        "g_a.3.gamma",
        "h_a.2.weight",
        "h_s.4.bias",
        "entropy_bottleneck.biases.4",
        "gaussian_conditional.scale_bound",
    ],
)
def test_missing_tensors_of_a_hyperprior_are_named(hyper_state: State, name: str) -> None:
    del hyper_state[name]
    wanted = f"bmshj2018-hyperprior state dict: missing {name}$"
    with pytest.raises(ModelMismatchError, match=wanted):
        hyperprior_from_state_dict(hyper_state)


def test_a_hyperprior_with_means_is_not_taken_for_one_without(hyper_state: State) -> None:
    # CompressAI's mbt2018-mean has the same names: its h_s ends with scales and means.
    hyper_state["h_s.4.weight"] = torch.zeros(24, 18, 3, 3)
    with pytest.raises(ModelMismatchError, match=r"h_s.4.weight has shape \(24, 18, 3, 3\)"):
        hyperprior_from_state_dict(hyper_state)


def test_scales_that_can_have_no_tables_are_refused(hyper_state: State) -> None:
    hyper_state["gaussian_conditional.scale_table"] = torch.tensor([1.0, 0.5])
    with pytest.raises(ModelMismatchError, match="expected up to 1024 rising scales"):
        hyperprior_from_state_dict(hyper_state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_architectures_are_told_apart_by_their_names(
    state: State, hyper_state: State, prefix: str
) -> None:
    hpcm = {"g_a.branch.0.weight": torch.zeros(1), "means_hyper": torch.zeros(1, 8, 1, 1)}
    for tensors, name in (
        (state, "bmshj2018-factorized"),
        (hyper_state, "bmshj2018-hyperprior"),
        (hpcm, "hpcm"),
        ({"y_spatial_prior_s3.branch_1.0.branch.0.weight": torch.zeros(1)}, "hpcm"),
    ):
        assert detect_architecture({prefix + k: v for k, v in tensors.items()}) == name


@pytest.mark.parametrize("names", [[], ["conv1.weight"], ["g_a.0.weight", "h_a.0.weight"]])
def test_unknown_architectures_are_refused(names: list[str]) -> None:
    with pytest.raises(ModelMismatchError) as caught:
        detect_architecture({name: torch.zeros(1) for name in names})
    message = str(caught.value)
    assert all(name in message for name in (*names, "means_hyper for hpcm", "g_a.6.weight"))


def test_unexpected_tensors_are_named(state: State) -> None:
    state["h_a.0.weight"] = torch.zeros(1)
    with pytest.raises(ModelMismatchError, match=r"dict: unexpected h_a.0.weight; everything else"):
        factorized_from_state_dict(state)


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("g_s.6.weight", (8, 4, 5, 5), (8, 3, 5, 5)),
        ("g_a.5.beta", (9,), (8,)),
        ("entropy_bottleneck.quantiles", (13, 1, 3), (12, 1, 3)),
        ("entropy_bottleneck.matrices.2", (12, 4, 3), (12, 3, 3)),
    ],
)
def test_tensors_of_another_shape_are_named_with_both_shapes(
    state: State, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    state[name] = torch.zeros(shape)
    with pytest.raises(ModelMismatchError) as caught:
        factorized_from_state_dict(state)
    assert str(caught.value) == f"{name} has shape {shape}; expected {expected}"


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"conv1.weight": torch.zeros(3)},
        {"g_a.0.weight": torch.zeros(8, 3, 5, 5)},
        {"g_a.0.weight": torch.zeros(8), "g_a.6.weight": torch.zeros(8)},
        {"g_a.0.weight": torch.zeros(0, 3, 5, 5), "g_a.6.weight": torch.zeros(8, 8, 5, 5)},
        {"g_a.0.weight": torch.zeros(8, 3, 5, 5), "g_a.6.weight": torch.zeros(9999, 8, 1, 1)},
    ],
)
def test_other_models_are_refused(state: State) -> None:
    with pytest.raises(ModelMismatchError):
        factorized_from_state_dict(state)


@pytest.mark.parametrize("kind", [FactorizedPrior, ScaleHyperprior])
def test_a_few_numbers_make_no_large_model(
    monkeypatch: pytest.MonkeyPatch, kind: type[FactorizedPrior | ScaleHyperprior]
) -> None:
    """Two tensors tell the widths: 4096 of them would be a gigabyte and more."""
    state = {name: torch.zeros(4096, 1, 1, 1) for name in ("g_a.0.weight", "g_a.6.weight")}
    monkeypatch.setattr(kind, "__init__", lambda *_: pytest.fail("the model was built"))
    convert = factorized_from_state_dict if kind is FactorizedPrior else hyperprior_from_state_dict
    with pytest.raises(ModelMismatchError, match=r"asks for [0-9,]{13} numbers, .* hold 8,192"):
        convert(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_that_repeat_or_share_their_memory_are_refused(
    tmp_path: Path, state: State, dtype: torch.dtype
) -> None:
    path = tmp_path / "weights.pth"
    one = torch.zeros(1, dtype=dtype)
    many = torch.zeros(1000, 1000, dtype=dtype)
    for bad in ({"a": one.expand(2**20, 2**20)}, {str(n): many for n in range(100)}):
        torch.save({**state, **bad}, path)
        with pytest.raises(ModelMismatchError, match=r"names tensors of [0-9,]+ bytes in a file"):
            read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_files_give_back_what_was_saved(tmp_path: Path, state: State, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    _assert_same_state(read_state_dict(path), state)


def test_training_checkpoints_are_unwrapped(tmp_path: Path, state: State) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 7, "state_dict": {"state_dict": state}, "lr": [1e-4]}, path)
    _assert_same_state(read_state_dict(path), state)


class _Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path: Path, state: State) -> None:
    trace = tmp_path / "trace"
    assert pickle.loads(pickle.dumps(_Trap(trace))) is None and trace.exists(), "no trap at all"
    trace.unlink()
    zipped, legacy, bare = (tmp_path / name for name in ("zipped.pth", "legacy.pth", "bare.pth"))
    torch.save({**state, "trap": _Trap(trace)}, zipped)
    torch.save({"trap": _Trap(trace)}, legacy, _use_new_zipfile_serialization=False)
    bare.write_bytes(pickle.dumps(_Trap(trace), protocol=2))
    for path in (zipped, legacy, bare):
        with pytest.raises(ModelMismatchError, match=rf"{path.name}: .* was not loaded"):
            read_state_dict(path)
        assert not trace.exists(), f"{path.name} ran its code"


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": 5},
        {"epoch": 3},
        [torch.zeros(1)],
        torch.zeros(1),
        {0: torch.zeros(1)},
        "text",
    ],
)
def test_files_with_something_else_are_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ModelMismatchError, match=r"other.pth: expected a state dict of tensors"):
        read_state_dict(path)


def test_a_file_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    path = tmp_path / "endless.pth"
    torch.save(content, path)
    with pytest.raises(ModelMismatchError, match="endless"):
        read_state_dict(path)


def _damages(data: bytes) -> Iterator[bytes]:
    yield b""
    yield b"\0"
    yield b"not weights at all, but text of some length\n" * 10
    yield data[: len(data) // 2]
    yield data[:-1]
    yield data[100:]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_and_empty_files_are_refused_by_name(
    tmp_path: Path, state: State, suffix: str
) -> None:
    path = tmp_path / f"damaged{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    for data in _damages(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(ModelMismatchError, match=f"damaged{suffix}: "):
            read_state_dict(path)


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; download it again"),
        (b"<!DOCTYPE html><title>Google Drive</title>", "is a web page, not weights: "),
        (b"\xef\xbb\xbf \r\n<html>\x1b[31m", "is a web page, not weights: "),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "starts with b'\\x89PNG\\r\\n\\x1a\\n', which is no"),
        (b"\x1b[31mred", "starts with b'\\x1b[31mred', which is no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints_are_told_by_their_first_bytes(
    tmp_path: Path, suffix: str, data: bytes, message: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    with pytest.raises(ModelMismatchError) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(f"{path}: {message}") and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_cut_short_is_said_to_be(tmp_path: Path, state: State, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelMismatchError) as caught:
        read_state_dict(path)
    told = "is damaged or cut short (5,000 bytes); download it again"
    assert str(caught.value) == f"{path}: {told}"


@pytest.mark.filterwarnings("error")
def test_nothing_advises_to_load_a_file_unsafely(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for content in (
        pickle.dumps({"a": 1}, protocol=4),
        pickle.dumps(_Trap(tmp_path), protocol=2),
        b"\x80\x02\x1b[31m",
    ):
        path.write_bytes(content)
        with pytest.raises(ModelMismatchError) as caught:
            read_state_dict(path)
        assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"missing{suffix}"
    with pytest.raises(ModelMismatchError, match=f"missing{suffix}: no such file"):
        read_state_dict(path)
    path.mkdir()
    with pytest.raises(ModelMismatchError, match=f"missing{suffix}: cannot be read"):
        read_state_dict(path)


def _rename(name: str, substitutions: Mapping[str, str]) -> str:
    for new, old in substitutions.items():
        name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}")
    return name


def _filled_tables(count: int, owner: str = "entropy_bottleneck") -> State:
    """Return table buffers as `update()` leaves them."""
    return {
        f"{owner}._offset": torch.full((count,), -9, dtype=torch.int32),
        f"{owner}._quantized_cdf": torch.ones(count, 21, dtype=torch.int32),
        f"{owner}._cdf_length": torch.full((count,), 21, dtype=torch.int32),
    }


def _assert_same_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert state.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in state.items())


def _assert_same_model(
    model: FactorizedPrior | ScaleHyperprior, wanted: FactorizedPrior | ScaleHyperprior
) -> None:
    _assert_same_state(model.state_dict(), wanted.state_dict())
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x).x_hat, wanted(x).x_hat)
