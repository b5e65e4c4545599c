"""Lists of item numbers, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

__all__ = ["Ragged"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """B lists of numbers without padding.

    Attributes:
        ids: int64 [N], the numbers of all lists.
        offsets: int64 [B + 1], where each list begins, and the end of the last one.
    """

    ids: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
        """Return the lists."""
        offsets = _offsets(np.fromiter(map(len, lists), np.int64, count=len(lists)))
        return cls(np.fromiter(chain.from_iterable(lists), np.int64, count=int(offsets[-1])), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The lists' lengths, int64 [B]."""
        return np.diff(self.offsets)

    def lists(self) -> list[np.ndarray]:
        """Return each list by itself."""
        return [self.ids[first:last] for first, last in pairwise(self.offsets.tolist())]

    def take(self, rows: np.ndarray) -> Ragged:
        """Return some of the lists."""
        return _gather(self.ids, self.offsets[:-1][rows], self.lengths[rows])

    def last(self, most: int) -> Ragged:
        """Return the last `most` numbers of each list."""
        lengths = np.minimum(self.lengths, most)
        return _gather(self.ids, self.offsets[1:] - lengths, lengths)

    def joined(self, other: Ragged) -> Ragged:
        """Return each list with that of the other behind it."""
        starts = np.stack([self.offsets[:-1], other.offsets[:-1] + len(self.ids)], axis=1).reshape(-1)
        lengths = np.stack([self.lengths, other.lengths], axis=1).reshape(-1)
        both = _gather(np.concatenate([self.ids, other.ids]), starts, lengths)
        return Ragged(both.ids, both.offsets[::2])

    def padded(self, value: int) -> np.ndarray:
        """Return int64 [B, longest], each list with the value behind it."""
        lengths = self.lengths
        result = np.full((len(self), int(lengths.max(initial=0))), value, dtype=np.int64)
        result[np.arange(result.shape[1]) < lengths[:, None]] = self.ids[self.offsets[0] : self.offsets[-1]]
        return result


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _gather(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Ragged:
    """Return the lists of these lengths that begin at these places."""
    offsets = _offsets(lengths)
    return Ragged(ids[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)], offsets)
