"""The "cpp" backend of mixture_cross_entropy where it makes the gradients along with the loss (else: operator.py)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from plr_kernels.linear_cross_entropy.cpu import losses_and_gradients
from plr_kernels.mixture_cross_entropy.reference import mixed


def with_gradients(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    temperature: float,
    ignore_index: int,
    reduction: str,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The loss, "mean" or "sum", and its gradients in float32; an empty tensor for one that is not needed."""
    losses, *gradients = losses_and_gradients(
        states, log_weights, items, targets, temperature, ignore_index, reduction, chunk, needs
    )
    return mixed(losses, log_weights, targets, ignore_index, reduction), *gradients
