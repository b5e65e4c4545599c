"""The "cpp" backend of consistent_mixture_cross_entropy where it is one sweep: csrc/consistent_cross_entropy.cpp.

Else: operator.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.consistent_mixture_cross_entropy.reference import of_rows, rows
from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.extension import as_gradient, as_matrix, resources, rounds_float32, row_contiguous
from plr_kernels.mixture_cross_entropy.reference import mixed


def with_gradients(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    drawn: Tensor,
    weight: float,
    temperature: float,
    ignore_index: int,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The loss, its two parts, and its gradients in float32, in one pass with the scores of `chunk` states at a time.

    An empty tensor for a gradient that is not needed. The weight is not 0.
    """
    histories, _, streams, dim = states.shape
    losses = states.new_empty(states.shape[:-1], dtype=torch.float32)
    weights = log_weights.to(torch.float32).contiguous()
    gradients = new_gradients((states, weights, items), needs, dtype=torch.float32)
    states_gradient, weights_gradient, items_gradient = gradients
    if histories == 0:
        return *(losses.new_zeros(()) for _ in range(3)), *(gradient.zero_() for gradient in gradients)
    states, items = row_contiguous(states), row_contiguous(items)
    targets, drawn = targets.contiguous(), drawn.contiguous()
    divergence = _cpp.consistent_cross_entropy_gradients(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        as_matrix(items),
        targets.data_ptr(),
        drawn.data_ptr(),
        weights.data_ptr(),
        streams,
        temperature,
        weight,
        ignore_index,
        chunk,
        losses.data_ptr(),
        as_gradient(states_gradient, dim, needs[0]),
        weights_gradient.data_ptr() if needs[1] else 0,
        as_gradient(items_gradient, dim, needs[2]),
    )
    of_states, of_weights = rows(losses, weights)
    cross_entropy = mixed(of_states, of_weights, of_rows(targets), ignore_index, "mean")
    return cross_entropy + weight * divergence, cross_entropy, losses.new_tensor(divergence), *gradients
