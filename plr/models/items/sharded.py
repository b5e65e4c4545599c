"""An item table of which each process of a run has some rows, and none has all."""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from plr.models.items.encoders import ItemEncoder
from plr_kernels.distributed import ItemShard
from plr_kernels.distributed.shard import first_row

__all__ = ["ShardedEmbedding", "ShardedIdItems"]

_AT_A_TIME = 1 << 16
"""Rows drawn at a time, a multiple of 16."""


class ShardedEmbedding(nn.Module):
    """A process's rows [rows, d] of an embedding [V, d].

    Args:
        items: V.
        dim: d.
        process: which one it is.
        processes: of how many.
    """

    def __init__(self, items: int, dim: int, process: int, processes: int):
        super().__init__()
        self.items, self.first = items, first_row(items, processes, process)
        self.weight = nn.Parameter(torch.empty(first_row(items, processes, process + 1) - self.first, dim))
        self.draw(1.0)  # as nn.Embedding does: what is drawn after it is the same

    @torch.no_grad()
    def draw(self, std: float) -> None:
        """Draw from N(0, std²) the rows that the process has of what one process draws for all.

        From torch's global generator, some rows at a time. PyTorch makes normal numbers of 16 uniform ones at a time,
        and draws the last 16 again where there are not a multiple: in parts of a multiple of 16, all but the last, the
        numbers are those of one draw.
        """
        rows, dim = self.weight.shape
        start = 0
        while start < self.items:
            stop = start + _AT_A_TIME
            if stop + 16 > self.items:
                stop = self.items
            drawn = torch.empty(stop - start, dim).normal_(std=std)
            first, last = max(start, self.first), min(stop, self.first + rows)
            if first < last:
                self.weight[first - self.first : last - self.first] = drawn[first - start : last - start]
            start = stop


class ShardedIdItems(ItemEncoder):
    """One learned vector per item, of which each process has those of some items.

    Args:
        num_items: V, at least as many as processes.
        dim: width d.
        process: which one it is.
        processes: of how many, W.
    """

    def __init__(self, num_items: int, dim: int, process: int, processes: int):
        super().__init__()
        self.num_items = num_items
        self.embedding = ShardedEmbedding(num_items, dim, process, processes)
        self.processes = processes
        self._shard: ItemShard | None = None

    @property
    def shard(self) -> ItemShard:
        """Which rows the process has; all processes ask for it for the first time together.

        The processes exchange rows and states in a group of their own: what DistributedDataParallel sends meanwhile, in
        an order of its own, is not waited for.

        Raises:
            RuntimeError: the processes are others than the rows were made for.
        """
        if self._shard is None:
            shard = ItemShard(self.num_items, distributed.new_group())
            if (shard.first, shard.processes) != (self.embedding.first, self.processes):
                raise RuntimeError(
                    f"process {shard.rank} of {shard.processes} has the rows from {self.embedding.first} on of a table "
                    f"of {self.num_items} over {self.processes}"
                )
            self._shard = shard
        return self._shard

    def table(self) -> Tensor:
        """No process has it.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the item table is shared among processes: none has all rows; take step_items of the model")

    def rows(self, ids: Tensor) -> Tensor:
        """As `table`."""
        return self.table()
