"""What the objectives of HPCM cost: time of a step and peak memory, against standard training.

    python -m tests.trainers.costs PHOTOS [--size tiny] [--batch 4] [--groups 6] [--device cpu]

All arms take their steps in turns in one process, sixteen at a time, so that whatever else the
machine does hits all of them; told are medians of the ratio to `standard` over these groups.
The floor is forward and backward of the same network and loss, and nothing else. Peak memory comes
from a process for each arm.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lic.codec.models import bits
from lic.trainers import recipes
from lic.trainers.loop import Trainer
from lic.trainers.models import new_model
from lic.trainers.runs import Place, open_fabric, start

BALANCED = {"objective": "balanced"}
ARMS: dict[str, dict[str, Any]] = {
    "standard": {},
    "balanced": BALANCED,
    "balanced, every 4th step": {**BALANCED, "update_every": 4},
    "balanced, fixed weights": {**BALANCED, "balanced_solver": "fixed"},
    "balanced, qp": {**BALANCED, "balanced_solver": "qp"},
    "hierarchical, without the second look": {
        "objective": "hierarchical",
        "balanced_solver": "fixed",
    },
    "hierarchical, every step": {"objective": "hierarchical", "update_every": 1},
    "hierarchical, every 16th step": {"objective": "hierarchical", "update_every": 16},
    "spectral: curriculum": {"spectral_reg": True, "truncation_epochs": 2999.0},
    "spectral: rel_l2": {"inter_scale_reg": True},
    "spectral: innovation": {"inter_scale_reg": True, "inter_scale_form": "innovation"},
    "cautious Adam": {"optimizer": "cautious-adam"},
    "SOAP": {"optimizer": "soap"},
}
FLOOR = "floor"
STEPS = 16


def trainer_of(options: argparse.Namespace, arm: str) -> Trainer:
    """Return a run of an arm, at its first step."""
    config = recipes.hpcm().updated(
        {
            "size": options.size, "batch": options.batch, "epochs": 0, "steps": 10**6,
            "log_every": 10**6, "checkpoint_every": 10**6, "val_share": 0.0, "lr": 1e-5,
            **ARMS.get(arm, {}),
        }
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    place = Place(images=options.photos, folder=folder, device=options.device)
    fabric = open_fabric(config, place)
    made = start(
        new_model(config), config, place, fabric, lambda _: None, fresh=True, command="hpcm"
    )
    made.bare.train()
    return made


def steps_of(trainer: Trainer, arm: str) -> Callable[[], None]:
    """Return what takes STEPS steps of an arm."""

    def step() -> None:
        batches = trainer.data.loader(trainer.step, trainer.step + STEPS, pin=False)
        for _ in range(STEPS):
            trainer.stepper.take(trainer.step, trainer._next(batches))
            trainer.step += 1

    def floor() -> None:
        lmbda = trainer.config.loss.lmbda
        for number in range(STEPS):
            x = trainer.data.batch(number).to(trainer.fabric.device).float().div_(255)
            output = trainer.bare(x)
            rate = bits(output.likelihoods) / (x.shape[0] * x.shape[2] * x.shape[3])
            loss = rate + lmbda * 255**2 * torch.nn.functional.mse_loss(output.x_hat, x)
            trainer.bare.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]

    return floor if arm == FLOOR else step


def clock(options: argparse.Namespace) -> tuple[float, float]:
    """Return wall and processor time in seconds, after all work that was given out."""
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def measure(options: argparse.Namespace, arms: list[str]) -> dict[str, list[tuple[float, float]]]:
    """Return wall and processor seconds of a step, for each group of steps of each arm."""
    made = {arm: steps_of(trainer_of(options, arm), arm) for arm in arms}
    found: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for group in range(options.groups + 1):
        for arm, steps in made.items():
            before = clock(options)
            steps()
            after = clock(options)
            # The first warms up.
            if group:
                wall, spent = (b - a for a, b in zip(before, after, strict=True))
                found[arm].append((wall / STEPS, spent / STEPS))
    return found


def peak_of(options: argparse.Namespace, arm: str) -> float:
    """Return the peak memory of an arm in MiB: of the GPU, or of a process of its own."""
    command = [
        sys.executable, "-m", "tests.trainers.costs", str(options.photos), "--size", options.size,
        "--batch", str(options.batch), "--device", options.device, "--peak", arm,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _peak(options: argparse.Namespace) -> None:
    steps_of(trainer_of(options, options.peak), options.peak)()
    if options.device == "cuda":
        used = torch.cuda.max_memory_allocated() / 2**20
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(used)  # noqa: T201


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    every = ",".join(str(number) for number in range(len(ARMS) + 1))
    parser.add_argument("--arms", default=every, help="numbers of arms; 0 is the floor, 1 standard")
    parser.add_argument("--peak", default="", help="only the peak memory of this arm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        _peak(options)
        return
    names = [FLOOR, *ARMS]
    arms = [names[int(number)] for number in options.arms.split(",")]
    found = measure(options, arms)
    print("| arm | wall s | processor s | ratio | processor ratio | peak MiB |")  # noqa: T201
    print("|---|---|---|---|---|---|")  # noqa: T201
    for arm in arms:
        rows, base = found[arm], found["standard"]
        wall, spent = (statistics.median(row[i] for row in rows) for i in range(2))
        ratios = [
            statistics.median(a[i] / b[i] for a, b in zip(rows, base, strict=True))
            for i in range(2)
        ]
        print(  # noqa: T201
            f"| {arm} | {wall:.3f} | {spent:.3f} | {ratios[0]:.3f} | {ratios[1]:.3f} | "
            f"{peak_of(options, arm):.0f} |"
        )


if __name__ == "__main__":
    main()
