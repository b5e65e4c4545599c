"""Numbers for strings, given while a file is read."""

from __future__ import annotations

import secrets

import numpy as np
import polars as pl

__all__ = ["Numbering"]

_SLOTS = 1 << 16  # at first


class Numbering:
    """Gives equal strings one number and different ones different numbers: 0, 1, … but in no order that counts.

    A hash table with open addressing whose steps are taken for all strings of a block together: a gather has many
    cache misses under way at once, where one lookup after the other waits for each of its own. It is searched by
    64-bit hashes; then every string is compared with the one that has its number. What stays is one string per
    number and 12 bytes a slot.
    """

    def __init__(self) -> None:
        self._seed = secrets.randbits(64)  # so that no file can be made of strings with one hash
        self._make_slots(_SLOTS)
        self._strings = pl.Series(dtype=pl.String)
        self._same_hash: dict[str, int] = {}  # numbers of strings whose hash is an earlier one's

    def __len__(self) -> int:
        return len(self._strings)

    @property
    def strings(self) -> pl.Series:
        """The strings by number."""
        return self._strings

    def numbers(self, strings: pl.Series) -> pl.Series:
        """Return the numbers (UInt32) of a block of strings; null for null and for the empty string."""
        real = (strings.str.len_bytes() > 0).fill_null(False)
        if not real.all():
            places = real.arg_true()
            return pl.repeat(None, len(strings), dtype=pl.UInt32, eager=True).scatter(
                places, self.numbers(strings.gather(places))
            )
        if not len(strings):
            return pl.Series(dtype=pl.UInt32)
        strings = strings.rechunk()
        hashes = self._hashes(strings)
        begins = np.flatnonzero(hashes[1:] != hashes[:-1]) + 1
        if 2 * len(begins) > len(strings):
            found = self._look_up(strings, hashes)
        else:  # user by user: only where another string begins is there anything to look up
            begins = np.concatenate([[0], begins])
            found = self._look_up(strings.gather(begins), hashes[begins])
            found = np.repeat(found, np.diff(begins, append=len(strings)))
        same = self._strings.gather(found) == strings
        if not same.all():
            for place in (~same).arg_true():
                found[place] = self._number_of(strings[place])
        return pl.Series(found)

    def _look_up(self, strings: pl.Series, hashes: np.ndarray) -> np.ndarray:
        """Return the number (uint32 [n]) of a string with the same hash; hashes without any get a new one."""
        if 4 * (len(self) + len(strings)) > 3 * len(self._slots):
            self._grow(len(self) + len(strings))
        slot = self._first_slot(hashes)
        final = slot  # where each is found
        rows, added = None, []  # the places of those still looked for (None: all); those that got new numbers
        count = len(self)
        while True:
            number = self._slots[slot]
            free = np.flatnonzero(number < 0)
            if len(free):
                # Of the hashes that would have the same slot the last one gets it, and is there for its equals.
                at = slot[free]
                self._slots[at] = free
                chosen = free[self._slots[at] == free]
                at = slot[chosen]
                self._slots[at] = np.arange(count, count + len(chosen), dtype=np.int32)
                self._slot_hashes[at] = hashes[chosen]
                count += len(chosen)
                added.append(chosen if rows is None else rows[chosen])
            other = np.flatnonzero(self._slot_hashes[slot] != hashes)
            if not len(other):
                break
            rows = other if rows is None else rows[other]
            slot, hashes = (slot[other] + 1) & (len(self._slots) - 1), hashes[other]
            final[rows] = slot
        if added:
            self._add(strings.gather(np.concatenate(added)))
        return self._slots[final].view(np.uint32)

    def _number_of(self, string: str) -> int:
        """Return the number of a string whose hash is another's."""
        if string not in self._same_hash:
            self._same_hash[string] = len(self)
            self._add(pl.Series([string]))
        return self._same_hash[string]

    def _add(self, strings: pl.Series) -> None:
        # Joined to nothing they become a copy: a view would keep the whole block that they were read in.
        copy = pl.select(pl.concat_str(strings, pl.lit(""))).to_series()
        self._strings = pl.concat([self._strings, copy], rechunk=True)

    def _hashes(self, strings: pl.Series) -> np.ndarray:
        return strings.hash(self._seed).to_numpy()

    def _first_slot(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64(len(self._slots) - 1)).view(np.int64)

    def _make_slots(self, count: int) -> None:
        self._slots = np.full(count, -1, dtype=np.int32)  # a number each, -1 where free; a power of two of them
        self._slot_hashes = np.zeros(count, dtype=np.uint64)

    def _grow(self, count: int) -> None:
        """Make room for so many strings, at most three quarters of the slots taken."""
        taken = self._slots >= 0
        number, hashes = self._slots[taken], self._slot_hashes[taken]
        self._make_slots(1 << (2 * count - 1).bit_length())
        slot = self._first_slot(hashes)
        while len(number):
            free = self._slots[slot] < 0
            self._slots[slot[free]] = number[free]
            self._slot_hashes[slot[free]] = hashes[free]
            other = self._slots[slot] != number
            number, hashes, slot = number[other], hashes[other], (slot[other] + 1) & (len(self._slots) - 1)
