"""Rows of a batch, sorted and cut into buckets of similar length, so that little is padded."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BUCKETS = 8  # more pad less, but each is a pass through all layers
_MIN_ROWS = 32  # of a bucket: fewer do not keep the processor busy
_MAX_SHARE = 0.8  # of the padded positions; above it, one pass over the whole batch is as fast


class LengthBuckets(NamedTuple):
    """An order of a batch's rows and where to cut it.

    Attributes:
        order: int64 [B], shortest first.
        inverse: int64 [B], back from there.
        rows: the number of rows of each bucket.
        longest: the longest row of each bucket.
    """

    order: Tensor
    inverse: Tensor
    rows: list[int]
    longest: list[int]


def length_buckets(lengths: Tensor, width: int) -> LengthBuckets | None:
    """Cut a right-padded batch into buckets of similar length, or return None where that saves little.

    Only on CPUs: elsewhere lengths would have to be read back from the device.

    Args:
        lengths: int64 [B].
        width: to which the rows are padded.
    """
    count = lengths.shape[0]
    if lengths.device.type != "cpu" or torch.compiler.is_compiling() or count < 2 * _MIN_ROWS:
        return None
    ordered, order = lengths.sort(stable=True)
    size = max(-(-count // _BUCKETS), _MIN_ROWS)
    rows = [min(size, count - start) for start in range(0, count, size)]
    longest = [int(bucket[-1]) for bucket in ordered.split(rows)]
    if sum(number * length for number, length in zip(rows, longest, strict=True)) > _MAX_SHARE * count * width:
        return None
    return LengthBuckets(order, order.argsort(), rows, longest)
