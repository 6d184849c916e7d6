"""The proof by mutation, on few files; and that it finds what it looks for."""

import faulthandler
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lic.codec.container import Coder, list_chunks, parse
from lic.codec.container import file as container_file
from lic.codec.latents import walk
from tests.hostile import mutations, workers
from tests.hostile.judging import (
    ANOTHER,
    DIED,
    ESCAPED,
    HANG,
    MEMORY,
    SAME,
    WRONG,
    Allowed,
    Judge,
    Verdict,
)
from tests.hostile.kinds import load_kinds, write_kinds
from tests.hostile.mutate import MUTATIONS, Mutated, mutate
from tests.hostile.mutations import Mutations, table
from tests.hostile.workers import Tally, run_trials


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    write_kinds(folder)
    return folder


@pytest.fixture(scope="module")
def trials(folder: Path) -> Mutations:
    return Mutations(folder)


def tally_of(trials: Mutations, numbers: range) -> Tally:
    tally = Tally()
    for number in numbers:
        tally.note(number, *trials.run(number))
    return tally


def test_there_are_files_of_every_kind(folder: Path) -> None:
    files = [parse(seed.data) for seed in load_kinds(folder).seeds]
    assert len(files) > 20
    assert sum(len(seed.data) for seed in load_kinds(folder).seeds) < 200_000
    assert {len(file.tiles) > 1 for file in files} == {False, True}
    assert {len(file.tiles[0].streams) for file in files} == {1, 2}
    assert {file.header.colour for file in files} == {1, 3}
    for name in ("icc", "exif", "xmp", "alpha", "model", "meta"):
        assert any(getattr(file, name) for file in files), name
    of_contexts = [file for file in files if file.header.coder is Coder.CONTEXTS]
    assert len({file.header.fingerprint for file in of_contexts}) == 2
    assert {len(file.tiles[0].streams) for file in of_contexts} == {1, 2}
    assert len({file.header.step for file in of_contexts}) > 2
    starts = {file.tiles[0].streams[0][:4] for file in files}
    assert {b"\x89PNG", b"RIFF"} <= starts


def test_of_2000_mutations_none_is_a_fault(trials: Mutations) -> None:
    tally = tally_of(trials, range(2000))
    assert tally.faults == []
    assert {kind for kind, _ in tally.counts} == set(MUTATIONS)
    outcomes = {outcome for _, outcome in tally.counts}
    assert {"BitstreamError", "LimitError", "ModelMismatchError", "NumericsError", SAME} < outcomes


def test_a_mutation_has_a_number(folder: Path, trials: Mutations) -> None:
    seeds = load_kinds(folder).seeds
    assert [mutate(n, seeds) for n in range(50)] == [mutate(n, seeds) for n in range(50)]
    assert [mutate(n, seeds).data for n in range(50)] != [
        mutate(n, seeds, 1).data for n in range(50)
    ]
    assert trials.file(7) == mutate(7, seeds)


