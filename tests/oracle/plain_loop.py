"""A plain training loop of CompressAI's own classes, as its examples have it, timed.

Run in the oracle's environment: python -m tests.oracle.plain_loop PHOTOS gdn|relu STEPS BATCH CROP
prints one JSON line. Photos are decoded once and crops cut from memory, so that it waits for no
files.
"""

import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.oracle import conftest as _compressai  # noqa: F401


def main(folder: str, kind: str, steps: int, batch: int, crop: int) -> None:
    """Time the last steps of a run and print images and processor seconds."""
    from compressai.losses import RateDistortionLoss
    from compressai.models import FactorizedPrior, FactorizedPriorReLU

    torch.manual_seed(0)
    random.seed(0)
    photos = []
    for path in sorted(Path(folder).iterdir())[:64]:
        with Image.open(path) as photo:
            pixels = np.asarray(photo.convert("RGB"))
        if min(pixels.shape[:2]) >= crop:
            photos.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    model = {"gdn": FactorizedPrior, "relu": FactorizedPriorReLU}[kind](128, 192)
    criterion = RateDistortionLoss(lmbda=0.013)
    named = dict(model.named_parameters())
    aux = [p for n, p in named.items() if n.endswith(".quantiles")]
    optimizer = torch.optim.Adam(
        [p for n, p in named.items() if not n.endswith(".quantiles")], lr=1e-4
    )
    aux_optimizer = torch.optim.Adam(aux, lr=1e-3)
    model.train()
    warm = 3
    for step in range(warm + steps):
        if step == warm:
            wall, spent = time.perf_counter(), time.process_time()
        x = torch.stack([_crop(random.choice(photos), crop) for _ in range(batch)])
        optimizer.zero_grad()
        aux_optimizer.zero_grad()
        loss = criterion(model(x), x)
        loss["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        aux_loss = model.aux_loss()
        aux_loss.backward()
        aux_optimizer.step()
    images = steps * batch
    wall, spent = time.perf_counter() - wall, time.process_time() - spent
    print(json.dumps({"per_second": images / wall, "per_cpu_second": images / spent}))  # noqa: T201


def _crop(photo: torch.Tensor, size: int) -> torch.Tensor:
    top = random.randrange(photo.shape[1] - size + 1)
    left = random.randrange(photo.shape[2] - size + 1)
    return photo[:, top : top + size, left : left + size].float() / 255


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(text) for text in sys.argv[3:6]))
