"""Dropout whose masks the CPU draws fast and keeps small.

PyTorch draws a float32 Bernoulli variable for each number and keeps it for the backward pass. Here 64 random bits serve
four numbers, and a mask takes one byte each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_LEVELS = 2**16  # of a random 16-bit integer
_BLOCK_NUMBERS = 2**19  # that stay in the cache from one operation to the next


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
        dropped = self.dropped() if states.device.type == "cpu" and not torch.compiler.is_compiling() else None
        if dropped is None:
            return functional.dropout(states, self.p, self.training)
        return _Dropout.apply(states, dropped) if dropped else states

    def dropped(self) -> int | None:
        """The share of numbers that becomes zero now, as `levels` has it."""
        return levels(self.p) if self.training else 0

    def extra_repr(self) -> str:
        """As nn.Dropout's."""
        return f"p={self.p}"


def levels(p: float) -> int | None:
    """p as a multiple of 2⁻¹⁶, what `keep_mask` and `keep_scale` take; None where that is 1."""
    rounded = round(p * _LEVELS)
    return None if rounded == _LEVELS else rounded


def keep_mask(shape: torch.Size | tuple[int, ...], dropped: int) -> Tensor:
    """Draw uint8 [shape] from torch's global generator: 0 with probability dropped / 2¹⁶, else 1.

    Not bool: PyTorch turns bytes into floating-point numbers several times as fast.
    """
    count = math.prod(shape)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device="cpu").random_(-(2**63), None)
    return (bits.view(torch.int16)[:count] >= dropped - _LEVELS // 2).view(torch.uint8).view(shape)


def keep_scale(dropped: int) -> float:
    """What the numbers that are kept are multiplied by."""
    return _LEVELS / (_LEVELS - dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, dropped: int) -> Tensor:
        keep = keep_mask(states.shape, dropped)
        ctx.save_for_backward(keep)
        ctx.scale = keep_scale(dropped)
        return _kept(states, keep, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _kept(gradient, keep, ctx.scale), None


def _kept(numbers: Tensor, keep: Tensor, scale: float) -> Tensor:
    """numbers · keep · scale; only blocks of the mask become floating-point numbers."""
    result = torch.empty_like(numbers, memory_format=torch.contiguous_format)
    parts = (tensor.reshape(-1).split(_BLOCK_NUMBERS) for tensor in (numbers, keep, result))
    for part, keep_part, result_part in zip(*parts, strict=True):
        torch.mul(part, keep_part, out=result_part).mul_(scale)
    return result
