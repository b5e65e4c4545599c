"""The part of a Transformer layer that treats every token alone, in blocks of tokens that stay in the cache.

As single operations it makes some twenty passes over memory and keeps every result. Here only what a block cannot
recompute cheaply is kept: the inputs of both LayerNorms, that of GELU, and a byte of dropout mask per number.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from plr.models.layers.dropout import keep_mask, keep_scale
from plr.models.layers.linear import LinearGradients, applied, product, right_factor, row_blocks
from plr_kernels.dispatch.gradients import differentiable_once


class SublayerWeights(NamedTuple):
    """Weights [out, in] and biases [out] of the linear layers, weights and biases [d] of the LayerNorms."""

    joining: Tensor
    joining_bias: Tensor
    first_norm: Tensor
    first_norm_bias: Tensor
    ffn_in: Tensor
    ffn_in_bias: Tensor
    ffn_out: Tensor
    ffn_out_bias: Tensor
    second_norm: Tensor
    second_norm_bias: Tensor


class _Gradients(NamedTuple):
    """Of the SublayerWeights, in their order; None for one that is not wanted."""

    joining: Tensor | None
    joining_bias: Tensor | None
    first_norm: Tensor | None
    first_norm_bias: Tensor | None
    ffn_in: Tensor | None
    ffn_in_bias: Tensor | None
    ffn_out: Tensor | None
    ffn_out_bias: Tensor | None
    second_norm: Tensor | None
    second_norm_bias: Tensor | None


def residual_sublayers(states: Tensor, joined: Tensor, weights: SublayerWeights, eps: float, dropped: int) -> Tensor:
    """norm(y + dropout(ffn(y))) with y = norm(states + dropout(joining(joined))); float32 on the CPU.

    Args:
        states: [..., d], what the layer was given.
        joined: [..., d], what attention returned, the heads side by side.
        weights: of both sublayers.
        eps: of both LayerNorms.
        dropped: dropout probability in multiples of 2⁻¹⁶; 0 for none.

    Returns:
        [..., d].
    """
    rows, joined_rows = states.flatten(0, -2), joined.flatten(0, -2)  # [R, d]
    return applied(_ResidualSublayers, rows, joined_rows, eps, dropped, *weights).view(states.shape)


class _ResidualNorm(NamedTuple):
    """norm(states + dropout(sublayer)) of a block of tokens."""

    weight: Tensor
    bias: Tensor
    eps: float
    dropped: int

    def forward(self, states: Tensor, sublayer: Tensor, total: Tensor, keep: Tensor) -> Tensor:
        """[R, d] twice -> [R, d]. Writes `total` and the uint8 mask `keep`, overwrites `sublayer`."""
        if self.dropped:
            keep.copy_(keep_mask(keep.shape, self.dropped))
            sublayer.mul_(keep)
        torch.add(states, sublayer, alpha=keep_scale(self.dropped), out=total)
        return self.normalize(total)[0]

    def normalize(self, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The LayerNorm of [R, d], and what it found there: means and inverse standard deviations [R, 1]."""
        return torch.native_layer_norm(total, self.weight.shape, self.weight, self.bias, self.eps)

    def backward(
        self, gradient: Tensor, total: Tensor, keep: Tensor, mean: Tensor, inverse_deviation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[R, d] -> the gradients of states and sublayer [R, d], and of the LayerNorm's weight and bias [d]."""
        for_states, for_weight, for_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, total, self.weight.shape, mean, inverse_deviation, self.weight, self.bias, [True, True, True]
        )
        for_sublayer = (for_states * keep).mul_(keep_scale(self.dropped)) if self.dropped else for_states
        return for_states, for_sublayer, for_weight, for_bias


def _norms(weights: SublayerWeights, eps: float, dropped: int) -> tuple[_ResidualNorm, _ResidualNorm]:
    return (
        _ResidualNorm(weights.first_norm, weights.first_norm_bias, eps, dropped),
        _ResidualNorm(weights.second_norm, weights.second_norm_bias, eps, dropped),
    )


