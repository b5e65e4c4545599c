"""Losses over all items where each process of a run has some rows of their table.

What the operators of `plr_kernels.distributed` return adds up over the processes; here, as everywhere in training, a
term is a mean over a process's own targets, weighed there by their number (`plr.models.collectives`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from plr.data.rows import IGNORED
from plr_kernels.distributed import (
    ItemShard,
    sharded_linear_cross_entropy,
    sharded_mixture_cross_entropy,
    sharded_pairwise_kl,
)

__all__ = ["ShardedItems"]


@dataclass(frozen=True)
class ShardedItems:
    """What targets are told from: all items, of which the process has some.

    Attributes:
        rows: [shard.rows, d], the process's, as scores take them.
        shard: which ones they are.
    """

    rows: Tensor
    shard: ItemShard

    def linear_cross_entropy(self, states: Tensor, targets: Tensor, temperature: float, reduction: str) -> Tensor:
        """As `plr_kernels.linear_cross_entropy` of the process's states; no target counts that is `IGNORED`."""
        losses = sharded_linear_cross_entropy(
            states, self.rows, targets, self.shard, temperature=temperature, reduction="none"
        )
        if reduction == "none":
            return losses
        return losses.sum() / (targets != IGNORED).sum() if reduction == "mean" else losses.sum()

    def mixture_cross_entropy(
        self, states: Tensor, log_weights: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """As `plr_kernels.mixture_cross_entropy` of the process's states."""
        return sharded_mixture_cross_entropy(
            states, log_weights, self.rows, targets, self.shard, temperature=temperature, reduction="none"
        ).mean()

    def pairwise_kl(self, states: Tensor, temperature: float, detach_reference: bool) -> Tensor:
        """As `plr_kernels.pairwise_kl` of the process's groups."""
        part = sharded_pairwise_kl(
            states, self.rows, self.shard, temperature=temperature, detach_reference=detach_reference
        )
        groups = torch.tensor(len(states), device=states.device)
        distributed.all_reduce(groups, group=self.shard.group)
        return part * (groups.to(part.dtype) / len(states))
