"""The gradients of several batches as that of one: each batch's mean is weighed by its targets."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["AccumulatedMean"]


class AccumulatedMean:
    """Turns sums of batches' mean losses into the mean over all their targets.

    A batch's loss is a mean over n_i targets. Each counts n_i times (`weighted`), and before the step the gradients,
    which are then of Σ n_i·loss_i over the number of batches, are divided by what makes that the mean (`settle`).
    """

    def __init__(self, batches: int):
        self.batches = batches
        self._targets: int | Tensor = 0

    def weighted(self, loss: Tensor, targets: int | Tensor) -> Tensor:
        """Return the loss of a batch, times its number of targets, which is noted."""
        self._targets = self._targets + targets
        return loss * targets

    def settle(self, parameters: Iterable[Parameter]) -> None:
        """Turn the gradients of `batches` losses, divided by `batches` as Lightning does, into those of the mean."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        torch._foreach_mul_(gradients, self.batches / self._targets)
        self._targets = 0
