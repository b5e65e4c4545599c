"""A process's share of a batch that several processes train on together."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from plr.data.rows import Batch

__all__ = ["Share"]


class Share:
    """Which rows of a batch a process has, and what its loss needs to know of the others' to be that of one process.

    Process r of W has the rows r, r + W, r + 2W, ... of B. Where there are fewer rows than processes, some are idle:
    they compute the first row as a stand-in, which counts nothing.

    Args:
        gather: row numbers of the training rows -> Batch.
        index: int64 [B], or [2B] with positives, those of the whole batch.
        targets: N, how many targets the B rows have.
        rank: r.
        world_size: W.
        positives: whether the second half are positives of the first.
    """

    def __init__(
        self,
        gather: Callable[[Tensor], Batch],
        index: Tensor,
        targets: int,
        rank: int,
        world_size: int,
        *,
        positives: bool = False,
    ) -> None:
        self.rank, self.world_size = rank, world_size
        self.targets = targets
        self.size = len(index)
        self._gather, self._index = gather, index
        self._rows = len(index) // 2 if positives else len(index)  # B
        self.idle = rank >= self._rows
        own = torch.zeros(1, dtype=torch.int64) if self.idle else torch.arange(rank, self._rows, world_size)
        self.rows = torch.cat([own, self._rows + own]) if positives else own
        """The places of the process's rows in the whole batch: int64 [b], ascending; positives come last, too."""
        self._seed = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def own(self) -> Batch:
        """Return the process's rows as a batch that knows its share."""
        return self._gather(self._index[self.rows]).of(self)

    @cached_property
    def whole(self) -> Batch:
        """All rows of the batch, on the CPU: gathered only for losses that need them."""
        return self._gather(self._index)

    def numbers(self, rank: int | None = None, *, in_rows: bool = False) -> Tensor:
        """Return which of the N targets are a process's: int64 [n], ascending; none where it is idle.

        Args:
            rank: the process; by default this one.
            in_rows: whether they are numbered row after row, and not as `CountedTargets` has them.
        """
        rank = self.rank if rank is None else rank
        counted = None if self.targets == self._rows else self.whole.counted
        if counted is None:
            return torch.arange(self._rows)[rank :: self.world_size]
        row = counted.index // counted.positions.shape[1]  # [N]
        if in_rows:
            row = row.sort().values
        return (row % self.world_size == rank).nonzero()[:, 0]

    def group_sizes(self, own: Batch) -> tuple[int, ...]:
        """Return how many of the whole batch's rows have a first, a second, ... target; `own` is the process's part."""
        if own.counted is None:
            return (self.targets,)
        assert self.whole.counted is not None
        return self.whole.counted.sizes

    def seed(self, seed: int) -> None:
        """Begin a step's random numbers, which are the same in all processes."""
        self._seed = seed
        self._generators.clear()

    def generator(self, device: torch.device | str) -> torch.Generator:
        """Return the source of random numbers that are the same in all processes, and those of one process alone.

        With dropout 0: dropout draws from torch's global generators, in each process of its own.
        """
        device = torch.device(device)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]
