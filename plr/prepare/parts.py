"""All interactions of a preparation: as one in memory, or in parts of consecutive users on disk.

What is done with them is written once, for a part: the filters and the splits look at one user after the other, and at
most need to know of the items what is true in all parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from plr.errors import DataError
from plr.prepare.block_file import BlockFile
from plr.prepare.interactions import (
    Block,
    Interactions,
    Ranked,
    columns_in_user_order,
    counts_of,
    gather,
)

__all__ = ["Chosen", "Partitions", "Parts", "Whole"]

Chosen = Callable[[Interactions], np.ndarray]
"""Which interactions of a part are kept: a mask, or ascending positions in it."""


class Whole:
    """All interactions as one part, in memory."""

    def __init__(self, interactions: Interactions) -> None:
        self.interactions = interactions

    def __len__(self) -> int:
        return len(self.interactions)

    def __iter__(self) -> Iterator[Interactions]:
        yield self.interactions

    @property
    def user_ids(self) -> pl.Series:
        """The sorted ids of the users."""
        return self.interactions.user_ids

    @property
    def item_ids(self) -> pl.Series:
        """The sorted ids of the items."""
        return self.interactions.item_ids

    @property
    def has_times(self) -> bool:
        """Whether there are timestamps."""
        return self.interactions.timestamp is not None

    @property
    def has_ratings(self) -> bool:
        """Whether it is known which ratings are high enough."""
        return self.interactions.positive is not None

    def keep(self, chosen: Chosen) -> None:
        """Leave out all interactions but the chosen ones, and the ids that have none then."""
        self.interactions = self.interactions.take(chosen(self.interactions), release=True)

    def forget_ratings(self) -> None:
        """Forget which ratings are high enough."""
        self.interactions.positive = None


@dataclass
class _Part:
    """What memory holds of a part: how many users of it are left, and which of the interactions on disk (bits)."""

    users: int
    kept: np.ndarray | None = None


class Partitions:
    """Interactions in parts of consecutive users, each with about as many, on disk: one of them is in memory at a time.

    Args:
        blocks: Yields consecutive blocks of the sources, as `in_user_order` takes them; it is called twice.
        users: The sorted ids of users and the rank among them, int32, that each number of a block stands for.
        items: Likewise.
        count: How many parts, at most.
        disk: A folder on the disk of which to write. Files have no names, see `BlockFile`.

    Raises:
        DataError: the disk is full.
    """

    def __init__(
        self, blocks: Callable[[], Iterable[Block]], users: Ranked, items: Ranked, count: int, disk: Path
    ) -> None:
        (user_ids, user_rank), (item_ids, item_rank) = users, items
        of_users, of_items = np.zeros(len(user_ids), dtype=np.int64), np.zeros(len(item_ids), dtype=bool)
        self.has_times = self.has_ratings = False
        for user, item, timestamp, positive in blocks():
            np.add.at(of_users, user_rank[user], 1)
            of_items[item_rank[item]] = True
            self.has_times, self.has_ratings = timestamp is not None, positive is not None
        self._length = int(of_users.sum())
        if self._length > np.iinfo(np.uint32).max:
            raise DataError("more than 2^32 - 1 interactions", disk)
        used = of_users > 0
        self.user_ids, self.item_ids = user_ids.filter(pl.Series(used)), item_ids.filter(pl.Series(of_items))
        user_number = (np.cumsum(used, dtype=np.int32) - np.int32(1))[user_rank]
        item_number = (np.cumsum(of_items, dtype=np.int32) - np.int32(1))[item_rank]
        self._item_number: np.ndarray | None = None  # of those on disk; None where it is the same
        self._stored_items = len(self.item_ids)
        bounds = _bounds(of_users[used], count)  # the first user of each part, and the end
        del of_users, of_items, used
        self._parts = [_Part(last - first) for first, last in pairwise(bounds)]
        self._file = BlockFile(disk, (np.int64, np.int32, np.uint32, np.bool_, np.int64))
        for number, file in enumerate(self._by_user(blocks(), user_number, item_number, bounds, disk)):
            self._sort(file, bounds[number + 1] - bounds[number])
            file.close()

    def _by_user(
        self,
        blocks: Iterable[Block],
        user_number: np.ndarray,
        item_number: np.ndarray,
        bounds: list[int],
        disk: Path,
    ) -> list[BlockFile]:
        """Return the interactions of each part in the order of the sources."""
        files = [BlockFile(disk, (np.uint32, np.uint32, np.uint32, np.bool_, np.int64)) for _ in self._parts]
        first = 0
        for user, item, timestamp, positive in blocks:
            users = user_number[user]
            part = np.searchsorted(bounds[1:-1], users, side="right").astype(np.uint16)
            order = np.argsort(part, kind="stable")  # of 16 bits: in linear time
            ends = np.cumsum(np.bincount(part, minlength=len(files)))
            columns = [users, item_number[item], np.arange(first, first + len(user), dtype=np.uint32)]
            columns += [np.zeros(0) if column is None else column for column in (positive, timestamp)]
            for number, (file, end) in enumerate(zip(files, ends, strict=True)):
                here = order[ends[number - 1] if number else 0 : end]
                if len(here):
                    users_here, *others = (column[here] if len(column) else column for column in columns)
                    file.append(users_here - np.int32(bounds[number]), *others)
            first += len(user)
        return files

    def _sort(self, file: BlockFile, users: int) -> None:
        """Put the interactions of the next part into the order of users and times."""
        blocks: list[Block] = []
        positions = []
        for user, item, position, positive, timestamp in file:
            times, high = timestamp if self.has_times else None, positive if self.has_ratings else None
            blocks.append((user, item, times, high))
            positions.append(position)
        ranks = (np.arange(users, dtype=np.int32), np.arange(self._stored_items, dtype=np.int32))
        offsets, item, timestamp, positive, place = columns_in_user_order(blocks, *ranks)
        none = np.zeros(0)
        self._file.append(
            offsets,
            item,
            gather(np.concatenate(positions), place),
            none if positive is None else positive,
            none if timestamp is None else timestamp,
        )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Interactions]:
        return (self._load(number) for number in range(len(self._parts)))

    def _load(self, number: int) -> Interactions:
        part = self._parts[number]
        offsets, *columns = self._file[number]
        if part.kept is not None:
            left = _positions(part.kept, len(columns[0]))
            user = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
            counts = counts_of(gather(user, left), len(offsets) - 1)
            offsets = np.concatenate([[0], np.cumsum(counts[counts > 0])])
            del user, counts
            columns = [gather(column, left) if len(column) else column for column in columns]
        item, position, positive, timestamp = columns
        if self._item_number is not None:
            item = gather(self._item_number, item)
        first = sum(before.users for before in self._parts[:number])
        return Interactions(
            offsets,
            item,
            position,
            positive if self.has_ratings else None,
            timestamp if self.has_times else None,
            self.user_ids.slice(first, part.users),
            self.item_ids,
            shared=True,
        )

    def times(self) -> Iterator[np.ndarray]:
        """Yield the timestamps of each part."""
        for number, part in enumerate(self._parts):
            times = self._file.column(number, 4)
            yield times if part.kept is None else gather(times, _positions(part.kept, len(times)))

    def keep(self, chosen: Chosen) -> None:
        """Leave out all interactions but the chosen ones, and the ids that have none then."""
        users_left, items_left = [], np.zeros(len(self.item_ids), dtype=bool)
        self._length = 0
        for number, part in enumerate(self._parts):
            interactions = self._load(number)
            choice = chosen(interactions)
            mask = choice
            if choice.dtype != bool:
                mask = np.zeros(len(interactions), dtype=bool)
                mask[choice] = True
            items_left[interactions.item[mask]] = True
            of_user = counts_of(gather(interactions.user(), np.flatnonzero(mask)), part.users)
            users_left.append(of_user > 0)
            self._length += int(of_user.sum())
            if part.kept is not None:
                every = np.zeros(self._file.lengths(number)[1], dtype=bool)
                every[_positions(part.kept, len(every))] = mask
                mask = every
            part.kept = np.packbits(mask)
        for part, left in zip(self._parts, users_left, strict=True):
            part.users = int(left.sum())
        self.user_ids = self.user_ids.filter(pl.Series(np.concatenate([np.zeros(0, dtype=bool), *users_left])))
        if not items_left.all():
            self.item_ids = self.item_ids.filter(pl.Series(items_left))
            number_of = np.cumsum(items_left, dtype=np.int32) - np.int32(1)
            self._item_number = number_of if self._item_number is None else gather(number_of, self._item_number)

    def forget_ratings(self) -> None:
        """Forget which ratings are high enough."""
        self.has_ratings = False


Parts = Whole | Partitions
"""All interactions. Iterating gives the parts: of one user there are interactions in one part alone."""


def _bounds(counts: np.ndarray, parts: int) -> list[int]:
    """Return the first user of each part, and the end: about as many interactions in each, none without a user.

    Args:
        counts: The interactions of every user, int64 [U].
        parts: How many parts, at most.
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    wanted = [total * part // parts for part in range(1, parts)]
    inner = np.searchsorted(ends, wanted, side="left") + 1 if total else np.zeros(0, dtype=np.int64)
    return np.unique([0, *np.minimum(inner, len(counts)).tolist(), len(counts)]).tolist()


def _positions(bits: np.ndarray, count: int) -> np.ndarray:
    """Return where the bits are set: uint32, ascending."""
    return np.flatnonzero(np.unpackbits(bits, count=count)).astype(np.uint32)
