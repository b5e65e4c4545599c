"""Attention of whole sequences with dropout of its weights, in the memory that its backward pass needs and no more.

With dropout PyTorch's CPU path copies queries, keys and values, and keeps the weights, their mask as float32 and the
product of both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from plr.models.dropout import keep_mask, keep_scale, levels


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
    dropped = levels(dropout_p) if _serves(query) else None
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


def split_keys_values(keys_values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values side by side, [B, P, 2·H·D] -> each as [B, H, P, D]."""
    if keys_values.device.type == "cpu" and not torch.compiler.is_compiling():
        return _SplitKeysValues.apply(keys_values, heads)
    key, value = keys_values.chunk(2, dim=-1)
    return split_heads(key, heads), split_heads(value, heads)


def _serves(query: Tensor) -> bool:
    return (
        query.device.type == "cpu"
        and query.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _SplitKeysValues(torch.autograd.Function):
    """Puts the two gradients side by side in one pass; autograd's own would write each twice."""

    @staticmethod
    def forward(ctx: Any, keys_values: Tensor, heads: int) -> tuple[Tensor, ...]:
        return keys_values.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    @staticmethod
    def backward(ctx: Any, key_gradient: Tensor, value_gradient: Tensor) -> tuple[Tensor, None]:
        batch, heads, length, dim = key_gradient.shape
        gradient = key_gradient.new_empty(batch, length, 2, heads, dim)
        for part, half in enumerate((key_gradient, value_gradient)):
            gradient[:, :, part] = half.transpose(1, 2)
        return gradient.flatten(2), None


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
    @once_differentiable
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
