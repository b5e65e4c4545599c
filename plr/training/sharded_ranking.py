"""Rows ranked where processes share the item table: a batch of each process at a time, by all together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from plr.data import LengthGroupedBatches, Rows
from plr.errors import EvaluationError
from plr.evaluation import Ranking
from plr.evaluation.ranking import seen_items
from plr.models import RecommenderModel
from plr.models.items.encoders import SharableItemEncoder
from plr.signals import raise_again

__all__ = ["rank_over_shards"]


@torch.no_grad()
def rank_over_shards(
    model: RecommenderModel,
    rows: Rows,
    batch_size: int,
    rank: int,
    world_size: int,
    *,
    exclude_seen: bool,
    on_batch: Callable[[int], None] | None = None,
) -> Ranking:
    """Rank a process's share of the rows among all items, of which each process has some.

    All processes call it. Where a batch of all has fewer rows than processes, some rank its first as a stand-in: each
    has to answer for its items.

    Args:
        model: as for `rank_rows`, with a share of the item table.
        rows: all rows, in every process.
        batch_size: rows that one process ranks at a time.
        rank, world_size: which share of the rows; the same for all, or each its own.
        exclude_seen, on_batch: as for `rank_rows`.

    Raises:
        EvaluationError: a score of this process's rows is not finite; after all have ranked theirs.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    users, targets, ranks = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)], []
    wrong: list[int] = []
    try:
        model.eval()
        assert isinstance(model.items, SharableItemEncoder)
        held = model.items.held_vectors()
        for index in LengthGroupedBatches(rows.lengths, batch_size * world_size, shuffle=False):
            raise_again()
            own = index[rank::world_size]
            batch = rows.batch(own if len(own) else index[:1]).to(device)
            exclude = _padded(seen_items(batch.item_ids, batch.lengths), model) if exclude_seen else None
            step, table, items = model.shared_items(batch, held)
            greater, equal = (
                count.cpu() for count in model.scorer(step, table).target_rank(items, batch.targets, exclude=exclude)
            )
            if not len(own):
                continue
            wrong += batch.users[greater.to(device) < 0].tolist()
            users.append(batch.users.cpu())
            targets.append(batch.targets.cpu())
            ranks.append(1 + greater + equal.double() / 2)
            if on_batch is not None:
                on_batch(len(batch))
    finally:
        for module, training in modes:
            module.training = training
    if wrong:
        raise EvaluationError(
            f"user {wrong[0]}: a score is not finite; check the user's embedding and the items' vectors: training has "
            "diverged, or their product overflows"
        )
    return Ranking(torch.cat(users), torch.cat(targets), torch.cat([torch.empty(0, dtype=torch.float64), *ranks]))


def _padded(exclude: Tensor, model: RecommenderModel) -> Tensor:
    """Return [B, X] with as many columns in every process: histories of batches differ in length."""
    return functional.pad(exclude, (0, model.encoder.max_length - exclude.shape[1]), value=-1)
