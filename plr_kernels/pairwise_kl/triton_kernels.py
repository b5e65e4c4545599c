"""The "triton" backend of pairwise_kl: the kernels of score_kernels.py, and the loss from their statistics.

With t a logit's distance from the row's largest, and r the deviation of t from its mean over the group, the loss is
Σ_i Σ_v p_i(v) r_i(v) / (B (N − 1)).
"""

import torch
from torch import Tensor

from plr_kernels import score_kernels
from plr_kernels.triton_common import LN_2, new_gradient


def forward(states: Tensor, items: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, for the backward pass, statistics [5, B, N] of every state's distribution and top items [B, N]."""
    batch, group, _ = states.shape
    if batch == 0 or group == 1:
        statistics = states.new_zeros((5, batch, group), dtype=torch.float32)
        return statistics.new_zeros(()), statistics, statistics.new_zeros((batch, group), dtype=torch.int64)
    statistics, tops = score_kernels.forward(states, items, temperature, None)
    return statistics[3].sum() * (LN_2 / (batch * (group - 1))), statistics, tops


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
    batch, group, _ = states.shape
    if batch == 0 or group == 1:
        return new_gradient(states, needs_states).zero_(), new_gradient(items, needs_items).zero_()
    return score_kernels.backward(
        states,
        items,
        statistics,
        tops,
        None,
        loss_gradient,
        1 / (batch * (group - 1)),
        temperature,
        detach_reference,
        needs_states,
        needs_items,
    )
