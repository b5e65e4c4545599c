"""The "cpp" backend of top_items: csrc/top_items.cpp."""

from __future__ import annotations

from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.results import new_lists
from plr_kernels.extension import as_exclude, as_matrix, resources, rounds_float32, row_contiguous


def forward(states: Tensor, items: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id."""
    scores, ids = new_lists(states, k)
    states, items = row_contiguous(states), row_contiguous(items)
    exclude = None if exclude is None else exclude.contiguous()
    _cpp.top_items(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        as_matrix(items),
        k,
        *as_exclude(exclude),
        scores.data_ptr(),
        ids.data_ptr(),
    )
    return scores, ids
