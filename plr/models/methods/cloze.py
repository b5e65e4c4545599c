"""BERT4Rec as published: items masked at random are predicted from both sides, the next item at an appended mask."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from plr.data import Batch, Share
from plr.data.rows import IGNORED
from plr.models.encoder import SequenceEncoder
from plr.models.items.encoders import ItemEncoder
from plr.models.layers.linear import Linear
from plr.models.recommender import Losses, RecommenderModel
from plr.models.sampled_items import linear_cross_entropy
from plr.options import ClozeOptions


class ClozeRecommender(RecommenderModel):
    """Cloze training of a bidirectional encoder (BERT4Rec, Sun et al. 2019).

    A training row is a sequence with its last item included. Of the n items that may be a target, max(1, round(ρ·n))
    drawn at random are replaced by the mask token (one learned vector, no item), and each is predicted; or, with a
    small probability, the last item alone, which is what ranking asks for. The state h of a masked position scores
    item v with

        LayerNorm(GELU(h W + b)) · E_v + b_v.

    Args:
        items: the item encoder.
        encoder: the sequence encoder: bidirectional, with one position more than a history has items.
        options: ρ is `mask_probability`.
    """

    options: ClozeOptions

    def __init__(self, items: ItemEncoder, encoder: SequenceEncoder, options: ClozeOptions):
        super().__init__(items, encoder, options)
        dim = encoder.options.dim
        self.mask = nn.Embedding(1, dim)
        self.head = Linear(dim, dim)
        self.head_norm = nn.LayerNorm(dim, eps=1e-12)
        self.item_bias = nn.Parameter(torch.zeros(items.held.stop - items.held.start))
        self.initialize()

    def own_rows(self) -> tuple[str, ...]:
        """Return those of the items, and the items' biases."""
        return (*super().own_rows(), "item_bias")

    def losses(self, batch: Batch) -> Losses:
        """Return {"masked_item": mean cross-entropy over the masked positions}; batch.targets are [B, L]."""
        if batch.targets.ndim != 2:
            raise ValueError("Cloze training needs whole-sequence rows, with targets [B, L]")
        item_ids, lengths, predictable = whole_sequences(batch)
        step, table, candidates = self.step_items(replace(batch, item_ids=item_ids, lengths=lengths))
        if batch.share is None:
            places, counts = self.draw_masked(predictable)
            self._masked = counts.sum(), counts.sum()
        else:
            places, counts = self._draw_share(batch.share, predictable)
        drawn = torch.arange(places.shape[1], device=places.device) < counts[:, None]  # [B, K]
        targets = item_ids.gather(1, places).masked_fill(~drawn, -100)
        # Added, not set: a place that does not count may be the same as the one that does.
        masked = torch.zeros_like(item_ids).scatter_add_(1, places, drawn.long()) > 0
        hidden = self._encode(table, step.item_ids, lengths, masked, all_positions=True)
        states = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))  # [B, K, d]
        loss = linear_cross_entropy(
            self.queries(self._head(states.flatten(0, 1))),
            candidates,
            targets.flatten(),
            temperature=self.temperature,
        )
        return {"masked_item": loss}

    def target_counts(self, batch: Batch) -> tuple[int | Tensor, int | Tensor]:
        """Return how many items the last call of `losses` masked, of these rows and of all: int64, scalars."""
        return self._masked

    def user_embedding(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return the query [B, d + 1] of a mask token appended to each history."""
        table = self.item_table() if table is None else table
        item_ids = functional.pad(batch.item_ids, (0, 1))
        masked = torch.arange(item_ids.shape[1], device=item_ids.device) == batch.lengths[:, None]
        return self.queries(self._head(self._encode(table, item_ids, batch.lengths + 1, masked, all_positions=False)))

    def candidates(self, table: Tensor) -> Tensor:
        """Return [V, d + 1]: the vectors of the table, then the items' biases, which meet a 1 in the query."""
        return torch.cat([super().candidates(table), self.item_bias[:, None]], dim=1)

    def queries(self, states: Tensor) -> Tensor:
        """Return [..., d + 1]: the states, then a 1."""
        states = super().queries(states)
        return torch.cat([states, torch.ones_like(states[..., :1])], dim=-1)

    def draw_masked(
        self, predictable: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw the positions to be masked.

        Args:
            predictable: bool [B, L], the positions to draw from; each row's last item is one of them.
            generator: by default torch's global one.

        Returns:
            places int64 [B, K] and counts int64 [B]: the first counts[b] places of row b are masked, different ones.
            K = max(1, round(ρ·L)) follows from the shape alone, so that nothing waits for a GPU.
        """
        rows, longest = predictable.shape
        order = torch.rand(rows, longest, device=predictable.device, generator=generator)
        order = order.masked_fill(~predictable, torch.inf)
        most = max(1, round(self.options.mask_probability * longest))
        places = order.topk(most, dim=1, largest=False).indices
        counts = (predictable.sum(dim=1) * self.options.mask_probability).round().long().clamp(min=1, max=most)
        drawn = torch.rand(rows, device=predictable.device, generator=generator)
        last_only = drawn < self.options.mask_last_probability
        first = torch.where(last_only, _last_of(predictable), places[:, 0])
        places = torch.cat([first[:, None], places[:, 1:]], dim=1)
        return places, counts.where(~last_only, 1)

    def _draw_share(self, share: Share, predictable: Tensor) -> tuple[Tensor, Tensor]:
        """`draw_masked` for a process's rows [b, L], drawn for the whole batch; notes how many of all are masked."""
        device = predictable.device
        _, _, predictable_of_all = whole_sequences(share.whole)
        places, counts = self.draw_masked(predictable_of_all.to(device), share.generator(device))
        own = share.rows.to(device)
        # Of places that do not count some are those of longer rows.
        own_places, own_counts = places[own].clamp(max=predictable.shape[1] - 1), counts[own]
        self._masked = own_counts.sum() * (not share.idle), counts.sum()
        return own_places, own_counts

    def _encode(
        self, table: Tensor, item_ids: Tensor, lengths: Tensor, masked: Tensor, *, all_positions: bool
    ) -> Tensor:
        """Encode with the mask token at masked bool [B, L] -> [B, L, d], or [B, d] of the last position only."""
        embeddings = torch.where(masked[:, :, None], self.mask.weight[0], self.embed(table, item_ids))
        encoded = self.encoder.encode(embeddings, lengths, all_positions=all_positions)
        return encoded.last if encoded.hidden is None else encoded.hidden

    def _head(self, states: Tensor) -> Tensor:
        return self.head_norm(functional.gelu(self.head(states)))


def whole_sequences(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Join inputs and targets of whole-sequence rows; a row ends with its last item that is a target.

    Returns:
        item_ids int64 [B, L + 1], padded with 0; lengths int64 [B]; predictable bool [B, L + 1]: the items that may be
        masked. An item that is no target (rated too low, say) is not one of them. Whether a row's oldest item is a
        target is not known: it may be masked.
    """
    is_target = batch.targets != IGNORED  # [B, L], of the item at the next position
    end = _last_of(is_target)[:, None]  # [B, 1]
    last = batch.targets.gather(1, end)
    item_ids = functional.pad(batch.item_ids, (0, 1)).scatter(1, end + 1, last)
    beyond = torch.arange(item_ids.shape[1], device=item_ids.device) > end + 1
    return item_ids.masked_fill(beyond, 0), end.squeeze(1) + 2, functional.pad(is_target, (1, 0), value=True)


def _last_of(places: Tensor) -> Tensor:
    """Return the last true position of each row of bool [B, L], int64 [B]."""
    return (places * torch.arange(places.shape[1], device=places.device)).amax(dim=1)
