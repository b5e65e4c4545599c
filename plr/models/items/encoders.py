"""Item encoders: what an item's row of the [V, d] table is made of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import ClassVar

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn import functional

from plr.data import Share
from plr.items import FeatureField, ItemData
from plr.models.items.sharded import ItemPart, item_embedding
from plr.options import Options
from plr_kernels.distributed import ItemShard, sharded_lookup

_PATIENCE = timedelta(minutes=30)
"""For so long a process waits for others, as in Lightning's group. NCCL's ten minutes may not do to write a table."""


class ItemEncoder(nn.Module):
    """What turns the items into vectors of the encoder's width.

    Attributes:
        num_items: V; items are numbered 0..V-1, there is no padding row.
        part: which items this process holds, where processes share the table; None: all.
        cosine: whether an item's score is the cosine to its vector instead of the dot product.
        share: where several processes train, set before every step: random numbers beside dropout's are to be drawn
            from its generator, so that all processes have one table. None in one process.
    """

    num_items: int
    part: ItemPart | None = None
    cosine: ClassVar[bool] = False
    share: Share | None = None

    @property
    def held(self) -> slice:
        """The items that this process holds, as a slice of all."""
        return slice(0, self.num_items) if self.part is None else self.part.held

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients: computed once per step, for inputs and scores alike."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` (int64 [U], each once) of the table, [U, d], with gradients: of these rows alone."""
        raise NotImplementedError

    def own_rows(self) -> tuple[str, ...]:
        """Return the names of the parameters whose row v is item v's own: a run on newer data matches them by item."""
        return ("embedding.weight",)


class SharableItemEncoder(ItemEncoder):
    """An item encoder that can be built for the items of one process: a subclass has `held_vectors`, and no `table`.

    Args:
        num_items: V.
        part: which of them this process holds; None: all.
    """

    def __init__(self, num_items: int, part: ItemPart | None = None):
        super().__init__()
        self.num_items = num_items
        self.part = part
        self._shard: ItemShard | None = None

    def held_vectors(self) -> Tensor:
        """Return the vectors [held, d] of the items that this process holds, with gradients: once per step."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """Return the item vectors [V, d], with gradients.

        Raises:
            RuntimeError: processes share it, and none has it.
        """
        if self.part is not None:
            raise RuntimeError(
                "the item table is shared among processes: none has all rows; take step_items of the model"
            )
        return self.held_vectors()

    @property
    def shard(self) -> ItemShard:
        """Which rows the process has; all processes ask for it for the first time together.

        The processes exchange rows and states in a group of their own: what DistributedDataParallel sends meanwhile, in
        an order of its own, is not waited for.

        Raises:
            RuntimeError: the processes are others than the rows were made for.
        """
        if self._shard is None:
            part, shard = self.part, ItemShard(self.num_items, distributed.new_group(timeout=_PATIENCE))
            if part is None or (shard.rank, shard.processes) != (part.process, part.processes):
                raise RuntimeError(f"process {shard.rank} of {shard.processes} has the rows of another: {part}")
            self._shard = shard
        return self._shard


class IdItemEncoder(SharableItemEncoder):
    """One learned vector per item.

    Args:
        num_items: V.
        dim: width d.
        part: which of the items this process holds; None: all.
    """

    def __init__(self, num_items: int, dim: int, part: ItemPart | None = None):
        super().__init__(num_items, part)
        self.embedding = item_embedding(num_items, dim, part)

    def held_vectors(self) -> Tensor:
        """Return the vectors [held, d], with gradients."""
        return self.embedding.weight

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` of the table; where processes share it, all call it together, each with its own ids."""
        if self.part is None:
            return self.embedding(ids)
        return sharded_lookup(self.embedding.weight, ids, self.shard, sparse=self.embedding.sparse)


class FeatureItemEncoder(SharableItemEncoder):
    """One learned vector per item, plus for each field the mean of its values' learned vectors.

        table[v] = E_id[v] + Σ over fields f of  mean over the values a of v in f of E_f[a],

    where an item without a value in f has the one value "missing", with a learned vector like any other.

    Args:
        num_items: V.
        dim: width d.
        features: the fields, of all items.
        part: which of the items this process holds; None: all.
    """

    def __init__(
        self, num_items: int, dim: int, features: Sequence[FeatureField], part: ItemPart | None = None
    ):
        super().__init__(num_items, part)
        self.embedding = item_embedding(num_items, dim, part)
        self.fields = nn.ModuleList(FieldMean(field, dim, self.held) for field in features)

    def held_vectors(self) -> Tensor:
        """Return the vectors [held, d], with gradients."""
        vectors = self.embedding.weight
        for field in self.fields:
            vectors = vectors + field()
        return vectors

    def rows(self, ids: Tensor) -> Tensor:
        """Return the rows `ids` of the table."""
        rows = self.embedding(ids)
        for field in self.fields:
            rows = rows + field(ids)
        return rows


def id_items(data: ItemData, dim: int, options: Options, part: ItemPart | None = None) -> ItemEncoder:
    """Return vectors [V, dim] of the items' ids, and of their features where there are any; no option decides."""
    if data.features:
        return FeatureItemEncoder(data.num_items, dim, data.features, part)
    return IdItemEncoder(data.num_items, dim, part)


class FieldMean(nn.Module):
    """The mean vector of every held item's values in one field; row `num_values` of the weights is "missing".

    Args:
        field: of all items.
        dim: width d.
        held: the items whose means are wanted.
    """

    offsets: Tensor
    values: Tensor

    def __init__(self, field: FeatureField, dim: int, held: slice):
        super().__init__()
        self.embedding = nn.Embedding(field.num_values + 1, dim)
        offsets, values = _with_missing(field)
        offsets = offsets[held.start : held.stop + 1]
        offsets, values = offsets - offsets[0], values[int(offsets[0]) : int(offsets[-1])]
        # Not in the weights' file: they are the item data's, which the run's folder holds once.
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("values", values, persistent=False)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Return [held, d], or the rows `ids` (int64 [U]) of it."""
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
