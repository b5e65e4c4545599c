"""Item metadata in every format: right values in the items' order, bad records named or skipped."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plr.errors import DataError
from plr.prepare import json_records, metadata
from plr.prepare.metadata import describe, item_features
from plr.prepare.readers import Skipped

ITEMS = pl.Series(["007", "7", "unknown"])
EXPECTED = {
    "title": ['Licence to "Kill"', "Seven", None],
    "categories": [["Films", "Agents"], None, None],
    "store": ["MI6", None, None],
    "text": ['Licence to "Kill". Films > Agents. MI6', "Seven", None],
}
JSON_LINES = [
    {"parent_asin": "7", "title": "Seven", "categories": [], "store": ""},
    {"parent_asin": "007", "title": 'Licence to "Kill"', "categories": ["Films", " Agents "], "store": "MI6"},
    {"parent_asin": "absent", "title": "x", "categories": ["y"], "store": "z"},
]


def lines(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("meta.jsonl", lines(JSON_LINES)),
        ("meta.jsonl", "\ufeff" + lines(JSON_LINES).replace("\n", "\r\n") + "\n\n"),
        ("meta.json", lines([{"asin": "7", "title": "old"}, *JSON_LINES])),
        ("items.csv", 'item_id,title,genres,brand\n7,Seven,,\n007,"Licence to ""Kill""",Films|Agents,MI6\n'),
        ("items.csv", '\nitem;title;category;store\r\n7;Seven;;\r\n007;"Licence to ""Kill""";Films | Agents;MI6\r\n'),
        (
            "a.item",
            "item_id:token\ttitle:token_seq\tcategories:token_seq\tbrand:token\n"
            '7\tSeven\t\t\n007\tLicence to "Kill"\tFilms Agents\tMI6\n',
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_formats(write, name, text, packed):
    content = gzip.compress(text.encode()) if packed else text
    frame, counts = item_features(write(name + (".gz" if packed else ""), content), ITEMS)
    assert frame.to_dict(as_series=False) == EXPECTED
    assert counts["records"] >= 2


def test_parquet(tmp_path):
    path = tmp_path / "items.parquet"
    pl.DataFrame(JSON_LINES).write_parquet(path)
    assert item_features(path, ITEMS)[0].to_dict(as_series=False) == EXPECTED
    pl.DataFrame({"item_id": [7], "title": ["Seven"]}).write_parquet(path)
    assert item_features(path, ITEMS)[0]["title"].to_list() == [None, "Seven", None]


def test_movielens_is_latin_1_as_published(write):
    text = "7::Seven (a.k.a. Se7en) (1995)::Crime|Thriller\n1::Léon: The Professional (1994)::Crime\n"
    for encoding in ("utf-8", "latin-1"):
        frame, _ = item_features(write("movies.dat", text.encode(encoding)), pl.Series(["1", "7"]))
        assert frame["title"].to_list() == ["Léon: The Professional (1994)", "Seven (a.k.a. Se7en) (1995)"]
        assert frame["categories"].to_list() == [["Crime"], ["Crime", "Thriller"]]


def test_the_last_of_several_records_counts(write):
    records = [{"parent_asin": "7", "title": title} for title in ("first", "last")]
    frame, counts = item_features(write("a.jsonl", lines(records)), ITEMS)
    assert frame["title"].to_list() == [None, "last", None]
    assert counts["repeated_records"] == 1


def test_several_category_paths(write):
    record = {"asin": "7", "categories": [["Books", "Crime"], ["Gifts"]]}
    assert item_features(write("a.jsonl", lines([record])), ITEMS)[0]["categories"].to_list()[1] == ["Books", "Crime"]


BAD = [
    ("a.jsonl", b'{"parent_asin": "7"', "not JSON"),
    ("a.jsonl", b"[1, 2]", "not a JSON object"),
    ("a.jsonl", b'{"title": "x"}', "no item id; the fields are 'title'"),
    ("a.jsonl", b'{"parent_asin": ""}', "the item id is empty"),
    ("a.jsonl", b'{"parent_asin": "7", "title": ["x"]}', "the title is a list; expected text"),
    ("a.jsonl", b'{"parent_asin": "7", "categories": {"a": 1}}', "the categories are not a list of texts"),
    ("a.jsonl", b'{"parent_asin": "7", "title": "\xff"}', "byte 0xff at column 32 is not UTF-8"),
    ("a.csv", b"7,x,y,z", "4 fields; the header has 3"),
    ("a.csv", b"7,x", "2 fields; the header has 3"),  # cut off
    ("a.csv", b"7,\xff,y", "not UTF-8"),
    ("a.csv", b'7,"x"y,z', "expected after"),
    ("a.jsonl", b'{"parent_asin": 7.0}', "the item is a float; expected text"),
    ("movies.dat", b"7::Seven", "2 fields; expected 'id::title::genre|genre'"),
]


@pytest.mark.parametrize(("name", "bad", "reason"), BAD)
def test_bad_records_are_named_or_skipped(write, name, bad, reason):
    head = {"a.jsonl": lines(JSON_LINES[:1]).encode(), "a.csv": b"item,title,genre\n", "movies.dat": b"1::One::Drama\n"}
    good = {"a.jsonl": lines(JSON_LINES[1:]).encode(), "a.csv": b"007,t,g\n", "movies.dat": b"007::t::g\n"}
    path = write(name, head[name] + bad + b"\n" + good[name])
    with pytest.raises(DataError) as caught:
        item_features(path, ITEMS)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert reason in str(caught.value)
    skipped = Skipped()
    frame, _ = item_features(path, ITEMS, skipped)
    assert (skipped.count, skipped.lines[0]["line"]) == (1, 2)
    assert frame["title"][0] is not None


def test_a_packed_file_that_was_cut_off(write):
    whole = gzip.compress(lines(JSON_LINES * 2000).encode())
    path = write("a.jsonl.gz", whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.jsonl.gz:\d+: the gzip file ends too early"):
        item_features(path, ITEMS)
    skipped = Skipped()
    assert item_features(path, ITEMS, skipped)[0]["title"][1] == "Seven"
    assert skipped.count == 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_a_packed_file_that_is_damaged(write, name):
    text = lines(JSON_LINES * 2000) if name == "a.jsonl.gz" else "item,title\n7,Seven\n" + "008,eight\n" * 9000
    path = write(name, gzip.compress(text.encode()) + b"behind the end")
    with pytest.raises(DataError, match=rf"{name}:\d+: the gzip file cannot be read from here on"):
        item_features(path, ITEMS)
    skipped = Skipped()
    assert item_features(path, ITEMS, skipped)[0]["title"][1] == "Seven"
    assert skipped.count == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "item,title\n7,seven\n 7 ,spaces\n"),
        ("a.item", "item:token\ttitle:token_seq\n7\tseven\n 7 \tspaces\n"),
        ("a.jsonl", lines([{"id": "7", "title": "seven"}, {"id": "7 ", "title": "a space"}])),
    ],
)
def test_white_space_around_ids_is_left_out(write, name, text):
    last = "a space" if name == "a.jsonl" else "spaces"
    assert item_features(write(name, text), ITEMS)[0]["title"].to_list() == [None, last, None]