class Anything(int):
    """A number that is equal to all others."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0


def test_a_chunks_checksum_that_nobody_looks_at_is_a_fault(
    trials: Mutations, monkeypatch: pytest.MonkeyPatch
) -> None:
    zlib_without_crc = SimpleNamespace(crc32=lambda *_: Anything())
    monkeypatch.setattr(container_file, "zlib", zlib_without_crc)
    tally = tally_of(trials, range(600))
    assert {fault.outcome for fault in tally.faults} == {WRONG}
    assert "went unnoticed" in tally.faults[0].detail


def test_a_checksum_of_symbols_that_nobody_looks_at_is_a_fault(
    trials: Mutations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lic.codec.pipeline.walk", lambda *a: (walk(*a)[0], Anything()))
    tally = tally_of(trials, range(600))
    assert {fault.outcome for fault in tally.faults} == {WRONG}
    assert {fault.detail[-18:] for fault in tally.faults} == {"RC than the file's"}


def test_a_coder_that_does_not_look_at_its_end_is_a_fault(
    trials: Mutations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lic.codec.entropy.rans.Reader.finish", lambda _: None)
    tally = tally_of(trials, range(700))
    assert {fault.detail.split(": ")[1] for fault in tally.faults} == {
        "streams that no writer writes"
    }


def test_another_exception_than_those_documented_is_a_fault(
    trials: Mutations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undefended(*_: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("lic.codec.container.file.check_place", undefended)
    tally = tally_of(trials, range(20))
    assert {fault.outcome for fault in tally.faults} == {ESCAPED}
    assert tally.faults[0].detail.startswith("IndexError")


def test_time_beyond_what_the_header_claims_is_a_fault(
    trials: Mutations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hostile.judging.GRACE", -1.0)
    assert {fault.outcome for fault in tally_of(trials, range(20)).faults} == {HANG}


@dataclass
class Misbehaved:
    """Trials of which some do what no decoder may."""

    deeds: dict[int, Callable[[], object]]

    def allowed(self, _: int) -> Allowed:
        return Allowed(0.05, 2**26)

    def run(self, number: int) -> tuple[str, Verdict]:
        try:
            if number in self.deeds:
                self.deeds[number]()
        except MemoryError:
            return "bits flipped", Verdict(MEMORY)
        return "bits flipped", Verdict(SAME, seconds=0.01)


def hang() -> None:
    while True:
        zlib.crc32(b"")


def crash() -> None:
    # Which would tell of it at length.
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(9)


def take_a_gigabyte() -> None:
    bytearray(2**30)


def test_crashes_hangs_and_allocations_are_counted_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 1.0)
    monkeypatch.setattr(workers, "BATCH", 10)
    deeds: dict[int, Callable[[], object]] = {
        3: crash,
        4: leave,
        17: hang,
        25: take_a_gigabyte,
    }
    start = time.monotonic()
    tally = run_trials(partial(Misbehaved, deeds), range(40))
    assert time.monotonic() - start < 30
    assert tally.total == 40
    found = {fault.number: (fault.outcome, fault.detail) for fault in tally.faults}
    assert found == {
        3: (DIED, "SIGSEGV"),
        4: (DIED, "exit code 9"),
        17: (HANG, "killed"),
        25: (MEMORY, ""),
    }
    assert "ended its process" in table(tally)


def test_no_batch_begins_after_the_deadline() -> None:
    tally = run_trials(partial(Misbehaved, {}), range(100_000), deadline=time.monotonic() + 0.3)
    assert 0 < tally.total < 100_000
    assert tally.total % workers.BATCH == 0


def test_the_command_says_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Tally()
    for number in range(3):
        tally.note(number, "streams", Verdict(SAME, seconds=0.25))
    monkeypatch.setattr(mutations, "made_elsewhere", lambda *_, **__: None)
    monkeypatch.setattr(mutations, "run_trials", lambda *_, **__: tally)
    monkeypatch.setattr(sys, "argv", ["mutations", "3"])
    assert mutations.main() == 0
    assert "slowest 0.25 s" in capsys.readouterr().out
    tally.note(3, "escapes", Verdict(WRONG, "why"))
    assert mutations.main() == 1
    out = capsys.readouterr().out
    assert "FAULT 3 (escapes): wrong symbols: why\n" in out
    assert out.splitlines()[0].split()[-2:] == ["wrong", "symbols"]


def test_whole_chunks_of_two_files_are_no_damage_and_anything_less_is(folder: Path) -> None:
    kinds = load_kinds(folder)
    judge = Judge(kinds)
    first, second = (
        next(seed for seed in kinds.seeds if seed.name == f"bmshj2018-hyperprior-{name}")
        for name in ("noise", "gray")
    )
    front = first.data[: list_chunks(first.data)[-1].offset]
    tile = second.data[list_chunks(second.data)[-1].offset :]
    spliced = Mutated(first, "two files spliced", False, front + tile)
    assert judge.judge(replace(spliced, data=second.data + b"more")).outcome == ANOTHER
    assert judge.judge(spliced).outcome == ANOTHER
    assert judge.judge(replace(spliced, data=spliced.data[:-1])).outcome == "BitstreamError"
