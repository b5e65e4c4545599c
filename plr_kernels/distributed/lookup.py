"""Rows of a table that processes share, fetched from those that hold them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.autograd.function import once_differentiable

from plr_kernels.dispatch.checks import (
    check_flag,
    check_floating,
    check_integer,
    check_shape,
    check_tensor,
    check_values,
)
from plr_kernels.dispatch.precision import upcast
from plr_kernels.distributed.peers import Facts, agree, check_local_table, dtype_number, gradients_number
from plr_kernels.distributed.shard import ItemShard

__all__ = ["sharded_lookup"]


def sharded_lookup(items: Tensor, ids: Tensor, shard: ItemShard, *, sparse: bool = False) -> Tensor:
    """Look item ids up in a table of which the process holds some rows, as `torch.nn.functional.embedding` does.

    Each id is fetched once, however often a process names it; in the backward pass the gradient of its row goes back to
    the process that holds it, which adds the processes' up, on a CPU in their order.

    Args:
        items: [shard.rows, D], float32, bfloat16, float16 or float64.
        ids: int64 of any shape, in [0, V); the shape may differ between processes, and be empty.
        shard: which rows of the table `items` are.
        sparse: whether the gradient w.r.t. `items` is a sparse tensor, of the rows that some process names; a row that
            several name is in it several times. The same in all processes.

    Returns:
        [*ids.shape, D], in the dtype of `items`, with gradients.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit, or does not fit another process's.
        RuntimeError: another process refuses its arguments.
    """

    def check() -> Facts:
        check_tensor("items", items)
        check_floating(items=items)
        sizes: dict[str, int] = {}
        check_shape("items", items, "V D", sizes)
        check_local_table(items, shard)
        check_integer("ids", ids, (torch.int64,), "items", items)
        check_values("ids", ids, 0, shard.items, "in [0, V)", V=shard.items)
        check_flag("sparse", sparse)
        return {
            "R": ids.numel(),
            "D": sizes["D"],
            "dtype": dtype_number(items),
            "sparse": int(sparse),
            "gradients": gradients_number(items),
        }

    agree(shard, items, check)
    distinct, places = torch.unique(ids, return_inverse=True)  # ascending: those of one process after the other's
    return _Lookup.apply(items, distinct, shard, sparse)[places]


class _Lookup(torch.autograd.Function):
    """The rows of ascending ids [U], asked of those that hold them."""

    @staticmethod
    def forward(ctx: Any, items: Tensor, ids: Tensor, shard: ItemShard, sparse: bool) -> Tensor:
        asked = shard.counts(ids)  # of each process
        wanted = ids.new_empty(shard.processes)
        distributed.all_to_all_single(wanted, torch.tensor(asked, device=ids.device), group=shard.group)
        given = wanted.tolist()  # to each process
        rows = _sent(ids, asked, given, shard) - shard.first
        ctx.shard, ctx.asked, ctx.given, ctx.shape, ctx.sparse = shard, asked, given, items.shape, sparse
        ctx.save_for_backward(rows)
        return _sent(items.detach()[rows], given, asked, shard)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        received = _sent(gradient, ctx.asked, ctx.given, ctx.shard)
        if ctx.sparse:
            # The rows are known to be the process's. Said, for where nothing is PyTorch warns that it does not check.
            of_rows = torch.sparse_coo_tensor(rows[None], received, ctx.shape, check_invariants=False)
            return of_rows, None, None, None
        received = upcast(received)
        of_items = received.new_zeros(ctx.shape).index_add_(0, rows, received)
        return of_items.to(gradient.dtype), None, None, None


def _sent(values: Tensor, counts: list[int], received: list[int], shard: ItemShard) -> Tensor:
    """Send to each process so many rows of [n, ...], one process's after the other's; returns what comes from each."""
    result = values.new_empty((sum(received), *values.shape[1:]))
    distributed.all_to_all_single(result, values.contiguous(), received, counts, group=shard.group)
    return result
