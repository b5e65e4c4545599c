"""Numbers for strings: equal ones and only equal ones share a number, however blocks fall and hashes collide."""

from __future__ import annotations

import ctypes
import mmap
import struct

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.prepare.compiled import _cpp
from plr.prepare.readers import CompiledIdEncoder, IdEncoder

STRINGS = st.one_of(
    st.sampled_from([None, "", "7", "007", "ä", "a longer one that no view holds", "a longer one that no view hol"]),
    st.sampled_from(list(map(str, range(40)))),
    st.text(st.characters(codec="utf-8"), max_size=40),
)
IN_USE = np.uint64(1 << 63)
HASHES = {
    "its own": lambda hashes: hashes,
    "few": lambda hashes: hashes % np.uint64(5) | IN_USE,
    "all one": lambda hashes: hashes | ~np.uint64(0),
    "one tag": lambda hashes: hashes % np.uint64(2**32) | IN_USE,
    "the last slots": lambda hashes: ~(hashes % np.uint64(30)) | IN_USE,
}
compiled = pytest.mark.skipif(_cpp is None, reason="the C++ extension is not built")
KINDS = [IdEncoder, pytest.param(CompiledIdEncoder, marks=compiled)]


def check(blocks: list[list[str | None]], encoder: IdEncoder | CompiledIdEncoder) -> None:
    number_of: dict[str, int] = {}
    for block in blocks:
        numbers = encoder.numbers(pl.Series(block, dtype=pl.String))
        assert numbers.dtype == pl.UInt32
        for string, number in zip(block, numbers, strict=True):
            if not string:
                assert number is None
            else:
                assert number_of.setdefault(string, number) == number
    assert sorted(number_of.values()) == list(range(len(encoder)))
    assert {encoder.string(number): number for number in range(len(encoder))} == number_of
    ids, rank_of = encoder.sorted_ids()
    assert (ids.dtype, rank_of.dtype) == (pl.String, np.int32)
    assert ids.to_list() == sorted(number_of, key=str.encode)
    assert [ids[int(rank_of[number])] for number in number_of.values()] == list(number_of)


@given(
    st.lists(st.lists(STRINGS, max_size=20), max_size=5), st.sampled_from(sorted(HASHES)), st.sampled_from([4, 1024])
)
@settings(max_examples=200, deadline=None)
def test_one_number_for_each_string(blocks, hashes, slots):
    encoder = IdEncoder()
    encoder._slots = np.zeros(slots, dtype=np.uint64)
    own = encoder._hashes
    encoder._hashes = lambda strings: HASHES[hashes](own(strings))
    check(blocks, encoder)


@compiled
@given(st.lists(st.lists(STRINGS, max_size=20), max_size=5), st.sampled_from([0, 1, 3, 32]))
@settings(max_examples=200, deadline=None)
def test_compiled_gives_one_number_for_each_string(blocks, hash_bits):
    check(blocks, CompiledIdEncoder(hash_bits))


@compiled
@pytest.mark.parametrize("hash_bits", [5, 10, 32])
def test_compiled_table_grows_and_wraps_around(hash_bits):
    random = np.random.Generator(np.random.PCG64(hash_bits))
    strings = [f"user {number}" for number in random.integers(0, 6000, 12_000)]
    check([strings[:7000], strings[7000:]], CompiledIdEncoder(hash_bits))


@compiled
def test_compiled_takes_parts_and_slices():
    strings = [None if n % 7 == 0 else "" if n % 11 == 0 else f"{n % 5} of some length" * (n % 3) for n in range(300)]
    series = pl.concat([pl.Series(strings[:100]), pl.Series(strings[100:])], rechunk=False)
    assert series.n_chunks() == 2
    for part in (series, series[50:170], series[3:9], series[:0], pl.Series([None, None], dtype=pl.String)):
        encoder = CompiledIdEncoder()
        numbers = encoder.numbers(part).to_list()
        assert [None if number is None else encoder.string(number) for number in numbers] == [
            string or None for string in part
        ]
    with pytest.raises(ValueError, match="string views, found format"):
        CompiledIdEncoder().numbers(pl.Series([1, 2]))
    with pytest.raises(IndexError):
        CompiledIdEncoder().string(0)


