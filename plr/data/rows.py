"""Rows: windows of the flat sequences, gathered into batches without per-sample Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from plr.data.share import Share

__all__ = ["IGNORED", "Batch", "CountedTargets", "Rows"]

IGNORED = -100
"""The target of a padded position, which losses leave out."""


_Moved = TypeVar("_Moved", bound="_Movable")


class _Movable:
    """Tensors, and what holds tensors, that move together; all else stays as it is."""

    def to(self: _Moved, device: torch.device | str, *, non_blocking: bool = False) -> _Moved:
        """Return the same on ``device``."""
        return self._mapped(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self: _Moved) -> _Moved:
        """Return the same in page-locked memory, from where copies to a GPU can overlap with work."""
        return self._mapped(lambda value: value.pin_memory())

    def _mapped(self: _Moved, function: Callable[[Any], Any]) -> _Moved:
        values = [getattr(self, each.name) for each in fields(self)]  # type: ignore[arg-type]  # of dataclasses
        return type(self)(*(function(value) if isinstance(value, Tensor | _Movable) else value for value in values))


@dataclass(frozen=True, eq=False)
class CountedTargets(_Movable):
    """Which of the positions of B sequences have a target that counts, N in all, K in one row at most.

    Made where the batch is gathered, on the CPU: a model on a GPU need not wait for their number. The N targets stand
    in the order of their number within the row, 0..K-1: first that of each row that has one, then the second ones, and
    so on. Targets of one number are of different rows: for losses that compare histories with each other, a group.

    Attributes:
        positions: int64 [B, K], the positions in ascending order; 0 where a row has fewer than K.
        index: int64 [N], which entries of ``positions.flatten()`` count, in the order of the N targets.
        targets: int64 [N].
        sizes: K numbers that fall and add up to N: how many rows have a first, a second, ... target.
    """

    positions: Tensor
    index: Tensor
    targets: Tensor
    sizes: tuple[int, ...]

    def in_rows(self, length: int) -> tuple[Tensor, Tensor]:
        """Return which of B·L positions count, row after row: int64 [N], ascending, and their targets [N]."""
        first = length * torch.arange(self.positions.shape[0], device=self.positions.device)[:, None]
        places, order = (first + self.positions).flatten()[self.index].sort()
        return places, self.targets[order]

    def repeat(self, views: int) -> CountedTargets:
        """Return the targets of the rows ``views`` times: all N of the first time, then those of the second."""
        first = self.positions.numel() * torch.arange(views, device=self.index.device)[:, None]
        return CountedTargets(
            positions=self.positions.repeat(views, 1),
            index=(first + self.index).flatten(),
            targets=self.targets.repeat(views),
            sizes=self.sizes * views,
        )

    def of_rows(self, rows: Tensor) -> tuple[CountedTargets, Tensor]:
        """Return those of some rows, int64 [b] ascending, and which of the N they are: int64 [n]."""
        most = self.positions.shape[1]
        place = torch.full((self.positions.shape[0],), -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        row, number = place[self.index // most], self.index % most
        own = (row >= 0).nonzero()[:, 0]
        row, number = row[own], number[own]
        sizes = torch.bincount(number)
        positions = self.positions[rows, : len(sizes)]
        targets = CountedTargets(
            positions=positions,
            index=row * len(sizes) + number,
            targets=self.targets[own],
            sizes=tuple(sizes.tolist()),
        )
        return targets, own

    @classmethod
    def of(cls, targets: Tensor) -> CountedTargets:
        """Return those of targets int64 [B, L], -100 where none counts."""
        row, position = (targets != IGNORED).nonzero(as_tuple=True)  # [N], row after row
        counts = torch.bincount(row, minlength=len(targets))
        most = int(counts.max()) if len(counts) else 0
        number = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        positions = torch.zeros(len(targets), most, dtype=torch.int64)
        positions[row, number] = position
        order = number.argsort(stable=True)
        return cls(
            positions=positions,
            index=(row * most + number)[order],
            targets=targets[row, position][order],
            sizes=tuple(torch.bincount(number, minlength=most).tolist()),
        )


@dataclass(frozen=True, eq=False)
class Batch(_Movable):
    """B rows, right-padded to the longest of them.

    ``item_ids`` int64 [B, L], padded with 0 (an item too: ``lengths`` says what is real); ``lengths`` int64
    [B], 1..L; ``targets`` int64 [B] (one per row) or [B, L] (one per position, -100 where padded or not counted);
    ``users`` int64 [B]; ``counted``, the targets [B, L] that count, None with targets [B]; ``share``, which rows these
    are of a batch that several processes train on together, None where all of it is here.
    """

    item_ids: Tensor
    lengths: Tensor
    targets: Tensor
    users: Tensor
    counted: CountedTargets | None = None
    share: Share | None = None

    def of(self, share: Share) -> Batch:
        """Return the same rows, as those of a share."""
        return replace(self, share=share)

    @property
    def each_target(self) -> Tensor:
        """The targets that count, one after the other: int64 [N], N = B with one per row."""
        return self.targets if self.counted is None else self.counted.targets

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
        contexts: int16 or wider [R], with ``every_position``: how many of a row's first targets another row has, so
            that they do not count here; None where all count.
    """

    items: Tensor
    stops: Tensor
    lengths: Tensor
    offsets: Tensor
    every_position: bool
    is_target: Tensor | None = None
    contexts: Tensor | None = None

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

    def starts_of(self, index: Tensor) -> Tensor:
        """Return the flat position of the first item of the rows ``index`` (int64 [n]): int64 [n]."""
        return self.stops[index].long() - self.lengths[index]

    def target_counts(self) -> Tensor:
        """Return how many targets of each row count: int64 [R]."""
        if not self.every_position:
            return torch.ones(len(self), dtype=torch.int64)
        first = self.starts if self.contexts is None else self.starts + self.contexts
        if self.is_target is None:
            return self.stops.long() - first
        before = torch.cat([torch.zeros(1, dtype=torch.int64), self.is_target.cumsum(0)])
        return before[self.stops.long() + 1] - before[first + 1]

    def take(self, index: Tensor) -> Rows:
        """Return the rows ``index`` (int64 [n], any order) alone."""
        contexts = None if self.contexts is None else self.contexts[index]
        return replace(self, stops=self.stops[index], lengths=self.lengths[index], contexts=contexts)

    def batch(self, index: Tensor) -> Batch:
        """Gather the rows ``index`` (int64 [B], any order, repeats allowed), padded to the longest."""
        stop, length = self.stops[index].long(), self.lengths[index].long()
        start = self.starts_of(index)
        longest = int(length.max()) if len(length) else 0
        place = torch.arange(longest)
        real = place < length[:, None]
        position = (start[:, None] + place).masked_fill_(~real, 0)
        item_ids = self.items[position].long().masked_fill_(~real, 0)
        if not self.every_position:
            return Batch(item_ids, length, self.items[stop].long(), self._users_at(start))
        counted = real if self.is_target is None else real & self.is_target[position + 1]
        if self.contexts is not None:
            counted = counted & (place >= self.contexts[index][:, None])
        targets = self.items[position + 1].long().masked_fill_(~counted, IGNORED)
        return Batch(item_ids, length, targets, self._users_at(start), CountedTargets.of(targets))

    def _users_at(self, positions: Tensor) -> Tensor:
        return torch.searchsorted(self.offsets, positions, right=True) - 1
