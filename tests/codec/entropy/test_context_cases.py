"""Some cases of `contexts_check`: both kernels, and the source compiled for other machines."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lic.codec.library import select
from tests.codec.entropy.context_cases import (
    LARGEST,
    Case,
    arm64_replay,
    drawn_case,
    host_replays,
    is_empty,
    judged,
)
from tests.codec.entropy.contexts_check import check_picture


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [drawn_case(number) for number in range(300)]


@pytest.fixture(scope="module")
def digests(cases: list[Case]) -> list[str]:
    return [judged(case) for case in cases]


def test_the_cases_have_what_is_rare(cases: list[Case]) -> None:
    tiles = [tile for case in cases for tile in case.tiles]
    assert {1, LARGEST} <= {len(case.contexts) for case in cases}
    assert {1, 256} <= {len(case.contexts.tables) for case in cases}
    assert any(len(case.contexts.predicted) > 3 for case in cases)
    assert any(tile.shape[1:] == (1, 1) for tile in tiles)
    assert any(tile.size and not tile.any() for tile in tiles)
    assert any(is_empty(case) for case in cases)
    assert {-32768, 32767} <= {int(tile.min()) for tile in tiles if tile.size} | {
        int(tile.max()) for tile in tiles if tile.size
    }


@pytest.mark.usefixtures("c_kernel")
def test_both_kernels_write_the_same_and_read_it_back(
    cases: list[Case], digests: list[str]
) -> None:
    """Which `judged` has held against each other."""
    assert len(digests) == len(cases)
    assert len(set(digests)) > 250


@pytest.mark.usefixtures("c_kernel")
def test_with_and_without_sse2_the_kernel_writes_the_same(
    cases: list[Case], digests: list[str], tmp_path: Path
) -> None:
    replays = host_replays(tmp_path)
    if not replays:
        pytest.skip("no C compiler")
    wanted = [digest for case, digest in zip(cases, digests, strict=True) if not is_empty(case)]
    found = {name: replay.digests(cases) for name, replay in replays.items()}
    assert found["own"][1] == wanted
    assert found["plain"] == ("plain", wanted)


@pytest.mark.usefixtures("c_kernel")
def test_arm64_writes_the_same(cases: list[Case], digests: list[str], tmp_path: Path) -> None:
    replay = arm64_replay(tmp_path)
    if replay is None:
        pytest.skip("no compiler for arm64, or no emulator")
    wanted = [digest for case, digest in zip(cases, digests, strict=True) if not is_empty(case)]
    assert replay.digests(cases) == ("plain", wanted)


@pytest.mark.usefixtures("c_kernel")
def test_a_picture_of_the_default_model_is_coded_alike(
    photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    found = check_picture((select().path, path))
    assert found.symbols == 96 * 6 * 9
    assert 0 < found.bits - found.ideal < 8 * 16 + 0.0015 * found.ideal
    assert set(found.replayed.values()) <= {1}
