"""The bare backbone: next-item prediction from the encoder alone (SASRec with full cross-entropy)."""

from __future__ import annotations

from torch import Tensor

from plr.data import Batch
from plr.models.consistency import next_item_and_consistency, of_histories, takes_one_sweep
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.methods.reasoning import BOTH_WAYS
from plr.models.recommender import Losses, RecommenderModel
from plr.models.sampled_items import linear_cross_entropy, pairwise_kl
from plr.options import ConsistencyOptions


class BaseRecommender(RecommenderModel):
    """The loss of `--loss` on the encoder's state: of every position of a sequence, or of a prefix's last.

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
        """Return {"next_item": mean cross-entropy over the targets}: one a row, or those that count of [B, L].

        With R-Drop also {"consistency"}, and the two masks' views are one batch of 2B rows.
        """
        batch, table, candidates = self.step_items(batch)
        counted = batch.counted
        if counted is not None and not self.encoder.causal:
            raise ValueError(BOTH_WAYS)
        weight = self.options.consistency_weight
        views = 2 if weight else 1
        encoded = self.encoder.encode(
            self.embed(table, batch.item_ids.repeat(views, 1)),
            batch.lengths.repeat(views),
            all_positions=counted is not None,
        )
        if counted is None:
            states, targets = encoded.last, batch.targets
        else:
            assert encoded.hidden is not None  # all positions were asked for
            places, targets = counted.in_rows(batch.item_ids.shape[1])
            # As the rows lie and not as `counted` has them: so whole sequences were always trained.
            states = encoded.hidden.view(views, -1, encoded.hidden.shape[2])[:, places].flatten(0, 1)
        queries = self.queries(states)  # [views·N, d]
        if weight and takes_one_sweep(self.options, candidates, batch.share):
            assert isinstance(candidates, Tensor)
            return next_item_and_consistency(
                queries, candidates, targets, weight=weight, temperature=self.temperature
            )
        losses = {
            "next_item": linear_cross_entropy(
                queries, candidates, targets.repeat(views), temperature=self.temperature
            )
        }
        if weight:
            sample, counts = self.divergence_sample(of_histories(queries), batch.share, in_rows=True)
            divergence = pairwise_kl(sample, candidates, temperature=self.temperature)
            losses["consistency"] = weight * self.mean_of_samples(divergence, counts)
        return losses

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return h_0 [B, d], the state of the last item."""
        table = self.item_table() if table is None else table
        return self.queries(self.encoder.encode(self.embed(table, batch.item_ids), batch.lengths).last)
