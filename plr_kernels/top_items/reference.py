"""The definition of top_items: a running list of the best, merged with one block of items after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Items scored at once: enough to fill a matrix product, few enough that a block of scores stays small.
ITEM_BLOCK = 4096


def best_columns(scores: Tensor, k: int) -> Tensor:
    """The columns [R, k] of each row's k best scores, best first, ties to the smaller column; NaN is above all."""
    width = scores.shape[1]
    # topk does not say which of equal scores it takes, but the k-th best one is sure.
    worst = scores.topk(k).values[:, -1:]
    worst = worst.masked_fill(worst.isnan(), torch.inf)  # only NaN is better than that
    # Those that are better first, then those as good as the worst, then the rest; each by column.
    places = torch.arange(width, dtype=torch.int32, device=scores.device)
    places = places + width * ((scores <= worst).int() + (scores < worst).int())
    columns = places.topk(k, largest=False).values.long() % width
    # A stable sort keeps equal scores in the order of their columns.
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    return columns.gather(1, order)


def blocks(items: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The table in blocks of rows, each with the number of its first."""
    for start in range(0, items.shape[0], ITEM_BLOCK):
        yield start, items[start : start + ITEM_BLOCK]


def is_excluded(exclude: Tensor, start: int, width: int) -> Tensor:
    """Which of the items start .. start + width - 1 the ids exclude [R, X] name: bool [R, width]."""
    offsets = exclude - start
    inside = (offsets >= 0) & (offsets < width)
    # Ids of other blocks are sent to one column more, which is cut off again.
    columns = torch.where(inside, offsets, width)
    excluded = torch.zeros(exclude.shape[0], width + 1, dtype=torch.bool, device=exclude.device)
    return excluded.scatter(1, columns, True)[:, :width]


def best_of_blocks(
    scores_of: Callable[[Tensor], Tensor],
    states: Tensor,
    items: Tensor,
    k: int,
    exclude: Tensor | None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items by scores_of(block [width, D]) -> [R, width], best first, ties to the smaller id."""
    rows = states.shape[0]
    scores = states.new_empty(rows, 0)
    ids = torch.empty(rows, 0, dtype=torch.int64, device=states.device)
    for start, block in blocks(items):
        block_scores = scores_of(block)  # [R, width]
        width = block.shape[0]
        if exclude is not None:
            block_scores = block_scores.masked_fill(is_excluded(exclude, start, width), -torch.inf)
        if where is not None:
            block_scores = block_scores.masked_fill(~where[start : start + width], -torch.inf)
        block_ids = torch.arange(start, start + width, device=states.device).expand(rows, width)
        # Everything before a block has smaller ids, and so have smaller columns of equal scores.
        scores, ids = torch.cat([scores, block_scores], dim=1), torch.cat([ids, block_ids], dim=1)
        columns = best_columns(scores, min(k, scores.shape[1]))
        scores, ids = scores.gather(1, columns), ids.gather(1, columns)
    return scores, ids.masked_fill(scores == -torch.inf, -1)


def top_items(
    states: Tensor, items: Tensor, k: int, exclude: Tensor | None, where: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id."""
    return best_of_blocks(lambda block: states @ block.T, states, items, k, exclude, where)