def test_a_quote_that_is_never_closed_swallows_nothing(write, tmp_path):
    with pytest.raises(DataError, match=r"a.csv:3: a quote .* never closed"):
        item_features(write("a.csv", 'item,title\n008,eight\n007,"open\n7,seven\n'), ITEMS)
    skipped = Skipped()
    assert item_features(tmp_path / "a.csv", ITEMS, skipped)[0]["title"].to_list() == [None, "seven", None]
    assert [entry["line"] for entry in skipped.lines] == [3]


def test_a_title_that_is_not_a_number_is_none(write):
    assert item_features(write("a.jsonl", '{"id": "7", "title": NaN}\n'), ITEMS)[0]["title"].to_list() == [None] * 3


def test_unknown_extension_and_missing_file(tmp_path, write):
    with pytest.raises(DataError, match=r"extension '.xml'; accepted: .jsonl"):
        item_features(write("a.xml", "x"), ITEMS)
    with pytest.raises(DataError, match="no such file"):
        item_features(tmp_path / "none.jsonl", ITEMS)


def test_text():
    assert describe("A\tb\n", ["c", "d"], None) == "A b. c > d"
    assert describe(None, None, " ") is None
    assert describe(None, None, None) is None


def test_lines_of_a_csv_with_newlines_in_titles(write):
    path = write("a.csv", '\nitem,title\n7,"two\nlines"\n\n007,x,y\n')
    with pytest.raises(DataError, match=r"a.csv:6: 3 fields"):
        item_features(path, ITEMS)
    assert item_features(path, ITEMS, Skipped())[0]["text"].to_list() == [None, "two lines", None]


WORDS = st.sampled_from(
    ["7", "007", "absent", "a|b", "", " ", "5.0", "-1e3", "true", "\ud800", "ä\u2019", "a b", "Seven"]
)
ANYTHING = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(WORDS),
    st.just({"a": 1}),
    st.just([["a", "b"]]),
)
TEXT_OR_WORSE = st.one_of(WORDS, WORDS, WORDS, ANYTHING)
RECORDS = st.fixed_dictionaries(
    {"parent_asin": TEXT_OR_WORSE, "title": TEXT_OR_WORSE},
    optional={
        "store": TEXT_OR_WORSE,
        "categories": st.one_of(st.lists(WORDS), ANYTHING),
        "brand": WORDS,
        "asin": WORDS,
        "more": ANYTHING,
    },
)
LINES = st.one_of(RECORDS.map(json.dumps), st.sampled_from(["", "null", "[1]", '{"title": ', "5", '"7"']))


TITLE_TWICE = r'{"parent_asin": "unknown", "\u0074itle": "B", "title": "A", "categories": ["a"], "store": "S"}'


@given(st.lists(LINES, min_size=1, max_size=12))
@example([TITLE_TWICE])
@settings(max_examples=300, deadline=None)
def test_json_lines_decoded_together_mean_what_each_means(lines_of_json):
    outcomes = []
    for together in (True, False):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            path = Path(folder) / "meta.jsonl"
            path.write_text("\n".join(lines_of_json) + "\n")
            patch.setattr(json_records, "_BLOCK", 4)
            if not together:
                patch.setattr(metadata, "plain_records", lambda lines, item_ids: None)
            skipped = Skipped()
            frame, counts = item_features(path, ITEMS, skipped)
            outcomes.append((frame.rows(), counts, skipped.count, skipped.lines))
    assert outcomes[0] == outcomes[1]


def test_published_records_are_decoded_together(tmp_path, monkeypatch):
    def refuse(lines, roles):
        assert not list(lines)
        return []

    path = tmp_path / "meta.jsonl"
    path.write_text(
        lines([{**record, "price": 9.5, "images": [{}]} for record in JSON_LINES[1:]]).replace(" Agents ", "Agents")
    )
    monkeypatch.setattr(metadata, "_json_one_by_one", refuse)
    frame, counts = item_features(path, ITEMS)
    assert frame.row(0) == tuple(values[0] for values in EXPECTED.values())
    assert counts["records"] == 2
