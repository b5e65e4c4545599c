"""The "cpp" backend of linear_cross_entropy: csrc/linear_cross_entropy.cpp."""

from __future__ import annotations

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
