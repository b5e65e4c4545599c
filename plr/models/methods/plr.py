"""Parallel Latent Reasoning (arXiv 2601.03153) on any sequence encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plr.data import Batch
from plr.models.encoder import Encoded, SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.methods.reasoning import Reasoning, reason
from plr.models.recommender import INITIAL_STD, Losses, Recommender
from plr.options import PLROptions
from plr_kernels import info_nce, linear_cross_entropy, pairwise_kl


@dataclass(frozen=True)
class ParallelReasoning:
    """Everything PLR computes about a batch of histories.

    Attributes:
        fast: h_0 [B, d], the encoder's state of the last item.
        states: h_{t,m} as [B, M, T, d].
        streams: z_m [B, M, d], the mean over steps (Eq. 6).
        gates: g [B, M], summing to 1 (uniform without the gate).
        slow: z_rea [B, d] (Eq. 9): what training predicts from.
        attention: attention[t][layer] [B, H, M, P + t + 1], or None unless asked for.
    """

    fast: Tensor
    states: Tensor
    streams: Tensor
    gates: Tensor
    slow: Tensor
    attention: list[list[Tensor]] | None = None

    @property
    def final(self) -> Tensor:
        """z_final = h_0 + z_rea [B, d] (Eq. 10): what inference ranks with."""
        return self.fast + self.slow


class PLRRecommender(Recommender):
    """M reasoning streams, opened by trigger tokens, over the shared prefix; gated, diverse and robust.

    Minimises  L = L_NIP + w·L_RCL − λ·L_KL  (Eq. 11). The paper prints +λ·L_KL, which would pull the streams together
    against its own text; the divergence is meant to grow, hence the minus. L_KL has no upper bound, and descending
    −λ·L_KL alone would never end: a batch whose L_KL exceeds `kl_limit` gives no gradient for it.

    Args:
        items: the item encoder.
        encoder: the sequence encoder; its layers are also the reasoning function.
        options: M is `streams`, T `steps`, λ `kl_weight`, w `contrastive_weight` (0 also leaves the second dropout view
            out), τ of Eq. 8 `contrastive_temperature`.
    """

    options: PLROptions

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: PLROptions):
        super().__init__(items, encoder, options)
        dim = encoder.options.dim
        self.trigger = nn.Embedding(options.streams, dim)
        self.step_embedding = nn.Embedding(options.steps, dim)
        self.gate = nn.Linear(dim, options.streams) if options.gate else None
        self.initialize()
        with torch.no_grad():
            # A scale: other weights and later draws stay the same.
            self.trigger.weight.mul_(options.trigger_std / INITIAL_STD)

    def losses(self, batch: Batch) -> Losses:
        """Return {"next_item", "contrastive", "diversity"}; a term whose weight is 0 is neither computed nor listed.

        The two dropout views are one batch of 2B rows; next-item prediction and divergence use the first B.
        """
        table = self.item_table()
        rows = batch.lengths.shape[0]
        item_ids, lengths = batch.item_ids, batch.lengths
        if self.options.contrastive_weight:
            item_ids, lengths = item_ids.repeat(2, 1), lengths.repeat(2)
        outcome = self._run(table, item_ids, lengths)

        candidates = self.candidates(table)
        losses = {
            "next_item": linear_cross_entropy(
                self.queries(outcome.slow[:rows]), candidates, batch.targets, temperature=self.temperature
            )
        }
        if self.options.contrastive_weight:
            grouped = outcome.states.flatten(1, 2).transpose(0, 1)  # [M·T, 2B, d]
            contrastive = info_nce(
                grouped[:, :rows], grouped[:, rows:], temperature=self.options.contrastive_temperature
            )
            losses["contrastive"] = self.options.contrastive_weight * contrastive
        if self.options.kl_weight:
            states = outcome.states[:rows].flatten(1, 2)  # [B, M·T, d]
            divergence = pairwise_kl(self.queries(states), candidates, temperature=self.temperature)
            if self.options.kl_limit:
                divergence = divergence.clamp(max=self.options.kl_limit)
            losses["diversity"] = -self.options.kl_weight * divergence
        return losses

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return z_final [B, d] (Eq. 10)."""
        table = self.item_table() if table is None else table
        return self.queries(self._run(table, batch.item_ids, batch.lengths).final)

    def run(self, batch: Batch, *, with_attention: bool = False) -> ParallelReasoning:
        """Encode and reason; return states, gates and, if asked for, attention weights."""
        return self._run(self.item_table(), batch.item_ids, batch.lengths, with_attention=with_attention)

    def reason(self, encoded: Encoded, *, with_attention: bool = False) -> Reasoning:
        """Open the streams with the trigger tokens (Eq. 3) and take T steps (Eq. 4, 5)."""
        start = encoded.last[:, None, :] + self.trigger.weight  # [B, M, d]
        return reason(
            self.encoder,
            encoded,
            start,
            lambda t, states: states + self.step_embedding.weight[t],
            self.options.steps,
            with_attention=with_attention,
        )

    def gates(self, fast: Tensor) -> Tensor:
        """Return g = softmax(W_g h_0 + b_g) [B, M] for h_0 [B, d] (Eq. 9), or 1/M without the gate."""
        if self.gate is None:
            streams = self.trigger.num_embeddings
            return fast.new_full((fast.shape[0], streams), 1 / streams)
        return torch.softmax(self.gate(fast), dim=-1)

    def _run(
        self, table: Tensor, item_ids: Tensor, lengths: Tensor, *, with_attention: bool = False
    ) -> ParallelReasoning:
        encoded = self.encoder.encode(self.embed(table, item_ids), lengths)
        reasoning = self.reason(encoded, with_attention=with_attention)
        streams = reasoning.states.mean(dim=2)  # [B, M, d]
        gates = self.gates(encoded.last)
        slow = (gates[:, :, None] * streams).sum(dim=1)
        return ParallelReasoning(
            fast=encoded.last,
            states=reasoning.states,
            streams=streams,
            gates=gates,
            slow=slow,
            attention=reasoning.attention,
        )
