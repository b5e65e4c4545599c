"""Bad input is refused with file, line and what was expected."""

from __future__ import annotations

import re

import polars as pl
import pytest

from plr.data import prepare
from plr.errors import DataError

HEADER = "user,item,rating,timestamp\n"
GOOD = "a,x,1,1\na,y,2,2\n"


def refuse(path, line: int | None, *words: str, **options) -> None:
    place = f"{path}: " if line is None else f"{path}:{line}: "
    with pytest.raises(DataError) as caught:
        prepare(path, **options)
    message = str(caught.value)
    assert message.startswith(place)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("row", "column", "value", "accepted"),
    [
        (",x,1,1", "user", "no value", "non-empty id"),
        ('"",x,1,1', "user", "no value", "non-empty id"),
        ("a,,1,1", "item", "no value", "non-empty id"),
        ("a,x,nan,1", "rating", "'nan'", "finite number"),
        ("a,x,inf,1", "rating", "'inf'", "finite number"),
        ("a,x,good,1", "rating", "'good'", "finite number"),
        ("a,x,1,", "timestamp", "no value", "whole number"),
        ("a,x,1", "timestamp", "no value", "whole number"),
        ("a,x,1,1.5", "timestamp", "'1.5'", "whole number"),
        ("a,x,1,NaN", "timestamp", "'NaN'", "whole number"),
        ("a,x,1,2020-01-01", "timestamp", "'2020-01-01'", "whole number"),
        ("a,x,1,1e300", "timestamp", "'1e300'", "whole number"),
        ("a,x,1,9223372036854775808", "timestamp", "'9223372036854775808'", "whole number"),
    ],
)
@pytest.mark.parametrize("before", [GOOD, "\n" + GOOD + "\n", GOOD.replace("y", '"y\ny"')])
def test_bad_value_in_csv(write, row, column, value, accepted, before):
    path = write("data.csv", HEADER + before + row + "\n" + GOOD)
    line = (HEADER + before).count("\n") + 1
    refuse(path, line, f"column '{column}'", value, accepted)


def test_bad_value_in_recbole(write):
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\na\tx\t1.0\t1\na\ty\tnull\t2\n"
    refuse(write("data.inter", text), 3, "column 'rating:float'", "'null'", "finite number")


def test_bad_value_in_parquet(tmp_path):
    path = tmp_path / "data.parquet"
    pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "timestamp": [1.0, None]}).write_parquet(path)
    refuse(path, 2, "column 'timestamp'", "no value")
    pl.DataFrame({"user": ["a", None], "item": ["x", "y"]}).write_parquet(path)
    refuse(path, 2, "column 'user'", "no value")


def test_bad_type_in_parquet(tmp_path):
    path = tmp_path / "data.parquet"
    pl.DataFrame({"user": [1.5, 2.0], "item": ["x", "y"]}).write_parquet(path)
    refuse(path, None, "column 'user'", "Float64", "strings or integers")


def test_broken_parquet(write):
    refuse(write("data.parquet", b"PAR1 and no more"), None, "not a readable Parquet file")


def test_first_of_several_bad_lines_is_named(write):
    path = write("data.csv", HEADER + GOOD + "a,x,1,?\na,x,?,1\n")
    refuse(path, 4, "column 'timestamp'")


def test_a_late_bad_line(write):
    path = write("data.csv", HEADER + "a,x,1,1\n" * 100_000 + "a,x,1,late\n" + "a,x,1,1\n" * 100_000)
    refuse(path, 100_002, "'late'")


def test_missing_columns(write):
    refuse(write("a.csv", "user,thing\na,x\n"), 1, "no item column", "'user', 'thing'", "item_column")
    refuse(write("b.csv", HEADER + GOOD), 1, "no column 'stars'", "'rating'", rating_column="stars")
    refuse(write("c.inter", "item_id:token\nx\n"), 1, "no user column", "'item_id:token'")


def test_ambiguous_columns(write):
    path = write("a.csv", "user,asin,parent_asin\na,x,y\n")
    refuse(path, 1, "'asin' and 'parent_asin'", "item_column")


def test_one_column_for_two_roles(write):
    path = write("a.csv", HEADER + GOOD)
    refuse(path, 1, "column 'user' was named as user and as item", item_column="user")


@pytest.mark.parametrize("needless", ["", ",text"])
def test_too_many_fields(write, needless):
    good = GOOD.replace("\n", ",t\n") if needless else GOOD
    path = write("a.csv", HEADER.strip() + needless + "\n" + good + "a,x,1,1,t,2\n")
    refuse(path, 4, "6 fields", f"the header has {5 if needless else 4}")


@pytest.mark.parametrize(
    "header", ["note,user,item,timestamp", "user,note,item,timestamp", "user,item,^(.$,^.*$,timestamp"]
)
def test_too_many_fields_where_a_column_is_not_needed(write, header):
    fields = len(header.split(","))
    good = [",".join([f"{row}"] * fields) for row in range(3)]
    path = write("a.csv", "\n".join([header, *good, good[0] + ",1", *good]) + "\n")
    refuse(path, 5, f"{fields + 1} fields", f"the header has {fields}")


