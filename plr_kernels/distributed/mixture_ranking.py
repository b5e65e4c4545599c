"""Lists and ranks of mixtures of item distributions over a table that processes share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as distributed
from torch import Tensor

from plr_kernels.dispatch.checks import (
    check_exclude,
    check_ids,
    check_list_length,
    check_states_and_items,
    check_targets,
    check_temperature,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.distributed.peers import (
    Facts,
    Peers,
    agree,
    check_local_table,
    dtype_number,
    temperature_number,
)
from plr_kernels.distributed.ranking import added_counts, check_own_mask, excluded_here, merged_lists
from plr_kernels.distributed.shard import ItemShard
from plr_kernels.target_mixture_rank.reference import normalisers, scores_over
from plr_kernels.top_items.reference import best_of_blocks

__all__ = ["sharded_target_mixture_rank", "sharded_top_mixture_items"]


def sharded_top_mixture_items(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    shard: ItemShard,
    *,
    temperature: float = 1.0,
    exclude: Tensor | None = None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`top_mixture_items` of a process's rows among all items: the k best of all processes' k best.

    The streams' normalisers are of all processes' items, and equal in all, so that equal vectors tie whoever holds
    them. Computed as on the reference backend, by matrix products on blocks of items: W·R·M · 4096 numbers of float64.

    Args:
        states: [R, M, D], as for `top_mixture_items`; R may differ between processes, and be 0; M is the same in all.
        log_weights: [R, M], in the dtype of `states`.
        items: [shard.rows, D], in the dtype of `states`.
        k: how many items, 1 <= k <= V; the same in all processes.
        shard: which rows of the table `items` are.
        temperature: as for `top_mixture_items`; the same in all processes.
        exclude: int64 [R, X], the items that a row must not return, in [0, V), padded with -1; X is the same in all
            processes.
        where: bool [shard.rows], which of the process's items any row of any process may return; None: all of them.

    Returns:
        log-probabilities [R, k] and ids int64 [R, k], as `top_mixture_items` returns them; ties to the smaller id.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit, or does not fit another process's.
        RuntimeError: another process refuses its arguments.
    """

    def check() -> Facts:
        facts = _facts(states, log_weights, items, temperature, exclude, shard)
        check_own_mask(where, states, shard)
        check_list_length(k, shard.items)
        return facts | {"k": k}

    peers = agree(shard, states, check)
    every, scores_of, table = _scores(states, log_weights, items, temperature, peers)
    with torch.no_grad(), no_autocast(every):
        best, ids = best_of_blocks(
            lambda block: scores_of(block).to(every.dtype),
            every,
            table,
            min(k, shard.rows),
            excluded_here(exclude, peers),
            where,
        )
        return merged_lists(best, ids, k, peers)


def sharded_target_mixture_rank(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    shard: ItemShard,
    *,
    temperature: float = 1.0,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`target_mixture_rank` of a process's rows among all items: the counts of all processes, added up.

    Computed as `sharded_top_mixture_items`. Equal vectors tie exactly, whoever holds them.

    Args:
        states, log_weights, items, shard, temperature: as for `sharded_top_mixture_items`.
        targets: int64 [R], in [0, V).
        exclude: int64 [R, X], the items that do not count, in [0, V), padded with -1; the target always counts. X is
            the same in all processes.

    Returns:
        greater and equal, int64 [R] each; -1, -1 for a row with a score that is not finite.

    Raises:
        As `sharded_top_mixture_items`.
    """

    def check() -> Facts:
        facts = _facts(states, log_weights, items, temperature, exclude, shard)
        check_ids("targets", targets, "R", states, {"R": facts["R"]})
        check_targets(targets, shard.items)
        return facts

    peers = agree(shard, states, check)
    every, scores_of, table = _scores(states, log_weights, items, temperature, peers)
    with torch.no_grad(), no_autocast(every):

        def scores_of_vectors(vectors: Tensor) -> Tensor:
            return scores_of(vectors[:, None]).squeeze(1)

        return added_counts(scores_of, scores_of_vectors, table, targets, exclude, peers)


def _facts(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    temperature: float,
    exclude: Tensor | None,
    shard: ItemShard,
) -> Facts:
    """Check the arguments as far as one process can; returns what the others' must agree with."""
    states, log_weights, items = floating_inputs(states=states, log_weights=log_weights, items=items)
    sizes = check_states_and_items("R M D", states, items, log_weights)
    check_local_table(items, shard)
    check_temperature(temperature)
    if exclude is not None:
        check_ids("exclude", exclude, "R X", states, sizes)
        check_exclude(exclude, shard.items)
    return {
        "R": sizes["R"],
        "D": sizes["D"],
        "dtype": dtype_number(states),
        "M": sizes["M"],
        "X": sizes.get("X", 0),
        "temperature": temperature_number(temperature),
    }


@torch.no_grad()
def _scores(
    states: Tensor, log_weights: Tensor, items: Tensor, temperature: float, peers: Peers
) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
    """Return all states [N, M, D], N = W·R*, the scores [N, width] that they give a block, and the process's rows."""
    states, log_weights, items = floating_inputs(
        states=states.detach(), log_weights=log_weights.detach(), items=items.detach()
    )
    with no_autocast(states):
        every, weights, table = upcast(peers.gather(states)), upcast(peers.gather(log_weights)), upcast(items)
        own = normalisers(every, table, temperature)  # Z_m of the process's items, float64 [N, M]
        largest = peers.total(own, distributed.ReduceOp.MAX)
        lse = largest + peers.total((own - largest).exp()).log()
    return every, scores_over(every, weights, lse, temperature), table
