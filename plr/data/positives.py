"""For every row another one with the same target, drawn at random."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from plr.data.rows import Rows

__all__ = ["SameTargetPositives"]


class SameTargetPositives:
    """Draws positives: each other row with the same target is as likely; a row that has none is its own positive.

    Built by one sort of the rows' targets; takes 8 bytes a row (16 from 2^31 rows on).

    Args:
        rows: R rows with one target each.
        seed: of the draws.

    Raises:
        ValueError: the rows have a target at every position.
    """

    def __init__(self, rows: Rows, seed: int) -> None:
        if rows.every_position:
            raise ValueError("positives share a target; rows with a target at every position have no positives")
        self.seed = seed
        self._rows = rows
        targets = self._target_of(slice(None))
        index_type = torch.int32 if len(rows) < 2**31 else torch.int64
        self._sorted = torch.sort(targets, stable=True).indices.to(index_type)  # row numbers, by target
        self._place = torch.empty_like(self._sorted)  # each row's place among them
        self._place[self._sorted.long()] = torch.arange(len(rows), dtype=index_type)
        counts = torch.bincount(targets)
        self._first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))  # target v's are in _first[v]:_first[v + 1]

    def draw(self, index: Tensor, epoch: int) -> Tensor:
        """Return the positives (int64 [B]) of the rows `index` (int64 [B], B >= 1).

        A function of (seed, epoch, index): within an epoch every row comes once, so each batch draws its own.
        """
        random = np.random.Generator(np.random.PCG64([self.seed, epoch, int(index[0])]))
        targets = self._target_of(index)
        first, stop = self._first[targets], self._first[targets + 1]
        others = (stop - first - 1).numpy()
        place = first + torch.from_numpy(random.integers(0, np.maximum(others, 1)))
        own = self._place[index].long()
        place += place >= own  # not the row itself
        place = torch.where(torch.from_numpy(others == 0), own, place)
        return self._sorted[place].long()

    def _target_of(self, index: Tensor | slice) -> Tensor:
        return self._rows.items[self._rows.stops[index].long()].long()
