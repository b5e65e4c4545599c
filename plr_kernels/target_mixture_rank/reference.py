"""The definition of target_mixture_rank: one sweep for the streams' normalisers, one for the counts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plr_kernels.target_rank.reference import count_ranks
from plr_kernels.top_items.reference import blocks


def mixture_scores(
    states: Tensor, log_weights: Tensor, items: Tensor, temperature: float
) -> Callable[[Tensor], Tensor]:
    """The function from a block [width, D] or rows [R, 1, D] of items to log Σ_m exp(log_weights[m]) p_m [R, width].

    In float64 from the products on: at a small temperature logits are too large for float32, at a large one they
    differ by less than it tells apart.
    """
    return scores_over(states, log_weights, normalisers(states, items, temperature), temperature)


def normalisers(states: Tensor, items: Tensor, temperature: float) -> Tensor:
    """Z_m = log Σ_v exp(states[m]·items[v] / temperature), float64 [R, M]."""
    lse = states.new_full(states.shape[:2], -torch.inf, dtype=torch.float64)
    for _, block in blocks(items):
        lse = torch.logaddexp(lse, torch.logsumexp(_logits(states, block, temperature), dim=2))
    return lse


def scores_over(
    states: Tensor, log_weights: Tensor, lse: Tensor, temperature: float
) -> Callable[[Tensor], Tensor]:
    """The function of `mixture_scores` for the streams' normalisers lse [R, M], of whatever items they are."""
    offsets = (log_weights - lse)[:, :, None]  # [R, M, 1]
    return lambda block: torch.logsumexp(offsets + _logits(states, block, temperature), dim=1)


def _logits(states: Tensor, block: Tensor, temperature: float) -> Tensor:
    return (states @ block.mT).double() / temperature  # [R, M, width]


def target_mixture_rank(
    states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor, temperature: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many other items are more probable than the target under the mixture, and how many as much: int64 [R]."""
    scores_of = mixture_scores(states, log_weights, items, temperature)
    own = scores_of(items[targets][:, None]).squeeze(1)  # [R]
    return count_ranks(scores_of, items, targets, own, exclude)
