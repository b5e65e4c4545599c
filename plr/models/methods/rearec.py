"""What both ReaRec systems (arXiv 2503.22675) share: one reasoning stream that starts from the encoder's last state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from plr.data import CountedTargets
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.methods.history_buckets import in_buckets
from plr.models.methods.reasoning import StepInput, encode_histories, reason
from plr.models.recommender import RecommenderModel
from plr.options import StepsOptions


class ReaRecRecommender(RecommenderModel):
    """K reasoning steps on the cached prefix; the input of step t = 1..K is h_{t−1} plus a learned step embedding.

    Args:
        items: the item encoder.
        encoder: the sequence encoder; its layers are also the reasoning function.
        options: K is `steps`.
    """

    options: StepsOptions

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: StepsOptions):
        super().__init__(items, encoder, options)
        assert options.steps is not None  # set when the options are made
        self.steps = options.steps
        self.step_embedding = nn.Embedding(self.steps, encoder.options.dim)
        self.initialize()

    def step_input(self, t: int, states: Tensor) -> Tensor:
        """Return the input of step t + 1 for the states [B, X, d] of step t = 0..K-1, before the input LayerNorm."""
        return states + self.step_embedding.weight[t]

    def states(
        self,
        table: Tensor,
        item_ids: Tensor,
        lengths: Tensor,
        step_input_of: Callable[[Tensor | None], StepInput] | None = None,
        counted: CountedTargets | None = None,
        views: int = 1,
    ) -> Tensor:
        """Return h_0..h_K [views·N, K + 1, d] of rows item_ids [B, L], lengths [B], or of histories `counted` in them.

        step_input_of returns what replaces `self.step_input` for some of the rows, int64 [b] (None: all), with the same
        arguments and result; that is given all views at once.
        """

        def encoded_and_reasoned(
            item_ids: Tensor, lengths: Tensor, counted: CountedTargets | None, rows: Tensor | None
        ) -> tuple[Tensor, ...]:
            histories = encode_histories(self.encoder, self.embed(table, item_ids), lengths, counted)
            inputs = self.step_input if step_input_of is None else step_input_of(rows)
            reasoning = reason(self.encoder, histories, None, inputs, self.steps)
            return (torch.cat([histories.fast[:, None], reasoning.states.squeeze(1)], dim=1),)

        (states,) = in_buckets(item_ids, lengths, counted, encoded_and_reasoned, views)
        return states
