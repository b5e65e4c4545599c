"""Interactions as numbers: external ids replaced by their rank among the sorted ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from plr.prepare.blocks import by_blocks, mark
from plr.prepare.compiled import _cpp
from plr.prepare.id_checks import trimmed
from plr.prepare.readers import IdVocabulary, Source

__all__ = [
    "Block",
    "Interactions",
    "Ranked",
    "columns_in_user_order",
    "counts_of",
    "gather",
    "in_user_order",
    "is_first",
    "number",
    "offsets_of",
    "place_of",
    "ranked",
    "stable_order",
    "user_blocks",
]

_CHUNK = 1 << 22
Block = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]
Ranked = tuple[pl.Series, np.ndarray]


@dataclass(eq=False)
class Interactions:
    """N interactions sorted by user, then by time where known; equal ones are in file order.

    ``offsets`` int64 [U+1] bounds each user's part, ``item`` int32 [N] is in 0..V-1, ``position`` uint32 [N] says where
    in the source each stands; ``positive`` bool [N] (whether the rating is high enough) and ``timestamp`` int64 [N]
    are None where the file has none or nobody asked. ``user_ids`` and ``item_ids`` are the sorted external
    ids, each of them in use; with ``shared`` the items' are those of other users' interactions, too.
    """

    offsets: np.ndarray
    item: np.ndarray
    position: np.ndarray
    positive: np.ndarray | None
    timestamp: np.ndarray | None
    user_ids: pl.Series
    item_ids: pl.Series
    shared: bool = False

    def __len__(self) -> int:
        return len(self.position)

    def user(self) -> np.ndarray:
        """Return the user of each: int32 [N] in 0..U-1."""
        return np.repeat(np.arange(len(self.user_ids), dtype=np.int32), np.diff(self.offsets))

    def take(self, chosen: np.ndarray, *, release: bool = False) -> Interactions:
        """Return the chosen interactions (mask or ascending positions); ids left without any are renumbered away.

        With ``release`` this object gives up its arrays one by one, so that they need not all stand in memory twice.
        """
        if chosen.dtype == bool:
            chosen = np.flatnonzero(chosen).astype(np.uint32)
        offsets = offsets_of(gather(self.user(), chosen), len(self.user_ids))
        taken: dict[str, Any] = {}
        for name in ("item", "positive", "timestamp"):
            values = getattr(self, name)
            taken[name] = None if values is None else gather(values, chosen)
            if release:
                del values
                setattr(self, name, None)
        taken["position"] = gather(self.position, chosen)
        return Interactions(
            offsets, user_ids=self.user_ids, item_ids=self.item_ids, shared=self.shared, **taken
        )._in_use()

    def _in_use(self) -> Interactions:
        """Leave out the ids that have no interaction, and return this."""
        users = self.offsets[1:] > self.offsets[:-1]
        if not users.all():
            self.user_ids = self.user_ids.filter(pl.Series(users))
            self.offsets = np.concatenate([[0], self.offsets[1:][users]])
        if self.shared:
            return self
        items = np.zeros(len(self.item_ids), dtype=bool)
        by_blocks(lambda block: mark(items, self.item[block]), len(self))
        if not items.all():
            self.item_ids = self.item_ids.filter(pl.Series(items))
            self.item = gather(np.cumsum(items, dtype=np.int32) - np.int32(1), self.item)
        return self


def in_user_order(blocks: list[Block], users: Ranked, items: Ranked) -> Interactions:
    """Return the interactions of consecutive blocks of a file in order; the list is emptied.

    Args:
        blocks: user and item uint32 [n], timestamp int64 [n], positive bool [n]; the last two may be None.
        users: The sorted ids of users and the rank among them, int32, that each number of a block stands for.
        items: Likewise.
    """
    (user_ids, user_rank), (item_ids, item_rank) = users, items
    offsets, item, timestamp, positive, position = columns_in_user_order(blocks, user_rank, item_rank)
    return Interactions(offsets, item, position, positive, timestamp, user_ids, item_ids)._in_use()


def columns_in_user_order(blocks: list[Block], user_rank: np.ndarray, item_rank: np.ndarray) -> tuple:
    """Return offsets, item, timestamp, positive and position as `in_user_order` does; the list is emptied."""
    if _cpp is None:
        return _sorted_by_words(blocks, user_rank, item_rank)
    order = _cpp.UserOrder(blocks, user_rank, item_rank, pl.thread_pool_size())  # which empties the list as it goes
    return order.write()


def _sorted_by_words(blocks: list[Block], user_rank: np.ndarray, item_rank: np.ndarray) -> tuple:
    """Sort interactions without C++."""
    users, items, *others = zip(*blocks, strict=True)
    user, item = np.concatenate(users), np.concatenate(items)
    timestamp, positive = (None if columns[0] is None else np.concatenate(columns) for columns in others)
    del users, items, others
    blocks.clear()
    words = _user_and_place(gather(user_rank, user))
    place = words.astype(np.uint32)  # the lower half
    words >>= np.uint64(32)
    user = words.astype(np.int32)
    del words
    offsets = offsets_of(user, len(user_rank))
    if timestamp is not None:
        timestamp = gather(timestamp, place)
        _put_in_time(offsets, user, timestamp, place)
    if positive is not None:
        positive = gather(positive, place)
    return offsets, gather(item_rank, gather(item, place)), timestamp, positive, place


def _put_in_time(offsets: np.ndarray, users: np.ndarray, timestamp: np.ndarray, place: np.ndarray) -> None:
    """Put everyone's interactions into the order of time: ``timestamp`` and ``place``, which are sorted by user.

    In blocks of users, and of those only the ones of whom the file has it otherwise.
    """
    for first, last in user_blocks(offsets):
        part = slice(offsets[first], offsets[last])
        time, user, there = timestamp[part], users[part], place[part]  # views
        before = (time[1:] < time[:-1]) & (user[1:] == user[:-1])
        if before.any():
            late = np.zeros(last - first, dtype=bool)
            late[user[1:][before] - first] = True
            among = np.flatnonzero(late[user - np.int32(first)])
            order = stable_order(time[among])
            order = order[_user_and_place(user[among][order]).astype(np.uint32)]
            time[among], there[among] = time[among[order]], there[among[order]]


def offsets_of(user: np.ndarray, users: int) -> np.ndarray:
    """Return where the interactions of each user begin, and the end: int64 [U+1]."""
    return np.concatenate([[0], np.cumsum(counts_of(user, users))])


def is_first(offsets: np.ndarray) -> np.ndarray:
    """Return which interactions (bool [N]) are their user's first."""
    first = np.zeros(offsets[-1], dtype=bool)
    first[offsets[:-1]] = True
    return first


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


