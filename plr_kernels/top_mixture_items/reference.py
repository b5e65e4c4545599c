"""The definition of top_mixture_items: one sweep for the streams' normalisers, one for a running list of the best."""

from __future__ import annotations

from torch import Tensor

from plr_kernels.target_mixture_rank.reference import mixture_scores
from plr_kernels.top_items.reference import best_of_blocks


def top_mixture_items(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    temperature: float,
    exclude: Tensor | None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most probable items of each row under the mixture, best first, ties to the smaller id."""
    scores_of = mixture_scores(states, log_weights, items, temperature)
    return best_of_blocks(lambda block: scores_of(block).to(states.dtype), states, items, k, exclude, where)
