"""only=, where= and exclude= leave items out of an answer, and change nothing else of it."""

from __future__ import annotations

import re

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from plr.errors import RequestError
from plr.serving import Engine, Recommender
from plr.serving.filters import ItemFilter
from plr.serving.ragged import Ragged
from plr_kernels import extension
from tests.plr.models.helpers import small_config
from tests.plr.serving.test_engine import SETS, ragged, trained

ITEMS = 37
IDS = [f"i{item}" for item in range(ITEMS)]
# One state and mixtures by the engine, and a method that PyTorch computes.
METHODS = {
    "base": {"method": "base"},
    "mixture": {"method": "plr", "fast_state": "component"},
    "states": {"method": "plr", "mixture": "states"},
    "lares": {"method": "lares"},
}


def recommender_of(name: str) -> Recommender:
    model = trained(ITEMS, **METHODS[name])
    # Equal vectors: ties are those of the whole table.
    weight = model.items.embedding.weight
    weight.data[5:30:6] = weight.data[4]
    return Recommender(model, IDS, small_config())


@pytest.fixture(scope="module", params=METHODS)
def recommender(request):
    found = recommender_of(request.param)
    assert (found.engine is None) == (request.param == "lares")
    return found


items = st.integers(0, ITEMS + 3).map(lambda item: f"i{item}")  # some that nobody knows
ids = st.lists(items, max_size=ITEMS)
histories = st.lists(st.lists(st.sampled_from(IDS), min_size=1, max_size=15), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_answer_is_the_whole_ranking_without_what_is_filtered(recommender, data):
    asked = data.draw(histories)
    per_history = data.draw(st.booleans())
    rows = len(asked)
    only = data.draw(st.none() | (st.lists(st.none() | ids, min_size=rows, max_size=rows) if per_history else ids))
    exclude = data.draw(st.none() | (st.lists(ids, min_size=rows, max_size=rows) if per_history else ids))
    shape = (rows, ITEMS) if data.draw(st.booleans()) else (ITEMS,)
    masks = st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).random(shape) < 0.7)
    where = data.draw(st.none() | masks)
    exclude_seen, k = data.draw(st.booleans()), data.draw(st.integers(1, ITEMS))
    whole = recommender.recommend(asked, ITEMS, exclude_seen=False)

    # In the same form: a list (or None) for each history.
    only_of = only if per_history and only is not None else [only] * rows
    exclude_of = exclude if per_history and exclude is not None else [exclude or []] * rows
    where_of = np.broadcast_to(True if where is None else where, (rows, ITEMS))
    allowed = [
        [(own is None or item in own) and item not in denied and mask[number] for number, item in enumerate(IDS)]
        for own, denied, mask in zip(only_of, exclude_of, where_of, strict=True)
    ]
    unknown = any(own is not None and not set(IDS).intersection(own) for own in only_of)
    try:
        found = recommender.recommend(asked, k, exclude_seen=exclude_seen, only=only, exclude=exclude, where=where)
    except RequestError:
        assert unknown or not any(allowed[0])
        return
    assert not unknown
    for row, history in enumerate(asked):
        expected = [
            each
            for each in whole[row]
            if allowed[row][IDS.index(each.item)] and not (exclude_seen and each.item in history)
        ]
        assert found[row] == expected[:k]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("changes", [{"method": "base"}, {"method": "plr"}, {"method": "plr", "streams": 17}])
def test_a_mask_is_a_list_of_the_others(changes, name, monkeypatch):
    """Of many rows too, and where a mixture needs a second sweep of the items."""
    monkeypatch.setattr(extension, "_instruction_set", name)
    engine = Engine(trained(701, **changes))
    users = engine.states(*ragged([1 + row % 5 for row in range(40)], 701))
    exclude = torch.randint(-1, 701, (40, 3), generator=torch.Generator().manual_seed(1))
    for share in (0.9, 0.5, 0.02):
        where = torch.rand(701, generator=torch.Generator().manual_seed(2)) < share
        others = (~where).nonzero()[:, 0].expand(40, -1)
        found = engine.rank(users, 20, exclude=exclude, where=where)
        expected = engine.rank(users, 20, exclude=torch.cat([exclude, others], dim=1))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
    scores, items = engine.rank(users, 2, where=torch.zeros(701, dtype=torch.bool))
    assert (scores == -torch.inf).all()
    assert (items == -1).all()
    with pytest.raises(ValueError, match="where must have shape"):
        engine.rank(users, 2, where=where[:-1])
    with pytest.raises(ValueError, match=r"exclude must be in \[0, V\)"):
        engine.rank(users, 2, where=where, exclude=exclude + 701)


def named(answers):
    return [[each.item for each in answer] for answer in answers]


