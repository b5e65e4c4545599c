"""Batches of rows of similar length, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["LengthGroupedBatches"]

_MEGA_BATCH = 64  # batches sorted by length together; more pads less, fewer mixes better
_BLOCK = 1 << 16  # neighbouring rows that stay in one window


class LengthGroupedBatches:
    """An iterable of index tensors (int64 [b], b <= batch_size) that together hold every row exactly once.

    With ``shuffle`` the rows are permuted, cut into mega-batches of about 64 batches, sorted by length
    inside each, cut into batches, and the batches shuffled; the order is a function of (seed, epoch) alone.
    Not ``grouped``, they are permuted and cut: rows of any lengths stand together, and more is padded.
    A permutation takes 8 bytes a row. With a ``window`` smaller than the rows it is of so many at a time: blocks of
    2^16 neighbouring rows are permuted, those of a window are read together, and their rows permuted and cut as above.
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
        window: With ``shuffle``, how many rows are permuted at a time, in whole blocks; 0 for all.

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
        window: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; found {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must not be negative; found {seed}")
        if window < 0:
            raise ValueError(f"window must not be negative; found {window}")
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.grouped = grouped
        self.window = window
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
            yield from self._shuffled(bounds)
            return
        rows = torch.from_numpy(np.argsort(~self._lengths, kind="stable"))
        for step in range(self._steps):
            yield rows[bounds[step] : bounds[step + 1]]

    def _shuffled(self, bounds: np.ndarray) -> Iterator[Tensor]:
        """Yield the batches, which end at `bounds` among all rows, window by window."""
        random = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        left, step = np.empty(0, dtype=np.int64), 0
        for rows in self._windows(random):
            if len(left):
                rows = np.concatenate([left, rows])
            stop = int(np.searchsorted(bounds, bounds[step] + len(rows), side="right")) - 1
            cuts = bounds[step : stop + 1] - bounds[step]  # a batch that the window does not fill is the next one's
            left, rows = rows[cuts[-1] :], rows[: cuts[-1]]
            self._arrange(rows, cuts)
            batches = torch.from_numpy(rows)
            for number in random.permutation(stop - step):
                yield batches[cuts[number] : cuts[number + 1]]
            step = stop

    def _windows(self, random: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield permuted rows, together all of them: int64."""
        count = len(self._lengths)
        if not self.window or self.window >= count:
            yield random.permutation(count)
            return
        blocks, together = random.permutation(-(-count // _BLOCK)), -(-self.window // _BLOCK)
        for start in range(0, len(blocks), together):
            firsts = blocks[start : start + together] * _BLOCK
            rows = np.concatenate([np.arange(first, min(first + _BLOCK, count)) for first in firsts])
            random.shuffle(rows)
            yield rows

    def _arrange(self, order: np.ndarray, bounds: np.ndarray) -> None:
        """Sort permuted rows by length within each mega-batch, where grouped, and set the bounds by counts."""
        if not self.grouped and self._counts is None:
            return
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


def _even_cuts(counts: np.ndarray, parts: int) -> np.ndarray:
    """Return the bounds [parts + 1] of slices, none empty, of about equal sums of counts [R], R >= parts."""
    done = np.concatenate([[0], np.cumsum(counts)])
    wanted = done[-1] * np.arange(parts + 1) / parts
    after = np.searchsorted(done, wanted).clip(1)
    cuts = np.where(wanted - done[after - 1] < done[after] - wanted, after - 1, after)  # the nearer one
    number = np.arange(parts + 1)
    cuts = np.maximum.accumulate(cuts - number) + number  # at least one row each: from the left,
    return np.minimum(cuts, len(counts) - parts + number)  # and from the right
