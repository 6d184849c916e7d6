"""The proof by mutation: `python -m tests.hostile.mutations [COUNT]`. No test by default.

Mutates good files of every kind, decodes each in a process with a limit on its memory and its time,
and counts what became of them. Exit code 1 if there is any fault. The same seed and code give the
same files; `--only N` decodes one again and writes it to a file.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

from tests.hostile.judging import ANOTHER, FAULTS, SAME, Allowed, Judge, Verdict
from tests.hostile.kinds import load_kinds, write_kinds
from tests.hostile.mutate import MUTATIONS, Mutated, mutate
from tests.hostile.workers import ENDED, Fault, Tally, run_trials

COLUMNS = ("BitstreamError", "LimitError", "ModelMismatchError", "NumericsError", SAME, ANOTHER)


class Mutations:
    """Trials: mutation `number` of the seeds in a folder."""

    def __init__(self, folder: Path, *, network: bool = False, run: int = 0) -> None:
        kinds = load_kinds(folder, network=network)
        self._seeds, self._run = kinds.seeds, run
        self._judge = Judge(kinds, network=network)
        self._latest = (-1, self._mutated(0))

    def allowed(self, number: int) -> Allowed:
        """Return what a file may take."""
        return self._judge.allowed(self.file(number).data)

    def run(self, number: int) -> tuple[str, Verdict]:
        """Decode a file."""
        mutated = self.file(number)
        return mutated.mutation, self._judge.judge(mutated)

    def file(self, number: int) -> Mutated:
        """Return a mutated file."""
        if self._latest[0] != number:
            self._latest = (number, self._mutated(number))
        return self._latest[1]

    def _mutated(self, number: int) -> Mutated:
        return mutate(number, self._seeds, self._run)


def made_elsewhere(folder: Path, *, network: bool) -> None:
    """Write the seeds in a process of its own, which frees what torch took for it."""
    process = multiprocessing.get_context("spawn").Process(
        target=write_kinds, args=(folder,), kwargs={"network": network}
    )
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the seeds could not be made")


def table(tally: Tally) -> str:
    """Return the counts by mutation and outcome."""
    faults = [fault for fault in FAULTS if any(outcome == fault for _, outcome in tally.counts)]
    columns = (*COLUMNS, *(faults or ("faults",)))
    rows = [["mutation", "files", *columns]]
    for kind in (*MUTATIONS, ENDED):
        counts = Counter({o: n for (k, o), n in tally.counts.items() if k == kind})
        if counts:
            rows.append([kind, f"{counts.total():,}", *(f"{counts[c]:,}" for c in columns)])
    sums = Counter[str]()
    for (_, outcome), count in tally.counts.items():
        sums[outcome] += count
    rows.append(["all", f"{sums.total():,}", *(f"{sums[c]:,}" for c in columns)])
    assert sum(sums[c] for c in columns) == tally.total
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def described(fault: Fault) -> str:
    """Return a line on a fault."""
    return f"FAULT {fault.number} ({fault.kind}): {fault.outcome}: {fault.detail}\n"


class Progress:
    """Tells on stderr of faults as they are found, and every half minute how far it is."""

    def __init__(self) -> None:
        self._start = self._told = time.monotonic()
        self._faults = 0

    def tell(self, tally: Tally) -> None:
        """Look at the tally so far."""
        for fault in tally.faults[self._faults :]:
            sys.stderr.write(described(fault))
        self._faults = len(tally.faults)
        if time.monotonic() > self._told + 30:
            self._told = time.monotonic()
            rate = tally.total / (self._told - self._start)
            sys.stderr.write(f"{tally.total:,} files, {rate:.0f} a second\n")


def main() -> int:
    """Run, print the table, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--network", action="store_true", help="decode to pixels by real networks")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--only", type=int, help="decode this one, here, and write mutation-N.lic")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_elsewhere(folder, network=options.network)
        make = partial(Mutations, folder, network=options.network, run=options.seed)
        if options.only is not None:
            trials = make()
            Path(f"mutation-{options.only}.lic").write_bytes(trials.file(options.only).data)
            sys.stdout.write(f"{trials.file(options.only).seed.name}: {trials.run(options.only)}\n")
            return 0
        start = time.monotonic()
        tally = run_trials(
            make,
            range(options.count),
            processes=options.processes,
            deadline=start + 60 * options.minutes,
            progress=Progress().tell,
        )
    seconds = time.monotonic() - start
    sys.stdout.write(table(tally))
    sys.stdout.write("".join(described(fault) for fault in tally.faults[:20]))
    sys.stdout.write(
        f"{tally.total:,} files in {seconds:.0f} s, {tally.total / seconds:.0f} a second by "
        f"{options.processes} processes; slowest {tally.slowest:.2f} s of CPU time, largest "
        f"process {tally.peak / 2**20:.0f} MiB; {len(tally.faults)} faults\n"
    )
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
