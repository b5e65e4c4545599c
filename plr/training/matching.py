"""Rows of one run's parameters as those of another: matched by what they stand for; where new ones start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from plr.data import SequenceDataset
from plr.prepare.interactions import user_blocks

__all__ = ["NEAR", "RowMatch", "mean_of_neighbours"]

NEAR = 5
"""Items at most so many places before or behind another in a sequence occur with it."""


@dataclass(frozen=True, eq=False)
class RowMatch:
    """Which of the former rows each of V rows is.

    Attributes:
        former: int64 [V], the row's number before; -1 of a new one.
        former_count: how many rows there were.
    """

    former: Tensor
    former_count: int

    @classmethod
    def of(cls, before: Sequence[str], now: Sequence[str] | pl.Series) -> RowMatch:
        """Match rows by what they stand for, of which each occurs once."""
        number_of = {name: number for number, name in enumerate(before)}
        return cls(torch.tensor([number_of.get(name, -1) for name in now], dtype=torch.int64), len(number_of))

    def with_last(self) -> RowMatch:
        """Return the match of tables that have one row more, behind all others, which is the same in both."""
        last = self.former.new_tensor([self.former_count])
        return RowMatch(torch.cat([self.former, last]), self.former_count + 1)

    @property
    def is_new(self) -> Tensor:
        """Which rows there were not: bool [V]."""
        return self.former < 0

    def counts(self) -> dict[str, int]:
        """Return how many are known and new, and how many of the former ones have retired."""
        new = int(self.is_new.sum())
        known = len(self.former) - new
        return {"known": known, "new": new, "retired": self.former_count - known}

    def moved(self, rows: Tensor, new: Tensor) -> Tensor:
        """Return former rows [W, ...] as those of now, [V, ...], with `new` ([V, ...] or one row) where there was none.

        What a known row had it has to the bit.
        """
        index = self.former.clamp(min=0)
        if not len(rows):
            return new.expand(len(index), *rows.shape[1:]).clone()
        is_new = self.is_new.view(-1, *[1] * (rows.ndim - 1))
        return torch.where(is_new, new, rows[index])

    def mean(self, rows: Tensor) -> Tensor:
        """Return the mean of the former rows [W, ...] that are known now, zeros where none is: [1, ...]."""
        known = rows[self.former[~self.is_new]]
        return known.double().mean(0, keepdim=True).to(rows.dtype) if len(known) else rows.new_zeros(1, *rows.shape[1:])


def mean_of_neighbours(rows: Tensor, is_new: Tensor, dataset: SequenceDataset, otherwise: Tensor) -> Tensor:
    """Return rows [V, ...] in which each new one is the mean of the known rows of the items that it occurs with.

    Those are, in what the data's training holds, the items at most NEAR places before or behind it in a sequence, each
    as often as it stands there. A new row that occurs with no known one is `otherwise` [1, ...].

    Args:
        rows: those of the known items count.
        is_new: bool [V].
        dataset: whose item v has row v.
        otherwise: one row.
    """
    sums = torch.zeros(rows.shape, dtype=torch.float64)
    counts = torch.zeros(len(rows), dtype=torch.float64)
    fresh, known = is_new.numpy(), rows.double()
    for new_items, others in _pairs(dataset, fresh):
        sums.index_add_(0, new_items, known[others])
        counts += torch.bincount(new_items, minlength=len(rows))
    shape = (-1, *[1] * (rows.ndim - 1))
    means = torch.where(counts.view(shape) > 0, sums / counts.clamp(min=1).view(shape), otherwise.double())
    return torch.where(is_new.view(shape), means.to(rows.dtype), rows)


def _pairs(dataset: SequenceDataset, is_new: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the new item and the known one of all places of training that are at most NEAR apart."""
    items, offsets, stops = dataset.items.numpy(), dataset.offsets.numpy(), dataset.training_stop.numpy()
    for first, last in user_blocks(offsets):
        # Training is what comes first of each user: what follows it is held out, and must not be looked at.
        lengths = stops[first:last] - offsets[first:last]
        ends = np.cumsum(lengths)
        user = np.repeat(np.arange(last - first), lengths)
        place = np.arange(ends[-1]) + (offsets[first:last] - (ends - lengths))[user]
        item = items[place].astype(np.int64)
        for apart in range(1, NEAR + 1):
            early, late = item[:-apart], item[apart:]
            together = user[:-apart] == user[apart:]
            for one, other in ((early, late), (late, early)):
                chosen = together & is_new[one] & ~is_new[other]
                if chosen.any():
                    yield torch.from_numpy(one[chosen]), torch.from_numpy(other[chosen])