def test_filters_are_the_same_in_blocks(recommender, monkeypatch):
    asked = [[f"i{(row + step) % ITEMS}" for step in range(1 + row % 5)] for row in range(30)]
    options = {"only": IDS[3:30], "exclude": [IDS[row % 9 : 12] for row in range(30)], "exclude_seen": True}
    whole = recommender.recommend(asked, 5, **options)
    monkeypatch.setattr("plr.serving.ranker.MOST_EXCLUDED", 60)
    in_blocks = recommender.recommend(asked, 5, batch_size=7, **options)
    assert named(in_blocks) == named(whole)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"only": "i1"}, TypeError, "only must be a list of item ids, or for each history such a list; found 'i1'"),
        ({"only": ["i1", ["i2"]]}, TypeError, "found 'i1' among lists"),
        ({"exclude": [["i1"]]}, ValueError, "exclude must have a list for each of the 2 histories; found 1"),
        ({"exclude": 3}, TypeError, "exclude must be a list of item ids"),
        ({"only": [True, False]}, TypeError, "a mask of all items is given as where"),
        ({"exclude": {"u1": ["i1"]}}, TypeError, "exclude must be a list of item ids, or for each history such a list"),
        ({"exclude": b"i1"}, TypeError, "exclude must be a list of item ids"),
        ({"exclude": [[3.0], []]}, TypeError, "exclude must hold item ids, texts or whole numbers; found 3.0"),
        ({"exclude": [["i1"], [None]]}, TypeError, "exclude must hold item ids, texts or whole numbers; found None"),
        ({"only": [[True], None]}, TypeError, "only must hold item ids, texts or whole numbers; found True"),
        ({"only": []}, RequestError, "only names no item that training has seen"),
        ({"only": ["never"]}, RequestError, "only names no item that training has seen"),
        ({"only": [None, ["never"]]}, RequestError, "only of history 1 names no item that training has seen"),
        ({"exclude": IDS}, RequestError, "only, exclude and where together leave no item"),
        ({"only": ["i1"], "exclude": ["i1"]}, RequestError, "only, exclude and where together leave no item"),
        ({"where": np.zeros(ITEMS)}, TypeError, "where must be booleans; found float64"),
        ({"where": np.ones(3, dtype=bool)}, ValueError, f"[{ITEMS}] or [2, {ITEMS}]; found [3]"),
    ],
)
def test_filters_that_make_no_sense_are_named(options, error, message, recommender):
    with pytest.raises(error) as caught:
        recommender.recommend([["i1"], ["i2"]], 3, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("made", [list, np.array, pl.Series])
def test_lists_may_be_arrays_of_numbers(made):
    """An array of the one number 0 is false, and its item is left out all the same."""
    recommender = Recommender(trained(ITEMS, method="base"), [str(item) for item in range(ITEMS)], small_config())
    lists = [[0], [0, 3], [4, 5]]
    arrays = [made(each) for each in lists]
    answers = recommender.recommend([[1], [2], [3]], ITEMS, exclude=arrays, exclude_seen=False)
    for answer, denied in zip(answers, lists, strict=True):
        assert {each.item for each in answer} == {str(item) for item in range(ITEMS) if item not in denied}
    answers = recommender.recommend([[1], [2], [3]], ITEMS, only=arrays, exclude_seen=False)
    assert [sorted(int(each.item) for each in answer) for answer in answers] == lists


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([["i1", 2.0]], "an item must be an id, a text or a whole number; found 2.0"),
        ([["i1", None]], "an item must be an id, a text or a whole number; found None"),
        ([["i1", True]], "an item must be an id, a text or a whole number; found True"),
        ([["i1", ["i2"]]], "an item must be an id, a text or a whole number; found ['i2']"),
        ([{"i1", "i2"}], "history 0 must be a sequence of item ids"),
        ([b"i1"], "history 0 must be a sequence of item ids; found b'i1'"),
        (pl.DataFrame({"first": ["i1"], "second": ["i2"]}), "found a frame, which recommend_frame takes"),
    ],
)
def test_histories_that_are_none_are_named_where_unknown_items_are_skipped(histories, message, recommender):
    with pytest.raises(TypeError, match=re.escape(message)):
        recommender.recommend(histories, 3, unknown="skip")
    if isinstance(histories, list):
        with pytest.raises(TypeError, match=r"must be an id|a sequence of item ids"):
            recommender.session(histories[0], unknown="skip")


def test_ragged_lists():
    lists = [[3, 1, 4], [], [1, 5], [9]]
    ragged, others = Ragged.of(lists), Ragged.of([[7], [8, 8], [], [6]])
    assert [list(row) for row in np.split(ragged.ids, ragged.offsets[1:-1])] == lists
    assert ragged.padded(-1).tolist() == [[3, 1, 4], [-1, -1, -1], [1, 5, -1], [9, -1, -1]]
    assert ragged.last(2).padded(-1).tolist() == [[1, 4], [-1, -1], [1, 5], [9, -1]]
    assert ragged.take(np.array([2, 0])).padded(0).tolist() == [[1, 5, 0], [3, 1, 4]]
    joined = ragged.joined(others)
    assert joined.padded(-1).tolist() == [[3, 1, 4, 7], [8, 8, -1, -1], [1, 5, -1, -1], [9, 6, -1, -1]]
    assert joined.take(np.array([3, 1])).padded(-1).tolist() == [[9, 6], [8, 8]]
    assert Ragged.of([]).padded(0).shape == (0, 0)


def test_a_list_of_many_histories_is_read_once():
    class Counted(dict):
        reads = 0

        def get(self, *arguments):
            self.reads += 1
            return super().get(*arguments)

    numbers = Counted((name, number) for number, name in enumerate(IDS))
    first, second = ["i3", "x", "i1"], ["i1"]
    found = ItemFilter.of(numbers, 5, exclude=[first, None, second, first, first])
    assert [each.tolist() for each in found.denied.lists()] == [[3, 1], [], [1], [3, 1], [3, 1]]
    assert numbers.reads == 4
