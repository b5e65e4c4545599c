"""The definitions, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sum_norm(
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    index: Tensor | None,
    repeat: int,
    bias: Tensor | None,
) -> Tensor:
    """LayerNorm of sums of rows; see the public function for the shapes."""
    rows = left.repeat_interleave(repeat, dim=0) if index is None else left[index]
    total = rows + right.repeat(len(rows) // len(right), 1)
    if bias is not None:
        total = total + bias
    return functional.layer_norm(total, weight.shape, weight, shift, eps)


def bias_gelu(inner: Tensor, bias: Tensor) -> Tensor:
    """gelu(inner + bias), by the error function."""
    total = inner + bias
    return total * 0.5 * (1 + torch.erf(total * 0.5**0.5))
