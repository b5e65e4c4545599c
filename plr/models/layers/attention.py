"""Attention of whole sequences, its keys and values, in the memory that the backward pass needs and no more.

With dropout PyTorch's CPU path copies queries, keys and values, and keeps the weights, their mask as float32 and the
product of both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from plr.models.layers.dropout import keep_mask, keep_scale, levels
from plr.models.layers.fast_path import fast_path_applies
from plr.models.layers.linear import (
    Linear,
    LinearGradients,
    applied,
    blocks_serve,
    float32_on_cpu,
    product,
    right_factor,
    row_blocks,
)
from plr_kernels.dispatch.gradients import differentiable_once


def sequence_attention(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool, dropout_p: float
) -> Tensor:
    """softmax(query keyᵀ / √D) value, with dropout of the weights.

    Args:
        query: [B, H, L, D], as are key and value.
        mask: bool [B, 1, 1, L], True where a key may be read: one at least in every row; None for all.
        is_causal: True: position i reads keys <= i; then `mask` must be None.
        dropout_p: in [0, 1).

    Returns:
        [B, H, L, D].
    """
    dropped = levels(dropout_p) if float32_on_cpu(query) else None
    if dropped:
        length = query.shape[2]
        lowest = torch.finfo(query.dtype).min
        if is_causal:
            bias = query.new_full((length, length), lowest).triu_(1)  # [L, L]
        elif mask is not None:
            bias = query.new_zeros(()).where(mask.squeeze(1), lowest)  # [B, 1, L]
        else:
            bias = query.new_zeros(1)
        return _Attention.apply(query, key, value, bias, dropped)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, dropout_p=dropout_p
    )


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[B, X, H·D] -> [B, H, X, D]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def keys_values(states: Tensor, projection: Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Project states [B, P, d] to keys and values side by side, [B, P, 2·H·D] -> each as [B, H, P, D]."""
    if blocks_serve(states) and fast_path_applies(projection):
        return applied(_KeysValues, states, projection.weight, projection.bias, heads)
    key, value = projection(states).chunk(2, dim=-1)
    return split_heads(key, heads), split_heads(value, heads)


class _KeysValues(torch.autograd.Function):
    """Its backward pass puts the two gradients side by side in blocks; autograd's own would write each twice."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, ...]:
        ctx.save_for_backward(states, weight)
        both = product(states.flatten(0, 1), weight, bias)
        return both.view(*states.shape[:2], 2, heads, -1).permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias, _ = ctx.needs_input_grad
        batch, heads, length, dim = gradients[0].shape
        states_gradient = states.new_empty(states.shape) if needs_states else None
        weight_gradients = LinearGradients(weight, needs_weight, needs_bias)
        right = right_factor(weight)
        for block in row_blocks(batch, length):
            both = torch.stack([half[block].transpose(1, 2) for half in gradients], dim=2)  # [b, P, 2, H, D]
            rows = both.view(-1, 2 * heads * dim)
            weight_gradients.add(rows, states[block].flatten(0, 1))
            if states_gradient is not None:
                states_gradient[block] = product(rows, right).view(-1, length, states.shape[2])
        return states_gradient, weight_gradients.weight, weight_gradients.bias, None


class _Attention(torch.autograd.Function):
    """One head after the other: each is a batch of matrices as it lies in memory, and its scores stay in the cache."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropped: int) -> Tensor:
        batch, heads, length, dim = query.shape
        scores_shape = (batch, length, key.shape[2])
        bias = bias.expand(scores_shape)
        keep = keep_mask((heads, *scores_shape), dropped)
        attended = query.new_empty(batch, length, heads, dim)
        weights = []
        for head in range(heads):
            scores = torch.baddbmm(bias, query[:, head], key[:, head].transpose(1, 2), alpha=dim**-0.5)
            weights.append(torch.softmax(scores, dim=-1))  # [B, L, L]
            kept = torch.mul(weights[head], keep[head], out=scores).mul_(keep_scale(dropped))
            attended[:, :, head] = torch.bmm(kept, value[:, head])
        ctx.save_for_backward(query, key, value, keep, *weights)
        ctx.scale = keep_scale(dropped)
        return attended.transpose(1, 2)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, keep, *weights = ctx.saved_tensors
        scale = query.shape[3] ** -0.5
        # In memory [B, L, H, D], as a linear layer returned the query.
        query_gradient, key_gradient, value_gradient = (
            torch.empty_like(part.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
            for part in (query, key, value)
        )
        for head, weight in enumerate(weights):
            kept = (weight * keep[head]).mul_(ctx.scale)  # [B, L, L]
            value_gradient[:, head] = torch.bmm(kept.transpose(1, 2), gradient[:, head])
            # Σ_k w_k (keep_k ∂_k) of softmax' backward pass is that of kept_k ∂_k.
            by_weight = torch.bmm(gradient[:, head], value[:, head].transpose(1, 2))
            by_score = by_weight.mul_(kept).sub_(weight * by_weight.sum(dim=-1, keepdim=True)).mul_(scale)
            query_gradient[:, head] = torch.bmm(by_score, key[:, head])
            key_gradient[:, head] = torch.bmm(by_score.transpose(1, 2), query[:, head])
        return query_gradient, key_gradient, value_gradient, None, None
