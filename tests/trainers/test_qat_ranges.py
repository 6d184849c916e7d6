import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from lic.codec.errors import TrainingError
from lic.trainers.qat import ranges as ranges_module
from lic.trainers.qat.ranges import (
    ActivationRange,
    over_processes,
    simulate_weight,
    weight_scales,
)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_small_output_channel_keeps_its_precision(
    kind: type[nn.Conv2d | nn.ConvTranspose2d], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = kind(6, 4, 5)
    axis = ranges_module.channel_axis(layer)
    with torch.no_grad():
        layer.weight.select(axis, 1).div_(100)
    weight = layer.weight.detach().to(memory_format=memory_format)
    held = simulate_weight(weight, axis, weight_scales(weight, axis))
    others = [i for i in range(4) if i != axis]
    largest = weight.abs().amax(others)
    error = (held - weight).abs().amax(others)
    assert len(set(held.select(axis, 1).flatten().tolist())) > 50
    assert bool((error <= largest / 127 / 2 * 1.001).all())


def test_each_init_makes_its_range() -> None:
    def ends(init: str) -> list[float]:
        found = ActivationRange("x", init, 0.0)
        for batch, extreme in enumerate((10.0, 30.0)):
            values = torch.linspace(0, 1, 40_001)
            values[0], values[-1] = -extreme, extreme
            found.observe(values, batch)
        return found.state().tolist()

    assert ends("minmax") == [-30.0, 30.0]
    assert ends("moving") == [-20.0, 20.0]
    # One outlier in 40,001 values is beyond the percentile.
    assert ends("percentile") == pytest.approx([0.0001, 0.9999], abs=1e-4)


def test_a_percentile_of_many_values_is_read_from_a_sample() -> None:
    found = ActivationRange("x", "percentile", 0.0)
    found.observe(torch.rand(3, 1000, 1000, generator=torch.Generator().manual_seed(0)), 0)
    low, high = found.state().tolist()
    assert 0 < low < 5e-4
    assert 1 - 5e-4 < high < 1


def test_an_activation_that_is_zero_throughout_stays_zero() -> None:
    found = ActivationRange("x", "minmax", 0.0)
    found.observe(torch.zeros(4), 0)
    assert torch.equal(found.simulate(torch.zeros(4)), torch.zeros(4))


def test_a_missing_torchao_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(name, name="torchao")

    ranges_module.torchao.cache_clear()
    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(TrainingError, match="pip install"):
        ActivationRange("x", "minmax", 0.0)
    ranges_module.torchao.cache_clear()


def _join_ends(rank: int, folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    ends = torch.tensor([-1.0, 2.0]) if rank else torch.tensor([-3.0, 1.0])
    results.put([over_processes(ends, mean=mean).tolist() for mean in (False, True)])
    distributed.destroy_process_group()


def test_processes_agree_on_the_ranges_of_their_batches_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_join_ends, args=(rank, str(tmp_path), results)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert found == [[[-3.0, 2.0], [-2.0, 1.5]]] * 2
