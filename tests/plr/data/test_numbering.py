"""Numbers for strings: equal ones and only equal ones share a number, however the blocks fall and the hashes collide."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data.readers import Numbering

STRINGS = st.sampled_from([None, "", "7", "007", "a", "ä", "a longer one that no view holds", *map(str, range(40))])
HASHES = {
    "its own": Numbering._hashes,
    "few": lambda self, strings: Numbering._hashes(self, strings) % np.uint64(5),
    "all one": lambda self, strings: np.full(len(strings), 2**64 - 1, dtype=np.uint64),
    "the last slots": lambda self, strings: ~(Numbering._hashes(self, strings) % np.uint64(30)),
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
                assert numbering.strings[number] == string
    assert sorted(number_of.values()) == list(range(len(numbering)))
    assert len(set(numbering.strings)) == len(numbering)


@pytest.mark.parametrize("hashes", HASHES)
@pytest.mark.parametrize("slots", [4, 1 << 16])
@given(st.lists(st.lists(STRINGS, max_size=30), max_size=6))
@settings(max_examples=60, deadline=None)
def test_one_number_for_each_string(hashes, slots, blocks):
    numbering = Numbering()
    numbering._make_slots(slots)
    numbering._hashes = HASHES[hashes].__get__(numbering)
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
