"""The "cpp" backend of info_nce: csrc/info_nce.cpp, which makes unit vectors of the views as it reads them."""

from __future__ import annotations

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.extension import (
    TARGET_STATISTICS,
    as_gradient,
    as_matrix,
    resources,
    rounds_float32,
    row_contiguous,
)
from plr_kernels.info_nce.reference import NORM_FLOOR


def new_statistics(view1: Tensor) -> Tensor:
    """Zeroed memory for the `TARGET_STATISTICS` of both directions: [2, 3, G, B]."""
    return view1.new_zeros((2, len(TARGET_STATISTICS), *view1.shape[:2]), dtype=torch.float32)


def _as_labels(labels: Tensor | None) -> tuple[int, int]:
    """Contiguous labels [G, B, K] as the extension takes them: the address, and K; 0 of each without."""
    return (0, 0) if labels is None else (labels.data_ptr(), labels.shape[2])


def forward(view1: Tensor, view2: Tensor, labels: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss and, for the backward pass, the statistics."""
    groups, batch, _ = view1.shape
    statistics = new_statistics(view1)
    if groups == 0 or batch == 0:
        return view1.new_zeros((), dtype=torch.float32), statistics
    rows1, rows2 = row_contiguous(view1), row_contiguous(view2)
    labels = None if labels is None else labels.contiguous()
    loss = _cpp.info_nce_forward(
        *resources(),
        rounds_float32(),
        as_matrix(rows1),
        as_matrix(rows2),
        NORM_FLOOR,
        *_as_labels(labels),
        groups,
        temperature,
        statistics.data_ptr(),
    )
    return view1.new_tensor(loss, dtype=torch.float32), statistics


def backward(
    loss_gradient: Tensor,
    view1: Tensor,
    view2: Tensor,
    labels: Tensor | None,
    statistics: Tensor,
    temperature: float,
    needs_view1: bool,
    needs_view2: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of the views; an empty tensor for one that is not needed."""
    groups, batch, dim = view1.shape
    view1_gradient, view2_gradient = new_gradients((view1, view2), (needs_view1, needs_view2))
    if groups == 0 or batch == 0:
        return view1_gradient, view2_gradient
    rows1, rows2, statistics = row_contiguous(view1), row_contiguous(view2), statistics.contiguous()
    labels = None if labels is None else labels.contiguous()
    _cpp.info_nce_backward(
        *resources(),
        rounds_float32(),
        as_matrix(rows1),
        as_matrix(rows2),
        NORM_FLOOR,
        *_as_labels(labels),
        groups,
        temperature,
        statistics.data_ptr(),
        loss_gradient.item(),
        as_gradient(view1_gradient, dim, needs_view1),
        as_gradient(view2_gradient, dim, needs_view2),
    )
    return view1_gradient, view2_gradient
