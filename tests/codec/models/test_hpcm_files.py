"""Files of HPCM as they are found: published, newer, of several GPUs, wrong."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lic.codec.errors import ConfigError, ModelMismatchError
from lic.codec.models import hpcm_files
from lic.codec.models.hpcm import HPCM, TABLE_BUFFERS
from lic.codec.models.hpcm_config import SIZES, HPCMConfig, hpcm_config
from lic.codec.models.hpcm_files import (
    _detect,
    hpcm_from_state_dict,
    hpcm_size,
    published_rate_point,
)

State = dict[str, Tensor]
ADAPTIVE = [f"adaptive_params_list.{i}" for i in range(10)]


@pytest.fixture(scope="module")
def model() -> HPCM:
    """A tiny model whose every parameter is away from its initial value."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        model = HPCM(hpcm_config("tiny")).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def state(model: HPCM) -> State:
    return {name: value.clone() for name, value in model.state_dict().items()}


def shapes(size: str) -> State:
    """Return a state dict of a size without its memory."""
    with torch.device("meta"):
        return dict(HPCM(hpcm_config(size)).state_dict())


def same(one: HPCM, two: HPCM) -> bool:
    theirs = two.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("size", ["tiny", None])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_dict_gives_its_model_back(
    model: HPCM, state: State, size: str | None, prefix: str, dtype: torch.dtype
) -> None:
    given = {prefix + name: value.to(dtype) for name, value in state.items()}
    found = hpcm_from_state_dict(given, size)
    assert found.config == model.config
    assert not found.training
    assert same(found, model)


@pytest.mark.parametrize("kind", ["absent", "empty", "int32", "float"])
def test_tables_that_upstream_built_or_not_play_no_part(
    model: HPCM, state: State, kind: str
) -> None:
    for name in TABLE_BUFFERS:
        del state[name]
        if kind != "absent":
            dtype = torch.int32 if kind == "int32" else torch.float32
            state[name] = torch.ones((0,) if kind == "empty" else (60, 7), dtype=dtype)
    assert same(hpcm_from_state_dict(state, "tiny"), model)


def test_published_files_have_no_adaptive_vectors_which_then_are_ones(state: State) -> None:
    for name in ADAPTIVE:
        del state[name]
    found = hpcm_from_state_dict(state)
    for vector in found.adaptive_params_list:
        assert torch.equal(vector, torch.ones_like(vector))


def test_some_of_the_adaptive_vectors_are_not_enough(state: State) -> None:
    del state[ADAPTIVE[3]], state[ADAPTIVE[7]]
    with pytest.raises(ModelMismatchError, match=r"2 of 10 .*list\.3, adaptive_params_list\.7"):
        hpcm_from_state_dict(state, "tiny")


def test_half_precision_files_keep_the_densitys_bounds(state: State) -> None:
    found = hpcm_from_state_dict({name: value.half() for name, value in state.items()})
    bound = found.entropy_estimation.likelihood_lower_bound.bound
    assert float(bound) == pytest.approx(1e-9)
    assert torch.equal(found.means_hyper, state["means_hyper"].half().float())


@pytest.mark.parametrize(
    "name", ["beta", "scale_lower_bound.bound", "likelihood_lower_bound.bound"]
)
def test_another_density_is_refused_and_none_is_the_standard(
    model: HPCM, state: State, name: str
) -> None:
    name = f"entropy_estimation.{name}"
    value = state.pop(name)
    assert same(hpcm_from_state_dict(state, "tiny"), model)
    state[name] = value * 1.01
    with pytest.raises(ModelMismatchError, match=f"{name} is .*; expected .*another density"):
        hpcm_from_state_dict(state, "tiny")


def test_names_that_do_not_fit_are_named(state: State) -> None:
    state["extra.weight"] = state.pop("context_net.1.weight")
    with pytest.raises(
        ModelMismatchError, match=r"missing context_net\.1\.weight; unexpected extra\.weight"
    ):
        hpcm_from_state_dict(state, "tiny")


def test_a_tensor_too_many_is_named_alone(state: State) -> None:
    state["extra.w"] = torch.zeros(3)
    with pytest.raises(
        ModelMismatchError, match=r"this HPCM: unexpected extra\.w; everything else is there$"
    ):
        hpcm_from_state_dict(state)


@pytest.mark.parametrize(
    "name", ["means_hyper", "g_a.branch.0.weight", "y_spatial_prior_s3.branch_1.0.branch.0.weight"]
)
def test_a_fault_that_hides_the_size_is_named_against_the_nearest(state: State, name: str) -> None:
    known = "of the sizes base, large, phi, tiny: nearest to HPCM tiny, but "
    shape = tuple(state[name].shape)
    for prefix in ("", "module."):
        given = {prefix + n: v for n, v in state.items() if n != name}
        with pytest.raises(ModelMismatchError) as caught:
            hpcm_from_state_dict(given)
        assert f"{known}missing {name}; if" in str(caught.value)
        assert str(caught.value).endswith("name --arch hpcm-tiny")
    state["g_a.branch.0.weight"] = torch.zeros(5, 3, 4, 4)
    if name == "g_a.branch.0.weight":
        with pytest.raises(ModelMismatchError) as caught:
            hpcm_from_state_dict(state)
        assert f"{known}{name} has shape (5, 3, 4, 4), not {shape};" in str(caught.value)


