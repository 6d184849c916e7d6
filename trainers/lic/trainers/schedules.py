"""Values that change with time, as pure functions of the step."""

import math


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Return the learning-rate factor at `step` of `steps`.

    Rises linearly over `warmup` steps to 1, then falls along half a cosine to `final`.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
