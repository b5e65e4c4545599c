"""The popularity baseline: every user is recommended the items with the most training interactions."""

from __future__ import annotations

import torch
from torch import Tensor


def popularity_ranks(counts: Tensor, targets: Tensor, *, exclude: Tensor | None = None) -> Tensor:
    """Rank each target among all items by training count: the tie rule and the exclusion of `target_ranks`.

    A counting sort: O(V + R·X + largest count), no scores and no blocks.

    Args:
        counts: int64 [V], training interactions of each item, none negative.
        targets: int64 [R], each in [0, V).
        exclude: int64 [R, X] items that do not count (for example the seen ones), padded with -1. The target
            always counts.

    Returns:
        float64 [R]: 1 + #items with a larger count + #others with the same / 2.

    Raises:
        ValueError: shapes, dtypes, negative counts, or ids that do not fit.
    """
    for name, tensor in (("counts", counts), ("targets", targets)):
        if tensor.ndim != 1 or tensor.dtype != torch.int64:
            raise ValueError(f"{name} must be int64 [n]; found {tensor.dtype} {list(tensor.shape)}")
    if len(counts) and int(counts.min()) < 0:
        raise ValueError(f"counts must not be negative; found {int(counts.min())}")
    if len(targets) and not bool(((targets >= 0) & (targets < len(counts))).all()):
        raise ValueError(f"targets must lie in [0, {len(counts)}); found {int(targets.min())} to {int(targets.max())}")
    items_with = torch.bincount(counts)
    items_above = len(counts) - items_with.cumsum(0)
    count = counts[targets]
    ranks = 1 + items_above[count] + (items_with[count] - 1).double() / 2
    if exclude is None:
        return ranks
    if exclude.ndim != 2 or len(exclude) != len(targets) or exclude.dtype != torch.int64:
        raise ValueError(f"exclude must be int64 [{len(targets)}, X]; found {exclude.dtype} {list(exclude.shape)}")
    if exclude.numel() and not bool(((exclude >= -1) & (exclude < len(counts))).all()):
        raise ValueError(f"exclude must lie in [-1, {len(counts)}); found {int(exclude.min())} to {int(exclude.max())}")
    exclude = exclude.sort(dim=1).values
    left_out = (exclude >= 0) & (exclude != targets[:, None])
    left_out[:, 1:] &= exclude[:, 1:] != exclude[:, :-1]  # an item goes once
    theirs = counts[exclude.clamp(min=0)]
    above, same = ((left_out & found).sum(dim=1) for found in (theirs > count[:, None], theirs == count[:, None]))
    return ranks - above - same.double() / 2
