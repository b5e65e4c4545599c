"""The definition of stream_attention (PLR, arXiv 2601.03153, Eq. 5, with the cached keys of all streams at once)."""

from __future__ import annotations

import torch
from torch import Tensor

from plr_kernels.stream_attention.keep_mask import attention_keep_mask


def _beyond_prefix(prefix_lengths: Tensor, prefix: int, suffix: int = 0) -> Tensor:
    """True where a prefix entry is beyond a query's length: bool [B, 1, M, P + S], [B, 1, 1, P + S] for lengths [B].

    The S entries of the streams themselves, which stand behind the prefix, are never beyond.
    """
    positions = torch.arange(prefix + suffix, device=prefix_lengths.device)
    lengths = prefix_lengths[:, None] if prefix_lengths.ndim == 1 else prefix_lengths
    return ((positions >= lengths.unsqueeze(-1)) & (positions < prefix)).unsqueeze(1)


def _blanked(entries: Tensor, beyond: Tensor) -> Tensor:
    """Prefix keys or values [B, H, P, D], zero where no query sees them: 0 times what lies there may be NaN."""
    return entries.masked_fill(beyond.all(dim=2).unsqueeze(-1), 0)


def stream_attention_weights(
    query: Tensor, prefix_key: Tensor, stream_key: Tensor, prefix_lengths: Tensor | None, scale: float
) -> Tensor:
    """The attention probabilities [B, H, M, P + S], before dropout: zeros where there is nothing to attend to."""
    prefix, suffix = prefix_key.shape[2], stream_key.shape[3]
    padding = None
    if prefix_lengths is not None:
        padding = _beyond_prefix(prefix_lengths, prefix, suffix)  # [B, 1, M or 1, P + S]
        # A key is blanked and not only its score: the gradient of the query multiplies by the key.
        prefix_key = _blanked(prefix_key, padding[..., :prefix])
    prefix_scores = query @ prefix_key.transpose(-2, -1)  # [B, H, M, P]
    stream_scores = (stream_key @ query.unsqueeze(-1)).squeeze(-1)  # [B, H, M, S]
    scores = torch.cat([prefix_scores, stream_scores], dim=-1) * scale
    if padding is None:
        return scores.softmax(dim=-1)
    # Where all is padding it counts as 0, so that the softmax stays finite, and is then blanked. Elsewhere as -inf: any
    # number would be above scores of -inf, and a softmax of those alone is NaN, with padding or without.
    filling = scores.new_full((), -torch.inf).masked_fill(padding.all(dim=-1, keepdim=True), 0)
    return torch.where(padding, filling, scores).softmax(dim=-1).masked_fill(padding, 0)


def stream_attention(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    stream_key: Tensor,
    stream_value: Tensor,
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """One softmax over a shared prefix and over each stream's own entries; see the public function for the shapes."""
    batch, heads, streams, _ = query.shape
    prefix, suffix = prefix_key.shape[2], stream_key.shape[3]
    weights = stream_attention_weights(query, prefix_key, stream_key, prefix_lengths, scale)
    if seed is not None:
        keep = attention_keep_mask(seed, dropout_p, batch, heads, streams, prefix, suffix)
        weights = weights * torch.cat(keep, dim=-1) / (1 - dropout_p)
    if prefix_lengths is not None:
        prefix_value = _blanked(prefix_value, _beyond_prefix(prefix_lengths, prefix))
    prefix_weights, stream_weights = weights.split([prefix, suffix], dim=-1)
    return prefix_weights @ prefix_value + (stream_weights.unsqueeze(-2) @ stream_value).squeeze(-2)
