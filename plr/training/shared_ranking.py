"""Held-out rows ranked by all processes of a run together: each its share, the result that of one alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as distributed
from torch import Tensor

from plr.data import Rows
from plr.errors import RunError, UserError
from plr.evaluation import Ranking, evaluation_batches, rank_rows
from plr.evaluation.batches import share_of_order
from plr.models import RecommenderModel
from plr.serving.engine_scorer import engine_scorer
from plr.training.sharded_ranking import rank_over_shards

__all__ = ["rank_together", "share_of"]


def share_of(rows: int) -> tuple[int, int]:
    """Return which share of so many rows is this process's: (its number, of how many).

    One of one where there is no other process, or more of them than rows: then each ranks them all.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or rows < distributed.get_world_size():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def rank_together(
    model: RecommenderModel,
    rows: Rows,
    batch_size: int,
    *,
    exclude_seen: bool,
    rank_with: str = "model",
    on_batch: Callable[[int], None] | None = None,
) -> Ranking:
    """Rank the target of every row on the model's device; every process gets the ranks of all, in the same order.

    Args:
        model: as for `rank_rows`; with equal weights in all processes, or a share of the item table in each.
        rows: all rows, in every process.
        batch_size: rows that one process ranks at a time.
        exclude_seen: as for `rank_rows`.
        rank_with: as in the options: model or engine.
        on_batch: called with the number of this process's rows after each batch.

    Raises:
        EvaluationError: a score of this process's rows is not finite.
        RunError: another process could not rank its rows, and says why.
    """
    rank, world_size = share_of(len(rows))
    rank_share: Callable[[], Ranking]
    if model is not None and model.items.part is not None:
        rank_share = partial(
            rank_over_shards, model, rows, batch_size, rank, world_size, exclude_seen=exclude_seen, on_batch=on_batch
        )
    else:
        batches = evaluation_batches(rows, batch_size, "cpu", rank, world_size)
        scorer_of = engine_scorer if rank_with == "engine" else None
        rank_share = partial(
            rank_rows, model, batches, exclude_seen=exclude_seen, on_batch=on_batch, scorer_of=scorer_of
        )
    if world_size == 1:
        return rank_share()
    try:
        own, error = rank_share().ranks, None
    except UserError as raised:
        own, error = torch.empty(0, dtype=torch.float64), raised
    failed = gather_rows(torch.tensor([float(error is not None)]))
    if error is not None:
        raise error
    if failed.any():
        raise RunError("another process of the run could not rank its rows; it says above why")
    shares = [_order(rows, batch_size, each, world_size) for each in range(world_size)]
    ranks = torch.empty(len(rows), dtype=torch.float64)
    ranks[torch.cat(shares)] = gather_rows(own)
    order = _order(rows, batch_size, 0, 1)
    targets = torch.cat([rows.batch(index).targets for index in order.split(batch_size)])
    return Ranking(users=rows.users[order], targets=targets, ranks=ranks[order])


def gather_rows(values: Tensor) -> Tensor:
    """Join [R_i] of all processes to [sum R_i], in the order of their numbers, on each of them."""
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor([values.numel()], device=device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    # all_gather wants equal shapes: pad to the longest, then cut.
    longest = max(int(each) for each in counts)
    padded = torch.zeros(longest, dtype=values.dtype, device=device)
    padded[: values.numel()] = values.to(device)
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(each)] for part, each in zip(parts, counts, strict=True)]).to(values.device)


def _order(rows: Rows, batch_size: int, rank: int, world_size: int) -> Tensor:
    """Return the numbers of a process's rows in the order in which it ranks them: int64 [R_i]."""
    return torch.cat(share_of_order(rows, batch_size, rank, world_size))
