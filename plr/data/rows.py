"""Rows: windows of the flat sequences, gathered into batches without per-sample Python."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
    """R windows ``start .. start + length - 1`` of the flat ``items``.

    With ``every_position`` each position has the item after it as target, else the row has one, the item
    after the window. ``items`` int64 [N]; ``starts``, ``lengths`` (>= 1) and ``users`` int64 [R].
    """

    items: Tensor
    starts: Tensor
    lengths: Tensor
    users: Tensor
    every_position: bool

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, index: Tensor) -> Batch:
        """Gather the rows ``index`` (int64 [B], any order, repeats allowed), padded to the longest."""
        start, length = self.starts[index], self.lengths[index]
        longest = int(length.max()) if len(length) else 0
        place = torch.arange(longest)
        real = place < length[:, None]
        position = (start[:, None] + place).masked_fill_(~real, 0)
        item_ids = self.items[position].masked_fill_(~real, 0)
        if self.every_position:
            targets = self.items[position + 1].masked_fill_(~real, IGNORED)
        else:
            targets = self.items[start + length]
        return Batch(item_ids, length, targets, self.users[index])
