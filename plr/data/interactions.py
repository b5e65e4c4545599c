"""Interactions as numbers: external ids replaced by their rank among the sorted ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from plr.data.readers import Source

__all__ = ["Interactions", "counts_of", "gather", "number", "stable_order"]

_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Interactions:
    """N interactions in file order, or after ``in_user_order`` in that.

    ``user`` and ``item`` are int32 [N] in 0..U-1 and 0..V-1, ``position`` uint32 [N] says where in the source
    (None: as they stand); ``rating`` float64 [N] and ``timestamp`` int64 [N] are None where the file has
    none. ``user_ids`` and ``item_ids`` are the sorted external ids, each of them in use.
    """

    user: np.ndarray
    item: np.ndarray
    position: np.ndarray | None
    rating: np.ndarray | None
    timestamp: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series

    def __len__(self) -> int:
        return len(self.user)

    def positions(self) -> np.ndarray:
        """Return where in the source each stands."""
        return np.arange(len(self), dtype=np.uint32) if self.position is None else self.position

    def take(self, chosen: np.ndarray) -> Interactions:
        """Return the chosen interactions (mask or positions); ids left without any are renumbered away."""
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen).astype(np.uint32)
        user, user_ids = _compact(gather(self.user, chosen), self.user_ids)
        item, item_ids = _compact(gather(self.item, chosen), self.item_ids)
        return replace(
            self,
            user=user,
            item=item,
            position=chosen if self.position is None else gather(self.position, chosen),
            rating=None if self.rating is None else gather(self.rating, chosen),
            timestamp=None if self.timestamp is None else gather(self.timestamp, chosen),
            user_ids=user_ids,
            item_ids=item_ids,
        )

    def in_user_order(self) -> Interactions:
        """Return them sorted by user, then by time where known; equal ones stay in file order."""
        place = _by_user(self.user)
        return self.take(place if self.timestamp is None else self._in_time(place))

    def _in_time(self, place: np.ndarray) -> np.ndarray:
        """Return the order ``place``, which is sorted by user, with everyone's interactions in the order of time.

        Only the users of whom the file has that otherwise are sorted.
        """
        time, user = gather(self.timestamp, place), gather(self.user, place)
        late = np.zeros(len(self.user_ids), dtype=bool)
        late[user[1:][(time[1:] < time[:-1]) & (user[1:] == user[:-1])]] = True
        if late.any():
            among = np.flatnonzero(gather(late, user)).astype(np.uint32)
            order = stable_order(gather(time, among))
            order = gather(order, _by_user(gather(user, gather(among, order))))
            place[among] = gather(place, gather(among, order))
        return place


def _by_user(user: np.ndarray) -> np.ndarray:
    """Return the positions (uint32 [N]) that sort ``user``, equal ones in their order."""
    words = user.astype(np.uint64)  # one sort of 64-bit words: the user above, the position below
    words <<= np.uint64(32)
    words |= np.arange(len(user), dtype=np.uint32)
    words.sort()
    return words.astype(np.uint32)  # the lower half


def stable_order(values: np.ndarray) -> np.ndarray:
    """Return the positions (uint32 [N]) that sort ``values`` (int64 [N], N < 2^32), equal ones in their order."""
    order = np.argsort(values).astype(np.uint32)  # faster than a stable sort, which the equal ones are given below
    placed = gather(values, order)
    words = np.zeros(len(order), dtype=np.uint64)
    np.cumsum(placed[1:] != placed[:-1], out=words[1:])
    del placed
    words <<= np.uint64(32)
    words |= order
    words.sort()
    return words.astype(np.uint32)  # the lower half


def gather(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return ``values[index]``, by blocks: numpy makes a copy in 64 bits of an index of fewer."""
    out = np.empty(len(index), dtype=values.dtype)
    for start in range(0, len(index), _CHUNK):
        np.take(values, index[start : start + _CHUNK], out=out[start : start + _CHUNK], mode="clip")
    return out


def counts_of(index: np.ndarray, count: int) -> np.ndarray:
    """Return how often each of 0..count-1 occurs in ``index``: int64 [count].

    By blocks: ``np.bincount`` makes a copy in 64 bits of what it counts.
    """
    total = np.zeros(count, dtype=np.int64)
    for start in range(0, len(index), _CHUNK):
        total += np.bincount(index[start : start + _CHUNK], minlength=count)
    return total


def number(sources: list[Source]) -> tuple[Interactions, Callable[[int], tuple[Path, int]]]:
    """Number the users and items of Sources that were read into one IdSpace.

    Strings sort by their UTF-8 bytes, so "007" and "7" stay two ids. Also returns what gives the file and line
    of an interaction by its position. The list is emptied: there is no room for both forms of large files.
    """
    frame = pl.concat([source.frame for source in sources], rechunk=False)
    starts = np.cumsum([0, *(source.frame.height for source in sources)])
    places = [replace(source, frame=pl.DataFrame()) for source in sources]
    sources.clear()

    def place(position: int) -> tuple[Path, int]:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        return places[part].place(position - int(starts[part]))

    def taken(name: str) -> np.ndarray | None:
        return frame.drop_in_place(name).to_numpy() if name in frame.columns else None

    user, user_ids = _rank(frame.drop_in_place("user"))
    item, item_ids = _rank(frame.drop_in_place("item"))
    return Interactions(user, item, None, taken("rating"), taken("timestamp"), user_ids, item_ids), place


def _rank(values: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Return the rank int32 [N] of each value (a categorical) among the sorted distinct ones, and those."""
    codes = values.to_physical()  # dense or nearly so: they number the ids as they came
    chunks = [chunk.to_numpy() for chunk in codes.get_chunks()]
    known = 1 + int(codes.max()) if len(codes) else 0
    somewhere = np.full(known, -1)  # a position of each id
    start = 0
    for chunk in chunks:
        somewhere[chunk] = np.arange(start, start + len(chunk))
        start += len(chunk)
    used = np.flatnonzero(somewhere >= 0)
    ids = values.gather(somewhere[used]).cast(pl.String)
    # The streaming engine sorts strings several times as fast as arg_sort; no two are equal here.
    placed = pl.LazyFrame({"id": ids, "code": used}).sort("id").collect(engine="streaming")
    rank_of = np.zeros(known, dtype=np.int32)
    rank_of[placed["code"].to_numpy()] = np.arange(placed.height, dtype=np.int32)
    ranks = np.empty(len(values), dtype=np.int32)
    start = 0
    for chunk in chunks:
        ranks[start : start + len(chunk)] = gather(rank_of, chunk)
        start += len(chunk)
    return ranks, placed["id"].rechunk()


def _compact(index: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    used = counts_of(index, len(ids)) > 0
    if used.all():
        return index, ids
    return gather(np.cumsum(used, dtype=np.int32) - np.int32(1), index), ids.filter(pl.Series(used))
