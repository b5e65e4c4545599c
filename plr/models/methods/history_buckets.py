"""Rows with several histories each, reasoned about in buckets of like length: else most of what is computed is padding.

A batch of sequences is padded to its longest, and each of its rows to as many histories as the row with most of them
has: of rows in random order most have a few, and one has all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from plr.data import CountedTargets

__all__ = ["buckets", "cut_lengths", "in_buckets"]

Compute = Callable[[Tensor, Tensor, CountedTargets | None, Tensor | None], tuple[Tensor, ...]]

_PASS = 128  # padded positions that take as long as one more pass through the layers, about


def in_buckets(
    item_ids: Tensor, lengths: Tensor, counted: CountedTargets | None, compute: Compute, views: int = 1
) -> tuple[Tensor, ...]:
    """Call ``compute`` for rows of like length at a time, and put together what it returns.

    Args:
        item_ids: int64 [B, L], right-padded.
        lengths: int64 [B].
        counted: which positions the N histories end at; None where each row is one (N = B), which is one call.
        compute: item_ids [views·b, l], lengths [views·b] and the n histories' `counted`, ``views`` times, and which of
            the B rows they are, int64 [b] (None: all) -> tensors [views·n, ...], in the order of their targets, the
            first view's first.
        views: how many times each row is to be computed.

    Returns:
        ``compute``'s tensors for all N histories: [views·N, ...].
    """
    parts, places = [], []
    for rows, longest, own, own_places in buckets(lengths, item_ids.shape[1], counted):
        if rows is None:
            return compute(
                item_ids.repeat(views, 1), lengths.repeat(views), None if own is None else own.repeat(views), None
            )
        assert own is not None
        assert own_places is not None
        own_ids = item_ids[rows, :longest].repeat(views, 1)
        outputs = compute(own_ids, lengths[rows].repeat(views), own.repeat(views), rows)
        parts.append([output.unflatten(0, (views, -1)) for output in outputs])
        places.append(own_places)
    order = torch.cat(places).argsort()
    return tuple(torch.cat(part, dim=1)[:, order].flatten(0, 1) for part in zip(*parts, strict=True))


def buckets(
    lengths: Tensor, width: int, counted: CountedTargets | None
) -> Iterator[tuple[Tensor | None, int, CountedTargets | None, Tensor | None]]:
    """Yield each bucket's rows, longest length, targets, and which of the N these are; once (None, L, all, None) where
    one pass is as fast."""
    cuts = None if counted is None else _cuts_worthwhile(lengths, width)
    if counted is None or cuts is None or not len(counted.index):
        yield None, width, counted, None
        return
    bucket_of = torch.bucketize(lengths, torch.tensor(cuts))
    for bucket, longest in enumerate(cuts):
        rows = (bucket_of == bucket).nonzero()[:, 0]
        own, own_places = counted.of_rows(rows)
        if len(own_places):
            yield rows, longest, own, own_places


def _cuts_worthwhile(lengths: Tensor, width: int) -> list[int] | None:
    """The lengths to cut at, or None for one pass. Not on other devices, from which they would have to be read back."""
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    cuts = cut_lengths(lengths.numpy())
    return None if len(cuts) == 1 and cuts[0] == width else cuts


def cut_lengths(lengths: np.ndarray) -> list[int]:
    """Return the longest lengths of the buckets, ascending, for the least padding and number of passes together.

    ``lengths`` [B], at least one; a bucket of n rows of which the longest has l positions costs n·l, and a pass.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    before = np.concatenate([[0], counts.cumsum()])  # rows that are shorter than each
    best = np.zeros(len(distinct) + 1)  # the least cost of the first so many lengths
    first = np.zeros(len(distinct) + 1, dtype=np.int64)  # where its last bucket begins
    for end in range(1, len(distinct) + 1):
        costs = best[:end] + (before[end] - before[:end]) * distinct[end - 1] + _PASS
        first[end] = costs.argmin()
        best[end] = costs[first[end]]
    cuts, end = [], len(distinct)
    while end > 0:
        cuts.append(int(distinct[end - 1]))
        end = int(first[end])
    return cuts[::-1]
