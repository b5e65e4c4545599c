"""The rows of an evaluation as batches, every row exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from plr.data import Batch, LengthGroupedBatches, Rows


def evaluation_batches(
    rows: Rows, batch_size: int, device: torch.device | str, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield this rank's share of the rows in batches of like length, at most batch_size rows each, on the device."""
    for index in share_of_order(rows, batch_size, rank, world_size):
        yield rows.batch(index).to(device)


def share_of_order(rows: Rows, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Tensor]:
    """Return the row numbers of a rank's batches, int64 [b] each: of the batches of all every world_size-th row."""
    order = LengthGroupedBatches(rows.lengths, batch_size * world_size, shuffle=False)
    shares = [index[rank::world_size] for index in order]
    return [index for index in shares if len(index)]
