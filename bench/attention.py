"""PyTorch's ways to write stream_attention: its formula, and scaled_dot_product_attention on joined keys and values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def formula(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    stream_key: Tensor,
    stream_value: Tensor,
    factor: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Nothing is joined but the scores.

    `factor` is what dropout multiplies the probabilities by; `seen`, bool [M, P], which prefix entries a query sees.
    """
    prefix = prefix_key.shape[2]
    prefix_scores = query @ prefix_key.mT  # [B, H, M, P]
    if seen is not None:
        prefix_scores = prefix_scores.masked_fill(~seen, -torch.inf)
    stream_scores = (stream_key @ query.unsqueeze(-1)).squeeze(-1)  # [B, H, M, S]
    weights = (torch.cat([prefix_scores, stream_scores], dim=-1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    if factor is not None:
        weights = weights * factor
    of_suffix = weights[..., prefix:].unsqueeze(-2) @ stream_value
    return weights[..., :prefix] @ prefix_value + of_suffix.squeeze(-2)


def join_folded(prefix: Tensor, suffix: Tensor) -> Tensor:
    """[B, H, P, D] and [B, H, M, S, D] -> [B · H, M, P + S, D]."""
    repeated = prefix.unsqueeze(2).expand(-1, -1, suffix.shape[2], -1, -1)
    return torch.cat([repeated, suffix], dim=3).flatten(0, 1)


def folded_joined(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The streams as further batch entries of one query each."""
    attended = functional.scaled_dot_product_attention(query.flatten(0, 1).unsqueeze(2), key, value)
    return attended.view(query.shape)


def folded(query: Tensor, prefix_key: Tensor, prefix_value: Tensor, stream_key: Tensor, stream_value: Tensor) -> Tensor:
    """The same, with the joining."""
    return folded_joined(query, join_folded(prefix_key, stream_key), join_folded(prefix_value, stream_value))


def join_masked(prefix: Tensor, suffix: Tensor) -> Tensor:
    """[B, H, P, D] and [B, H, M, S, D] -> [B, H, P + M · S, D]."""
    return torch.cat([prefix, suffix.flatten(2, 3)], dim=2)


def mask_of(streams: int, prefix: int, suffix: int) -> Tensor:
    """Zeros where a stream sees an entry of `join_masked`, else -inf: [M, P + M · S]."""
    between_streams = torch.full((streams, streams), -torch.inf).fill_diagonal_(0)  # [M, M]
    return torch.cat([torch.zeros(streams, prefix), between_streams.repeat_interleave(suffix, dim=1)], dim=1)


def lengths_of_positions(positions: int, streams: int) -> Tensor:
    """How much of the sequence each of the M = positions · streams queries sees, a position's streams in a row: [M]."""
    return torch.arange(1, positions + 1).repeat_interleave(streams)


def seen_by_positions(positions: int, streams: int) -> Tensor:
    """The same as a mask: bool [M, P]."""
    return torch.arange(positions) < lengths_of_positions(positions, streams)[:, None]


def mask_of_positions(positions: int, streams: int, suffix: int) -> Tensor:
    """Which entries of `join_masked` a query sees: bool [M, P + M · S]."""
    own = torch.eye(positions * streams, dtype=torch.bool).repeat_interleave(suffix, dim=1)
    return torch.cat([seen_by_positions(positions, streams), own], dim=1)


def masked_joined(mask: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """All streams' entries in one row behind the prefix, with a mask."""
    return lambda query, key, value: functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def masked(mask: Tensor) -> Callable[..., Tensor]:
    """The same, with the joining."""

    def run(
        query: Tensor, prefix_key: Tensor, prefix_value: Tensor, stream_key: Tensor, stream_value: Tensor
    ) -> Tensor:
        return masked_joined(mask)(query, join_masked(prefix_key, stream_key), join_masked(prefix_value, stream_value))

    return run
