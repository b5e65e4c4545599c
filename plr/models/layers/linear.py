"""Linear layers on the CPU, by the faster product of float32 matrices, and what functions that work in blocks need.

PyTorch leaves such products to MKL. With AVX-512 that reaches less than half of oneDNN's rate on CPUs of other makers
than Intel: there oneDNN's are taken. On Intel's, and with AVX2, MKL is about as fast for many rows, several times as
fast for few. Precision is the same: oneDNN computes in float32 unless `torch.backends.mkldnn` is told otherwise.

Products of bfloat16 numbers are oneDNN's on any CPU with AVX-512, PyTorch's choice; here they get few numbers of rows.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from plr.models.layers.row_counts import few_counts
from plr_kernels.dispatch.gradients import differentiable_once


class Linear(nn.Linear):
    """nn.Linear, with the same weights and results up to rounding."""

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        fits = states.shape[-1:] == (self.in_features,) and self.weight.dtype == states.dtype
        if _ONEDNN is not None and fits and blocks_serve(states):
            return applied(_OneDNNLinear, states, self.weight, self.bias)
        if states.shape[-1:] == (self.in_features,) and _onednn_in_bfloat16(states, self.weight):
            return applied(_BFloat16Linear, states, self.weight, self.bias)
        return super().forward(states)  # whose messages name what does not fit


class _NoContext:
    """Stands for an autograd function's context where nothing is to be kept."""

    def save_for_backward(self, *_: Tensor) -> None:
        pass


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """function.apply(*arguments); without gradients its forward pass alone, as apply takes some 35 µs even then.

    Within forward-mode differentiation apply refuses what has no such derivative, whether gradients are on or not.
    """
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return function.apply(*arguments)
    return function.forward(_NoContext(), *arguments)


def blocks_serve(states: Tensor) -> bool:
    """Whether the functions that work in blocks of rows take the states."""
    return states.ndim > 1 and states.numel() > 0 and float32_on_cpu(states)


