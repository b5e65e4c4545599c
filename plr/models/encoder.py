"""The Transformer sequence encoder: item embeddings in, hidden states and a key-value cache out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plr.models.layers.dropout import Dropout
from plr.models.layers.transformer import KeyValue, TransformerLayer
from plr.options import EncoderOptions


@dataclass(frozen=True)
class Encoded:
    """What one pass over the sequences leaves behind.

    Attributes:
        last: [B, d], the state of each row's last real position: h_0 of the reasoning methods.
        lengths: int64 [B].
        prefix: per layer the keys and values [B, H, L, D] of all positions; entries beyond lengths mean nothing.
        hidden: [B, L, d], the last layer at every position, or None where it was not asked for.
    """

    last: Tensor
    lengths: Tensor
    prefix: list[KeyValue]
    hidden: Tensor | None = None


class SequenceEncoder(nn.Module):
    """A stack of `TransformerLayer` over item embeddings plus learned positions.

    Positions count from the oldest kept item. A LayerNorm, then dropout, is applied to the input of the encoder and,
    with the same weights, to the input of every reasoning step (`step_input`), as in ReaRec.

    Args:
        options: of the encoder.
        causal: True for SASRec, False for an encoder that reads both ways.
        extra_positions: how many positions more than max_length a sequence may have.
    """

    def __init__(self, options: EncoderOptions, *, causal: bool, extra_positions: int = 0):
        super().__init__()
        self.options = options
        self.causal = causal
        self.max_length = options.max_length + extra_positions
        self.position = nn.Embedding(self.max_length, options.dim)
        self.input_norm = nn.LayerNorm(options.dim, eps=1e-12)
        self.input_dropout = Dropout(options.input_dropout)
        self.layers = nn.ModuleList(TransformerLayer(options) for _ in range(options.layers))

    def encode(self, embeddings: Tensor, lengths: Tensor, *, all_positions: bool = False) -> Encoded:
        """Encode right-padded sequences.

        Args:
            embeddings: [B, L, d] item embeddings; L <= max_length.
            lengths: int64 [B], each at least 1.
            all_positions: also return the last layer's states of every position. Otherwise that layer is computed
                for the last real position only, which is all that next-item prediction from a prefix needs.
        """
        length = embeddings.shape[1]
        if length > self.max_length:
            raise ValueError(f"sequences may hold at most max_length={self.max_length} items; found {length}")
        states = self.step_input(embeddings + self.position.weight[:length])
        prefix = []
        for layer in self.layers[:-1]:
            states, cache = layer(states, lengths, self.causal)
            prefix.append(cache)
        final: TransformerLayer = self.layers[-1]  # type: ignore[assignment]  # a ModuleList's are Modules
        if all_positions:
            hidden, cache = final(states, lengths, self.causal)
            last = at_last_position(hidden, lengths).squeeze(1)
        else:
            hidden, cache = None, final.keys_values(states)
            # The last real position may read every real one, causal or not: the query of a stream without entries.
            last, _ = final.step(at_last_position(states, lengths), cache, lengths, None)
            last = last.squeeze(1)
        prefix.append(cache)
        return Encoded(last=last, lengths=lengths, prefix=prefix, hidden=hidden)

    def step_input(self, states: Tensor) -> Tensor:
        """The shared LayerNorm and dropout in front of the first layer, for any shape [..., d]."""
        return self.input_dropout(self.input_norm(states))


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """states [B, L, d], positions int64 [B, K] -> [B, K, d]."""
    return torch.gather(states, 1, positions[:, :, None].expand(-1, -1, states.shape[2]))


def at_last_position(states: Tensor, lengths: Tensor) -> Tensor:
    """states [B, L, d] -> [B, 1, d], the state at position lengths[b] - 1."""
    return at_positions(states, (lengths - 1)[:, None])
