"""Interactions as numbers: external ids replaced by their rank among the sorted ids."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

__all__ = ["Interactions", "number"]


@dataclass(frozen=True, eq=False)
class Interactions:
    """N interactions in file order.

    ``user`` and ``item`` are int64 [N] in 0..U-1 and 0..V-1, ``row`` int64 [N] says where in the file;
    ``rating`` float64 [N] and ``timestamp`` int64 [N] are None where the file has none. ``user_ids`` and
    ``item_ids`` are the sorted external ids, each of them in use.
    """

    user: np.ndarray
    item: np.ndarray
    row: np.ndarray
    rating: np.ndarray | None
    timestamp: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series

    def __len__(self) -> int:
        return len(self.user)

    def take(self, chosen: np.ndarray) -> Interactions:
        """Return the chosen interactions (mask or positions); ids left without any are renumbered away."""
        user, user_ids = _compact(self.user[chosen], self.user_ids)
        item, item_ids = _compact(self.item[chosen], self.item_ids)
        return replace(
            self,
            user=user,
            item=item,
            row=self.row[chosen],
            rating=None if self.rating is None else self.rating[chosen],
            timestamp=None if self.timestamp is None else self.timestamp[chosen],
            user_ids=user_ids,
            item_ids=item_ids,
        )

    def in_user_order(self) -> Interactions:
        """Return them sorted by user, then by time where known; equal ones stay in file order."""
        keys = {"user": self.user} if self.timestamp is None else {"user": self.user, "time": self.timestamp}
        order = pl.DataFrame(keys).select(pl.arg_sort_by(*keys, maintain_order=True)).to_series()
        return self.take(order.to_numpy())


def number(frame: pl.DataFrame) -> Interactions:
    """Number the users and items of a Source's frame; strings sort by their UTF-8 bytes, so "007" and "7"
    stay two ids."""
    user, user_ids = _rank(frame["user"])
    item, item_ids = _rank(frame["item"])
    return Interactions(
        user=user,
        item=item,
        row=frame["row"].cast(pl.Int64).to_numpy(),
        rating=frame["rating"].to_numpy() if "rating" in frame.columns else None,
        timestamp=frame["timestamp"].to_numpy() if "timestamp" in frame.columns else None,
        user_ids=user_ids,
        item_ids=item_ids,
    )


def _rank(values: pl.Series) -> tuple[np.ndarray, pl.Series]:
    ids = values.unique().sort()
    return values.cast(pl.Enum(ids)).to_physical().cast(pl.Int64).to_numpy(), ids


def _compact(index: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    used = np.bincount(index, minlength=len(ids)) > 0
    if used.all():
        return index, ids
    return (np.cumsum(used) - 1)[index], ids.filter(pl.Series(used))
