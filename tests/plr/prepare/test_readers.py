"""Every format gives the same sequences; external ids stay as they were written."""

from __future__ import annotations

import datetime
import tempfile
import warnings
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.data import SequenceDataset, prepare
from plr.errors import DataError
from plr.prepare.readers import Columns, IdVocabulary, detect_format, read

SEQUENCES = "b x y z x\na 007 7 x y\n"
PAIRS = "b x\nb y\na 007\nb z\na 7\na x\nb x\na y\n"
TABLE = [
    ("b", "x", 5, 10),
    ("a", "x", 3, 12),
    ("b", "y", 4, 11),
    ("b", "z", 3, 20),
    ("a", "007", 2, 1),
    ("a", "7", 2, 2),
    ("b", "x", 1, 30),
    ("a", "y", 4, 13),
]
EXPECTED = {"a": ["007", "7", "x", "y"], "b": ["x", "y", "z", "x"]}


def histories(dataset: SequenceDataset) -> dict[str, list[str]]:
    offsets = dataset.offsets.tolist()
    return {
        user: [dataset.item_ids[item] for item in dataset.items[start:stop].tolist()]
        for user, start, stop in zip(dataset.user_ids, offsets, offsets[1:], strict=False)
    }


def table(header: str, separator: str = ",") -> str:
    return "\n".join([header, *(separator.join(map(str, row)) for row in TABLE)]) + "\n"


def test_sequences(write):
    dataset = prepare(write("data.txt", SEQUENCES))
    assert histories(dataset) == EXPECTED
    assert dataset.item_ids.to_list() == ["007", "7", "x", "y", "z"]
    assert dataset.user_ids.to_list() == ["a", "b"]
    assert (dataset.split, dataset.report["format"], dataset.report["order"]) == ("leave-one-out", "sequences", "file")


def test_pairs(write):
    dataset = prepare(write("data.txt", PAIRS))
    assert histories(dataset) == EXPECTED
    assert dataset.report["format"] == "pairs"


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("data.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", "\t"),
        ("data.csv", "user_id,item_id,rating,timestamp", ","),
        ("data.csv", "userId;itemId;Rating;Time", ";"),
        ("data.tsv", "user\tparent_asin\trating\ttimestamp", "\t"),
        ("ratings", "user,item,rating,timestamp", ","),
        ("ratings", "user_id:token\titem_id:token\trating:float\ttimestamp:float", "\t"),
    ],
)
def test_tables(write, name, header, separator):
    dataset = prepare(write(name, table(header, separator)), split="leave-one-out")
    assert histories(dataset) == EXPECTED
    assert dataset.report["order"] == "timestamp"


@pytest.mark.parametrize("kind", ["integer", "float", "date", "datetime", "categorical"])
def test_parquet(tmp_path, kind):
    frame = pl.DataFrame(TABLE, schema=["user", "item", "rating", "timestamp"], orient="row")
    if kind == "float":
        frame = frame.with_columns(pl.col("timestamp").cast(pl.Float64))
    if kind in ("date", "datetime"):
        start = datetime.datetime(2020, 1, 1)
        times = start + pl.duration(days=pl.col("timestamp"))
        frame = frame.with_columns(times.cast(pl.Date if kind == "date" else pl.Datetime("ns")).alias("timestamp"))
    if kind == "categorical":
        frame = frame.with_columns(pl.col("user", "item").cast(pl.Categorical))
    frame.write_parquet(tmp_path / "data.parquet")
    assert histories(prepare(tmp_path / "data.parquet", split="leave-one-out")) == EXPECTED


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["", "4", *(f"2020-01-0{day}" for day in range(1, 5))])])
def test_parquet_with_coded_text_is_read_as_that_text(tmp_path, kind):
    rows = [("a", "x", "", "2020-01-03"), ("a", "y", "4", "2020-01-01"), ("a", "z", "4", "2020-01-02"),
            ("a", "w", "4", "2020-01-04")]  # fmt: skip
    frame = pl.DataFrame(rows, schema=["user", "item", "rating", "timestamp"], orient="row")
    frame.with_columns(pl.col("rating", "timestamp").cast(kind)).write_parquet(tmp_path / "data.parquet")
    dataset = prepare(tmp_path / "data.parquet", split="leave-one-out")
    assert histories(dataset) == {"a": ["y", "z", "x", "w"]}
    assert dataset.report["time_unit"] == "microseconds"


def test_a_least_rating_is_compared_in_the_precision_of_the_column(tmp_path):
    rows = [("a", f"i{place}", rating, place) for place, rating in enumerate([4.1, 4.09, 4.2, 4.1, 5])]
    frame = pl.DataFrame(rows, schema=["user", "item", "rating", "timestamp"], orient="row")
    found = []
    for kind in (pl.Float64, pl.Float32):  # 4.1 in float32 is less than 4.1
        frame.with_columns(pl.col("rating").cast(kind)).write_parquet(tmp_path / "data.parquet")
        found.append(histories(prepare(tmp_path / "data.parquet", split="leave-one-out", min_rating=4.1)))
    assert found == [{"a": ["i0", "i2", "i3", "i4"]}] * 2


def test_parquet_with_integer_ids(tmp_path):
    pl.DataFrame({"user": [1, 1, 1, 1], "item": [10, 9, 8, 7]}).write_parquet(tmp_path / "data.parquet")
    dataset = prepare(tmp_path / "data.parquet")
    assert histories(dataset) == {"1": ["10", "9", "8", "7"]}
    assert dataset.item_ids.to_list() == ["10", "7", "8", "9"]


def test_named_columns(write):
    text = "who,what,user,when\na,x,0,3\na,y,0,2\na,z,0,1\na,w,0,4\n"
    dataset = prepare(
        write("data.csv", text),
        user_column="who",
        item_column="what",
        timestamp_column="when",
        split="leave-one-out",
    )
    assert histories(dataset) == {"a": ["z", "y", "x", "w"]}


