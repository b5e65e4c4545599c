"""The "cpp" backend of top_items: csrc/top_items.cpp."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.checks import check_exclude
from plr_kernels.dispatch.results import new_lists
from plr_kernels.extension import as_exclude, as_matrix, as_where, resources, rounds_float32, row_contiguous

GATHERED: Final = 8
"""From one allowed item in so many on, those are copied and ranked apart, which takes less time."""


def forward(
    states: Tensor, items: Tensor, k: int, exclude: Tensor | None, where: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id."""
    if where is not None and _scores_alike(states) and GATHERED * int(where.count_nonzero()) <= len(items):
        return _best_of_few(states, items, k, exclude, where.nonzero()[:, 0])
    scores, ids = new_lists(states, k)
    states, items = row_contiguous(states), row_contiguous(items)
    exclude = None if exclude is None else exclude.contiguous()
    where = None if where is None else where.contiguous()
    _cpp.top_items(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        as_matrix(items),
        k,
        *as_exclude(exclude),
        as_where(where),
        scores.data_ptr(),
        ids.data_ptr(),
    )
    return scores, ids


def _scores_alike(states: Tensor) -> bool:
    """Whether an item has the same score in a table of any size: small ones are not rounded to bfloat16."""
    return states.dtype == torch.float16 or (states.dtype == torch.float32 and not rounds_float32())


def _best_of_few(
    states: Tensor, items: Tensor, k: int, exclude: Tensor | None, allowed: Tensor
) -> tuple[Tensor, Tensor]:
    """The best of the items with the numbers `allowed`, ascending; their scores are those that they have among all."""
    check_exclude(exclude, len(items))
    scores, ids = new_lists(states, k)
    few = min(k, len(allowed))
    scores[:, few:], ids[:, few:] = -torch.inf, -1
    if few:
        excluded = None if exclude is None else places_among(allowed, exclude)
        scores[:, :few], places = forward(states, items[allowed], few, excluded)
        ids[:, :few] = torch.where(places >= 0, allowed[places], -1)
    return scores, ids


def places_among(allowed: Tensor, ids: Tensor) -> Tensor:
    """Where ids stand among ascending numbers, of which there are some; -1 for those that do not."""
    places = torch.searchsorted(allowed, ids).clamp_(max=len(allowed) - 1)
    return torch.where(allowed[places] == ids, places, -1)
