"""The latent reasoning loop over [B, M, d] states that every method with a cached prefix shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plr.models.encoder import Encoded, SequenceEncoder
from plr.models.layers.transformer import KeyValue, TransformerLayer

StepInput = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Reasoning:
    """The outcome of T reasoning steps in M streams.

    Attributes:
        states: [B, M, T, d], h_{t,m} for t = 1..T.
        attention: attention[t][layer] = softmax weights [B, H, M, P + t + 1] of step t (counted from 0) over the prefix
            and the stream's own tokens; None unless asked for.
    """

    states: Tensor
    attention: list[list[Tensor]] | None = None


def reason(
    encoder: SequenceEncoder,
    encoded: Encoded,
    start: Tensor,
    step_input: StepInput,
    steps: int,
    *,
    with_attention: bool = False,
) -> Reasoning:
    """Run T latent steps in M isolated streams over the shared, cached prefix (PLR Eq. 4 and 5).

    Args:
        encoder: whose layers are the reasoning function f, shared with the encoding of the sequence.
        encoded: the encoded sequences, read by all streams.
        start: [B, M, d], the state each stream starts from.
        step_input: (t, states [B, M, d]) -> inputs [B, M, d] of step t = 0..T-1, before the shared input LayerNorm;
            for PLR and ReaRec the previous state plus the reasoning position embedding.
        steps: T, at least 1.
        with_attention: also compute the attention weights of every step and layer (slower; for inspection).
    """
    streams: list[KeyValue | None] = [None] * len(encoder.layers)
    state = start
    states, attention = [], []
    layer: TransformerLayer
    for t in range(steps):
        state = encoder.step_input(step_input(t, state))
        weights = []
        for index, layer in enumerate(encoder.layers):  # type: ignore[assignment]  # a ModuleList's are Modules
            prefix = encoded.prefix[index]
            streams[index] = stream = layer.append(streams[index], state)
            state, query = layer.step(state, prefix, encoded.lengths, stream)
            if with_attention:
                weights.append(layer.attention_weights(query, prefix, encoded.lengths, stream))
        states.append(state)
        attention.append(weights)
    return Reasoning(torch.stack(states, dim=2), attention if with_attention else None)