def test_a_shape_that_does_not_fit_is_named(state: State) -> None:
    state["h_a.branch.1.bias"] = torch.zeros(31)
    with pytest.raises(
        ModelMismatchError, match=r"h_a\.branch\.1\.bias has shape \(31,\); expected \(32,\)"
    ):
        hpcm_from_state_dict(state)


def test_tensors_that_are_no_plain_numbers_are_named(state: State) -> None:
    good = state["means_hyper"]
    for bad in (good.int(), good.to_sparse()):
        state["means_hyper"] = bad
        with pytest.raises(ModelMismatchError, match=r"means_hyper holds .*; expected plain"):
            hpcm_from_state_dict(state, "tiny")


def test_a_name_with_and_without_prefix_is_refused(state: State) -> None:
    state["module.means_hyper"] = state["means_hyper"]
    with pytest.raises(ModelMismatchError, match=r"with and without 'module\.' .*means_hyper"):
        hpcm_from_state_dict(state)


def test_the_wrong_size_is_refused_with_the_right_one(state: State) -> None:
    with pytest.raises(
        ModelMismatchError, match="tiny; expected large; leave out --arch or name hpcm-tiny"
    ):
        hpcm_from_state_dict(state, "large")
    with pytest.raises(ConfigError, match="size is 'huge'"):
        hpcm_from_state_dict(state, "huge")


@pytest.mark.parametrize("size", SIZES)
def test_known_sizes_are_told_apart(size: str) -> None:
    """By names and shapes alone: nothing of their size is made."""
    given = shapes(size)
    assert _detect(given) == hpcm_config(size)
    for other in SIZES:
        if other != size:
            with pytest.raises(ModelMismatchError, match=f"HPCM {size}; expected {other}"):
                hpcm_from_state_dict(given, other)


def test_other_sizes_are_read_off_where_no_attention_hides_heads(
    small: Callable[..., HPCM],
) -> None:
    model = small(heads=0)
    assert hpcm_from_state_dict(model.state_dict()).config == model.config
    assert hpcm_size(model.config) is None
    with pytest.raises(
        ModelMismatchError, match=r"no known size: widths \(8, 12, 16\).*one of base, large"
    ):
        hpcm_from_state_dict(small(heads=2).state_dict())


@pytest.fixture(scope="module")
def small() -> Callable[..., HPCM]:
    def make(heads: int) -> HPCM:
        return HPCM(
            HPCMConfig(
                widths=(8, 12, 16),
                blocks=(0, 2, 1),
                M=16,
                N=8,
                prior_s1_s2=(1, 0),
                prior_s3=(0, 2),
                heads=heads,
            )
        )

    return make


def test_what_is_no_hpcm_at_all_is_refused_with_the_sizes(state: State) -> None:
    for given in ({"g_a.0.weight": torch.zeros(8, 3, 5, 5)}, {"means_hyper": torch.zeros(3)}):
        with pytest.raises(ModelMismatchError, match="one of the sizes base, large, phi, tiny"):
            hpcm_from_state_dict(given)
    # A name costs nothing, the blocks before it would.
    state["g_a.branch.4000.weight"] = state.pop("g_a.branch.7.weight")
    with pytest.raises(ModelMismatchError, match="one of the sizes"):
        hpcm_from_state_dict(state)


def test_placement_is_the_callers(state: State) -> None:
    found = hpcm_from_state_dict(state, placement="corrected")
    assert found.config == hpcm_config("tiny", "corrected")
    assert hpcm_size(found.config) == "tiny"


@pytest.mark.parametrize("number", ["07", "9" * 5000, "\N{ARABIC-INDIC DIGIT SEVEN}", "-7", "7_0"])
def test_names_with_odd_numbers_are_refused(state: State, number: str) -> None:
    state[f"g_a.branch.{number}.weight"] = state.pop("g_a.branch.7.weight")
    with pytest.raises(ModelMismatchError, match="one of the sizes"):
        hpcm_from_state_dict(state)


@pytest.mark.parametrize("name", ["g_a.branch.0.weight", "means_hyper"])
def test_tensors_without_a_shape_are_refused(state: State, name: str) -> None:
    state[name] = torch.tensor(1.0)
    with pytest.raises(ModelMismatchError, match="one of the sizes"):
        hpcm_from_state_dict(state)


def test_a_few_numbers_make_no_large_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of some tensors tell a config of 125 billion numbers in a file of 80 kB."""
    state = {f"g_a.branch.{n}.weight": torch.zeros(4096, 1, 1, 1) for n in range(4)}
    state["means_hyper"] = torch.zeros(1, 4096, 1, 1)
    for prior in ("y_spatial_prior_s1_s2", "y_spatial_prior_s3"):
        for part, block in itertools.product((1, 2), range(50)):
            state[f"{prior}.branch_{part}.{block}.branch.0.weight"] = torch.zeros(1)
    monkeypatch.setattr(hpcm_files, "HPCM", _Unbuildable)
    with pytest.raises(ModelMismatchError, match=r"asks for 124,992,721,923 .* hold 20,680"):
        hpcm_from_state_dict(state)


class _Unbuildable(HPCM):
    def __init__(self, config: HPCMConfig) -> None:
        pytest.fail(f"a model of {config} would take 500 gigabytes")


def test_lambdas_of_published_models_say_metric_and_rate_point() -> None:
    assert published_rate_point(0.0018) == published_rate_point(0.0018, "mse") == ("mse", 1)
    assert published_rate_point(60.5) == ("ms-ssim", 6)
    assert published_rate_point(60.5, "mse") is None
    assert published_rate_point(0.02) is None
