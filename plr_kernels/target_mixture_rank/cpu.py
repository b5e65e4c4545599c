"""The "cpp" backend of target_mixture_rank: csrc/target_rank.cpp."""

from __future__ import annotations

from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.results import new_counts
from plr_kernels.extension import as_exclude, as_matrix, resources, rounds_float32, row_contiguous


def forward(
    states: Tensor, log_weights: Tensor, items: Tensor, targets: Tensor, temperature: float, exclude: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How many other items are more probable than the target under the mixture, and how many as much: int64 [R]."""
    streams = states.shape[1]
    greater, equal = new_counts(states)
    states, items, targets = row_contiguous(states), row_contiguous(items), targets.contiguous()
    log_weights = log_weights.float().contiguous()
    exclude = None if exclude is None else exclude.contiguous()
    _cpp.target_mixture_rank(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        log_weights.data_ptr(),
        streams,
        as_matrix(items),
        targets.data_ptr(),
        temperature,
        *as_exclude(exclude),
        greater.data_ptr(),
        equal.data_ptr(),
    )
    return greater, equal
