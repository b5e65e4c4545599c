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

    def settle(self, parameters: Iterable[Parameter], *, processes: int = 1) -> None:
        """Turn the gradients of `batches` losses, each divided by `batches` as Lightning does, into those of the mean.

        Args:
            parameters: those with gradients; with several processes the gradients are means over these already.
            processes: how many there are; the targets of all are counted.
        """
        gradients = [each.grad for each in parameters if each.grad is not None]
        targets = self._targets
        if processes > 1:
            targets = torch.as_tensor(targets, dtype=torch.int64, device=gradients[0].device)
            torch.distributed.all_reduce(targets)
        self._targets = 0
        torch._foreach_mul_(gradients, self.batches * processes / targets)
