"""The "cpp" backend of linear_cross_entropy: csrc/linear_cross_entropy.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.extension import (
    TARGET_STATISTICS,
    as_gradient,
    as_matrix,
    resources,
    rounds_float32,
    row_contiguous,
)
from plr_kernels.linear_cross_entropy.reference import reduced


def new_statistics(states: Tensor) -> Tensor:
    """Memory for the `TARGET_STATISTICS` of every row: float32 [3, R]."""
    return states.new_empty((len(TARGET_STATISTICS), states.shape[0]), dtype=torch.float32)


def forward(
    states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """The losses [R] and, for the backward pass, the statistics."""
    losses, statistics = states.new_empty(states.shape[0], dtype=torch.float32), new_statistics(states)
    states, items, targets = row_contiguous(states), row_contiguous(items), targets.contiguous()
    _cpp.linear_cross_entropy_forward(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        as_matrix(items),
        targets.data_ptr(),
        temperature,
        ignore_index,
        losses.data_ptr(),
        statistics.data_ptr(),
    )
    return losses, statistics


def backward(
    losses_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    statistics: Tensor,
    temperature: float,
    ignore_index: int,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    dim = states.shape[1]
    states_gradient, items_gradient = new_gradients((states, items), (needs_states, needs_items))
    states, items, targets = row_contiguous(states), row_contiguous(items), targets.contiguous()
    losses_gradient, statistics = losses_gradient.contiguous(), statistics.contiguous()
    _cpp.linear_cross_entropy_backward(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        as_matrix(items),
        targets.data_ptr(),
        temperature,
        ignore_index,
        statistics.data_ptr(),
        losses_gradient.data_ptr(),
        as_gradient(states_gradient, dim, needs_states),
        as_gradient(items_gradient, dim, needs_items),
    )
    return states_gradient, items_gradient


def with_gradients(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    temperature: float,
    ignore_index: int,
    reduction: str,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, "mean" or "sum", and its gradients in float32; an empty tensor for one that is not needed."""
    losses, states_gradient, _, items_gradient = losses_and_gradients(
        states, None, items, targets, temperature, ignore_index, reduction, chunk, (needs[0], False, needs[1])
    )
    return reduced(losses, targets, ignore_index, reduction), states_gradient, items_gradient


def losses_and_gradients(
    states: Tensor,
    log_weights: Tensor | None,
    items: Tensor,
    targets: Tensor,
    temperature: float,
    ignore_index: int,
    reduction: str,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cross-entropy of every state, and the gradients of the loss, with the scores of `chunk` states at a time.

    Args:
        states: [R, D], or [R, M, D] of a mixture.
        log_weights: [R, M], of a mixture.
        items: [V, D].
        targets: [R].
        temperature, ignore_index: as the public functions take them.
        reduction: what the loss is of those of the rows, "mean" or "sum".
        chunk: at least M.
        needs: whether the gradients of states, log_weights and items are wanted.

    Returns:
        float32 [R] or [R, M], 0 where a row does not count, and the three gradients in float32; an empty tensor for one
        that is not wanted.
    """
    dim, streams = items.shape[1], 1 if log_weights is None else log_weights.shape[1]
    losses = states.new_empty(states.shape[:-1], dtype=torch.float32)
    weights = losses.new_empty(0) if log_weights is None else log_weights.to(torch.float32).contiguous()
    states_gradient, weights_gradient, items_gradient = new_gradients(
        (states, weights, items), needs, dtype=torch.float32
    )
    states, items, targets = row_contiguous(states), row_contiguous(items), targets.contiguous()
    _cpp.cross_entropy_gradients(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        as_matrix(items),
        targets.data_ptr(),
        streams,
        0 if log_weights is None else weights.data_ptr(),
        temperature,
        ignore_index,
        reduction == "mean",
        chunk,
        losses.data_ptr(),
        as_gradient(states_gradient, dim, needs[0]),
        weights_gradient.data_ptr() if needs[1] else 0,
        as_gradient(items_gradient, dim, needs[2]),
    )
    return losses, states_gradient, weights_gradient, items_gradient
