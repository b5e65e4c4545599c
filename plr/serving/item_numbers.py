"""The numbers of external item ids, a column at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import polars as pl

from plr.prepare.readers.id_encoder import new_id_encoder

__all__ = ["ItemNumbers", "is_id", "is_sequence"]

MOST_UNKNOWN = 1 << 20
"""The most different unknown ids that are remembered before all of them are forgotten."""


class ItemNumbers:
    """A hash table from external ids to item numbers.

    Args:
        item_ids: the ids of items 0..V-1.
    """

    def __init__(self, item_ids: Sequence[str]) -> None:
        self._ids = pl.Series(item_ids, dtype=pl.String)
        self._fill()

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, ids: pl.Series) -> np.ndarray:
        """Return the number of each id, int64 [n]: -1 of one that is no item's, and of null."""
        if len(self._encoder) > len(self) + MOST_UNKNOWN:
            self._fill()
        codes = self._encoder.numbers(ids.cast(pl.String)).fill_null(len(self)).to_numpy()
        known = codes < len(self)
        return np.where(known, self._item_of[np.where(known, codes, 0)], -1)

    def _fill(self) -> None:
        self._encoder = new_id_encoder()
        self._item_of = np.zeros(max(len(self), 1), dtype=np.int64)  # the item of each code, whose order is any
        self._item_of[self._encoder.numbers(self._ids).to_numpy()] = np.arange(len(self))


def is_id(value: Any) -> bool:
    """Return whether a value can be an external id: a text or a whole number."""
    return isinstance(value, (str, Integral)) and not isinstance(value, bool)


def is_sequence(value: Any) -> bool:
    """Return whether a value can be a history: it holds its items in an order, which a set does not."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, set, frozenset))
