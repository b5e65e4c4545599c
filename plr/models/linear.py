"""A linear layer whose float32 products on the CPU are oneDNN's.

PyTorch leaves them to MKL, which on CPUs of other makers than Intel reaches less than half of oneDNN's rate. Precision
is the same: oneDNN computes in float32 unless `torch.backends.mkldnn` is told otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula


class Linear(nn.Linear):
    """nn.Linear, with the same weights and results up to rounding."""

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if onednn_serves(states):
            return _OneDNNLinear.apply(states, self.weight, self.bias)
        return super().forward(states)


def onednn_serves(states: Tensor) -> bool:
    """Whether `product` takes the states."""
    return (
        _PRODUCT is not None
        and states.device.type == "cpu"
        and states.dtype == torch.float32
        and states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _find_product() -> Any:
    """The operator that torch.compile takes too; it is not public, hence without it all is as in nn.Linear."""
    try:
        return torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
    except AttributeError:
        return None


_PRODUCT = _find_product()
_BLOCK_ROWS = 2048


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [R, K] · right [C, K]ᵀ + bias [C] -> [R, C]."""
    return _PRODUCT(left, right, bias, "none", [], "")


def row_blocks(rows: int) -> list[slice]:
    """Consecutive blocks of rows whose intermediate results stay in the cache, and in memory that is used again.

    Memory fresh from the system costs a page fault every 4 KiB, several times what the arithmetic in it takes.
    """
    return [slice(first, first + _BLOCK_ROWS) for first in range(0, rows, _BLOCK_ROWS)]


def add_weight_gradient(total: Tensor | None, gradient: Tensor, states: Tensor) -> Tensor:
    """total + gradientᵀ [out, R] · states [R, in]; None for a total of nothing. Changes `total`."""
    part = product(gradient.T, states.T)
    return part if total is None else total.add_(part)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return product(states.flatten(0, -2), weight, bias).unflatten(0, states.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        rows, inputs = gradient.flatten(0, -2), states.flatten(0, -2)  # [R, out], [R, in]
        weight_gradient = None
        for block in row_blocks(len(rows) if needs_weight else 0):
            weight_gradient = add_weight_gradient(weight_gradient, rows[block], inputs[block])
        return (
            product(rows, weight.T.contiguous()).view(states.shape) if needs_states else None,
            weight_gradient,
            rows.sum(dim=0) if needs_bias else None,
        )


if _PRODUCT is not None:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flop(states_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * states_shape[0] * states_shape[1] * weight_shape[0]
