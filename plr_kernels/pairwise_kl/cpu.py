"""The "cpp" backend of pairwise_kl: csrc/pairwise_kl.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.extension import as_gradient, as_matrix, resources, rounds_float32, row_contiguous

# What the backward pass keeps of every state: the columns of DivergenceColumns in csrc/pairwise_kl.cpp.
STATISTICS: Final = ("maximum", "inverse_sum", "mean_deviation", "prob_of_rest", "argmax_deviation")


def new_statistics(states: Tensor) -> tuple[Tensor, Tensor]:
    """Zeroed memory for the `STATISTICS` of every state, [5, B, N], and its argmax, [B, N]."""
    shape = states.shape[:2]
    return states.new_zeros((len(STATISTICS), *shape), dtype=torch.float32), states.new_zeros(shape, dtype=torch.int64)


def forward(states: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, for the backward pass, the two of `new_statistics`."""
    batch, group, _ = states.shape
    statistics, argmaxes = new_statistics(states)
    if batch == 0 or group == 1:
        return states.new_zeros((), dtype=torch.float32), statistics, argmaxes
    states, items = row_contiguous(states), row_contiguous(items)
    loss = _cpp.pairwise_kl_forward(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        group,
        as_matrix(items),
        temperature,
        statistics.data_ptr(),
        argmaxes.data_ptr(),
    )
    return states.new_tensor(loss, dtype=torch.float32), statistics, argmaxes


def backward(
    loss_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    argmaxes: Tensor,
    temperature: float,
    detach_reference: bool,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    batch, group, dim = states.shape
    states_gradient, items_gradient = new_gradients((states, items), (needs_states, needs_items))
    if batch == 0 or group == 1:
        return states_gradient.zero_(), items_gradient.zero_()
    statistics, argmaxes = statistics.contiguous(), argmaxes.contiguous()
    states, items = row_contiguous(states), row_contiguous(items)
    _cpp.pairwise_kl_backward(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        group,
        as_matrix(items),
        temperature,
        detach_reference,
        statistics.data_ptr(),
        argmaxes.data_ptr(),
        loss_gradient.item(),
        as_gradient(states_gradient, dim, needs_states),
        as_gradient(items_gradient, dim, needs_items),
    )
    return states_gradient, items_gradient


def with_gradients(
    states: Tensor, items: Tensor, temperature: float, detach_reference: bool, chunk: int, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients in float32, in one pass with the scores of `chunk` states at a time.

    An empty tensor for a gradient that is not needed.
    """
    _, group, dim = states.shape
    states_gradient, items_gradient = new_gradients((states, items), needs, dtype=torch.float32)
    if states.shape[0] == 0 or group == 1:
        return states.new_zeros((), dtype=torch.float32), states_gradient.zero_(), items_gradient.zero_()
    states, items = row_contiguous(states), row_contiguous(items)
    loss = _cpp.pairwise_kl_gradients(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        group,
        as_matrix(items),
        temperature,
        detach_reference,
        chunk,
        as_gradient(states_gradient, dim, needs[0]),
        as_gradient(items_gradient, dim, needs[1]),
    )
    return states_gradient.new_tensor(loss), states_gradient, items_gradient
