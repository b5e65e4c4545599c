"""Lists of the best items, and ranks of targets, over a table that processes share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from plr_kernels.dispatch.checks import (
    check_exclude,
    check_ids,
    check_integer,
    check_list_length,
    check_shape,
    check_states_and_items,
    check_targets,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.distributed.peers import Facts, Peers, agree, check_local_table, dtype_number
from plr_kernels.distributed.shard import ItemShard
from plr_kernels.target_rank.reference import count_against, vector_keys
from plr_kernels.top_items import top_items

__all__ = ["sharded_target_rank", "sharded_top_items"]

_SMALL = 4096
"""Rows of a table, of which no backend chooses by their number how it sums, if there are more."""


def sharded_top_items(
    states: Tensor,
    items: Tensor,
    k: int,
    shard: ItemShard,
    *,
    exclude: Tensor | None = None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`top_items` of a process's states among all items: the k best of all processes' k best.

    Args:
        states: [R, D], as for `top_items`; R may differ between processes, and be 0.
        items: [shard.rows, D], in the dtype of `states`.
        k: how many items, 1 <= k <= V; the same in all processes.
        shard: which rows of the table `items` are.
        exclude: int64 [R, X], the items that a row must not return, in [0, V), padded with -1; X is the same in all
            processes.
        where: bool [shard.rows], which of the process's items any row of any process may return: `shard.local` of a
            mask of all; None: all of the process's.

    Returns:
        scores [R, k] and ids int64 [R, k], as `top_items` returns them; ties to the smaller id.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit, or does not fit another process's.
        RuntimeError: another process refuses its arguments.
    """

    def check() -> Facts:
        facts = _facts(states, items, exclude, shard)
        check_own_mask(where, states, shard)
        check_list_length(k, shard.items)
        return facts | {"k": k}

    peers = agree(shard, states, check)
    states, items = floating_inputs(states=states.detach(), items=items.detach())
    with torch.no_grad(), no_autocast(states):
        items, where = _as_many_as_others(items, where, shard)
        best, ids = top_items(
            peers.gather(states), items, min(k, shard.rows), exclude=excluded_here(exclude, peers), where=where
        )
        return merged_lists(best, ids, k, peers)


