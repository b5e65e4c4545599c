"""How histories score all items: by the dot product of one state, or by a mixture of several states' distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from plr.models.sharded_items import ShardedItems
from plr_kernels import target_mixture_rank, target_rank, top_items, top_mixture_items
from plr_kernels.distributed import sharded_target_mixture_rank, sharded_target_rank

__all__ = ["ItemScorer"]


@dataclass(frozen=True)
class ItemScorer:
    """What ranks all items for the B histories of a batch.

    With one state a history, an item's score is its dot product with the state. With M states and weights it is the
    log-probability of the item under the mixture,

        s(v) = log Σ_m exp(log_weights[m]) softmax(states[m] itemsᵀ / temperature)[v].

    Attributes:
        states: [B, d], or [B, M, d] of a mixture.
        log_weights: [B, M], the logarithms of weights that sum to 1; None for one state.
        temperature: of the mixture's softmax; one state is ranked alike at any.
    """

    states: Tensor
    log_weights: Tensor | None = None
    temperature: float = 1.0

    def of_rows(self, rows: slice) -> ItemScorer:
        """Return the scorer of some of the histories."""
        log_weights = None if self.log_weights is None else self.log_weights[rows]
        return ItemScorer(self.states[rows], log_weights, self.temperature)

    def top_items(
        self, items: Tensor, k: int, *, exclude: Tensor | None = None, where: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores [B, k] and ids int64 [B, k] of the best of items [V, d], best first, ties to the smaller id.

        exclude int64 [B, X], padded with -1, are not returned, nor what where, bool [V], does not allow; where fewer
        than k are left, -inf and -1 fill up.
        """
        if self.log_weights is None:
            return top_items(self.states, items, k, exclude=exclude, where=where)
        return top_mixture_items(
            self.states, self.log_weights, items, k, temperature=self.temperature, exclude=exclude, where=where
        )

    def target_rank(
        self, items: Tensor | ShardedItems, targets: Tensor, *, exclude: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return how many other items [V, d] score above targets int64 [B], and how many the same: int64 [B] each.

        Items of exclude int64 [B, X], padded with -1, do not count. A row with a score that is not finite has -1, -1.
        Where processes share the items all call it together.
        """
        if isinstance(items, ShardedItems):
            if self.log_weights is None:
                return sharded_target_rank(self.states, items.rows, targets, items.shard, exclude=exclude)
            return sharded_target_mixture_rank(
                self.states, self.log_weights, items.rows, targets, items.shard, temperature=self.temperature,
                exclude=exclude,
            )  # fmt: skip
        if self.log_weights is None:
            return target_rank(self.states, items, targets, exclude=exclude)
        return target_mixture_rank(
            self.states, self.log_weights, items, targets, temperature=self.temperature, exclude=exclude
        )

    def scores(self, items: Tensor) -> Tensor:
        """Return the scores of all items, [B, V]: for small sets."""
        if self.log_weights is None:
            return self.states @ items.T
        log_p = torch.log_softmax(self.states @ items.T / self.temperature, dim=-1)  # [B, M, V]
        return torch.logsumexp(self.log_weights[:, :, None] + log_p, dim=1)
