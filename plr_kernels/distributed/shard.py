"""Which rows of the item table a process holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = ["ItemShard"]


@dataclass(frozen=True)
class ItemShard:
    """This process's part of a table of V items: consecutive rows, as many as the others have, or one more.

    With V = q·W + r over W processes, the first r have q + 1 rows and the others q.

    Args:
        items: V, at least W.
        group: the processes that have the table together, in the order of their rows; None: all.

    Raises:
        TypeError: items is not an int.
        ValueError: there are fewer items than processes, or the process is not of the group.
    """

    items: int
    group: ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.items, int) or isinstance(self.items, bool):
            raise TypeError(f"items must be an int, found {type(self.items).__name__}")
        if self.rank < 0:
            raise ValueError("group must be one that this process is of")
        if self.items < self.processes:
            raise ValueError(
                f"items must be at least the number of processes, {self.processes}, each of which holds a row; found "
                f"{self.items}"
            )

    @property
    def processes(self) -> int:
        """W."""
        return distributed.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return distributed.get_rank(self.group)

    @property
    def first(self) -> int:
        """The item that the process's row 0 is of."""
        return self.first_of(self.rank)

    @property
    def rows(self) -> int:
        """How many rows the process has, at least 1."""
        return self.first_of(self.rank + 1) - self.first

    def first_of(self, process: int) -> int:
        """Return the first item of a process; V for W, which comes after the last."""
        return first_row(self.items, self.processes, process)

    def local(self, table: Tensor) -> Tensor:
        """Return the process's rows of a whole table [V, ...], as a view."""
        if len(table) != self.items:
            raise ValueError(f"table must have {self.items} rows, found {list(table.shape)}")
        return table[self.first : self.first + self.rows]

    def holds(self, ids: Tensor) -> Tensor:
        """Return which item ids are of the process's rows, bool."""
        return (ids >= self.first) & (ids < self.first + self.rows)

    def counts(self, ids: Tensor) -> list[int]:
        """Return how many of ascending ids, int64 [U], each process holds."""
        bounds = torch.tensor([self.first_of(process) for process in range(self.processes + 1)], device=ids.device)
        return torch.searchsorted(ids, bounds).diff().tolist()


def first_row(items: int, processes: int, process: int) -> int:
    """Return the first of so many items that a process of so many has, as `ItemShard` deals them."""
    each, more = divmod(items, processes)
    return process * each + min(process, more)