def sharded_target_rank(
    states: Tensor, items: Tensor, targets: Tensor, shard: ItemShard, *, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`target_rank` of a process's states among all items: the counts of all processes, added up.

    Computed by matrix products on blocks of items, in PyTorch, as on the reference backend: the target's own score is a
    sum of its own, within rounding of the others'. Equal vectors tie exactly, whoever holds them.

    Args:
        states: [R, D], as for `target_rank`; R may differ between processes, and be 0.
        items: [shard.rows, D], in the dtype of `states`.
        targets: int64 [R], in [0, V).
        shard: which rows of the table `items` are.
        exclude: int64 [R, X], the items that do not count, in [0, V), padded with -1; the target always counts. X is
            the same in all processes.

    Returns:
        greater and equal, int64 [R] each; -1, -1 for a row with a score that is not finite.

    Raises:
        As `sharded_top_items`.
    """

    def check() -> Facts:
        facts = _facts(states, items, exclude, shard)
        check_ids("targets", targets, "R", states, {"R": facts["R"]})
        check_targets(targets, shard.items)
        return facts

    peers = agree(shard, states, check)
    states, items = floating_inputs(states=states.detach(), items=items.detach())
    with torch.no_grad(), no_autocast(states):
        every, table = upcast(peers.gather(states)), upcast(items)

        def scores_of_vectors(vectors: Tensor) -> Tensor:
            return (every * vectors).sum(dim=1)

        return added_counts(lambda block: every @ block.T, scores_of_vectors, table, targets, exclude, peers)


def _as_many_as_others(items: Tensor, where: Tensor | None, shard: ItemShard) -> tuple[Tensor, Tensor | None]:
    """Return a small table with as many rows as that of any process, and the mask of those that may be returned.

    How scores are summed depends on a table's size: from V = 1024 on, of bfloat16, in another order. Equal vectors of
    processes with 1023 and 1024 rows would not tie.
    """
    if shard.rows == shard.first_of(1) or shard.rows >= _SMALL:
        return items, where
    if where is None:
        where = torch.ones(shard.rows, dtype=torch.bool, device=items.device)
    return pad(items, (0, 0, 0, 1)), pad(where, (0, 1))


def merged_lists(best: Tensor, ids: Tensor, k: int, peers: Peers) -> tuple[Tensor, Tensor]:
    """Return the own rows' k best of all processes' lists.

    Args:
        best, ids: [W·R*, n], n <= k, the best of the process's rows of the table for all states, and which of these
            rows they are, ties to the smaller; -1 where there are no more.
        k: how many.
        peers: the processes.

    Returns:
        scores [R, k] and ids int64 [R, k], of the whole table.
    """
    ids = torch.where(ids < 0, ids, ids + peers.shard.first)
    missing = (0, k - best.shape[1])
    # One process's list after the other, in the order of their rows: [R, W·k]
    scores = peers.exchange(pad(best, missing, value=float("-inf"))).transpose(0, 1).flatten(1)
    ids = peers.exchange(pad(ids, missing, value=-1)).transpose(0, 1).flatten(1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)  # ties stay in the order of their ids
    return scores[:, :k].contiguous(), ids.gather(1, order[:, :k])


def added_counts(
    scores_of: Callable[[Tensor], Tensor],
    scores_of_vectors: Callable[[Tensor], Tensor],
    table: Tensor,
    targets: Tensor,
    exclude: Tensor | None,
    peers: Peers,
) -> tuple[Tensor, Tensor]:
    """Return how many items of all processes score above the own rows' targets, and how many the same: int64 [R] each.

    Args:
        scores_of: the scores [W·R*, width] that all states give a block [width, D] of the table.
        scores_of_vectors: those [W·R*] that each state gives its own of vectors [W·R*, D].
        table: the process's rows, of the dtype of the sums.
        targets, exclude: of the own rows.
        peers: the processes.
    """
    shard = peers.shard
    wanted = peers.gather(targets)  # [N], N = W·R*
    inside = shard.holds(wanted)
    rows = torch.where(inside, wanted - shard.first, 0)
    vectors = table[rows]  # [N, D]
    # Both are one process's, and sums with nothing: exact. But for −0 + 0 = 0, which is no other number.
    score = peers.total(scores_of_vectors(vectors).masked_fill(~inside, 0))
    key = peers.total(vector_keys(vectors).masked_fill(~inside, 0))
    greater, equal = count_against(
        scores_of, table, torch.where(inside, rows, -1), score, key, excluded_here(exclude, peers)
    )
    counts = torch.stack([greater.clamp(min=0), equal.clamp(min=0), (greater < 0).long()], dim=1)
    greater, equal, wrong = peers.scatter(counts).unbind(1)
    return greater.masked_fill(wrong > 0, -1), equal.masked_fill(wrong > 0, -1)


def _facts(states: Tensor, items: Tensor, exclude: Tensor | None, shard: ItemShard) -> Facts:
    """Check the arguments as far as one process can; returns what the others' must agree with."""
    states, items = floating_inputs(states=states, items=items)
    sizes = check_states_and_items("R D", states, items)
    check_local_table(items, shard)
    if exclude is not None:
        check_ids("exclude", exclude, "R X", states, sizes)
        check_exclude(exclude, shard.items)
    return {"R": sizes["R"], "D": sizes["D"], "dtype": dtype_number(states), "X": sizes.get("X", 0)}


def check_own_mask(where: Tensor | None, states: Tensor, shard: ItemShard) -> None:
    """Raise unless `where` is a mask of the process's rows, if it is given."""
    if where is not None:
        check_integer("where", where, (torch.bool,), "states", states)
        check_shape("where", where, "shard.rows", {"shard.rows": shard.rows})


def excluded_here(exclude: Tensor | None, peers: Peers) -> Tensor | None:
    """Return the excluded items of all rows [N, X], by the process's own rows of the table; −1 for those of others."""
    if exclude is None or exclude.shape[1] == 0:
        return None
    every, shard = peers.gather(exclude, -1), peers.shard
    return torch.where(shard.holds(every), every - shard.first, -1)