class _ResidualSublayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, joined: Tensor, eps: float, dropped: int, *tensors: Tensor) -> Tensor:
        weights = SublayerWeights(*tensors)
        first, second = _norms(weights, eps, dropped)
        rows, dim = states.shape
        result, first_total, second_total = (states.new_empty(rows, dim) for _ in range(3))
        inner = states.new_empty(rows, len(weights.ffn_in))
        keep = states.new_empty(2, rows if dropped else 0, dim, dtype=torch.uint8)
        for block in row_blocks(rows):
            attended = product(joined[block], weights.joining, weights.joining_bias)
            middle = first.forward(states[block], attended, first_total[block], keep[0, block])
            inner[block] = product(middle, weights.ffn_in, weights.ffn_in_bias)
            outer = product(functional.gelu(inner[block]), weights.ffn_out, weights.ffn_out_bias)
            result[block] = second.forward(middle, outer, second_total[block], keep[1, block])
        ctx.save_for_backward(joined, first_total, second_total, inner, keep, *weights)
        ctx.options = eps, dropped
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        joined, first_total, second_total, inner, keep, *tensors = ctx.saved_tensors
        weights = SublayerWeights(*tensors)
        first, second = _norms(weights, *ctx.options)
        # The right factors of products.
        joining, ffn_in, ffn_out = (
            right_factor(weight) for weight in (weights.joining, weights.ffn_in, weights.ffn_out)
        )
        states_gradient = gradient.new_empty(gradient.shape)
        joined_gradient = joined.new_empty(joined.shape) if ctx.needs_input_grad[1] else None
        wanted: Any = SublayerWeights(*ctx.needs_input_grad[-len(weights) :])  # of flags
        for_joining = LinearGradients(weights.joining, wanted.joining, wanted.joining_bias)
        for_ffn_in = LinearGradients(weights.ffn_in, wanted.ffn_in, wanted.ffn_in_bias)
        for_ffn_out = LinearGradients(weights.ffn_out, wanted.ffn_out, wanted.ffn_out_bias)
        for_norms = [torch.zeros_like(weights.first_norm) for _ in range(4)]
        for block in row_blocks(len(gradient)):
            _, *of_norm = second.normalize(second_total[block])
            for_middle, for_outer, *for_second_norm = second.backward(
                gradient[block], second_total[block], keep[1, block], *of_norm
            )
            for_ffn_out.add(for_outer, functional.gelu(inner[block]))
            for_inner = torch.ops.aten.gelu_backward(product(for_outer, ffn_out), inner[block])
            middle, *of_norm = first.normalize(first_total[block])
            for_ffn_in.add(for_inner, middle)
            for_middle.add_(product(for_inner, ffn_in))

            states_gradient[block], for_attended, *for_first_norm = first.backward(
                for_middle, first_total[block], keep[0, block], *of_norm
            )
            for_joining.add(for_attended, joined[block])
            if joined_gradient is not None:
                joined_gradient[block] = product(for_attended, joining)
            for total, part in zip(for_norms, [*for_first_norm, *for_second_norm], strict=True):
                total += part
        first_norm, first_norm_bias, second_norm, second_norm_bias = for_norms
        gradients = _Gradients(
            joining=for_joining.weight,
            joining_bias=for_joining.bias,
            first_norm=first_norm if wanted.first_norm else None,
            first_norm_bias=first_norm_bias if wanted.first_norm_bias else None,
            ffn_in=for_ffn_in.weight,
            ffn_in_bias=for_ffn_in.bias,
            ffn_out=for_ffn_out.weight,
            ffn_out_bias=for_ffn_out.bias,
            second_norm=second_norm if wanted.second_norm else None,
            second_norm_bias=second_norm_bias if wanted.second_norm_bias else None,
        )
        return states_gradient, joined_gradient, None, None, *gradients
