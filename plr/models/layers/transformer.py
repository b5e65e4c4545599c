"""One post-norm Transformer layer that encodes whole sequences and takes single reasoning steps on a cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from plr.models.layers.attention import keys_values, sequence_attention, split_heads
from plr.models.layers.dropout import Dropout
from plr.models.layers.fast_path import fast_path_applies
from plr.models.layers.fused_residual_ffn import SublayerWeights, residual_sublayers
from plr.models.layers.linear import Linear, blocks_serve
from plr.options import LayerOptions
from plr_kernels import StreamAttention
from plr_kernels.stream_attention.reference import stream_attention_weights


class KeyValue(NamedTuple):
    """Keys and values that attention reads: [B, H, P, D] of a prefix or [B, H, M, S, D] of M streams."""

    key: Tensor
    value: Tensor


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each followed by dropout, residual sum and LayerNorm (post-norm, as in ReaRec).

    The same weights serve the encoder (`forward`, all positions at once) and the reasoning loop (`step`, one new
    token in each of M streams over the cached prefix), PLR Eq. 4 and 5.

    Args:
        options: width, heads, feed-forward part and dropout; `hidden_dropout` is that of both sublayers' outputs.
    """

    def __init__(self, options: LayerOptions):
        super().__init__()
        dim, ffn_dim = options.dim, options.ffn_dim
        self.heads = options.heads
        self.attention_dropout = options.attention_dropout
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.attention_output = Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.ffn_in = Linear(dim, ffn_dim)
        self.ffn_out = Linear(ffn_dim, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = Dropout(options.hidden_dropout)
        self.stream_attention = StreamAttention(dropout_p=options.attention_dropout)

    def keys_values(self, states: Tensor) -> KeyValue:
        """Project states [B, P, d] to the keys and values [B, H, P, D] that later queries read."""
        return KeyValue(*keys_values(states, self.key_value, self.heads))

    def forward(self, states: Tensor, lengths: Tensor, causal: bool) -> tuple[Tensor, KeyValue]:
        """Encode every position.

        Args:
            states: [B, L, d], right-padded.
            lengths: int64 [B], the real positions of each row.
            causal: True: position i reads positions <= i. False: every position reads all real positions.

        Returns:
            The new states [B, L, d] (padded positions hold finite values without meaning) and the keys and values.
        """
        cache = self.keys_values(states)
        query = split_heads(self.query(states), self.heads)
        mask = None
        if not causal:
            # Causal attention needs no length mask: padding lies to the right of every real position.
            mask = torch.arange(states.shape[1], device=states.device) < lengths[:, None]  # [B, L]
            mask = mask[:, None, None, :]
        attended = sequence_attention(
            query,
            cache.key,
            cache.value,
            mask=mask,
            is_causal=causal,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )  # [B, H, L, D]
        return self._output(states, attended), cache

    def step(
        self, states: Tensor, prefix: KeyValue, lengths: Tensor, stream: KeyValue | None
    ) -> tuple[Tensor, Tensor]:
        """Let one token of each of M streams read the prefix and its own stream only.

        Args:
            states: [B, M, d], the tokens' inputs.
            prefix: the shared prefix, [B, H, P, D].
            lengths: int64 [B], how many prefix entries are real; or [B, M], how many each token reads.
            stream: the streams' own entries [B, H, M, S, D], the current token included; None for S = 0.

        Returns:
            The new states [B, M, d] and the query [B, H, M, D] that read them (for `attention_weights`).
        """
        query = split_heads(self.query(states), self.heads)  # [B, H, M, D]
        if stream is None:
            empty = query.new_empty(*query.shape[:3], 0, query.shape[3])
            stream = KeyValue(empty, empty)
        attended = self.stream_attention(query, *prefix, *stream, prefix_lengths=lengths)
        return self._output(states, attended), query

    @staticmethod
    def attention_weights(query: Tensor, prefix: KeyValue, lengths: Tensor, stream: KeyValue) -> Tensor:
        """Return the softmax weights [B, H, M, P + S] of a step, without dropout, for inspection."""
        scale = query.shape[-1] ** -0.5
        return stream_attention_weights(query, prefix.key, stream.key, lengths, scale)

    def append(self, stream: KeyValue | None, states: Tensor) -> KeyValue:
        """Add the keys and values of the current tokens [B, M, d] to the streams' entries -> [B, H, M, S + 1, D]."""
        current = KeyValue(*(part.unsqueeze(3) for part in self.keys_values(states)))
        if stream is None:
            return current
        return KeyValue(*(torch.cat(pair, dim=3) for pair in zip(stream, current, strict=True)))

    def _output(self, states: Tensor, attended: Tensor) -> Tensor:
        """Join the heads of attended [B, H, X, D], then both residual sublayers -> [B, X, d]."""
        joined = attended.transpose(1, 2).flatten(2)
        dropped = self.dropout.dropped()
        parts = self.attention_output, self.attention_norm, self.ffn_in, self.ffn_out, self.ffn_norm
        if dropped is not None and blocks_serve(joined) and fast_path_applies(self.dropout, *parts):
            weights = SublayerWeights(*(tensor for part in parts for tensor in (part.weight, part.bias)))
            return residual_sublayers(states, joined, weights, self.ffn_norm.eps, dropped)
        states = self.attention_norm(states + self.dropout(self.attention_output(joined)))
        inner = functional.gelu(self.ffn_in(states))
        return self.ffn_norm(states + self.dropout(self.ffn_out(inner)))
