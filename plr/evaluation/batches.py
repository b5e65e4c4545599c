"""The rows of an evaluation as batches, every row exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from plr.data import Batch, LengthGroupedBatches, Rows


def evaluation_batches(
    rows: Rows, batch_size: int, device: torch.device | str, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield this rank's share of the rows in batches of like length, on the device."""
    order = LengthGroupedBatches(rows.lengths, batch_size, shuffle=False, rank=rank, world_size=world_size)
    for index in order:
        yield rows.batch(index).to(device)
