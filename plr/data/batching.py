"""Batches of rows of similar length, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["LengthGroupedBatches"]

_MEGA_BATCH = 64  # batches sorted by length together; more pads less, fewer mixes better


class LengthGroupedBatches:
    """An iterable of index tensors (int64 [b], b <= batch_size) that together hold every row exactly once.

    With ``shuffle`` the rows are permuted, cut into mega-batches of about 64 batches, sorted by length
    inside each, cut into batches, and the batches shuffled; the order is a function of (seed, epoch) alone.
    Not ``grouped``, they are permuted and cut: rows of any lengths stand together, and more is padded.
    Without ``shuffle`` rows are sorted by length, longest first, so that the largest batch is the first.

    Batch sizes differ by at most one: nothing is dropped and nothing repeated. The plan is that of any number of
    processes; what each has of a batch, `Share` and `evaluation_batches` say.

    With ``counts`` a batch is filled by its targets: each has about as many, whether they are of few rows or of many.
    Of rows of one length, those with like numbers of targets then stand together.

    Args:
        lengths: int16 or wider [R], the length of every row.
        batch_size: Rows per batch, at most. With ``counts`` targets, on average at most; a batch has more or fewer by
            about half of a row's.
        counts: int64 [R], each at least 1, how many targets each row has, where batches are to be filled by them; with
            ``shuffle``.
        shuffle: True for training, False for evaluation.
        seed: Of the shuffling.
        grouped: False mixes all lengths in a batch, with ``shuffle``.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        lengths: Tensor,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        grouped: bool = True,
        counts: Tensor | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; found {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative; found {seed}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.grouped = grouped
        self.epoch = 0
        self._lengths = lengths.numpy()
        self._counts = None if counts is None else counts.numpy()
        size = len(lengths) if self._counts is None else int(self._counts.sum())
        self._steps = min(-(-size // batch_size), len(lengths))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration (with ``shuffle``)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches."""
        return self._steps

    def __iter__(self) -> Iterator[Tensor]:
        bounds = np.arange(self._steps + 1) * len(self._lengths) // max(self._steps, 1)
        if self.shuffle:
            random = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
            order, bounds = self._shuffled(random, bounds)
            steps = random.permutation(self._steps)
        else:
            order, steps = np.argsort(~self._lengths, kind="stable"), np.arange(self._steps)
        rows = torch.from_numpy(order)
        for step in steps:
            yield rows[bounds[step] : bounds[step + 1]]

    def _shuffled(self, random: np.random.Generator, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a permutation of the rows, where grouped sorted by length within each mega-batch, and the bounds."""
        order = random.permutation(len(self._lengths))
        batches = len(bounds) - 1
        together = _MEGA_BATCH if self.grouped else max(batches, 1)
        for start in range(0, batches, together):
            stop = min(start + together, batches)
            first, last = bounds[start], bounds[stop]
            part = order[first:last].copy()
            if self.grouped:
                keys = [self._lengths[part]] if self._counts is None else [self._counts[part], self._lengths[part]]
                part = order[first:last] = part[np.lexsort(keys)]
            if self._counts is not None:
                bounds[start : stop + 1] = first + _even_cuts(self._counts[part], stop - start)
        return order, bounds


def _even_cuts(counts: np.ndarray, parts: int) -> np.ndarray:
    """Return the bounds [parts + 1] of slices, none empty, of about equal sums of counts [R], R >= parts."""
    done = np.concatenate([[0], np.cumsum(counts)])
    wanted = done[-1] * np.arange(parts + 1) / parts
    after = np.searchsorted(done, wanted).clip(1)
    cuts = np.where(wanted - done[after - 1] < done[after] - wanted, after - 1, after)  # the nearer one
    number = np.arange(parts + 1)
    cuts = np.maximum.accumulate(cuts - number) + number  # at least one row each: from the left,
    return np.minimum(cuts, len(counts) - parts + number)  # and from the right
