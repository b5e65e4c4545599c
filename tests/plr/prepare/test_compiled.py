"""The C++ extension of plr.data does what the code in Python does that stands in for it."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.prepare import PrepareOptions, blocks, interactions
from plr.prepare.compiled import _cpp
from plr.prepare.interactions import in_user_order
from plr.prepare.pipeline import write_folder
from plr.prepare.readers import id_encoder

pytestmark = pytest.mark.skipif(_cpp is None, reason="the C++ extension is not built")


def without_extension(patch: pytest.MonkeyPatch) -> None:
    for module in (blocks, interactions, id_encoder):
        patch.setattr(module, "_cpp", None)


def drawn(seed: int, count: int, users: int, times: int | None, positive: bool) -> tuple:
    """Return the arguments of in_user_order for ``count`` interactions in three blocks.

    They are at ``times`` different times (None: without). Not every user and item is in use.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    columns = [
        random.integers(0, users, count, dtype=np.uint32),
        random.integers(0, 50, count, dtype=np.uint32),
        None if times is None else random.integers(-times, times, count),
        random.random(count) < 0.5 if positive else None,
    ]
    ends = [0, *np.sort(random.integers(0, count + 1, 2)), count]
    blocks = [
        tuple(None if column is None else column[first:last] for column in columns) for first, last in pairwise(ends)
    ]
    ranks = [
        (pl.Series([f"{number:06d}" for number in range(size)]), random.permutation(size).astype(np.int32))
        for size in (users, 50)
    ]
    return blocks, *ranks


