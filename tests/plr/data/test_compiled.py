"""The C++ extension of plr.data does what the code in Python does that stands in for it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data import PrepareOptions, blocks, interactions
from plr.data.compiled import _cpp
from plr.data.interactions import Interactions
from plr.data.pipeline import write_folder
from plr.data.readers import numbering

pytestmark = pytest.mark.skipif(_cpp is None, reason="the C++ extension is not built")


def without_extension(patch: pytest.MonkeyPatch) -> None:
    for module in (blocks, interactions, numbering):
        patch.setattr(module, "_cpp", None)


def drawn(seed: int, count: int, users: int, times: int | None, positive: bool) -> Interactions:
    """Return ``count`` interactions, the users all in use, at ``times`` different times (None: without)."""
    random = np.random.Generator(np.random.PCG64(seed))
    user = np.unique(random.integers(0, users, count), return_inverse=True)[1].astype(np.int32)
    ids = pl.Series([str(number) for number in range(int(user.max()) + 1)])
    return Interactions(
        user=user,
        item=random.integers(0, 2**31, count, dtype=np.int32),
        position=None,
        positive=random.random(count) < 0.5 if positive else None,
        timestamp=None if times is None else random.integers(-times, times, count),
        user_ids=ids,
        item_ids=pl.Series([""]),
    )


@given(
    st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([1, 3, 1000]), st.sampled_from([None, 1, 5, 2**62]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_user_order(seed, count, users, times, positive):
    check_user_order(drawn(seed, count, users, times, positive))


@pytest.mark.parametrize("users", [1, 40_000, 400_000])
@pytest.mark.parametrize("times", [None, 3])
def test_user_order_of_many(users, times):
    check_user_order(drawn(0, 400_000, users, times, positive=True))


def check_user_order(given: Interactions) -> None:
    names = ("user", "item", "position", "positive", "timestamp")
    with pytest.MonkeyPatch.context() as patch:
        without_extension(patch)
        expected = replace(given)
        expected.put_in_user_order()
    found = replace(given)
    found.put_in_user_order()
    for name in names:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        assert one is None or (one.dtype == other.dtype and np.array_equal(one, other)), name
    columns = given.user, given.item, given.timestamp, given.positive
    for threads in (1, 2, 3):
        *sorted_columns, place = _cpp.UserOrder(*columns, len(given.user_ids), threads).write()
        assert np.array_equal(place, expected.position)
        assert np.array_equal(sorted_columns[1], expected.item)


def test_user_order_refuses_what_does_not_fit():
    user, item = np.array([0, 3], dtype=np.int32), np.array([0, 1], dtype=np.int32)
    with pytest.raises(IndexError, match="not below the number of users"):
        _cpp.UserOrder(user, item, None, None, 3, 1)
    with pytest.raises(ValueError, match="one length"):
        _cpp.UserOrder(user, item[:1], None, None, 4, 1)
    with pytest.raises(TypeError):
        _cpp.UserOrder(user.astype(np.int64), item, None, None, 4, 1)


def test_marks():
    random = np.random.Generator(np.random.PCG64(0))
    index, chosen = random.integers(0, 50, 30, dtype=np.int32), random.random(30) < 0.5
    for choice, those in ((None, index), (chosen, index[chosen])):
        marks = np.zeros(50, dtype=bool)
        blocks.mark(marks, index, choice)
        assert np.flatnonzero(marks).tolist() == sorted(set(those.tolist()))
    with pytest.raises(IndexError):
        blocks.mark(np.zeros(int(index.max()), dtype=bool), index)


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
    assert hashes(tmp_path / "with") == hashes(tmp_path / "without")


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("compiled", [True, False])
def test_places_in_the_source_follow_through_filter_and_order(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(interactions, "_cpp", None)
    user, item = np.array([1, 1, 0, 1, 0], dtype=np.int32), np.arange(5, dtype=np.int32)
    every = Interactions(
        user, item, None, None, None, pl.Series(["a", "b"]), pl.Series([f"i{number}" for number in range(5)])
    )
    kept = every.take(np.array([False, True, True, True, True]))
    kept.put_in_user_order()
    assert kept.positions().tolist() == [2, 4, 1, 3]
    assert kept.item_ids.gather(kept.item).to_list() == ["i2", "i4", "i1", "i3"]
