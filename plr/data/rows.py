"""Rows: windows of the flat sequences, gathered into batches without per-sample Python."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "Rows"]

IGNORED = -100
"""The target of a padded position, which losses leave out."""


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows, right-padded to the longest of them.

    ``item_ids`` int64 [B, L], padded with 0 (an item too: ``lengths`` says what is real); ``lengths`` int64
    [B], 1..L; ``targets`` int64 [B] (one per row) or [B, L] (one per position, -100 where padded);
    ``users`` int64 [B].
    """

    item_ids: Tensor
    lengths: Tensor
    targets: Tensor
    users: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on ``device``."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from where copies to a GPU can overlap with work."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, eq=False)
class Rows:
    """R windows ``stop - length .. stop - 1`` of the flat ``items``.

    With ``every_position`` each position has the item after it as target, else the row has one, the item
    after the window. Kept small, for there may be tens of millions of rows: 6 to 8 bytes a row; what can be
    computed is computed for the rows of a batch.

    Attributes:
        items: int32 or int64 [N].
        stops: int32 or int64 [R], the flat position after each window.
        lengths: int16 or wider [R], >= 1.
        offsets: int64 [U+1], where each user's items begin.
        every_position: Whether every position has a target.
        is_target: bool [N], with ``every_position``: which items count as targets; None where all do.
    """

    items: Tensor
    stops: Tensor
    lengths: Tensor
    offsets: Tensor
    every_position: bool
    is_target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.stops)

    @property
    def starts(self) -> Tensor:
        """The flat position of each row's first item: int64 [R]."""
        return self.stops.long() - self.lengths

    @property
    def users(self) -> Tensor:
        """Each row's user: int64 [R]."""
        return self._users_at(self.starts)

    def take(self, index: Tensor) -> Rows:
        """Return the rows ``index`` (int64 [n], any order) alone."""
        return replace(self, stops=self.stops[index], lengths=self.lengths[index])

    def batch(self, index: Tensor) -> Batch:
        """Gather the rows ``index`` (int64 [B], any order, repeats allowed), padded to the longest."""
        stop, length = self.stops[index].long(), self.lengths[index].long()
        start = stop - length
        longest = int(length.max()) if len(length) else 0
        place = torch.arange(longest)
        real = place < length[:, None]
        position = (start[:, None] + place).masked_fill_(~real, 0)
        item_ids = self.items[position].long().masked_fill_(~real, 0)
        if self.every_position:
            counted = real if self.is_target is None else real & self.is_target[position + 1]
            targets = self.items[position + 1].long().masked_fill_(~counted, IGNORED)
        else:
            targets = self.items[stop].long()
        return Batch(item_ids, length, targets, self._users_at(start))

    def _users_at(self, positions: Tensor) -> Tensor:
        return torch.searchsorted(self.offsets, positions, right=True) - 1
