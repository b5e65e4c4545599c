"""Interactions as numbers: external ids replaced by their rank among the sorted ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from plr.data.blocks import by_blocks, mark
from plr.data.compiled import _cpp
from plr.data.readers import CompiledNumbering, IdSpace, Numbering, Source

__all__ = ["Interactions", "counts_of", "gather", "number", "stable_order", "user_blocks"]

_CHUNK = 1 << 22


@dataclass(eq=False)
class Interactions:
    """N interactions in file order, or after ``put_in_user_order`` in that.

    ``user`` and ``item`` are int32 [N] in 0..U-1 and 0..V-1, ``position`` uint32 [N] says where in the source
    (None: as they stand); ``positive`` bool [N] (whether the rating is high enough) and ``timestamp`` int64 [N]
    are None where the file has none or nobody asked. ``user_ids`` and ``item_ids`` are the sorted external
    ids, each of them in use.
    """

    user: np.ndarray
    item: np.ndarray
    position: np.ndarray | None
    positive: np.ndarray | None
    timestamp: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series

    def __len__(self) -> int:
        return len(self.user)

    def positions(self) -> np.ndarray:
        """Return where in the source each stands."""
        return np.arange(len(self), dtype=np.uint32) if self.position is None else self.position

    def take(self, chosen: np.ndarray, *, release: bool = False) -> Interactions:
        """Return the chosen interactions (mask or positions); ids left without any are renumbered away.

        With ``release`` this object gives up its arrays one by one, so that they need not all stand in memory twice.
        """
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen).astype(np.uint32)
        taken = {}
        for name in ("user", "item", "positive", "timestamp"):
            values = getattr(self, name)
            taken[name] = None if values is None else gather(values, chosen)
            if release:
                del values
                setattr(self, name, None)
        user, user_ids = _compact(taken.pop("user"), self.user_ids)
        item, item_ids = _compact(taken.pop("item"), self.item_ids)
        position = chosen if self.position is None else gather(self.position, chosen)
        return Interactions(user, item, position, taken["positive"], taken["timestamp"], user_ids, item_ids)

    def offsets(self) -> np.ndarray:
        """Return where each user's interactions begin, and the end: int64 [U+1]. In user order."""
        if not len(self):
            return np.zeros(1, dtype=np.int64)

        def begins(block: slice) -> np.ndarray:
            former = self.user[max(block.start - 1, 0) : block.stop - 1]
            return np.flatnonzero(self.user[max(block.start, 1) : block.stop] != former) + max(block.start, 1)

        return np.concatenate([[0], *by_blocks(begins, len(self)), [len(self)]])

    def put_in_user_order(self) -> None:
        """Sort them by user, then by time where known; equal ones stay in file order."""
        if _cpp is None:
            place = self._sorted_by_words()
        else:
            columns = self.user, self.item, self.timestamp, self.positive
            order = _cpp.UserOrder(*columns, len(self.user_ids), pl.thread_pool_size())
            del columns
            self.user = self.item = self.timestamp = self.positive = None  # there is no room for them twice
            self.user, self.item, self.timestamp, self.positive, place = order.write()
        self.position = place if self.position is None else gather(self.position, place)

    def _sorted_by_words(self) -> np.ndarray:
        """Sort them without C++; returns where each stood (uint32 [N])."""
        words = _user_and_place(self.user)
        place = words.astype(np.uint32)  # the lower half
        words >>= np.uint64(32)
        self.user = words.astype(np.int32)
        del words
        if self.timestamp is not None:
            self.timestamp = gather(self.timestamp, place)
            self._put_in_time(place)
        self.item = gather(self.item, place)
        if self.positive is not None:
            self.positive = gather(self.positive, place)
        return place

    def _put_in_time(self, place: np.ndarray) -> None:
        """Put everyone's interactions into the order of time: ``timestamp`` and ``place``, which are sorted by user.

        In blocks of users, and of those only the ones of whom the file has it otherwise.
        """
        offsets = self.offsets()
        for first, last in user_blocks(offsets):
            part = slice(offsets[first], offsets[last])
            time, user, there = self.timestamp[part], self.user[part], place[part]  # views
            before = (time[1:] < time[:-1]) & (user[1:] == user[:-1])
            if before.any():
                late = np.zeros(last - first, dtype=bool)
                late[user[1:][before] - first] = True
                among = np.flatnonzero(late[user - np.int32(first)])
                order = stable_order(time[among])
                order = order[_user_and_place(user[among][order]).astype(np.uint32)]
                time[among], there[among] = time[among[order]], there[among[order]]


def user_blocks(offsets: np.ndarray, together: int = _CHUNK) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of consecutive users who have at most ``together`` interactions, or one user who has more."""
    first = 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(np.searchsorted(offsets, offsets[first] + together, side="right")) - 1)
        yield first, last
        first = last


def _user_and_place(user: np.ndarray) -> np.ndarray:
    """Return sorted words (uint64 [N]): above an entry of ``user``, below its place."""
    words = user.astype(np.uint64)
    words <<= np.uint64(32)
    words |= np.arange(len(user), dtype=np.uint32)
    words.sort()
    return words


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
    by_blocks(lambda block: np.take(values, index[block], out=out[block], mode="clip"), len(index))
    return out


def counts_of(index: np.ndarray, count: int) -> np.ndarray:
    """Return how often each of 0..count-1 occurs in ``index``: int64 [count].

    By blocks: ``np.bincount`` makes a copy in 64 bits of what it counts.
    """
    total = np.zeros(count, dtype=np.int64)
    for start in range(0, len(index), _CHUNK):
        total += np.bincount(index[start : start + _CHUNK], minlength=count)
    return total


def number(sources: list[Source], space: IdSpace) -> tuple[Interactions, Callable[[int], tuple[Path, int]]]:
    """Number the users and items of Sources that were read into ``space`` by their sorted ids.

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

    with ThreadPoolExecutor(2) as pool:
        users = pool.submit(_rank, frame.drop_in_place("user"), space.user)
        items = pool.submit(_rank, frame.drop_in_place("item"), space.item)
        positive, timestamp = taken("positive"), taken("timestamp")
        (user, user_ids), (item, item_ids) = users.result(), items.result()
    return Interactions(user, item, None, positive, timestamp, user_ids, item_ids), place


def _rank(numbers: pl.Series, numbering: Numbering | CompiledNumbering) -> tuple[np.ndarray, pl.Series]:
    """Return the rank int32 [N] of each id (given by number) among the sorted ones in use, and those."""
    chunks = [chunk.to_numpy() for chunk in numbers.get_chunks()]
    ids, rank_of = numbering.ranked()
    used = np.zeros(len(ids), dtype=bool)
    for chunk in chunks:
        mark(used, chunk)
    if not used.all():  # lines that were left out had others
        in_use = np.empty_like(used)
        in_use[rank_of] = used
        ids = ids.filter(pl.Series(in_use))
        rank_of = (np.cumsum(in_use, dtype=np.int32) - np.int32(1))[rank_of]
    ranks = np.empty(len(numbers), dtype=np.int32)
    start = 0
    for chunk in chunks:
        ranks[start : start + len(chunk)] = gather(rank_of, chunk)
        start += len(chunk)
    return ranks, ids.rechunk()


def _compact(index: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    used = counts_of(index, len(ids)) > 0
    if used.all():
        return index, ids
    return gather(np.cumsum(used, dtype=np.int32) - np.int32(1), index), ids.filter(pl.Series(used))
