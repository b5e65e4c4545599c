"""The "cpp" backend of info_nce: csrc/info_nce.cpp on unit vectors; what makes them is O(G·B·D) and stays here."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from plr_kernels import _cpp
from plr_kernels.extension import as_gradient, as_matrix, new_gradient, resources, with_plain_rows
from plr_kernels.info_nce.reference import NORM_FLOOR


def _norms(view: Tensor) -> Tensor:
    return vector_norm(view.float(), dim=-1, keepdim=True)  # [G, B, 1]


def _unit(view: Tensor) -> Tensor:
    return (view.float() / _norms(view).clamp(min=NORM_FLOOR)).contiguous()


def _gradient_of_view(gradient: Tensor, view: Tensor, unit: Tensor) -> Tensor:
    """From the gradient by a unit vector to that by the vector: what points along the vector changes nothing.

    In place, in `gradient`, and group by group: copies of its size would be most of the memory that the operator takes.
    """
    norms = _norms(view)
    along = torch.stack([(of_group * own).sum(-1, keepdim=True) for of_group, own in zip(gradient, unit, strict=True)])
    along = torch.where(norms >= NORM_FLOOR, along, 0.0)  # a shorter vector is only scaled
    return gradient.addcmul_(unit, along, value=-1).div_(norms.clamp_(min=NORM_FLOOR)).to(view.dtype)


def forward(view1: Tensor, view2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss and, for the backward pass, statistics [2, 3, G, B] of both directions' distributions."""
    groups, batch, _ = view1.shape
    statistics = torch.zeros(2, 3, groups, batch)
    if groups == 0 or batch == 0:
        return torch.zeros(()), statistics
    unit1, unit2 = with_plain_rows(_unit(view1)), with_plain_rows(_unit(view2))
    loss = _cpp.info_nce_forward(
        *resources(), as_matrix(unit1), as_matrix(unit2), groups, temperature, statistics.data_ptr()
    )
    return torch.tensor(loss, dtype=torch.float32), statistics


def backward(
    loss_gradient: Tensor,
    view1: Tensor,
    view2: Tensor,
    statistics: Tensor,
    temperature: float,
    needs_view1: bool,
    needs_view2: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of the views; an empty tensor for one that is not needed."""
    groups, batch, dim = view1.shape
    if groups == 0 or batch == 0:
        return new_gradient(view1, needs_view1), new_gradient(view2, needs_view2)
    unit1, unit2, statistics = _unit(view1), _unit(view2), statistics.contiguous()
    unit1_gradient, unit2_gradient = new_gradient(unit1, needs_view1), new_gradient(unit2, needs_view2)
    rows1, rows2 = with_plain_rows(unit1), with_plain_rows(unit2)
    _cpp.info_nce_backward(
        *resources(),
        as_matrix(rows1),
        as_matrix(rows2),
        groups,
        temperature,
        statistics.data_ptr(),
        loss_gradient.item(),
        as_gradient(unit1_gradient, dim, needs_view1),
        as_gradient(unit2_gradient, dim, needs_view2),
    )
    return (
        _gradient_of_view(unit1_gradient, view1, unit1) if needs_view1 else new_gradient(view1, False),
        _gradient_of_view(unit2_gradient, view2, unit2) if needs_view2 else new_gradient(view2, False),
    )
