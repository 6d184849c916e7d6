import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lic.codec.benchmark.entropy import Workload, factorized, gaussian, main, photo
from lic.codec.entropy import kernel_name


def sample(_: int) -> Workload:
    return photo(Path("samples/kodim23.png"))


@pytest.mark.parametrize("workload", [factorized, gaussian, sample])
def test_at_most_15_hundredths_of_a_percent_over_the_ideal(
    workload: Callable[[int], Workload],
) -> None:
    work = workload(300_000)
    writer = work.writer(kernel_name(None))
    writer.code(work.symbols, work.indexes)
    bits = 8 * sum(map(len, writer.finish()))
    assert 0 <= bits / work.ideal_bits - 1 <= 0.0015


def test_the_benchmark_has_a_row_for_every_coder(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--symbols", "960", "--repeat", "1", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    coders = {"lic c", "lic python", "constriction", "compressai"}
    assert {(row["coder"], row["workload"]) for row in rows} == {
        (coder, workload) for coder in coders for workload in ("factorized", "gaussian")
    }
    for row in rows:
        assert row["note"] or row["decode_msymbols"] > 0


def test_a_picture_is_coded_with_contexts(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--symbols", "960", "--repeat", "1", "--json", "--picture", "samples/kodim23.png"]
    main(flags)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {row["coder"]: row for row in rows if row["workload"] == "contexts"}
    assert found["constriction"]["note"] == found["compressai"]["note"] == "has no contexts"
    assert found["lic c"]["decode_msymbols"] > found["lic python"]["decode_msymbols"]
    assert found["lic c"]["overhead_percent"] == found["lic python"]["overhead_percent"]


def test_the_benchmark_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--symbols", "192", "--repeat", "1"])
    assert "overhead" in capsys.readouterr().out