def number(sources: list[Source], vocabulary: IdVocabulary) -> Interactions:
    """Number the users and items of Sources that were read into ``vocabulary`` by their sorted ids.

    The list is emptied: there is no room for both forms of large files.
    """
    frame = pl.concat([source.frame for source in sources if isinstance(source.frame, pl.DataFrame)], rechunk=False)
    sources.clear()
    users, items = ranked(vocabulary)
    blocks = _blocks(frame)
    del frame
    return in_user_order(blocks, users, items)


def ranked(vocabulary: IdVocabulary) -> tuple[Ranked, Ranked]:
    """Return the sorted ids of users and of items, and the rank of each number among them.

    Strings sort by their UTF-8 bytes, so "007" and "7" stay two ids; white space around them is left out. The
    vocabulary's encoders end with it.
    """
    with ThreadPoolExecutor(2) as pool:
        users, items = pool.map(lambda encoder: trimmed(*encoder.sorted_ids()), (vocabulary.user, vocabulary.item))
    return users, items


def place_of(sources: list[Source]) -> Callable[[int], tuple[Path, int]]:
    """Return what gives the file and line of an interaction by its position; it keeps none of the frames."""
    starts = np.cumsum([0, *(source.frame.height for source in sources)])
    places = [replace(source, frame=pl.DataFrame()) for source in sources]

    def place(position: int) -> tuple[Path, int]:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        return places[part].place(position - int(starts[part]))

    return place


def _blocks(frame: pl.DataFrame) -> list[Block]:
    """Return the columns cut wherever one of them has another chunk; at least one block."""
    chunks = {
        column.name: [chunk.to_numpy() for chunk in column.get_chunks() if len(chunk)] or [column.to_numpy()]
        for column in frame
    }
    ends = {name: np.cumsum([len(chunk) for chunk in of]) for name, of in chunks.items()}
    cuts = np.unique(np.concatenate(list(ends.values())))

    def pieces(name: str) -> Iterator[np.ndarray]:
        for chunk, end in zip(chunks[name], ends[name], strict=True):
            start = end - len(chunk)
            yield from np.split(chunk, cuts[(start < cuts) & (cuts < end)] - start)

    names = ("user", "item", "timestamp", "positive")
    columns = (pieces(name) if name in chunks else repeat(None, len(cuts)) for name in names)
    return list(zip(*columns, strict=True))
