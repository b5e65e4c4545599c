"""Numbers for strings: equal ones and only equal ones share a number, however blocks fall and hashes collide."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data.readers import Numbering

STRINGS = st.sampled_from([None, "", "7", "007", "a", "ä", "a longer one that no view holds", *map(str, range(40))])
IN_USE = np.uint64(1 << 63)
HASHES = {
    "its own": lambda hashes: hashes,
    "few": lambda hashes: hashes % np.uint64(5) | IN_USE,
    "all one": lambda hashes: hashes | ~np.uint64(0),
    "one tag": lambda hashes: hashes % np.uint64(2**32) | IN_USE,
    "the last slots": lambda hashes: ~(hashes % np.uint64(30)) | IN_USE,
}


def check(blocks: list[list[str | None]], numbering: Numbering) -> None:
    number_of: dict[str, int] = {}
    for block in blocks:
        numbers = numbering.numbers(pl.Series(block, dtype=pl.String))
        assert numbers.dtype == pl.UInt32
        for string, number in zip(block, numbers, strict=True):
            if not string:
                assert number is None
            else:
                assert number_of.setdefault(string, number) == number
    assert sorted(number_of.values()) == list(range(len(numbering)))
    assert dict(zip(numbering.strings, range(len(numbering)), strict=True)) == number_of


@given(
    st.lists(st.lists(STRINGS, max_size=20), max_size=5), st.sampled_from(sorted(HASHES)), st.sampled_from([4, 1024])
)
@settings(max_examples=200, deadline=None)
def test_one_number_for_each_string(blocks, hashes, slots):
    numbering = Numbering()
    numbering._slots = np.zeros(slots, dtype=np.uint64)
    own = numbering._hashes
    numbering._hashes = lambda strings: HASHES[hashes](own(strings))
    check(blocks, numbering)


def test_many_strings_in_runs_and_mixed():
    random = np.random.Generator(np.random.PCG64(0))
    numbers = random.integers(0, 100_000, 300_000)
    strings = [f"user {number}" for number in numbers]
    check([strings[:150_000], sorted(strings), strings[150_000:]], Numbering())


def test_strings_do_not_keep_their_blocks():
    numbering = Numbering()
    for block in range(4):
        strings = pl.Series([f"{block} a string of some length"] + ["the same, of some length"] * 100_000)
        numbering.numbers(strings)
    assert numbering.strings.estimated_size() < 1000
