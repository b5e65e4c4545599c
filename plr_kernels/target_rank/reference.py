"""The definition of target_rank: items that score above a row's target and items that score the same, counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from plr_kernels.top_items.reference import blocks, is_excluded


def vector_keys(items: Tensor) -> Tensor:
    """A number int64 [V] for each item of [V, D]: equal for equal vectors, different (but for chance 2^-64) for others.

    A matrix product does not promise the same rounding in every column: by these, equal vectors tie all the same.
    Meant for a block of items: several numbers int64 [V, D] are made on the way.
    """
    bits = (items + 0.0).view(torch.int64 if items.dtype == torch.float64 else torch.int32).long()  # −0 becomes 0
    column = torch.arange(1, items.shape[1] + 1, device=items.device)
    mixed = bits + column * -0x61C8864680B583EB
    for factor in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):  # splitmix64's mixing: all bits reach all bits
        mixed = (mixed ^ (mixed >> 30)) * factor
    return (mixed ^ (mixed >> 31)).sum(dim=1)


def count_ranks(
    scores_of: Callable[[Tensor], Tensor], items: Tensor, targets: Tensor, own: Tensor, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Count by scores_of(block [width, D]) -> [R, width] against the targets' scores own [R]."""
    return count_against(scores_of, items, targets, own, vector_keys(items[targets]), exclude)


def count_against(
    scores_of: Callable[[Tensor], Tensor],
    items: Tensor,
    targets: Tensor,
    own: Tensor,
    keys: Tensor,
    exclude: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Count as `count_ranks` for targets that may be no rows of `items` (then -1), by their scores and keys [R]."""
    keys = keys[:, None]
    greater, equal = torch.zeros_like(targets), torch.zeros_like(targets)
    finite = own.isfinite()
    own = own[:, None]
    for start, block in blocks(items):
        width = block.shape[0]
        scores = scores_of(block)  # [R, width]
        finite = finite & scores.isfinite().all(dim=1)
        ties = vector_keys(block) == keys
        counted = torch.arange(start, start + width, device=items.device) != targets[:, None]
        if exclude is not None:
            counted = counted & ~is_excluded(exclude, start, width)
        greater = greater + ((scores > own) & ~ties & counted).sum(dim=1)
        equal = equal + (((scores == own) | ties) & counted).sum(dim=1)
    return greater.masked_fill(~finite, -1), equal.masked_fill(~finite, -1)


def target_rank(states: Tensor, items: Tensor, targets: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """How many other items score above the target, and how many the same, by dot product: int64 [R] each."""
    own = (states * items[targets]).sum(dim=1)  # [R]
    return count_ranks(lambda block: states @ block.T, items, targets, own, exclude)
