import pytest
import torch
from torch import Tensor

from lic.codec.models import FactorizedPrior, ScaleHyperprior
from lic.codec.models.noise import noise_shard, uniform_noise


def drawn(values: Tensor) -> Tensor:
    torch.manual_seed(3)
    return uniform_noise(values)


def test_noise_is_uniform_over_one_step() -> None:
    noise = drawn(torch.zeros(4, 8, 64, 64))
    assert float(noise.min()) >= -0.5 and float(noise.max()) <= 0.5
    assert abs(float(noise.mean())) < 2e-3
    assert float(noise.var()) == pytest.approx(1 / 12, rel=0.01)


def test_the_layout_in_memory_changes_nothing_but_the_layout() -> None:
    values = torch.zeros(3, 8, 5, 7)
    last = values.to(memory_format=torch.channels_last)
    assert torch.equal(drawn(last), drawn(values))
    assert drawn(last).stride() == last.stride() and drawn(values).stride() == values.stride()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_processes_see_together_the_noise_of_one(world: int, layout: torch.memory_format) -> None:
    whole = torch.zeros(world * 2, 5, 3, 4).to(memory_format=layout)
    parts = []
    for rank in range(world):
        with noise_shard(rank, world):
            parts.append(drawn(whole[rank * 2 : rank * 2 + 2]))
    assert torch.equal(torch.cat(parts), drawn(whole))
    assert not torch.equal(parts[0], parts[1])


def test_all_processes_leave_their_generators_at_the_same_place() -> None:
    after = []
    for rank in range(2):
        with noise_shard(rank, 2):
            drawn(torch.zeros(2, 3, 3, 3))
        after.append(torch.rand(1))
    drawn(torch.zeros(4, 3, 3, 3))
    assert after == [torch.rand(1)] * 2


def test_a_shard_ends_with_its_context_even_by_an_error() -> None:
    values = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ZeroDivisionError), noise_shard(1, 2):
        raise ZeroDivisionError
    assert torch.equal(drawn(values), drawn(values))
    with noise_shard(1, 2):
        shifted = drawn(values)
    assert not torch.equal(shifted, drawn(values))


@pytest.mark.parametrize("name", ["make_model", "make_hyperprior"])
def test_two_processes_train_on_the_likelihoods_of_one(
    name: str, request: pytest.FixtureRequest
) -> None:
    model: FactorizedPrior | ScaleHyperprior = request.getfixturevalue(name)().train()
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def run(part: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(7)
        with torch.no_grad():
            output = model(part)
        return output.x_hat, output.likelihoods

    whole, likelihoods = run(x)
    for rank in range(2):
        mine = slice(2 * rank, 2 * rank + 2)
        with noise_shard(rank, 2):
            x_hat, shares = run(x[mine])
        torch.testing.assert_close(x_hat, whole[mine])
        for key, share in shares.items():
            torch.testing.assert_close(share, likelihoods[key][mine], rtol=1e-4, atol=1e-6)
