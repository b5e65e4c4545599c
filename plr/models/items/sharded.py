"""Items of which each process of a run holds some, and none all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from plr_kernels.distributed.shard import first_row

__all__ = ["ItemPart", "ShardedEmbedding", "item_embedding"]

_AT_A_TIME = 1 << 16
"""Rows drawn at a time, a multiple of 16."""


@dataclass(frozen=True)
class ItemPart:
    """Which of the items a process holds, as `plr_kernels.distributed.ItemShard` deals them.

    Attributes:
        items: V, at least W.
        process: which process it is.
        processes: of how many, W.
    """

    items: int
    process: int
    processes: int

    @property
    def held(self) -> slice:
        """The items, as a slice of all."""
        first, stop = (first_row(self.items, self.processes, self.process + more) for more in (0, 1))
        return slice(first, stop)


class ShardedEmbedding(nn.Module):
    """A process's rows [rows, d] of an embedding [V, d].

    Args:
        part: which ones.
        dim: d.

    Attributes:
        sparse: whether looked-up rows have sparse gradients, as of nn.Embedding.
    """

    def __init__(self, part: ItemPart, dim: int):
        super().__init__()
        self.part, self.sparse = part, False
        self.weight = nn.Parameter(torch.empty(part.held.stop - part.held.start, dim))
        self.draw(1.0)  # as nn.Embedding does: what is drawn after it is the same

    @torch.no_grad()
    def draw(self, std: float) -> None:
        """Draw from N(0, std²) the rows that the process has of what one process draws for all.

        From torch's global generator, some rows at a time. PyTorch makes normal numbers of 16 uniform ones at a time,
        and draws the last 16 again where there are not a multiple: in parts of a multiple of 16, all but the last, the
        numbers are those of one draw.
        """
        held, items, dim = self.part.held, self.part.items, self.weight.shape[1]
        start = 0
        while start < items:
            stop = start + _AT_A_TIME
            if stop + 16 > items:
                stop = items
            drawn = torch.empty(stop - start, dim).normal_(std=std)
            first, last = max(start, held.start), min(stop, held.stop)
            if first < last:
                self.weight[first - held.start : last - held.start] = drawn[first - start : last - start]
            start = stop


def item_embedding(items: int, dim: int, part: ItemPart | None) -> nn.Embedding | ShardedEmbedding:
    """Return learned vectors of all items [V, dim], or of the part of them that a process holds."""
    return nn.Embedding(items, dim) if part is None else ShardedEmbedding(part, dim)
