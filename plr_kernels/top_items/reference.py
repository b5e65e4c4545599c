"""The definition of top_items: a running list of the best, merged with one block of items after the other."""

import torch
from torch import Tensor

# Items scored at once: enough to fill a matrix product, few enough that a block of scores stays small.
ITEM_BLOCK = 4096


def top_items(states: Tensor, items: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id."""
    rows = states.shape[0]
    scores = states.new_empty(rows, 0)
    ids = torch.empty(rows, 0, dtype=torch.int64, device=states.device)
    for start in range(0, items.shape[0], ITEM_BLOCK):
        block = items[start : start + ITEM_BLOCK]
        block_scores = states @ block.T  # [R, width]
        width = block.shape[0]
        if exclude is not None:
            offsets = exclude - start
            inside = (offsets >= 0) & (offsets < width)
            # Ids of other blocks are sent to one column more, which is cut off again.
            columns = torch.where(inside, offsets, width)
            excluded = torch.zeros(rows, width + 1, dtype=torch.bool, device=states.device)
            block_scores = block_scores.masked_fill(excluded.scatter(1, columns, True)[:, :width], -torch.inf)
        block_ids = torch.arange(start, start + width, device=states.device).expand(rows, width)
        # A stable sort keeps equal scores in the order given, and everything before a block has smaller ids.
        scores, order = torch.cat([scores, block_scores], dim=1).sort(dim=1, descending=True, stable=True)
        ids = torch.cat([ids, block_ids], dim=1).gather(1, order)[:, :k]
        scores = scores[:, :k]
    return scores, ids.masked_fill(scores == -torch.inf, -1)
