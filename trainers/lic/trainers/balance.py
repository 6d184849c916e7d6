"""Weights of tasks that even out their relative progress (FAMO), or from their gradients (QP).

FAMO is arXiv 2306.03792; its use for rate and distortion is Balanced R-D (CVPR 2025). With losses
L_i, lower bounds m_i and D_i = L_i - m_i, a step follows sum_i omega_i grad L_i where omega_i is
z_i / D_i made to add up to one and z = softmax(w). The logits w learn from what the step did to
log D_i on the very same batch. With m_i = 0 lambda would drop out of the direction altogether; as
published elsewhere, m_i = -1.

Shapes: K tasks.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lic.codec.errors import TrainingError

EPSILON = 1e-8
# Of the smoothed progress in logs.
SMOOTHING = 0.99


class TaskWeights:
    """The logits of K tasks, and the Adam that moves them.

    Args:
        names: of the tasks.
        min_losses: lower bounds m (K,), below every loss that will come.
        lr: of Adam.
        prior: shares (K,) that weights are drawn towards and start from; None: equal ones.
        learns: whether the logits ever move.
    """

    def __init__(
        self,
        names: Sequence[str],
        min_losses: Sequence[float],
        *,
        lr: float,
        prior: Sequence[float] | None = None,
        learns: bool = True,
    ) -> None:
        count = len(names)
        assert len(min_losses) == count
        self.names = tuple(names)
        self.min_losses = torch.tensor(min_losses, dtype=torch.float64)
        shares = torch.tensor(prior or [1 / count] * count, dtype=torch.float64)
        # As far from zero as from each other it makes no difference, so the equal prior is 0.
        logits = torch.log(shares / shares.sum())
        self.prior = logits - logits.mean()
        self.learns = learns
        self.logits = self.prior.clone().requires_grad_()
        # The decay towards the prior is added to the gradient by hand: coupled, as in FAMO.
        self._optimizer = torch.optim.Adam([self.logits], lr=lr)
        self.progress = torch.zeros(count, dtype=torch.float64)
        self._before: Tensor | None = None

    @property
    def shares(self) -> Tensor:
        """Z (K,), float64."""
        return torch.softmax(self.logits.detach(), dim=0)

    def weigh(self, losses: Tensor) -> Tensor:
        """Return omega (K,), float64 without gradient, and remember the losses (K,).

        Raises:
            TrainingError: a loss is not above its lower bound.
        """
        margins = self._margins(losses)
        self._before = margins
        weights = self.shares / margins
        return weights / weights.sum()

    def learn(self, losses: Tensor, gamma: Tensor) -> Tensor:
        """Move the logits by what a step did: `losses` (K,) of the same batch after it.

        Args:
            losses: after the step that `weigh` weighed the tasks for.
            gamma: (K,), how strongly each logit is drawn to its prior.

        Returns:
            delta (K,): by how much the logarithm of each task has fallen.

        Raises:
            TrainingError: a loss is not above its lower bound.
        """
        assert self._before is not None, "no step to learn from"
        delta = torch.log(self._before) - torch.log(self._margins(losses))
        self.forget()
        z = self.shares
        gradient = z * (delta - (z * delta).sum())
        self.logits.grad = gradient + gamma.double() * (self.logits.detach() - self.prior)
        self._optimizer.step()
        self.logits.grad = None
        self.progress.lerp_(delta, 1 - SMOOTHING)
        return delta

    def forget(self) -> None:
        """Drop the remembered losses: no step was taken."""
        self._before = None

    def _margins(self, losses: Tensor) -> Tensor:
        margins = losses.detach().double().cpu() - self.min_losses + EPSILON
        # Not the other way round: NaN is not above anything.
        for name, margin, loss, low in zip(
            self.names, margins.tolist(), losses.tolist(), self.min_losses.tolist(), strict=True
        ):
            if not margin > EPSILON:
                raise TrainingError(
                    f"the loss of task {name} is {loss:.6g}; expected above its lower bound, "
                    f"{low:g}. Lower --min-losses: -1 serves any rate and distortion"
                )
        return margins

    def state_dict(self) -> dict[str, Any]:
        """Return logits, Adam's state and the smoothed progress."""
        return {
            "logits": self.logits.detach().clone(),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "progress": self.progress.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; the logits stay the same tensor."""
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress.copy_(state["progress"])


def min_norm(gram: Tensor) -> Tensor:
    """Return the weights (2,) of the shortest convex combination of two gradients.

    Args:
        gram: (2, 2), their inner products, of the losses' logarithms.

    Parallel gradients of equal length leave the choice open: a half each.
    """
    q = gram.double()
    spread = float(q[0, 0] + q[1, 1] - 2 * q[0, 1])
    if not spread > 1e-12 * float(q.abs().max()):
        return torch.tensor([0.5, 0.5], dtype=torch.float64)
    first = float((q[1, 1] - q[0, 1]) / spread)
    first = min(1.0, max(0.0, first))
    return torch.tensor([first, 1 - first], dtype=torch.float64)


def gram_matrix(gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Return the inner products (K, K), float64, of K tasks' gradients by parameter.

    A parameter that a task does not reach counts nothing there.
    """
    count = len(gradients)
    gram = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        for j in range(i, count):
            pairs = zip(gradients[i], gradients[j], strict=True)
            # In float64: the products of millions of small numbers are added up.
            products = [
                (a.double() * b.double()).sum() for a, b in pairs if a is not None and b is not None
            ]
            if products:
                # Moved once: a GPU would be waited for with every parameter.
                gram[i, j] = torch.stack(products).sum().cpu()
    return torch.triu(gram) + torch.triu(gram, 1).T
