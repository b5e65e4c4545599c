"""ReaRec-ERL, ensemble reasoning learning (arXiv 2503.22675), on any sequence encoder."""

from __future__ import annotations

from torch import Tensor

from plr.data import Batch
from plr.models.methods.rearec import ReaRecRecommender
from plr.models.recommender import Losses
from plr.models.sampled_items import linear_cross_entropy, pairwise_kl
from plr.options import ERLOptions


class ERLRecommender(ReaRecRecommender):
    """Represents a history by the mean of all its states, h_0 included, and rewards states that predict differently.

    Minimises  CE(mean of h_0..h_K) − λ·mean over ordered pairs i != j of KL(p_i ‖ stop_gradient(p_j)), where p_t is the
    item softmax of h_t. The divergence has no upper bound; see `kl_limit`.

    Args:
        items: the item encoder.
        encoder: the sequence encoder; its layers are also the reasoning function.
        options: K is `steps`, λ `kl_weight`.
    """

    options: ERLOptions

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item", "diversity"}, the latter only where its weight is not 0."""
        batch, table, candidates = self.step_items(batch)
        states = self.states(table, batch.item_ids, batch.lengths, counted=batch.counted)  # [N, K + 1, d]
        losses = {
            "next_item": linear_cross_entropy(
                self.queries(states.mean(dim=1)), candidates, batch.each_target, temperature=self.temperature
            )
        }
        if self.options.kl_weight:
            sample, weight = self.divergence_sample(states, batch.share)
            divergence = pairwise_kl(
                self.queries(sample), candidates, temperature=self.temperature, detach_reference=True
            )
            divergence = self.mean_of_samples(divergence, weight)
            if self.options.kl_limit:
                divergence = divergence.clamp(max=self.options.kl_limit)
            losses["diversity"] = -self.options.kl_weight * divergence
        return losses

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return the mean of h_0..h_K, [B, d]."""
        table = self.item_table() if table is None else table
        return self.queries(self.states(table, batch.item_ids, batch.lengths).mean(dim=1))
