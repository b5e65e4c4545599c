"""The latent reasoning loop over [B, M, d] states that every method with a cached prefix shares.

The rows of a batch are histories, each with one target; or sequences, whose every position (or some of them) is the end
of a history with a target of its own. Then one pass of a causal encoder serves all histories of a row: each opens its
streams over the prefix that ends with it, and has the states that a row of its own would have given it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plr.data import CountedTargets
from plr.models.encoder import Encoded, SequenceEncoder, at_positions
from plr.models.layers.transformer import KeyValue, TransformerLayer

StepInput = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Histories:
    """N histories, encoded: those of the B rows, or those that end at some of their positions.

    Attributes:
        encoded: the rows.
        counted: which positions histories end at; None where each row is one history (N = B).
    """

    encoded: Encoded
    counted: CountedTargets | None = None

    @property
    def fast(self) -> Tensor:
        """h_0 [N, d], the encoder's state of each history's last item."""
        if self.counted is None:
            return self.encoded.last
        return self._ends().flatten(0, 1)[self.counted.index]

    def open(self, streams: int) -> tuple[Tensor, Tensor]:
        """Return what M streams of each history begin with and may read.

        Returns:
            h_0 [B, K·M, d], once for every stream, and int64 [B, K·M] how many positions a stream may read. A row has K
            histories, some of which may be padding; K = 1 and lengths int64 [B] where each row is one history.
        """
        if self.counted is None:
            return self.encoded.last[:, None].expand(-1, streams, -1), self.encoded.lengths
        lengths = self.counted.positions + 1
        return self._ends().repeat_interleave(streams, dim=1), lengths.repeat_interleave(streams, dim=1)

    def gather(self, states: Tensor, streams: int) -> Tensor:
        """states [B, K·M, ...] -> [N, M, ...], those of the histories in the order of their targets."""
        if self.counted is None:
            return states
        return states.unflatten(1, (-1, streams)).flatten(0, 1)[self.counted.index]

    def _ends(self) -> Tensor:
        """The states [B, K, d] at the histories' ends."""
        assert self.counted is not None
        assert self.encoded.hidden is not None  # all positions were asked for
        return at_positions(self.encoded.hidden, self.counted.positions)


def encode_histories(
    encoder: SequenceEncoder, embeddings: Tensor, lengths: Tensor, counted: CountedTargets | None
) -> Histories:
    """Encode the rows and, with `counted`, keep the states of all positions.

    Args:
        encoder: the encoder, causal where there are several histories in a row.
        embeddings: [B, L, d].
        lengths: int64 [B].
        counted: which positions histories end at; None where each row is one.

    Raises:
        ValueError: positions of an encoder that reads both ways.
    """
    if counted is not None and not encoder.causal:
        raise ValueError(BOTH_WAYS)
    return Histories(encoder.encode(embeddings, lengths, all_positions=counted is not None), counted)


BOTH_WAYS = "a bidirectional encoder would read the targets of whole-sequence rows; train it on prefix rows"


@dataclass(frozen=True)
class Reasoning:
    """The outcome of T reasoning steps in M streams.

    Attributes:
        states: [N, M, T, d], h_{t,m} for t = 1..T.
        attention: attention[t][layer] = softmax weights [B, H, M, P + t + 1] of step t (counted from 0) over the prefix
            and the stream's own tokens; None unless asked for.
    """

    states: Tensor
    attention: list[list[Tensor]] | None = None


def reason(
    encoder: SequenceEncoder,
    histories: Histories,
    triggers: Tensor | None,
    step_input: StepInput,
    steps: int,
    *,
    with_attention: bool = False,
) -> Reasoning:
    """Run T latent steps in M isolated streams over the shared, cached prefix (PLR Eq. 4 and 5).

    Args:
        encoder: whose layers are the reasoning function f, shared with the encoding of the sequence.
        histories: the encoded histories; all streams of one read its prefix.
        triggers: [M, d], what is added to h_0 where a stream starts; None: one stream that starts from h_0.
        step_input: (t, states [B, K·M, d]) -> inputs [B, K·M, d] of step t = 0..T-1, before the shared input LayerNorm;
            for PLR and ReaRec the previous state plus the reasoning position embedding.
        steps: T, at least 1.
        with_attention: also compute the attention weights of every step and layer (slower; for inspection).
    """
    parallel = 1 if triggers is None else triggers.shape[0]  # M
    state, lengths = histories.open(parallel)  # [B, K·M, d]
    if triggers is not None:
        state = state + triggers.repeat(state.shape[1] // parallel, 1)
    streams: list[KeyValue | None] = [None] * len(encoder.layers)
    states, attention = [], []
    for t in range(steps):
        state, weights = take_step(
            encoder, histories.encoded, lengths, step_input(t, state), streams, with_attention=with_attention
        )
        states.append(state)
        attention.append(weights)
    return Reasoning(
        histories.gather(torch.stack(states, dim=2), parallel), attention if with_attention else None
    )


def take_step(
    encoder: SequenceEncoder,
    encoded: Encoded,
    lengths: Tensor,
    inputs: Tensor,
    streams: list[KeyValue | None],
    *,
    with_attention: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Take one step of every stream, and append its keys and values to the streams' own.

    Args:
        encoder: whose layers take it.
        encoded: the prefix.
        lengths: int64 [B], or [B, X], how much of the prefix the streams read.
        inputs: [B, X, d], before the shared input LayerNorm.
        streams: each layer's keys and values of the steps before, None at first; replaced by those with this step's.
        with_attention: also compute the attention weights.

    Returns:
        The states [B, X, d]; each layer's weights [B, H, X, P + S], none unless asked for.
    """
    state, weights = encoder.step_input(inputs), []
    layer: TransformerLayer
    for index, layer in enumerate(encoder.layers):  # type: ignore[assignment]  # a ModuleList's are Modules
        prefix = encoded.prefix[index]
        streams[index] = stream = layer.append(streams[index], state)
        state, query = layer.step(state, prefix, lengths, stream)
        if with_attention:
            weights.append(layer.attention_weights(query, prefix, lengths, stream))
    return state, weights