def test_recbole_column_named_without_its_type(write):
    text = "session:token\titem_id:token\na\tx\na\ty\na\tz\na\tw\n"
    dataset = prepare(write("data.inter", text), user_column="session")
    assert histories(dataset) == {"a": ["x", "y", "z", "w"]}


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + SEQUENCES,
        SEQUENCES.replace("\n", "\r\n"),
        SEQUENCES.rstrip("\n"),
        "\n\n" + SEQUENCES.replace("\n", "\n\n  \n"),
        SEQUENCES.replace(" ", " \t "),
    ],
    ids=["byte order mark", "carriage returns", "no last newline", "blank lines", "tabs"],
)
def test_line_layouts(write, text):
    assert histories(prepare(write("data.txt", text))) == EXPECTED


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: "\n\n" + text.replace("\n", "\n\n"),
        lambda text: text.replace("b,", '"b",'),
        lambda text: text.replace(",10\n", ", 10.0\n"),
    ],
    ids=["byte order mark", "carriage returns", "no last newline", "blank lines", "quotes", "whole float"],
)
def test_csv_layouts(write, change):
    path = write("data.csv", change(table("user,item,rating,timestamp")))
    assert histories(prepare(path, split="leave-one-out")) == EXPECTED


def test_quoted_separators_and_newlines(write):
    text = 'user,item\n"a,1","x\ny"\n"a,1","say ""hi"""\n"a,1",z\n"a,1",w\n'
    assert histories(prepare(write("data.csv", text))) == {"a,1": ["x\ny", 'say "hi"', "z", "w"]}


def test_wildcards_in_a_name_are_no_pattern(write):
    assert histories(prepare(write("data[1]*.txt", SEQUENCES))) == EXPECTED
    path = write("data[1]*.csv", table("user,item,rating,timestamp"))
    assert histories(prepare(path, split="leave-one-out")) == EXPECTED


def test_large_and_negative_timestamps_keep_their_order(write):
    times = [-5, 0, 9223372036854775806, 9223372036854775807]
    text = "user,item,timestamp\n" + "".join(f"a,i{n},{time}\n" for n, time in reversed(list(enumerate(times))))
    dataset = prepare(write("data.csv", text), split="leave-one-out")
    assert histories(dataset) == {"a": ["i0", "i1", "i2", "i3"]}


def test_equal_timestamps_keep_file_order(write):
    text = "user,item,timestamp\n" + "".join(f"u{n % 3},i{n},7\n" for n in range(3000))
    dataset = prepare(write("data.csv", text), split="leave-one-out")
    assert all(items == sorted(items, key=lambda item: int(item[1:])) for items in histories(dataset).values())


def test_a_ten_megabyte_line(write):
    items = [f"item{n}" for n in range(1_000_000)]
    path = write("data.txt", "long " + " ".join(items) + "\nshort a b c\n")
    assert path.stat().st_size > 10_000_000
    dataset = prepare(path)
    assert histories(dataset)["long"][999_990:] == items[999_990:]
    assert dataset.report["rows"]["train"] == 1_000_000 - 3


def test_reader_keeps_file_order_and_lines(write):
    path = write("data.csv", '\nuser,item\n"b\n",x\n\na,y\n')
    vocabulary = IdVocabulary()
    source = read(path, "csv", Columns(), vocabulary)
    assert [vocabulary.item.string(number) for number in source.frame["item"]] == ["x", "y"]
    assert [source.place(position) for position in range(2)] == [(path, 3), (path, 6)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.inter", "x", "recbole"),
        ("a.CSV", "x", "csv"),
        ("a.txt", "1 2 3\n4 5\n", "sequences"),
        ("a.txt", "1 2\n4 5\n", "pairs"),
        ("a.txt", "user\titem\n4\t5\n", "csv"),
        ("a.txt", "PAR1....", "parquet"),
        ("a.dat", "foo,bar\n", "csv"),
    ],
)
def test_detection(write, name, text, expected):
    assert detect_format(write(name, text)) == expected


def test_detection_ignores_a_line_cut_at_the_end_of_what_is_looked_at(write):
    path = write("a.txt", "12345 12345\n" * 10_000)
    assert detect_format(path) == "pairs"


def test_columns_for_a_format_without(write):
    with pytest.raises(ValueError, match="no named columns"):
        prepare(write("data.txt", SEQUENCES), user_column="user")


def test_nothing_is_warned_about_good_data(write):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(write("data.txt", SEQUENCES))


def test_error_is_a_value_error_with_its_place(write):
    path = write("data.txt", "a x y z\nb\n")
    with pytest.raises(DataError) as caught:
        prepare(path, format="sequences")
    assert isinstance(caught.value, ValueError)
    assert (caught.value.path, caught.value.line) == (str(path), 2)


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.floats().map(str),
    st.text("0123456789+-.e infa", max_size=5),
    st.sampled_from(["1_0", "0x1", "00012", "+1", "1e400", str(2**63), str(2**53 + 1), '"7"', '" 7"', "１"]),
)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_numbers_mean_the_same_however_they_are_read(pairs):
    """Columns are read as numbers at first, and where one is not written plainly as text that is converted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        made = []
        for more in ("", "u,i,1,1.0\n"):  # 1.0 is no time as usually written
            path.write_text("user,item,rating,timestamp\n" + "".join(f"u,i,{r},{t}\n" for r, t in pairs) + more)
            try:
                made.append(read(path, "csv", Columns(), IdVocabulary(2.5)).frame.rows()[: len(pairs)])
            except DataError as error:
                made.append([error.reason, error.line])
        assert made[0] == made[1]
