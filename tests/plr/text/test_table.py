"""Files of item texts: what is read, what is refused, and where."""

import json
import re

import polars as pl
import pytest

from plr.errors import DataError
from plr.text.table import read_texts


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def test_every_format_gives_the_same_texts(tmp_path):
    rows = [("a", 'The "Big" One, Part I & II'), ("7", ""), ("c", "Pokémon")]
    tsv = write(tmp_path / "t.tsv", 'item\ttitle\na\tThe "Big"  One, Part I &amp; II\n7\t\nc\tPok&eacute;mon\n')
    quoted = write(tmp_path / "t.csv", 'title,item\n"The ""Big"" One, Part I & II",a\n,7\nPokémon,c\n')
    lines = write(tmp_path / "t.jsonl", "\n".join(json.dumps({"item": i, "title": t}) for i, t in rows) + "\n\n")
    pl.DataFrame({"item": ["a", "7", "c"], "title": [t or None for _, t in rows]}).write_parquet(tmp_path / "t.parquet")
    for path in (tsv, quoted, lines, tmp_path / "t.parquet"):
        table = read_texts(path)
        assert list(zip(table.item_ids, table.texts, strict=True)) == rows, path
        assert (table.item_column, table.text_columns) == ("item", ("title",))


def test_columns_are_chosen_joined_and_text_comes_before_title(tmp_path):
    path = tmp_path / "items.parquet"
    pl.DataFrame(
        {"asin": [1, 2], "title": ["A", "B"], "text": ["A long", "B long"], "categories": [["x", "y"], None]}
    ).write_parquet(path)
    assert read_texts(path).texts == ["A long", "B long"]
    table = read_texts(path, text_columns=["title", "categories"])
    assert table.texts == ["A x y", "B"]
    assert table.item_ids == ["1", "2"]


def test_names_within_what_is_not_read_may_occur_twice(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"item": "a", "title": "A", "details": {"x": 1, "x": 2}}\n')
    assert read_texts(path).texts == ["A"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", "item\ttitle\na\tA\na\tB\n", "t.tsv:3: item 'a' occurs a second time"),
        ("t.tsv", "item\ttitle\na\tA\tB\n", "t.tsv:2: expected 2 fields, as in the header; found 3"),
        ("t.tsv", "item\ttitle\n \tA\n", "t.tsv:2: expected an item id in 'item'; found ' '"),
        ("t.tsv", "item\ttitle\n", "the file holds no item"),
        ("t.tsv", "0\tA\n1\tB\n", "no column 'item_id' or 'item' or 'parent_asin' or 'asin'; name it with item_column; "
         "the file has '0', 'A'"),
        ("t.tsv", "item\tname\na\tA\n", "no column 'text' or 'title'; name it with text_columns; the file has 'item'"),
        ("t.csv", 'item,title\na,"A\n', "t.csv:2: unexpected end of data"),
        ("t.csv", "item,item\na,b\n", "t.csv:1: a column's name occurs twice in the header"),
        ("t.jsonl", '{"item": "a", "title": "A"}\n{"item": }\n', "t.jsonl:2: not JSON"),
        ("t.jsonl", '{"item": "a", "title": 3}\n', "t.jsonl:1: expected a text or a list of texts in 'title'; found 3"),
        ("t.jsonl", "[]\n", "t.jsonl:1: expected an object"),
        ("t.jsonl", '{"item": "a", "title": "A", "title": "B"}\n', "t.jsonl:1: 'title' occurs twice"),
        ("t.jsonl", '{"item": true, "title": "A"}\n', "t.jsonl:1: expected an item id in 'item'; found True"),
        ("t.jsonl", '{"item": "\\ud800x", "title": "A"}\n', "t.jsonl:1: half a character (a surrogate that"),
        ("t.jsonl", '{"item": ' + "1" * 5000 + "}\n", "t.jsonl:1: not usable JSON: Exceeds the limit"),
        ("t.jsonl", '{"item": ' + "[" * 99999 + "}\n", "t.jsonl:1: not usable JSON: maximum recursion depth exceeded"),
        ("t.parquet", "nothing", "not a readable Parquet file"),
        ("t.txt", "a", "texts are read from .tsv, .csv, .jsonl, .parquet; found .txt"),
        ("t.tsv", "", "the file is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_line(name, content, message, tmp_path):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_texts(path)


def test_a_column_asked_for_must_be_there(tmp_path):
    path = write(tmp_path / "t.tsv", "item\ttitle\na\tA\n")
    with pytest.raises(DataError, match="no column 'name'; name it with text_columns"):
        read_texts(path, text_columns=["name"])
    with pytest.raises(DataError, match="no such file of item texts"):
        read_texts(tmp_path / "missing.tsv")
