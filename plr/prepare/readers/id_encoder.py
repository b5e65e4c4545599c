"""Numbers for strings, given while a file is read."""

from __future__ import annotations

import secrets

import numpy as np
import polars as pl

from plr.prepare.compiled import _cpp

__all__ = ["CompiledIdEncoder", "IdEncoder", "new_id_encoder"]

_SLOTS = 1 << 16  # at first
_BLOCK = 1 << 18  # strings that are looked up together
_NUMBER = np.uint64(2**32 - 1)
_IN_USE = np.uint64(1 << 63)


def new_id_encoder() -> IdEncoder | CompiledIdEncoder:
    """Return a numbering that knows no string yet: the compiled one where there is one."""
    return IdEncoder() if _cpp is None else CompiledIdEncoder()


class CompiledIdEncoder:
    """What IdEncoder does, in C++ (csrc/data/string_table.h): one string after the other, without Python's lock.

    ``hash_bits`` below 32 make collisions, for tests.
    """

    def __init__(self, hash_bits: int = 32) -> None:
        self._table = _cpp.StringTable(secrets.randbits(64), hash_bits)

    def __len__(self) -> int:
        return len(self._table)

    def string(self, number: int) -> str:
        """Return the string that has a number."""
        return self._table.string(number)

    def numbers(self, strings: pl.Series) -> pl.Series:
        """Return the numbers (UInt32) of a block of strings; null for null and for the empty string."""
        numbers, missing = self._table.number(strings.__arrow_c_stream__())
        found = pl.Series(numbers)
        return found.set(found == _cpp.MISSING, None) if missing else found

    def sorted_ids(self) -> tuple[pl.Series, np.ndarray]:
        """Return the strings, sorted by their UTF-8 bytes, and the rank int32 [n] of each number among them.

        The numbering ends with it and gives back its memory.
        """
        strings, rank_of = self._table.ranked(pl.thread_pool_size())
        del self._table
        return pl.Series(strings), rank_of


class IdEncoder:
    """Gives equal strings one number and different ones different numbers: 0, 1, … but in no order that counts.

    A hash table with open addressing whose steps are taken for all strings of a block together: a gather has many
    cache misses under way at once, where one lookup after the other waits for each of its own. A slot is 64 bits: the
    upper half of the hash, which is compared first, and the number. In the end every string is compared with the one
    that has its number. What stays is one string per number and the slots, of which at most three quarters are used.
    """

    def __init__(self) -> None:
        self._seed = secrets.randbits(64)  # so that no file can be made of strings with one hash
        self._slots = np.zeros(_SLOTS, dtype=np.uint64)  # a power of two of them; 0 where free
        self._strings = pl.Series(dtype=pl.String)
        self._mistaken: dict[str, int] = {}  # numbers of strings that were taken for others

    def __len__(self) -> int:
        return len(self._strings)

    def string(self, number: int) -> str:
        """Return the string that has a number."""
        return self._strings[number]

    def sorted_ids(self) -> tuple[pl.Series, np.ndarray]:
        """Return the strings, sorted by their UTF-8 bytes, and the rank int32 [n] of each number among them."""
        strings = self._strings.sort()  # looking the sorted ones up again costs less than sorting with an index
        blocks = [strings[start : start + _BLOCK] for start in range(0, max(len(strings), 1), _BLOCK)]
        rank_of = np.empty(len(strings), dtype=np.int32)
        rank_of[np.concatenate([self.numbers(block).to_numpy() for block in blocks])] = np.arange(len(strings))
        return strings, rank_of

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
        """Return the number (uint32 [n]) of a string that looks the same; what looks new gets the next ones."""
        if 4 * (len(self) + len(strings)) > 3 * len(self._slots):
            self._grow(len(self) + len(strings))
        slot = self._first_slot(hashes)
        entry = self._slots[slot]
        found = entry.astype(np.uint32)  # the lower half
        rows = np.flatnonzero((entry ^ hashes) > _NUMBER)  # those still looked for: the upper halves differ
        entry, slot, hashes = entry[rows], slot[rows], hashes[rows]
        added, count = [], len(self)
        while len(rows):
            free = np.flatnonzero(entry == 0)
            if len(free):
                # Of those that would have the same slot the last one gets it, and is there for its equals.
                at = slot[free]
                self._slots[at] = free
                chosen = free[self._slots[at] == free.view(np.uint64)]
                self._slots[slot[chosen]] = (hashes[chosen] & ~_NUMBER) | np.arange(
                    count, count + len(chosen), dtype=np.uint64
                )
                count += len(chosen)
                added.append(rows[chosen])
                entry[free] = self._slots[at]
            found[rows] = entry.astype(np.uint32)
            other = np.flatnonzero((entry ^ hashes) > _NUMBER)
            rows, hashes, slot = rows[other], hashes[other], (slot[other] + 1) & (len(self._slots) - 1)
            entry = self._slots[slot]
        if added:
            self._add(strings.gather(np.concatenate(added)))
        return found

    def _number_of(self, string: str) -> int:
        """Return the number of a string that was taken for another."""
        if string not in self._mistaken:
            known = (self._strings == string).arg_true()  # slow, for what happens about never
            self._mistaken[string] = known[0] if len(known) else len(self)
            if not len(known):
                self._add(pl.Series([string]))
        return self._mistaken[string]

    def _add(self, strings: pl.Series) -> None:
        # Joined to nothing they become a copy: a view would keep the whole block that they were read in.
        copy = pl.select(pl.concat_str(strings, pl.lit(""))).to_series()
        self._strings = pl.concat([self._strings, copy], rechunk=True)

    def _hashes(self, strings: pl.Series) -> np.ndarray:
        return strings.hash(self._seed).to_numpy() | _IN_USE

    def _first_slot(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes & np.uint64(len(self._slots) - 1)).view(np.int64)

    def _grow(self, count: int) -> None:
        """Make room for so many strings, and give each that there is a slot of its own."""
        hashes = self._hashes(self._strings)
        self._slots = np.zeros(1 << (2 * count - 1).bit_length(), dtype=np.uint64)
        slot = self._first_slot(hashes)
        entry = (hashes & ~_NUMBER) | np.arange(len(hashes), dtype=np.uint64)
        while len(entry):
            free = self._slots[slot] == 0
            self._slots[slot[free]] = entry[free]
            other = self._slots[slot] != entry
            entry, slot = entry[other], (slot[other] + 1) & (len(self._slots) - 1)