@pytest.mark.parametrize("kind", KINDS)
def test_many_strings_in_runs_and_mixed(kind):
    random = np.random.Generator(np.random.PCG64(0))
    numbers = random.integers(0, 100_000, 300_000)
    strings = [f"user {number}" for number in numbers]
    check([strings[:150_000], sorted(strings), strings[150_000:]], kind())


@pytest.mark.parametrize("kind", KINDS)
def test_strings_that_begin_alike_are_sorted_by_all_of_their_bytes(kind):
    ends = ["", "\0", "\0\0", "a", "a\0", "ä", "\x7f", "\U0001f600", "12345678", "123456780", "12345678\0"]
    check([[start + end for start in ("same start, ", "same start, 87654321") for end in ends]], kind())


@pytest.mark.parametrize("kind", KINDS)
def test_many_strings_that_begin_alike_are_sorted_by_all_of_their_bytes(kind):
    random = np.random.Generator(np.random.PCG64(2))
    ends = random.permutation(20_000)
    check([[f"{'AB'[end % 2]}{end % 11:08d}{end}" for end in ends], [f"A{end}" for end in ends[:300]]], kind())


@compiled
def test_threads_agree_on_what_all_strings_begin_with():
    half = range(135_000)  # so many that there are two threads
    check([[f"one start, {end}" for end in half], [f"o, {end}" for end in half]], CompiledIdEncoder())


def test_strings_do_not_keep_their_blocks():
    encoder = IdEncoder()
    for block in range(4):
        strings = pl.Series([f"{block} a string of some length"] + ["the same, of some length"] * 100_000)
        encoder.numbers(strings)
    assert encoder._strings.estimated_size() < 1000


# The Arrow C stream interface, with all that is not used here as a pointer.
_number, _pointer = ctypes.c_int64, ctypes.c_void_p
_Release = ctypes.CFUNCTYPE(None, _pointer)
_Get = ctypes.CFUNCTYPE(ctypes.c_int, _pointer, _pointer)


class _Schema(ctypes.Structure):
    _fields_ = [("format", ctypes.c_char_p), ("between", _pointer * 6), ("release", _Release), ("data", _pointer)]


class _Array(ctypes.Structure):
    _fields_ = [
        ("length", _number), ("null_count", _number), ("offset", _number), ("n_buffers", _number),
        ("n_children", _number), ("buffers", ctypes.POINTER(_pointer)), ("children", _pointer),
        ("dictionary", _pointer), ("release", _Release), ("data", _pointer),
    ]  # fmt: skip


class _Stream(ctypes.Structure):
    _fields_ = [("get_schema", _Get), ("get_next", _Get), ("get_last_error", _pointer), ("rest", _pointer * 2)]


@compiled
def test_strings_beyond_2_gib_of_a_buffer():
    """polars counts the bytes of a buffer in 32 bits without a sign. The memory is reserved, not filled."""
    string, at = b"a string far out", 2**31 + 5
    memory = mmap.mmap(-1, at + len(string))  # pages that nobody touches take no room
    memory[at:] = string
    view = struct.pack("=i4siI", len(string), string[:4], 0, at)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    buffers = (_pointer * 3)(None, ctypes.cast(view, _pointer), first)
    release = _Release(lambda _: None)
    arrays = iter([_Array(length=1, n_buffers=3, buffers=buffers, release=release), _Array()])

    def give(structure, target):
        ctypes.memmove(target, ctypes.addressof(structure), ctypes.sizeof(structure))
        return 0

    stream = _Stream(
        get_schema=_Get(lambda _, target: give(_Schema(format=b"vu", release=release), target)),
        get_next=_Get(lambda _, target: give(next(arrays), target)),
    )
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype, capsule.argtypes = ctypes.py_object, [_pointer, ctypes.c_char_p, _pointer]
    name = b"arrow_array_stream"
    table = _cpp.StringTable(0)
    numbers, missing = table.number(capsule(ctypes.addressof(stream), name, None))
    assert (pl.Series(numbers).to_list(), missing, table.string(0)) == ([0], False, string.decode())
