"""The "cpp" backend of pairwise_kl: csrc/pairwise_kl.cpp."""

import torch
from torch import Tensor

from plr_kernels import _cpp
from plr_kernels.extension import as_gradient, as_matrix, new_gradient, resources, rounds_float32, with_plain_rows


def new_statistics(states: Tensor) -> tuple[Tensor, Tensor]:
    """Zeroed memory for what is kept of every state's distribution: statistics [5, B, N] and top items [B, N]."""
    shape = states.shape[:2]
    return states.new_zeros((5, *shape), dtype=torch.float32), states.new_zeros(shape, dtype=torch.int64)


def forward(states: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, for the backward pass, the two of `new_statistics`."""
    batch, group, _ = states.shape
    statistics, tops = new_statistics(states)
    if batch == 0 or group == 1:
        return states.new_zeros((), dtype=torch.float32), statistics, tops
    states, items = with_plain_rows(states), with_plain_rows(items)
    loss = _cpp.pairwise_kl_forward(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        group,
        as_matrix(items),
        temperature,
        statistics.data_ptr(),
        tops.data_ptr(),
    )
    return states.new_tensor(loss, dtype=torch.float32), statistics, tops


def backward(
    loss_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    tops: Tensor,
    temperature: float,
    detach_reference: bool,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    batch, group, dim = states.shape
    states_gradient, items_gradient = new_gradient(states, needs_states), new_gradient(items, needs_items)
    if batch == 0 or group == 1:
        return states_gradient.zero_(), items_gradient.zero_()
    statistics, tops = statistics.contiguous(), tops.contiguous()
    states, items = with_plain_rows(states), with_plain_rows(items)
    _cpp.pairwise_kl_backward(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        group,
        as_matrix(items),
        temperature,
        detach_reference,
        statistics.data_ptr(),
        tops.data_ptr(),
        loss_gradient.item(),
        as_gradient(states_gradient, dim, needs_states),
        as_gradient(items_gradient, dim, needs_items),
    )
    return states_gradient, items_gradient
