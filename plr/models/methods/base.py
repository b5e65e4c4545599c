"""The bare backbone: next-item prediction from the encoder alone (SASRec with full cross-entropy)."""

from __future__ import annotations

from torch import Tensor

from plr.data import Batch
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.recommender import Losses, Recommender
from plr.options import RecommenderOptions
from plr_kernels import linear_cross_entropy


class BaseRecommender(Recommender):
    """Full softmax cross-entropy on the encoder's state: of every position of a sequence, or of a prefix's last.

    Args:
        items: the item encoder.
        encoder: the sequence encoder. Training on whole sequences needs a causal one.
        options: the temperature of the item softmax.
    """

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: RecommenderOptions):
        super().__init__(items, encoder, options)
        self.initialize()

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item": mean cross-entropy over the targets}, [B] or [B, L] of them with -100 ignored."""
        table = self.item_table()
        all_positions = batch.targets.ndim == 2
        if all_positions and not self.encoder.causal:
            raise ValueError(
                "a bidirectional encoder would read the targets of whole-sequence rows; train it on prefix rows"
            )
        encoded = self.encoder.encode(
            self.embed(table, batch.item_ids), batch.lengths, all_positions=all_positions
        )
        states = encoded.last if encoded.hidden is None else encoded.hidden.flatten(0, 1)  # [R, d]
        loss = linear_cross_entropy(
            self.queries(states), self.candidates(table), batch.targets.flatten(), temperature=self.temperature
        )
        return {"next_item": loss}

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return h_0 [B, d], the state of the last item."""
        table = self.item_table() if table is None else table
        return self.queries(self.encoder.encode(self.embed(table, batch.item_ids), batch.lengths).last)
