"""ReaRec-ERL, ensemble reasoning learning (arXiv 2503.22675), on any sequence encoder."""

from __future__ import annotations

from torch import Tensor

from plr.data import Batch
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.methods.rearec import ReaRecRecommender
from plr.models.recommender import Losses
from plr_kernels import linear_cross_entropy, pairwise_kl


class ERLRecommender(ReaRecRecommender):
    """Represents a history by the mean of all its states, h_0 included, and rewards states that predict differently.

    Minimises  CE(mean of h_0..h_K) − λ·mean over ordered pairs i != j of KL(p_i ‖ stop_gradient(p_j)), where p_t is the
    item softmax of h_t. The divergence has no upper bound; see `kl_limit`.

    Args:
        items: the item encoder.
        encoder: the sequence encoder; its layers are also the reasoning function.
        dim: width d.
        steps: K, at least 1.
        kl_weight: λ; 0 leaves the divergence out.
        kl_limit: the mean divergence, in nats, beyond which no more is rewarded; 0 for no limit, as published.
        temperature: τ of the item softmax, in both terms: logits are score / τ.
    """

    def __init__(
        self,
        items: ItemEncoder,
        encoder: SequenceEncoder,
        *,
        dim: int,
        steps: int = 2,
        kl_weight: float = 0.1,
        kl_limit: float = 1.0,
        temperature: float = 1.0,
    ):
        super().__init__(items, encoder, dim=dim, steps=steps, temperature=temperature)
        self.kl_weight = kl_weight
        self.kl_limit = kl_limit

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item", "diversity"}, the latter only where its weight is not 0."""
        table = self.item_table()
        candidates = self.candidates(table)
        states = self.states(table, batch.item_ids, batch.lengths)  # [B, K + 1, d]
        losses = {
            "next_item": linear_cross_entropy(
                self.queries(states.mean(dim=1)), candidates, batch.targets, temperature=self.temperature
            )
        }
        if self.kl_weight:
            divergence = pairwise_kl(
                self.queries(states), candidates, temperature=self.temperature, detach_reference=True
            )
            if self.kl_limit:
                divergence = divergence.clamp(max=self.kl_limit)
            losses["diversity"] = -self.kl_weight * divergence
        return losses

    def represent(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return the mean of h_0..h_K, [B, d]."""
        table = self.item_table() if table is None else table
        return self.queries(self.states(table, batch.item_ids, batch.lengths).mean(dim=1))
