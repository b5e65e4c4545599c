"""The popularity baseline: every user is recommended the items with the most training interactions."""

from __future__ import annotations

import torch
from torch import Tensor


def popularity_ranks(counts: Tensor, targets: Tensor) -> Tensor:
    """Rank each target among all items by training count: the tie rule of `target_ranks`, no exclusion.

    A counting sort: O(V + R + largest count), no scores and no blocks.

    Args:
        counts: int64 [V], training interactions of each item, none negative.
        targets: int64 [R], each in [0, V).

    Returns:
        float64 [R]: 1 + #items with a larger count + #others with the same / 2.

    Raises:
        ValueError: shapes, dtypes, negative counts, or targets that do not fit.
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
    return 1 + items_above[count] + (items_with[count] - 1).double() / 2
