"""Frames of histories in, a frame of recommendations out: the answers of `recommend`, popularity for unknown users."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import polars as pl
import pytest

from plr.errors import DataError, RequestError, RunError
from plr.prepare.readers import Columns
from plr.serving import Recommender, item_numbers
from plr.serving.filters import ItemFilter
from plr.serving.histories import histories_of
from plr.serving.item_numbers import ItemNumbers
from plr.serving.popularity import most_popular
from plr.serving.ragged import Ragged
from tests.plr.models.helpers import small_config
from tests.plr.serving.test_engine import trained

ITEMS = 23
IDS = [f"i{item}" for item in range(ITEMS)]
COUNTS = np.array([7 * item % 10 for item in range(ITEMS)])
HISTORIES = {"b": ["i3", "i1"], "a": ["i5"], "c": ["i22", "i0", "i3", "i7"]}


def counted():
    return COUNTS


@pytest.fixture(scope="module")
def recommender():
    return Recommender(trained(ITEMS, method="plr"), IDS, small_config(), counted)


def long(histories):
    rows = [(user, item, step) for user, items in histories.items() for step, item in enumerate(items)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def wide(histories):
    return pl.DataFrame({"user": list(histories), "history": list(histories.values())}, schema_overrides={
        "history": pl.List(pl.String)
    })  # fmt: skip


def assert_answers(frame, recommender, histories, k, **options):
    """The frame holds what `recommend` says, user after user in the order of the histories."""
    expected = recommender.recommend(histories.values(), k, unknown="skip", **options)
    rows = [
        (user, each.item, rank, each.score, "model")
        for user, answer in zip(histories, expected, strict=True)
        for rank, each in enumerate(answer, start=1)
    ]
    assert frame.rows() == rows


def test_every_form_of_a_frame_gets_the_answers_of_its_histories(recommender):
    frame = long(HISTORIES)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=3)
    found = recommender.recommend_frame(frame, 5)
    assert found.columns == ["user_id", "item", "rank", "score", "source"]
    assert_answers(found, recommender, HISTORIES, 5)
    in_order = {user: HISTORIES[user] for user in shuffled["user_id"].unique(maintain_order=True)}
    assert list(in_order) != list(HISTORIES)
    assert_answers(recommender.recommend_frame(shuffled, 5), recommender, in_order, 5)
    assert_answers(recommender.recommend_frame(wide(HISTORIES), 5), recommender, HISTORIES, 5)
    texts = pl.DataFrame({"user": list(HISTORIES), "history": ["i3 i1", '["i5"]', " i22  i0 i3\ti7"]})
    assert_answers(recommender.recommend_frame(texts, 5), recommender, HISTORIES, 5)
    arrays = {"user": np.array(list("bbacccc")), "item": np.concatenate(list(HISTORIES.values()))}
    assert_answers(recommender.recommend_frame(arrays, 5), recommender, HISTORIES, 5)


def test_users_keep_their_type(recommender):
    frame = pl.DataFrame({"user": [3, 1, 3], "item": ["i3", "i5", "i1"]}, schema_overrides={"user": pl.Int16})
    found = recommender.recommend_frame(frame, 2)
    assert found["user"].to_list() == [3, 3, 1, 1]
    assert found.schema["user"] == pl.Int16


def test_filters_are_those_of_recommend(recommender):
    options = {
        "only": [["i1", "i2", "i9"], None, IDS[:20]],
        "exclude": [["i9"], ["i0"], []],
        "where": np.arange(ITEMS) % 5 > 0,
        "exclude_seen": True,
    }
    found = recommender.recommend_frame(wide(HISTORIES), 6, **options)
    assert_answers(found, recommender, HISTORIES, 6, **options)
    assert found.filter(pl.col("user") == "b").height == 1  # i1 is seen, i9 denied


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical, pl.Int64])
def test_lists_of_filters_are_those_of_the_users_in_the_order_of_the_frame(recommender, kind):
    """Whose interactions are in the order of the times, in which the users would come in another order."""
    users = pl.Series("user", ["7", "5", "7", "6", "5"]).cast(kind)
    frame = pl.DataFrame({"user": users, "item": ["i1", "i2", "i3", "i4", "i5"], "timestamp": [9, 5, 8, 1, 3]})
    histories = [["i3", "i1"], ["i5", "i2"], ["i4"]]
    lists = {"only": [IDS[:9], IDS[5:20], None], "exclude": [["i0"], [], ["i7", "i8"]]}
    where = np.arange(3 * ITEMS).reshape(3, ITEMS) % 7 > 0
    found = recommender.recommend_frame(frame, 4, where=where, **lists)
    assert found["user"].dtype == kind
    expected = dict(zip(["7", "5", "6"], histories, strict=True))
    assert_answers(found.with_columns(pl.col("user").cast(pl.String)), recommender, expected, 4, where=where, **lists)
    nobody = frame.clear().with_columns(pl.col("timestamp").cast(pl.Int64))
    assert recommender.recommend_frame(nobody, 4).is_empty()


def test_times_are_those_that_files_may_hold(recommender):
    """Whole numbers, which pandas has as floats where one was missing; of others a file is refused, too."""
    frame = pl.DataFrame({"user": ["a", "a", "a"], "item": ["i1", "i2", "i3"], "timestamp": [3.0, 1.0, 2.0]})
    assert recommender.recommend_frame(frame, 4).equals(
        recommender.recommend_frame(frame.with_columns(pl.col("timestamp").cast(pl.Int64)), 4)
    )
    for time in (float("nan"), float("inf"), 1.5):
        with pytest.raises(DataError, match=r"'timestamp' .* must hold numbers or dates, whole and none missing"):
            recommender.recommend_frame(frame.with_columns(timestamp=pl.Series([3.0, time, 2.0])), 4)


def test_filters_by_user(recommender):
    denied = {"c": IDS[2:9], "a": ["i1"], "z": IDS}
    found = recommender.recommend_frame(wide(HISTORIES), 6, exclude=denied, only={"a": IDS[:7]})
    assert_answers(found, recommender, HISTORIES, 6, exclude=[[], ["i1"], IDS[2:9]], only=[None, IDS[:7], None])


def test_filters_by_user_are_lists(recommender):
    """Of texts alone a list of items for all users was made."""
    for denied in ({"a": "i1", "b": "i2", "c": "i3"}, {"a": ["i1"], "b": 2}):
        with pytest.raises(TypeError, match=r"exclude must have a list of item ids for the user '[ab]'; found"):
            recommender.recommend_frame(wide(HISTORIES), 6, exclude=denied)
    with pytest.raises(TypeError, match=r"only must name users by their ids, texts or whole numbers; found 3\.0"):
        recommender.recommend_frame({"user": [3], "item": ["i3"]}, 6, only={3.0: ["i1"]})


def test_unknown_items_are_ignored_and_counted_and_unknown_users_get_what_is_popular(recommender):
    histories = {"x": ["never"], "a": ["i5", "new"], "y": []}
    with pytest.warns(UserWarning, match="2 of 3 interactions are with items never seen in training"):
        found = recommender.recommend_frame(wide(histories), 4)
    assert_answers(found.filter(pl.col("source") == "model"), recommender, {"a": ["i5"]}, 4)
    best = sorted(range(ITEMS), key=lambda item: (-COUNTS[item], item))[:4]
    for user in ("x", "y"):
        own = found.filter(pl.col("user") == user)
        assert own["item"].to_list() == [IDS[item] for item in best]
        assert own["score"].to_list() == [COUNTS[item] for item in best]
        assert own["rank"].to_list() == [1, 2, 3, 4]
        assert set(own["source"]) == {"popularity"}
    assert found["user"].unique(maintain_order=True).to_list() == ["x", "a", "y"]
    with pytest.raises(RequestError, match="items never seen in training: 'never', 'new'"):
        recommender.recommend_frame(wide(histories), 4, unknown="error")


def test_popularity_obeys_filters(recommender):
    only, denied = [IDS[:15], IDS], [["i1"], ["i4", "i7", "i14"]]
    where = np.arange(ITEMS) % 3 == 1
    found = recommender.recommend_frame(
        pl.DataFrame({"user": ["x", "y"], "history": ["", ""]}), ITEMS, only=only, exclude=denied, where=where
    )
    order = sorted(range(ITEMS), key=lambda item: (-COUNTS[item], item))
    for user, own_only, own_denied in zip("xy", only, denied, strict=True):
        assert found.filter(pl.col("user") == user)["item"].to_list() == [
            IDS[item] for item in order if where[item] and IDS[item] in own_only and IDS[item] not in own_denied
        ]
    denied = ItemFilter(ITEMS, denied=Ragged.of([order[:2], order[1:4]]))
    assert most_popular(COUNTS, 2, 3, denied)[1].tolist() == [order[2:5], [order[0], *order[4:6]]]
    scores, items = most_popular(COUNTS, 2, 3, ItemFilter(ITEMS, shared=np.arange(ITEMS) < 2))
    assert items.tolist() == [[1, 0, -1]] * 2
    assert scores.tolist() == [[7, 0, -np.inf]] * 2


def test_popularity_of_no_run_is_an_error():
    recommender = Recommender(trained(ITEMS, method="base"), IDS, small_config())
    assert len(recommender.recommend_frame(wide(HISTORIES), 2)) == 6
    with pytest.raises(RunError, match="popularity is known of a run alone"):
        recommender.recommend_frame(wide({"x": []}), 2)


def test_no_user_gets_an_empty_frame(recommender):
    for frame in (long(HISTORIES).head(0), wide({})):
        found = recommender.recommend_frame(frame, 3)
        assert found.shape == (0, 5)


def test_copies_answer_the_same(recommender):
    expected = recommender.recommend_frame(long(HISTORIES), 3)
    for copied in (copy.deepcopy(recommender), pickle.loads(pickle.dumps(recommender))):
        assert copied.recommend_frame(long(HISTORIES), 3).equals(expected)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"user": ["a"], "product": ["i1"]}, "no item column"),
        ({"user": ["a", None], "item": ["i1", "i1"]}, "column 'user' .* must hold ids, .* 1 missing"),
        ({"user": ["a"], "item": [1.5]}, "column 'item' .* must hold ids"),
        ({"user": ["a"], "item": ["i1"], "timestamp": ["1"]}, "column 'timestamp' .* must hold numbers or dates"),
        ({"user": ["a"], "history": [[1.5]]}, "column 'history' must hold lists of item ids"),
        ({"user": ["a"], "history": [["i1", None]]}, "column 'history' holds a list with a missing id"),
        ({"user": ["a"], "history": [3]}, "column 'history' must hold lists of item ids"),
    ],
)
def test_frames_that_are_none_are_named(frame, message, recommender):
    with pytest.raises(DataError, match=message):
        recommender.recommend_frame(frame, 2)


def test_numbers_of_ids(monkeypatch):
    monkeypatch.setattr(item_numbers, "MOST_UNKNOWN", 5)
    numbers = ItemNumbers(IDS)
    for start in range(0, 100, 7):  # more unknown ids than are remembered
        found = numbers.of(pl.Series([f"i{start + step}" for step in range(9)] + [None, ""]))
        assert found.tolist() == [n if n < ITEMS else -1 for n in range(start, start + 9)] + [-1, -1]
    assert ItemNumbers(["7", "8"]).of(pl.Series([8, 9, 7])).tolist() == [1, -1, 0]


def test_histories_as_numbers():
    frame = wide({"a": ["i2", "x", "i1"], "b": [], "c": ["x"], "d": ["i3"]})
    users = histories_of(frame, Columns(), ItemNumbers(IDS))
    assert users.items.padded(-1).tolist() == [[2, 1], [-1, -1], [-1, -1], [3, -1]]
    assert (users.interactions, users.unknown) == (5, 2)
    named = frame.rename({"history": "bought"})
    again = histories_of(named, Columns(item="bought"), ItemNumbers(IDS))
    assert again.items.padded(-1).tolist() == users.items.padded(-1).tolist()
    texts = pl.DataFrame({"user": ["a"], "history": [json.dumps([2, "two words"])]})
    assert histories_of(texts, Columns(), ItemNumbers(["two words", "2"])).items.ids.tolist() == [1, 0]