def test_unclosed_quote(write):
    refuse(write("a.csv", HEADER + GOOD + 'a,"x,1,1\na,x,1,1\n'), 4, "never closed")


def test_user_without_item(write):
    refuse(write("a.txt", "a x y\nb z\n\nc\n"), 4, "user 'c' has no item")
    refuse(write("b.txt", "a x\nb \n"), 2, "user 'b' has no item", format="pairs")


def test_sequences_taken_for_pairs_and_back(write):
    refuse(write("a.txt", "a x\na y z\n"), 2, "3 fields", "format='sequences'", format="pairs")
    refuse(write("b.txt", "a x 5 1\nb y 5 2\na z 5 3\n"), 3, "user 'a' already has line 1", "format='pairs'")


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.inter", "a.parquet"])
def test_empty_file(write, name):
    refuse(write(name, ""), None, "empty")


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.inter"])
def test_blank_file(write, name):
    refuse(write(name, "\n \n"), None, "empty")


def test_header_alone(write):
    refuse(write("a.csv", HEADER), None, "no interaction")


def test_missing_file_and_folder(tmp_path):
    refuse(tmp_path / "none.txt", None, "no such file")
    refuse(tmp_path, None, "not a file")


@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_binary(write, name):
    refuse(write(name, b"user,item\na,b\n\x00\x01\x02,c\n"), 3, "0x00", "binary")
    refuse(write(name, b"user,item\na,b\n\nc,\xe9t\xe9\n"), 4, "0xe9", "column 3", "UTF-8")
    refuse(write(name, "user,item\na,é".encode()[:-1]), 2, "UTF-8")
    refuse(write(name, b"\x1f\x8b\x08\x00"), None, "gzip")


def test_bad_bytes_across_the_blocks_of_reading(write):
    line = b"user " + b"item " * 1000 + b"\n"
    count = (1 << 22) // len(line) + 10
    text = b"".join(b"%d" % n + line for n in range(count))
    refuse(write("a.txt", text + b"x \xff y\n"), count + 1, "0xff")
    two_bytes = b"u " + b"x" * ((1 << 22) - 3) + "é".encode() + b" y z w\n"  # cut between the blocks
    assert prepare(write("b.txt", two_bytes)).num_items == 4


def test_single_interaction_users_are_named(write):
    path = write("a.txt", "a x y z\nlone x\nb x y\nlone2 y\n")
    with pytest.warns(UserWarning, match=re.escape(f"{path}:2: user 'lone' has a single") + r".*\(2 such users\)"):
        dataset = prepare(path)
    assert dataset.report["single_interaction_users"] == {"count": 2, "user": "lone", "line": 2}


def test_no_training_row(write):
    refuse(write("a.txt", "a x\nb y\n"), None, "no training row is left", "2 users")
    refuse(write("b.csv", "user,item,timestamp\na,x,1\na,y,1\n"), None, "no training row is left")
    timed = write("c.csv", "user,item,timestamp\n" + "".join(f"a,x,{time}\n" for time in range(20)))
    reasons = ("all targets were dropped (short history 15)", "Give a smaller --min_history")
    refuse(timed, None, *reasons, min_history=(30, 1, 1))
    refuse(timed, None, "test_time 18 is before valid_time 19; test_time is the default, give it too", valid_time=19)


def test_filters_that_leave_nothing(write):
    refuse(write("a.csv", HEADER + GOOD), None, "no interaction is left", min_rating=9)
    refuse(write("a.csv", HEADER + GOOD), None, "no interaction is left", core=9)


def test_options_that_need_a_column(write):
    path = write("a.csv", "user,item\na,x\na,y\na,z\n")
    refuse(path, None, "min_rating needs a rating column", min_rating=1)
    refuse(path, None, "time split needs a timestamp column", split="time")
    refuse(path, None, "time split needs a timestamp column", test_time=3)


def test_cuts_in_the_wrong_order(write):
    refuse(write("a.csv", HEADER + GOOD), None, "before valid_time", valid_time=2, test_time=1)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "xml"},
        {"split": "random"},
        {"core": -1},
        {"min_rating": float("nan")},
        {"valid_time": float("inf")},
        {"split": "leave-one-out", "test_time": 3},
        {"core": "5"},
        {"core": 2.5},
        {"core": True},
        {"leave_k": 1.5, "split": "leave-k-out"},
        {"min_rating": "4"},
        {"valid_users": None, "split": "users"},
        {"valid_time": "2021-04-01"},
        {"min_history": 3},
        {"min_history": (1, 1.5, 1)},
    ],
)
def test_arguments(write, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        prepare(write("a.csv", HEADER + GOOD), **options)
