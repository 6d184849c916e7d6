"""Training speed: lic's loop against a plain loop of CompressAI's classes, in turns, one machine.

    python -m tests.oracle.throughput PHOTOS [--steps 18] [--rounds 3] [--batch 8] [--crop 128]

Both sides train N = 128, M = 192 with Adam, on one thread, from the same photos; lic's side is the
command's own loop with everything that it does by default (averaged weights, clipping, metrics,
data). Prints medians over the rounds, by wall time and by processor time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIC = """
import json, sys, time
from pathlib import Path
import torch
from lic.trainers.config import TrainConfig
from lic.trainers.models import new_model
from lic.trainers.runs import Place, open_fabric, start
torch.set_num_threads(1)
folder, kind, steps, batch, crop, out = sys.argv[1:]
steps, warm = int(steps), 3
config = TrainConfig().updated({
    "size": "4", "act": kind, "optimizer": "adam", "start": "random", "batch": int(batch),
    "crop": int(crop), "steps": warm + steps, "log_every": warm, "checkpoint_every": 10**6,
    "val_share": 0.0, "lr": 1e-4,
})
place = Place(images=Path(folder), folder=Path(out), device="cpu")
trainer = start(new_model(config), config, place, open_fabric(config, place), print, fresh=False)
clock = {}
def timed(values):
    if values["step"] == warm:
        clock["wall"], clock["spent"] = time.perf_counter(), time.process_time()
    elif values["step"] == warm + steps:
        wall = time.perf_counter() - clock["wall"]
        spent = time.process_time() - clock["spent"]
        images = steps * int(batch)
        print(json.dumps({"per_second": images / wall, "per_cpu_second": images / spent}))
trainer.run(timed)
"""


def main() -> None:
    """Measure all four and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photos")
    for name, default in (("steps", 18), ("rounds", 3), ("batch", 8), ("crop", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.steps % 3:
        parser.error("--steps must be a multiple of 3")
    sizes = [str(getattr(options, name)) for name in ("steps", "batch", "crop")]
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for kind in ("gdn", "relu"):
            plain = [str(ROOT / ".oracle/bin/python"), "-m", "tests.oracle.plain_loop"]
            found.setdefault(("compressai", kind), []).append(
                _run([*plain, options.photos, kind, *sizes])
            )
            with tempfile.TemporaryDirectory() as out:
                own = [sys.executable, "-c", LIC, options.photos, kind, *sizes, out]
                found.setdefault(("lic", kind), []).append(_run(own))
    medians = {
        key: {unit: statistics.median(run[unit] for run in runs) for unit in runs[0]}
        for key, runs in found.items()
    }
    for (side, kind), values in medians.items():
        print(  # noqa: T201
            f"{side:10} {kind:4} {values['per_second']:6.2f} images/s, "
            f"{values['per_cpu_second']:6.2f} images a processor second"
        )
    for own_kind, other in (("relu", "gdn"), ("relu", "relu"), ("gdn", "gdn")):
        a, b = medians["lic", own_kind], medians["compressai", other]
        print(  # noqa: T201
            f"lic {own_kind} / CompressAI {other}: {a['per_second'] / b['per_second']:.2f} by wall "
            f"time, {a['per_cpu_second'] / b['per_cpu_second']:.2f} by processor time"
        )


def _run(command: list[str]) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if ".oracle" in command[0]:
        environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'codec'}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