@given(
    st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([1, 3, 1000]), st.sampled_from([None, 1, 5, 2**62]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_user_order(seed, count, users, times, positive):
    check_user_order(*drawn(seed, count, users, times, positive))


@pytest.mark.parametrize("users", [1, 40_000, 400_000])
@pytest.mark.parametrize("times", [None, 3])
def test_user_order_of_many(users, times):
    check_user_order(*drawn(0, 400_000, users, times, positive=True))


def check_user_order(blocks: list, users: tuple, items: tuple) -> None:
    user, item, time, positive = (None if c[0] is None else np.concatenate(c) for c in zip(*blocks, strict=True))
    order = np.lexsort(([] if time is None else [time]) + [users[1][user]])  # stable
    with pytest.MonkeyPatch.context() as patch:
        without_extension(patch)
        plain = in_user_order(list(blocks), users, items)
    for found in (plain, in_user_order(list(blocks), users, items)):
        assert np.array_equal(found.position, order)
        assert np.array_equal(found.user_ids.gather(found.user()), users[0].gather(users[1][user][order]))
        assert np.array_equal(found.item_ids.gather(found.item), items[0].gather(items[1][item][order]))
        assert (len(found.user_ids), len(found.item_ids)) == (len(np.unique(user)), len(np.unique(item)))
        for name, values in (("timestamp", time), ("positive", positive)):
            column = getattr(found, name)
            assert (column is None) == (values is None)
            assert values is None or (column.dtype == values.dtype and np.array_equal(column, values[order])), name
        types = [(name, getattr(found, name).dtype) for name in ("offsets", "item", "position")]
        assert types == [("offsets", np.int64), ("item", np.int32), ("position", np.uint32)]
    for threads in (1, 2, 3):
        assert np.array_equal(_cpp.UserOrder(list(blocks), users[1], items[1], threads).write()[-1], order)


class Noted(np.ndarray):
    """An array that notes how many blocks are left when it goes."""

    def __del__(self) -> None:
        if self.base is None:  # no view of another
            left.append(sum(block is not None for block in blocks_left))


left: list[int] = []
blocks_left: list[tuple | None] = []


def test_user_order_lets_go_of_each_block_when_it_is_read():
    ranks = np.arange(10, dtype=np.int32)
    for _ in range(3):
        columns = [Noted(10, dtype=dtype) for dtype in (np.uint32, np.uint32, np.int64, bool)]
        for column in columns:
            column[:] = range(10)
        blocks_left.append(tuple(columns))
    del columns, column
    order = _cpp.UserOrder(blocks_left, ranks, ranks, 1)
    assert left == [2] * 4 + [1] * 4 + [0] * 4
    assert blocks_left == []
    order.write()
    with pytest.raises(RuntimeError, match="written before"):
        order.write()


def test_user_order_gives_back_no_part_before_it_is_written():
    """Parts of many sizes; those of more than a huge page, 2 MiB of records, are given back as they are written."""
    random = np.random.Generator(np.random.PCG64(4))
    count, users = 1_500_000, 100_000
    user = np.minimum(random.exponential(users / 4, count), users - 1).astype(np.uint32)
    ranks = np.arange(users, dtype=np.int32)
    time = random.integers(-(2**62), 2**62, count)
    for threads in (1, 2, 5):
        columns = _cpp.UserOrder([(user, user, time, None)], ranks, ranks, threads).write()
        order = np.lexsort((time, user))
        for found, expected in zip(columns[1:], (user[order], time[order], None, order), strict=True):
            assert (found is expected is None) or np.array_equal(found, expected)


def test_user_order_refuses_what_does_not_fit():
    user, item = np.array([0, 3], dtype=np.uint32), np.array([0, 1], dtype=np.uint32)
    ranks = np.arange(4, dtype=np.int32)
    with pytest.raises(IndexError, match="user's number has no rank"):
        _cpp.UserOrder([(user, item, None, None)], ranks[:3], ranks, 1)
    with pytest.raises(IndexError, match="item's number has no rank"):
        _cpp.UserOrder([(user, item, None, None)], ranks, ranks[:1], 1)
    with pytest.raises(IndexError, match="rank"):
        _cpp.UserOrder([(user, item, None, None)], ranks + 1, ranks, 1)
    with pytest.raises(ValueError, match="one length"):
        _cpp.UserOrder([(user, item[:1], None, None)], ranks, ranks, 1)
    with pytest.raises(ValueError, match="same columns"):
        _cpp.UserOrder([(user, item, None, None), (user, item, np.zeros(2, dtype=np.int64), None)], ranks, ranks, 1)
    with pytest.raises(TypeError):
        _cpp.UserOrder([(user.astype(np.int64), item, None, None)], ranks, ranks, 1)


def test_marks():
    random = np.random.Generator(np.random.PCG64(0))
    index, chosen = random.integers(0, 50, 30, dtype=np.int32), random.random(30) < 0.5
    for choice, those in ((None, index), (chosen, index[chosen])):
        marks = np.zeros(50, dtype=bool)
        blocks.mark(marks, index, choice)
        assert np.flatnonzero(marks).tolist() == sorted(set(those.tolist()))
    with pytest.raises(IndexError):
        blocks.mark(np.zeros(int(index.max()), dtype=bool), index)
    marks = np.zeros(5, dtype=bool)
    blocks.mark(marks, index, index < 5)  # those that are not chosen may be any
    assert marks.sum() == len(set(index[index < 5].tolist()))


@pytest.mark.parametrize(
    "options", [{}, {"core": 2, "min_rating": 2}, {"duplicates": "drop"}, {"min_rating": 3, "low_rated": "history"}]
)
def test_a_folder_has_the_same_bytes_without_it(tmp_path, options):
    random = np.random.Generator(np.random.PCG64(1))
    rows = [
        f"user {user:x} with a long name,{item},{rating},{1_600_000_000 + time}"
        for user, item, rating, time in random.integers(0, (90, 60, 6, 500), (3000, 4)).tolist()
    ]
    source = tmp_path / "data.csv"
    source.write_text("\n".join(["user,item,rating,timestamp", *rows, ",,,", *rows[:5]]) + "\n")
    write_folder([source], tmp_path / "with", PrepareOptions(**options))
    with pytest.MonkeyPatch.context() as patch:
        without_extension(patch)
        write_folder([source], tmp_path / "without", PrepareOptions(**options))
        write_folder([source], tmp_path / "parts", PrepareOptions(**options), partitions=3)
    assert hashes(tmp_path / "with") == hashes(tmp_path / "without") == hashes(tmp_path / "parts")


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("compiled", [True, False])
def test_places_in_the_source_follow_through_order_and_filter(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(interactions, "_cpp", None)
    user, item = np.array([1, 1, 0, 1, 0], dtype=np.uint32), np.arange(5, dtype=np.uint32)
    ids = pl.Series([f"i{number}" for number in range(5)])
    every = in_user_order(
        [(user, item, None, None)], (ids[:2], np.arange(2, dtype=np.int32)), (ids, np.arange(5, dtype=np.int32))
    )
    assert every.position.tolist() == [2, 4, 0, 1, 3]
    kept = every.take(np.array([True, True, False, True, True]))
    assert kept.position.tolist() == [2, 4, 1, 3]
    assert kept.offsets.tolist() == [0, 2, 4]
    assert kept.item_ids.gather(kept.item).to_list() == ["i2", "i4", "i1", "i3"]


def test_blocks_are_cut_where_any_column_is():
    def column(name: str, *lengths: int) -> pl.Series:
        parts = [pl.Series(name, range(sum(lengths[:at]), sum(lengths[: at + 1]))) for at in range(len(lengths))]
        return pl.concat(parts, rechunk=False)

    frame = pl.DataFrame([column("user", 4, 2), column("item", 6), column("timestamp", 0, 1, 0, 3, 2, 0)])
    blocks = interactions._blocks(frame)
    assert [[None if part is None else part.tolist() for part in block] for block in blocks] == [
        [[0], [0], [0], None], [[1, 2, 3], [1, 2, 3], [1, 2, 3], None], [[4, 5], [4, 5], [4, 5], None],
    ]  # fmt: skip
    assert [[len(part) for part in block[:3]] for block in interactions._blocks(frame.clear())] == [[0, 0, 0]]


@pytest.mark.parametrize("compiled", [True, False])
def test_no_interaction_at_all(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(interactions, "_cpp", None)
    none, ids = np.zeros(0, dtype=np.uint32), (pl.Series([], dtype=pl.String), np.zeros(0, dtype=np.int32))
    found = in_user_order([(none, none, np.zeros(0, dtype=np.int64), None)], ids, ids)
    assert (len(found), found.offsets.tolist()) == (0, [0])