def float32_on_cpu(states: Tensor) -> bool:
    """Whether the states are float32 on the CPU, not under autocast or torch.compile."""
    return (
        states.device.type == "cpu"
        and states.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _onednn_in_bfloat16(states: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would have oneDNN multiply them as bfloat16 numbers, outside of torch.compile."""
    if not _BFLOAT16_BY_ONEDNN or states.device.type != "cpu" or states.ndim < 2 or not states.numel():
        return False
    if torch.is_autocast_enabled("cpu"):
        kinds = {states.dtype, weight.dtype} <= {torch.float32, torch.bfloat16}
        return kinds and torch.get_autocast_dtype("cpu") == torch.bfloat16 and not torch.compiler.is_compiling()
    return states.dtype == weight.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


class _OneDNN(NamedTuple):
    """Its operators: a product, and the gradients of a linear layer's weight and bias."""

    product: Any
    weight_gradient: Any


def _onednn() -> _OneDNN | None:
    """Find them. They are not public: a version of PyTorch may have none."""
    try:
        if torch.backends.mkldnn.is_available():
            return _OneDNN(
                torch.ops.mkldnn._linear_pointwise.default, torch.ops.aten.mkldnn_linear_backward_weights.default
            )
    except AttributeError:
        pass
    return None


def _made_by_intel() -> bool:
    """Whether the CPU says so, where the system passes that on."""
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        description = os.environ.get("PROCESSOR_IDENTIFIER", "") + platform.processor()
    return "GenuineIntel" in description


def _faster() -> _OneDNN | None:
    """What serves this CPU better than PyTorch's choice; None: nothing."""
    has_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return _onednn() if has_avx512 and not _made_by_intel() else None


_ONEDNN = _faster()
_BFLOAT16_BY_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability()[:6] == "AVX512"
_BLOCK_ROWS = 2048


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [R, K] · right [C, K]ᵀ + bias [C] -> [R, C]."""
    if _ONEDNN is None:
        return functional.linear(left, right, bias)
    return _ONEDNN.product(few_counts(left), right, bias, "none", [], "")[: len(left)]


def right_factor(weight: Tensor) -> Tensor:
    """weight [out, in] -> [in, out], as `product` takes its right factor."""
    return weight.T if _ONEDNN is None else weight.T.contiguous()


def row_blocks(count: int, rows: int = 1) -> list[slice]:
    """Consecutive blocks of rows whose intermediate results stay in the cache, and in memory that is used again.

    Memory fresh from the system costs a page fault every 4 KiB, several times what the arithmetic in it takes.

    Args:
        count: how many things to divide.
        rows: of each.
    """
    step = max(_BLOCK_ROWS // rows, 1)
    return [slice(first, first + step) for first in range(0, count, step)]


class LinearGradients:
    """The gradients of a linear layer's weight and bias, added up over blocks of rows.

    Args:
        weight: [out, in] of the layer.
        needs_weight: whether its gradient is wanted.
        needs_bias: whether that of the bias is.

    Attributes:
        weight: [out, in] so far; None where not wanted.
        bias: [out] so far; None where not wanted.
    """

    def __init__(self, weight: Tensor, needs_weight: bool, needs_bias: bool) -> None:
        self.weight = torch.zeros_like(weight) if needs_weight else None
        self.bias = weight.new_zeros(len(weight)) if needs_bias else None
        self._like = weight.to_mkldnn() if needs_weight and _ONEDNN is not None else None

    def add(self, gradient: Tensor, states: Tensor) -> None:
        """gradient [R, out] of what the layer made of states [R, in]."""
        if self.weight is None:
            if self.bias is not None:
                self.bias += gradient.sum(dim=0)
            return
        if _ONEDNN is None:
            torch.addmm(self.weight, gradient.T, states, out=self.weight)
            if self.bias is not None:
                self.bias += gradient.sum(dim=0)
            return
        # Products of transposed matrices, which `product` would have to write down first.
        gradient, states = few_counts(gradient), few_counts(states)
        weight, bias = _ONEDNN.weight_gradient(
            gradient.to_mkldnn(), states.to_mkldnn(), self._like, self.bias is not None
        )
        self.weight += weight.to_dense()
        if self.bias is not None:
            self.bias += bias.to_dense()


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        return product(states.flatten(0, -2), weight, bias).unflatten(0, states.shape[:-1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        rows, inputs = gradient.flatten(0, -2), states.flatten(0, -2)  # [R, out], [R, in]
        gradients = LinearGradients(weight, needs_weight, needs_bias)
        for block in row_blocks(len(rows)):
            gradients.add(rows[block], inputs[block])
        states_gradient = product(rows, right_factor(weight)).view(states.shape) if needs_states else None
        return states_gradient, gradients.weight, gradients.bias


class _BFloat16Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = few_counts(states.flatten(0, -2), torch.bfloat16)  # [R', in]
        halved = weight.to(torch.bfloat16)
        ctx.save_for_backward(rows, halved)
        ctx.inputs = states.shape, states.dtype, weight.dtype
        result = functional.linear(rows, halved, None if bias is None else bias.to(torch.bfloat16))
        return result[: states.shape[:-1].numel()].unflatten(0, states.shape[:-1])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        shape, states_dtype, weight_dtype = ctx.inputs
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        gradient = gradient.flatten(0, -2)  # [R, out]
        padded = few_counts(gradient)
        with torch.autocast("cpu", enabled=False):
            return (
                (padded @ weight)[: len(gradient)].view(shape).to(states_dtype) if needs_states else None,
                (padded.T @ rows).to(weight_dtype) if needs_weight else None,
                gradient.sum(dim=0, dtype=torch.float32).to(weight_dtype) if needs_bias else None,
            )


if _onednn() is not None:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _product_flop(states_shape: Any, weight_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * states_shape[0] * states_shape[1] * weight_shape[0]

    @register_flop_formula(torch.ops.aten.mkldnn_linear_backward_weights)
    def _weight_gradient_flop(gradient_shape: Any, states_shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * states_shape[0] * states_shape[1] * gradient_shape[1]
