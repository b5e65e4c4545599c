"""The "cpp" backend of target_rank: csrc/target_rank.cpp."""

from __future__ import annotations

from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.results import new_counts
from plr_kernels.extension import as_exclude, as_matrix, resources, rounds_float32, row_contiguous


def forward(states: Tensor, items: Tensor, targets: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """How many other items score above the target, and how many the same: int64 [R] each."""
    greater, equal = new_counts(states)
    states, items, targets = row_contiguous(states), row_contiguous(items), targets.contiguous()
    exclude = None if exclude is None else exclude.contiguous()
    _cpp.target_rank(
        *resources(),
        rounds_float32(),
        as_matrix(states),
        as_matrix(items),
        targets.data_ptr(),
        *as_exclude(exclude),
        greater.data_ptr(),
        equal.data_ptr(),
    )
    return greater, equal
