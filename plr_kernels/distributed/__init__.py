"""Losses and lists over an item table whose rows are shared among processes: each holds some, and none has all.

Every process has states of its own and its rows of the table [V, D]. The states are gathered, each process computes
with all of them and its rows, and what is sent back are a few numbers for each state; in the backward pass the states'
gradients are summed and scattered. The table, its gradient and the scores never leave a process.

All functions are collective operations: every process of the group calls them, in the same order, and differentiates
the result or none does.
"""

from plr_kernels.distributed.cross_entropy import sharded_linear_cross_entropy, sharded_mixture_cross_entropy
from plr_kernels.distributed.divergence import sharded_pairwise_kl
from plr_kernels.distributed.lookup import sharded_lookup
from plr_kernels.distributed.mixture_ranking import sharded_target_mixture_rank, sharded_top_mixture_items
from plr_kernels.distributed.ranking import sharded_target_rank, sharded_top_items
from plr_kernels.distributed.shard import ItemShard

__all__ = [
    "ItemShard",
    "sharded_linear_cross_entropy",
    "sharded_lookup",
    "sharded_mixture_cross_entropy",
    "sharded_pairwise_kl",
    "sharded_target_mixture_rank",
    "sharded_target_rank",
    "sharded_top_items",
    "sharded_top_mixture_items",
]
