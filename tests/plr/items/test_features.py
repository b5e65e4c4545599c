"""Feature files: what is read, what is refused, and how."""

import itertools
import json
import re

import polars as pl
import pytest

from plr.errors import DataError
from plr.items.features import read_features

ITEMS = ["a", "b", "c", "7"]


def as_sets(field, names):
    """The values of each item by name; names are in sorted order."""
    bounds = field.offsets.tolist()
    return [{names[v] for v in field.values[i:j].tolist()} for i, j in itertools.pairwise(bounds)]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_json_of_lists_is_one_field(tmp_path):
    path = write(tmp_path / "f.json", {"a": [10, 9, 10], "7": ["x", " x ", ""], "b": [], "unknown": ["y"]})
    (field,) = read_features(path, ITEMS)
    assert field.name == "attributes"
    assert field.num_values == 3  # "10", "9", "x"; y is nobody's
    assert as_sets(field, ["10", "9", "x"]) == [{"10", "9"}, set(), set(), {"x"}]
    assert field.missing == 2


def test_json_of_fields_and_the_choice_among_them(tmp_path):
    entries = {"a": {"store": "s", "tags": ["t", "u"], "title": "A"}, "c": {"store": None, "tags": "t"}}
    path = write(tmp_path / "f.json", entries)
    assert [field.name for field in read_features(path, ITEMS)] == ["store", "tags"]
    tags, title = read_features(path, ITEMS, ["tags", "title"])
    assert as_sets(tags, ["t", "u"]) == [{"t", "u"}, set(), {"t"}, set()]
    assert title.num_values == 1
    (store,) = read_features(path, ITEMS, ["store"])
    assert store.missing == 3


def test_parquet_takes_strings_and_lists_of_them_but_title_and_text(tmp_path):
    path = tmp_path / "items.parquet"
    pl.DataFrame(
        {
            "item_id": ["a", "7"],
            "title": ["A", "B"],
            "text": ["A a", "B b"],
            "categories": [["x", "y"], None],
            "store": ["s", ""],
            "price": [1.5, 2.5],
            "year": [1999, None],
        }
    ).write_parquet(path)
    with pytest.warns(UserWarning, match=r"left out as item features, .* no strings: 'price', 'year';"):
        categories, store = read_features(path, ITEMS)
    assert as_sets(categories, ["x", "y"]) == [{"x", "y"}, set(), set(), set()]
    assert store.missing == 3
    assert [field.name for field in read_features(tmp_path, ITEMS, ["year"])] == ["year"]  # the folder will do
    with pytest.raises(DataError, match="field 'price' must hold strings, whole numbers or lists of them"):
        read_features(path, ITEMS, ["price"])


def test_number_ids_are_strings(tmp_path):
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": [7], "store": ["s"]}).write_parquet(path)
    (store,) = read_features(path, ITEMS)
    assert as_sets(store, ["s"]) == [set(), set(), set(), {"s"}]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("f.json", {"x": [1], "y": [2]}, None, "none of the data's 4 items is in the file; the data have items like "
         "'a', 'b', 'c', the file 'x', 'y'"),
        ("f.json", {"a": [1]}, ["store"], "no field 'store'; the file has 'attributes'"),
        ("f.json", {"a": {"store": "s"}, "b": [1]}, None, "found lists and objects mixed"),
        ("f.json", {"a": 3}, None, "found 3 for item 'a'"),
        ("f.json", {"a": [[1]]}, None, "item 'a', field 'attributes': expected strings or whole numbers; found [1]"),
        ("f.json", {"a": [0.5]}, None, "found 0.5"),
        ("f.json", {"a": [True]}, None, "expected strings or whole numbers; found True"),
        ("f.json", {"a": [""], "x": ["y"]}, None, "no item of the data has a value in field 'attributes'"),
        ("f.json", '{"a": [1],\n "b": }', None, "f.json:2: not JSON"),
        ("f.json", '{"a": ' + "[" * 99999, None, "f.json: not usable JSON: maximum recursion depth exceeded"),
        ("f.json", '{"a": [' + "1" * 5000 + "]}", None, "f.json: not usable JSON: Exceeds the limit"),
        ("f.json", '{"a": [1], "a": [2]}', None, "'a' occurs twice"),
        ("f.json", "[]", None, "expected an object {item: values}, not empty"),
        ("f.json", {"a": {"title": "A"}}, None, "no field to use; the file has 'title'"),
        ("f.csv", "a,1", None, "item features are read from .json and .parquet; found .csv"),
        ("f.parquet", "nothing", None, "not a readable Parquet file"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(name, content, fields, message, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        read_features(path, ITEMS, fields)
    assert str(path) in str(raised.value)


def test_parquet_with_two_rows_for_an_item_or_without_ids(tmp_path):
    path = tmp_path / "f.parquet"
    pl.DataFrame({"item_id": ["a", "a"], "store": ["s", "t"]}).write_parquet(path)
    with pytest.raises(DataError, match="item 'a' has several rows"):
        read_features(path, ITEMS)
    pl.DataFrame({"item": ["a"], "store": ["s"]}).write_parquet(path)
    with pytest.raises(DataError, match="no column 'item_id'; the file has 'item', 'store'"):
        read_features(path, ITEMS)
    with pytest.raises(DataError, match="no such file of item features"):
        read_features(tmp_path / "nowhere.json", ITEMS)
