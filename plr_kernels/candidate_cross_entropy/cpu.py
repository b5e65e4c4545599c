"""The "cpp" backend of candidate_cross_entropy: csrc/candidate_cross_entropy.cpp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.extension import as_gradient, as_matrix, resources, row_contiguous

_TILE = 32  # rows that the extension computes together


def new_statistics(states: Tensor, items: Tensor, targets: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the loss' derivatives w.r.t. the logits: of the candidates, [⌈R/32⌉, K, 32], of the targets, [R]."""
    rows = states.shape[0]
    tiles = (rows + _TILE - 1) // _TILE
    weights = states.new_empty((tiles, candidates.shape[-1], _TILE), dtype=torch.float32)
    return weights, states.new_empty(rows, dtype=torch.float32)


class _Inputs:
    """The inputs as the extension takes them; holds what they are copied to."""

    def __init__(self, states: Tensor, items: Tensor, targets: Tensor, candidates: Tensor, log_q: Tensor | None):
        self.states, self.items, self.targets = row_contiguous(states), row_contiguous(items), targets.contiguous()
        self.candidates = candidates.contiguous()
        self.log_q = None if log_q is None else log_q.to(torch.float32).contiguous()

    def arguments(self) -> tuple[Any, ...]:
        return (
            *resources(),
            as_matrix(self.states),
            as_matrix(self.items),
            self.targets.data_ptr(),
            self.candidates.data_ptr(),
            self.candidates.shape[-1],
            self.candidates.ndim == 1,
            0 if self.log_q is None else self.log_q.data_ptr(),
        )


def forward(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    log_q: Tensor | None,
    kind: str,
    positive_power: float,
    temperature: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses [R] and, for the backward pass, the statistics."""
    losses = states.new_empty(states.shape[0], dtype=torch.float32)
    weights, target_weights = new_statistics(states, items, targets, candidates)
    inputs = _Inputs(states, items, targets, candidates, log_q)
    _cpp.candidate_cross_entropy_forward(
        *inputs.arguments(),
        kind == "softmax",
        positive_power,
        temperature,
        ignore_index,
        losses.data_ptr(),
        weights.data_ptr(),
        target_weights.data_ptr(),
    )
    return losses, weights, target_weights


def backward(
    losses_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    log_q: Tensor | None,
    weights: Tensor,
    target_weights: Tensor,
    kind: str,
    positive_power: float,
    temperature: float,
    ignore_index: int,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    dim = states.shape[1]
    states_gradient, items_gradient = new_gradients((states, items), (needs_states, needs_items))
    inputs = _Inputs(states, items, targets, candidates, log_q)
    losses_gradient = losses_gradient.contiguous()
    weights, target_weights = weights.contiguous(), target_weights.contiguous()
    _cpp.candidate_cross_entropy_backward(
        *inputs.arguments(),
        kind == "softmax",
        positive_power,
        temperature,
        ignore_index,
        weights.data_ptr(),
        target_weights.data_ptr(),
        losses_gradient.data_ptr(),
        as_gradient(states_gradient, dim, needs_states),
        as_gradient(items_gradient, dim, needs_items),
    )
    return states_gradient, items_gradient
