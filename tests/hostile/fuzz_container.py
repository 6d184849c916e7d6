"""An Atheris target: container and entropy decoder, from bytes to symbols and lossless pixels.

    python -m tests.hostile.fuzz_container FOLDER [libFuzzer's options] CORPUS

FOLDER is one of `kinds`. Nothing but the exceptions that `decompress` documents may leave lic; what
decodes must be what a writer writes. Bytes are tried as they are and, since no fuzzer guesses a
CRC-32, with all checksums mended. No network takes part: see `stand_ins`.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lic"]):
    from lic.codec.container import list_chunks, parse_header
    from lic.codec.errors import LicError
    from tests.hostile.judging import FAULTS, Judge
    from tests.hostile.kinds import load_kinds

from tests.hostile.damage import Seed
from tests.hostile.forgery import join, split
from tests.hostile.mutate import Mutated


def target(judge: Judge, seed: Seed, data: bytes) -> None:
    """Read a file in every way there is.

    Raises:
        RuntimeError: in a way that no file may be read.
    """
    for read in (parse_header, list_chunks):
        try:
            read(data)
        except LicError:
            pass
    for file in (data, join(split(data))):
        # As a forged one: other content than the seed's is no fault.
        verdict = judge.judge(Mutated(seed, "fuzzed", True, file))
        if verdict.outcome in FAULTS:
            raise RuntimeError(f"{verdict.outcome}: {verdict.detail}")


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough."""
    kinds = load_kinds(Path(sys.argv.pop(1)))
    judge = Judge(kinds)
    atheris.Setup(sys.argv, lambda data: target(judge, kinds.seeds[0], data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
