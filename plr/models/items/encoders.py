"""Item encoders: what an item's row of the [V, d] table is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from plr.data import Share
from plr.items import FeatureField, ItemData
from plr.options import Options


class ItemEncoder(nn.Module):
    """What turns the items into vectors of the encoder's width.

    Attributes:
        num_items: V; items are numbered 0..V-1, there is no padding row.
        cosine: whether an item's score is the cosine to its vector instead of the dot product.
        share: where several processes train, set before every step: random numbers beside dropout's are to be drawn
            from its generator, so that all processes have one table. None in one process.
    """

    num_items: int
    cosine: ClassVar[bool] = False
    share: Share | None = None

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients: computed once per step, for inputs and scores alike."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` (int64 [U], each once) of the table, [U, d], with gradients: of these rows alone."""
        raise NotImplementedError

    def own_rows(self) -> tuple[str, ...]:
        """Return the names of the parameters whose row v is item v's own: a run on newer data matches them by item."""
        return ("embedding.weight",)


class IdItemEncoder(ItemEncoder):
    """One learned vector per item.

    Args:
        num_items: V.
        dim: width d.
    """

    def __init__(self, num_items: int, dim: int):
        super().__init__()
        self.num_items = num_items
        self.embedding = nn.Embedding(num_items, dim)

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients."""
        return self.embedding.weight

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` of the table."""
        return self.embedding(ids)


class FeatureItemEncoder(ItemEncoder):
    """One learned vector per item, plus for each field the mean of its values' learned vectors.

        table[v] = E_id[v] + Σ over fields f of  mean over the values a of v in f of E_f[a],

    where an item without a value in f has the one value "missing", with a learned vector like any other.

    Args:
        num_items: V.
        dim: width d.
        features: the fields.
    """

    def __init__(self, num_items: int, dim: int, features: Sequence[FeatureField]):
        super().__init__()
        self.num_items = num_items
        self.embedding = nn.Embedding(num_items, dim)
        self.fields = nn.ModuleList(FieldMean(field, dim) for field in features)

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients."""
        table = self.embedding.weight
        for field in self.fields:
            table = table + field()
        return table

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` of the table."""
        rows = self.embedding(ids)
        for field in self.fields:
            rows = rows + field(ids)
        return rows


def id_items(data: ItemData, dim: int, options: Options) -> ItemEncoder:
    """Return vectors [V, dim] of the items' ids, and of their features where there are any; no option decides."""
    if data.features:
        return FeatureItemEncoder(data.num_items, dim, data.features)
    return IdItemEncoder(data.num_items, dim)


class FieldMean(nn.Module):
    """The mean vector of every item's values in one field, [V, d]; row `num_values` of the weights is "missing"."""

    offsets: Tensor
    values: Tensor

    def __init__(self, field: FeatureField, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(field.num_values + 1, dim)
        offsets, values = _with_missing(field)
        # Not in the weights' file: they are the item data's, which the run's folder holds once.
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Return [V, d], or the rows `ids` (int64 [U]) of it."""
        values, offsets = self.values, self.offsets
        if ids is not None:
            first, counts = offsets[ids], offsets.diff()[ids]
            offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            shift = torch.repeat_interleave(first - offsets[:-1], counts)
            values = values[shift + torch.arange(len(shift), device=shift.device)]
        return functional.embedding_bag(values, self.embedding.weight, offsets, mode="mean", include_last_offset=True)


def _with_missing(field: FeatureField) -> tuple[Tensor, Tensor]:
    """Return offsets and values in which every item without a value has the value num_values: no mean is empty."""
    counts = field.offsets.diff()
    filled = counts.clamp(min=1)
    offsets = torch.cat([filled.new_zeros(1), filled.cumsum(0)])
    values = field.values.new_full((int(offsets[-1]),), field.num_values)
    values[torch.repeat_interleave(counts > 0, filled)] = field.values
    return offsets, values
