"""Rows of a batch, sorted and cut into parts of similar length, so that little is padded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_PARTS = 8  # more pad less, but each is a pass through all layers
_LEAST_ROWS = 32  # of a part: fewer do not keep the processor busy
_WORTH_IT = 0.8  # of the padded positions; above it, one pass over the whole batch is as fast


class SimilarLengths(NamedTuple):
    """An order of a batch's rows and where to cut it.

    Attributes:
        order: int64 [B], shortest first.
        inverse: int64 [B], back from there.
        rows: how many rows each part has.
        longest: the longest row of each part.
    """

    order: Tensor
    inverse: Tensor
    rows: list[int]
    longest: list[int]


def similar_lengths(lengths: Tensor, width: int) -> SimilarLengths | None:
    """Cut a right-padded batch into parts of similar length, or return None where that saves little.

    Only on CPUs: elsewhere lengths would have to be read back from the device.

    Args:
        lengths: int64 [B].
        width: to which the rows are padded.
    """
    count = lengths.shape[0]
    if lengths.device.type != "cpu" or torch.compiler.is_compiling() or count < 2 * _LEAST_ROWS:
        return None
    ordered, order = lengths.sort(stable=True)
    size = max(-(-count // _PARTS), _LEAST_ROWS)
    rows = [min(size, count - start) for start in range(0, count, size)]
    longest = [int(part[-1]) for part in ordered.split(rows)]
    if sum(number * length for number, length in zip(rows, longest, strict=True)) > _WORTH_IT * count * width:
        return None
    return SimilarLengths(order, order.argsort(), rows, longest)
