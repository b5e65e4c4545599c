"""Dropout whose masks the CPU draws fast and keeps small.

PyTorch draws a float32 Bernoulli variable for each number and keeps it for the backward pass. Here 64 random bits serve
four numbers, and a mask takes one byte each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LEVELS = 2**16  # of a random 16-bit integer


class Dropout(nn.Module):
    """nn.Dropout: in training each number becomes zero with probability p, the others are scaled by 1 / (1 − p).

    On CPUs p is rounded to a multiple of 2⁻¹⁶, and the scale is that of the rounded p.

    Args:
        p: in [0, 1).
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        """[...] -> [...]."""
        dropped = round(self.p * _LEVELS)
        if states.device.type != "cpu" or dropped == _LEVELS or torch.compiler.is_compiling():
            return functional.dropout(states, self.p, self.training)
        if not self.training or dropped == 0:
            return states
        return _Dropout.apply(states, dropped)

    def extra_repr(self) -> str:
        """As nn.Dropout's."""
        return f"p={self.p}"


def keep_mask(shape: torch.Size, dropped: int) -> Tensor:
    """Draw bool [shape] from torch's global generator: False with probability dropped / 2¹⁶."""
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (bits.view(torch.int16)[:count] >= dropped - _LEVELS // 2).view(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, dropped: int) -> Tensor:
        keep = keep_mask(states.shape, dropped)
        ctx.save_for_backward(keep)
        ctx.scale = _LEVELS / (_LEVELS - dropped)
        return (states * keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradient * keep).mul_(ctx.scale), None
