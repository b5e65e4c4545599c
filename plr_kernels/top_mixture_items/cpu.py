"""The "cpp" backend of top_mixture_items: csrc/top_mixture_items.cpp."""

from __future__ import annotations

from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.results import new_lists
from plr_kernels.extension import as_exclude, as_matrix, as_where, resources, rounds_float32, row_contiguous


def forward_counted(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    temperature: float,
    exclude: Tensor | None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """As `forward`, and how many rows took a second sweep of the items, because one could not prove their best."""
    streams = states.shape[1]
    scores, ids = new_lists(states, k)
    states, items = row_contiguous(states), row_contiguous(items)
    log_weights = log_weights.float().contiguous()
    exclude = None if exclude is None else exclude.contiguous()
    where = None if where is None else where.contiguous()
    swept_twice = _cpp.top_mixture_items(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        log_weights.data_ptr(),
        streams,
        as_matrix(items),
        k,
        temperature,
        *as_exclude(exclude),
        as_where(where),
        scores.data_ptr(),
        ids.data_ptr(),
    )
    return scores, ids, swept_twice


def forward(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    temperature: float,
    exclude: Tensor | None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most probable items of each row under the mixture, best first, ties to the smaller id."""
    scores, ids, _ = forward_counted(states, log_weights, items, k, temperature, exclude, where)
    return scores, ids
