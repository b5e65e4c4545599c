"""The bare backbone: next-item prediction from the encoder alone (SASRec with full cross-entropy)."""

from __future__ import annotations

import torch
from torch import Tensor

from plr.data import Batch
from plr.data.rows import IGNORED
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.methods.reasoning import BOTH_WAYS
from plr.models.recommender import Losses, Recommender
from plr.options import ConsistencyOptions
from plr_kernels import linear_cross_entropy, pairwise_kl


class BaseRecommender(Recommender):
    """Full softmax cross-entropy on the encoder's state: of every position of a sequence, or of a prefix's last.

    Args:
        items: the item encoder.
        encoder: the sequence encoder. Training on whole sequences needs a causal one.
        options: the temperature of the item softmax, and the weight of R-Drop: where it is not 0, both of two dropout
            masks predict, and their distributions are drawn together.
    """

    options: ConsistencyOptions

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: ConsistencyOptions):
        super().__init__(items, encoder, options)
        self.initialize()

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item": mean cross-entropy over the targets}, [B] or [B, L] of them with -100 ignored.

        With R-Drop also {"consistency"}, and the two masks' views are one batch of 2B rows.
        """
        table = self.item_table()
        all_positions = batch.targets.ndim == 2
        if all_positions and not self.encoder.causal:
            raise ValueError(BOTH_WAYS)
        weight = self.options.consistency_weight
        item_ids, lengths, targets = batch.item_ids, batch.lengths, batch.targets
        if weight:
            item_ids, lengths, targets = item_ids.repeat(2, 1), lengths.repeat(2), torch.cat([targets, targets])
        encoded = self.encoder.encode(self.embed(table, item_ids), lengths, all_positions=all_positions)
        states = encoded.last if encoded.hidden is None else encoded.hidden.flatten(0, 1)  # [R, d]
        queries, targets, candidates = self.queries(states), targets.flatten(), self.candidates(table)
        losses = {"next_item": linear_cross_entropy(queries, candidates, targets, temperature=self.temperature)}
        if weight:
            views = queries.unflatten(0, (2, -1)).transpose(0, 1)  # [R / 2, 2, d]
            counted = views[targets[: len(views)] != IGNORED]
            losses["consistency"] = weight * pairwise_kl(counted, candidates, temperature=self.temperature)
        return losses

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return h_0 [B, d], the state of the last item."""
        table = self.item_table() if table is None else table
        return self.queries(self.encoder.encode(self.embed(table, batch.item_ids), batch.lengths).last)
