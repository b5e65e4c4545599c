"""What training, ranking and serving know of every model."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from plr.data import Batch
from plr.models.encoder import SequenceEncoder
from plr.models.items import IdItemEncoder

Losses = dict[str, Tensor]


class Recommender(nn.Module):
    """An item encoder and a sequence encoder; subclasses add how they train and what represents a history.

    An item's score is the dot product of `represent(batch)` with its row of `item_table()`.

    Attributes:
        row_kind: the training rows the method wants: "prefix" (one row per history and target) or "sequence" (one row
            per sequence, a target at every position).
    """

    row_kind: ClassVar[Literal["prefix", "sequence"]] = "prefix"

    def __init__(self, items: IdItemEncoder, encoder: SequenceEncoder):
        super().__init__()
        self.items = items
        self.encoder = encoder

    def losses(self, batch: Batch) -> Losses:
        """Return the training loss as named, weighted, signed scalars; their sum is minimised."""
        raise NotImplementedError

    def represent(self, batch: Batch, table: Tensor | None = None) -> Tensor:
        """Return the ranking representation [B, d] of each history.

        table is `item_table()` where the caller already has it (ranking computes it once for all batches).
        """
        raise NotImplementedError

    def item_table(self) -> Tensor:
        """Return the item vectors [V, d]."""
        return self.items.table()

    def embed(self, table: Tensor, item_ids: Tensor) -> Tensor:
        """Look item_ids [B, L] up in the table [V, d] of this step -> [B, L, d]."""
        return functional.embedding(item_ids, table)

    def initialize(self, std: float = 0.02) -> None:
        """Draw all weights from N(0, std²), biases 0 and LayerNorm at identity, in the order of registration."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Score every item for each history, [B, V]: for small sets; ranking and serving work in blocks instead."""
        table = self.item_table()
        return self.represent(batch, table) @ table.T
