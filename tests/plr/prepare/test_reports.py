"""Files that other tools' users report: what they hold is read whole, or they are refused with what to do."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import warnings
import zipfile
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from plr.cli import main
from plr.data import open_prepared, prepare
from plr.errors import DataError
from plr.items.features import read_features
from plr.prepare import PrepareOptions, write_folder
from plr.prepare.metadata import item_features
from plr.prepare.readers.packed import zstd

ROWS = [(f"u{n % 4}", f"i{n % 7}", 1_600_000_000 + n) for n in range(40)]
CSV = "user_id,item_id,timestamp\n" + "".join(f"{user},{item},{time}\n" for user, item, time in ROWS)
PAIRS = "".join(f"{user}\t{item}\n" for user, item, _ in ROWS)


def quietly(path: Path, out: Path, skip_bad_lines: bool = False, **options) -> tuple[dict, list[str]]:
    """Prepare; returns the report and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = write_folder([path], out, PrepareOptions(**options), skip_bad_lines=skip_bad_lines)
    return report, [str(warning.message) for warning in caught]


def ids(out: Path) -> tuple[list[str], list[str]]:
    dataset = open_prepared(out)
    return list(dataset.user_ids), list(dataset.item_ids)


# augmented files


@pytest.mark.parametrize("column", ["item_id_list:token_seq", "item_seq:token_seq", "item_list"])
@pytest.mark.parametrize("suffix", ["inter", "csv", "parquet"])
def test_augmented_files_are_refused(write, tmp_path, column, suffix):
    header = ["user_id:token", column, "item_id:token"]
    if suffix == "parquet":
        path = tmp_path / "a.parquet"
        pl.DataFrame([("u", "a b", "c")], schema=header, orient="row").write_parquet(path)
    else:
        separator = "\t" if suffix == "inter" else ","
        path = write(f"a.{suffix}", separator.join(header) + "\n" + separator.join(["u", "a b", "c"]) + "\n")
    with pytest.raises(DataError, match=r"augmented beforehand.*Give the file that it was made from"):
        prepare(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("values", [[1, 2, 3, 4], ["1", "2", "3", "4"], ["a-1", None, "b2", "c"]])
def test_a_column_of_such_a_name_without_lists_is_none(write, tmp_path, suffix, values):
    """Its name alone says nothing: the place in a basket, say."""
    frame = pl.DataFrame({"user": ["u"] * 4, "item": list("abcd"), "timestamp": [1, 2, 3, 4], "item_seq": values})
    path = tmp_path / f"a.{suffix}"
    getattr(frame, f"write_{suffix}")(path)
    assert list(prepare(path, split="leave-one-out").item_ids) == list("abcd")


def test_ids_that_begin_as_bzip2_does_are_ids(write):
    assert "BZhang" in list(prepare(write("a.txt", "BZhang a b c d\nother a b c d\n")).user_ids)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_named(write, protocol):
    with pytest.raises(DataError, match="the file is a pickle, which is never opened"):
        prepare(write("a.csv", pickle.dumps({"user": [1, 2]}, protocol=protocol)))


@pytest.mark.parametrize("content", [b"user,item\nu,a\nu,b\n" * 50, b""])
def test_bzip2_is_named(write, content):
    with pytest.raises(DataError, match="compressed with bzip2"):
        prepare(write("a.csv", bz2.compress(content)))


def test_other_lists_do_not_matter(write, tmp_path):
    text = "user_id:token\titem_id:token\ttimestamp:float\ttags:token_seq\thistory\n" + "".join(
        f"{user}\t{item}\t{time}\ta b\tx y\n" for user, item, time in ROWS
    )
    assert quietly(write("a.inter", text), tmp_path / "out")[0]["read"]["interactions"] == 40


# times


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("last_watch_dt", "2021-04-{day:02}"),
        ("x", "2021-04-{day:02} 10:00:00"),
        ("x", "2021-04-{day:02}T10:00:00.5Z"),
        ("played", "{day}.4.2021"),
        ("created_at", "{seconds}"),
        ("watchedAt", "{seconds}000"),
        ("event_ts", " {seconds}.0"),
    ],
)
def test_a_column_that_looks_like_times_must_be_named(write, tmp_path, name, value):
    values = (value.format(day=1 + n % 28, seconds=1_600_000_000 + n) for n in range(40))
    text = f"user_id,item_id,{name}\n" + "".join(
        f"{user},{item},{when}\n" for (user, item, _), when in zip(ROWS, values, strict=True)
    )
    path = write("a.csv", text)
    with pytest.raises(DataError, match=rf"a.csv:1: .*column '{name}' looks like times .*--timestamp_column"):
        prepare(path)
    report, _ = quietly(path, tmp_path / "file-order", timestamp_column="none")
    assert report["order"] == "file"
    if name != "played":
        assert quietly(path, tmp_path / "time-order", timestamp_column=name)[0]["order"] == "timestamp"


def test_the_columns_that_count_are_said(write, tmp_path, capsys):
    path = write("a.csv", CSV.replace("timestamp", "unix_time"))
    assert main(["prepare", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "columns: user 'user_id', item 'item_id', timestamp 'unix_time'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"), [("format", 1_600_000_000), ("watch_time", 35), ("year", 2021), ("title", "x")]
)
def test_without_times_the_order_of_the_lines_counts_and_that_is_said(write, tmp_path, name, value):
    text = f"user_id,item_id,{name}\n" + "".join(f"{user},{item},{value}\n" for user, item, _ in ROWS)
    report, said = quietly(write("a.csv", text), tmp_path / "out")
    assert report["order"] == "file"
    assert any("the order of the lines is taken for the order in time" in line for line in said)


def test_a_column_of_datetimes_in_parquet_must_be_named(tmp_path):
    path = tmp_path / "a.parquet"
    seen = [datetime(2021, 1, 2), datetime(2021, 1, 1)]
    pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "seen": seen}).write_parquet(path)
    with pytest.raises(DataError, match=r"column 'seen' looks like times"):
        prepare(path)
    dataset = prepare(path, timestamp_column="seen", split="leave-one-out")
    assert [dataset.item_ids[item] for item in dataset.items.tolist()] == ["y", "x"]


def test_dates_in_text_are_read(write, tmp_path):
    texts = [
        "2021-01-02",
        "2021-01-01T23:59",
        "2021-01-01 12:00:00",
        "2021-01-01T00:00:00.25Z",
        "2021-01-03T01:00:00+05:30",
    ]
    path = write("a.csv", "user,item,date\n" + "".join(f"a,i{n},{text}\n" for n, text in enumerate(texts)))
    report, _ = quietly(path, tmp_path / "out", split="leave-one-out")
    dataset = open_prepared(tmp_path / "out")
    assert [dataset.item_ids[item] for item in dataset.items.tolist()] == ["i3", "i2", "i1", "i0", "i4"]
    assert report["time_unit"] == "microseconds"
    with pytest.raises(DataError, match=r"a.csv:152: column 'date' has the value '1600000000'"):
        prepare(write("a.csv", "user,item,date\n" + "a,x,2021-01-01\n" * 150 + "a,y,1600000000\n"))


# headers and comments


@pytest.mark.parametrize("header", ["user_id item_id", "userId movieId", '"user" "item"', "\nuid iid"])
def test_a_header_is_no_interaction(write, tmp_path, header):
    line = header.count("\n") + 1
    path = write("a.txt", header + "\n" + PAIRS)
    with pytest.raises(DataError, match=rf"a.txt:{line}: the line is a header") as caught:
        prepare(path)
    assert caught.value.line == line
    report, _ = quietly(path, tmp_path / "out", skip_bad_lines=True)
    assert report["read"] == {"users": 4, "items": 7, "interactions": 40}
    longer = write("b.txt", header + " timestamp\n" + "a x y z\nb x y z\n")
    with pytest.raises(DataError, match=rf"b.txt:{line}: the line is a header"):
        prepare(longer)


@pytest.mark.parametrize("items", ["items", "item_ids", "item_list", "item_id_list", "itemSeq", "sequence", "history"])
def test_a_header_of_sequences_is_no_sequence(write, tmp_path, items):
    path = write("a.txt", f"user {items}\na x y z w\nb x y z w\n")
    with pytest.raises(DataError, match=r"a.txt:1: the line is a header"):
        prepare(path)
    report, _ = quietly(path, tmp_path / "out", skip_bad_lines=True)
    assert report["read"] == {"users": 2, "items": 4, "interactions": 8}
    named = prepare(write("b.txt", f"user {items}\na {items} x y z\nb x y z w\n"))
    assert "user" in list(named.user_ids)  # the word is an item's id


@pytest.mark.parametrize(
    "text",
    [
        "u1, a, b, c, d\nu2, a, b, c, d\n",
        "u1; a; b; c; d\nu2; a; b; c; d\n",
        "u1: a, b, c, d\nu2: a, b, c, d\n",
        "u1 [a, b, c, d]\nu2 [a, b, c, d]\n",
        "u1, a\nu1, b\nu1, c\nu1, d\n",
        "196, 242, 3, 881250949\n196, 302, 3, 891717742\n",
    ],
)
def test_ids_parted_by_commas_and_blanks(write, text):
    """The commas would stay in the ids, but for the last one's of a line."""
    with pytest.raises(DataError, match="the ids of each line end with commas or semicolons"):
        prepare(write("a.txt", text))
    some = prepare(write("a.txt", "a, x, y z w v\nb, x, y z w v\n"))  # no separators: others stand without
    assert list(some.item_ids) == ["v", "w", "x,", "y", "z"]


@pytest.mark.parametrize(
    "comment", ["# comment", "# Directed graph: amazon0302.txt", "#FromNodeId\tToNodeId", "% bip unweighted"]
)
def test_comments_are_no_interactions(write, tmp_path, comment):
    for place, text in ((1, f"{comment}\n{PAIRS}"), (41, f"{PAIRS}{comment}\n")):
        path = write("a.txt", text)
        for options in ({}, {"format": "pairs"}):
            if place == 41 and " " not in comment and options:
                continue  # it may hold ids, and the format was named
            with pytest.raises(DataError, match=rf"a.txt:{place}: the line begins with '[#%]\S*', as comments do"):
                prepare(path, **options)
            report, _ = quietly(path, tmp_path / f"out{place}-{len(options)}", skip_bad_lines=True, **options)
            assert report["read"] == {"users": 4, "items": 7, "interactions": 40}
    with pytest.raises(DataError, match=r"a.txt:1: the line begins with"):
        prepare(write("a.txt", f"{comment}\na x y z\nb x y z\n"))
    with pytest.raises(DataError, match=r"a.dat:1: "):
        prepare(write("a.dat", f"{comment}\n" + "1::2::3::4\n1::3::3::5\n"), format="movielens")


@pytest.mark.parametrize("mark", "#%")
@pytest.mark.parametrize("lines", ["a x\na y\nb x\nb y\n", "a x y z w\nb x y z w\n"], ids=["pairs", "sequences"])
def test_ids_that_begin_as_comments_do(write, mark, lines):
    """Where every line begins so they are ids; where some do, if the format is named."""
    all_marked = "".join(f"{mark}{line}\n" for line in lines.splitlines())
    expected = {f"{mark}a", f"{mark}b"}
    assert set(prepare(write("a.txt", all_marked)).user_ids) == expected
    with pytest.raises(DataError, match=rf"a.txt:1: the line begins with '{mark}'"):
        prepare(write("a.txt", f"{mark} written by hand\n{all_marked}"))
    some = all_marked + "".join(f"c{line}\n" for line in lines.splitlines())
    path = write("b.txt", some)
    with pytest.raises(DataError, match=rf"b.txt:1: the line begins with '{mark}a'.* name the format with --format"):
        prepare(path)
    named = "pairs" if "x y" not in lines else "sequences"
    with pytest.warns(UserWarning, match=r"b.txt: \d lines begin with # or %.* The first is line 1$"):
        assert set(prepare(path, format=named).user_ids) == {*expected, "ca", "cb"}
    with pytest.raises(DataError, match=rf"b.txt:1: the line begins with '{mark}from'.* put another first"):
        prepare(write("b.txt", f"{mark}from to\n" + some), format=named)


def test_a_user_named_user(write, tmp_path):
    """A first line of usual names is data where one of them is an id of another line, and in any other place."""
    for text in ("user item\nuser book\n" + PAIRS, "user item\na item\n" + PAIRS, PAIRS + "user item\nuser book\n"):
        assert "user" in list(prepare(write("a.txt", text)).user_ids)
    for text in ("user item\n" + PAIRS, "#user item\n" + PAIRS, "user item\nuser item\n" + PAIRS):
        path = write("a.txt", text)
        for options in ({}, {"format": "pairs"}):
            with pytest.raises(DataError, match=r"a.txt:1: the line (is a header|begins with '#user')"):
                prepare(path, **options)
            report, _ = quietly(path, tmp_path / f"out{len(options)}{len(text)}", skip_bad_lines=True, **options)
            assert report["skipped_lines"]["count"] == 1
    rows = "user item other\na item x y\nb x y\n"
    assert list(prepare(write("b.txt", rows)).user_ids) == ["a", "b", "user"]


@pytest.mark.parametrize("name", ["a.csv", "a.inter"])
def test_a_first_line_that_is_no_header(write, name):
    columns = ["user_id:token", "item_id:token", "timestamp:float"]
    text = "\t".join(columns) + "\n" + "".join(f"{user}\ti{n}\t{n}\n" for user in "ab" for n in range(5))
    if name == "a.csv":
        text = text.replace(":token", "").replace(":float", "").replace("\t", ",")
    for first, line, found in (
        (" \n", 1, "the line is blank, where the header should be; delete it"),
        ("\n\n \n", 3, "the line is blank, where the header should be; delete it"),
        (",,\n", 1, "the line is blank, where the header should be; delete it"),
        ("# ratings of 2023\n", 1, "the line begins with '#', as comments do, where the header should be; delete it"),
        ("\n%user,item\n", 2, "the line begins with '%', as comments do, where the header should be; delete it"),
    ):
        with pytest.raises(DataError) as caught:
            prepare(write(name, first + text))
        assert (caught.value.line, caught.value.reason) == (line, found)
    assert len(prepare(write(name, "\n\n" + text), split="leave-one-out").user_ids) == 2


@pytest.mark.parametrize("comment", ["# said he", "#1,2,3,4,5", "% \t::"])
def test_a_comment_among_the_lines_of_a_table(write, comment):
    remedy = (
        "; the line begins with '[#%]', as comments do: delete it, or leave such lines out with plr prepare "
        "--skip_bad_lines"
    )
    for name, text, options in (
        ("a.csv", "user,item,timestamp\na,x,1\n", {}),
        ("a.dat", "1::2::3::4\n1::3::3::5\n", {"format": "movielens"}),
    ):
        line = text.count("\n") + 1
        with pytest.raises(DataError, match=rf"{name}:{line}: .*{remedy}$"):
            prepare(write(name, f"{text}{comment}\n{text.splitlines()[1]}\n"), **options)


def test_a_repeated_header_is_no_interaction(write, tmp_path):
    rows = "".join(f"{user},{item}\n" for user, item, _ in ROWS)
    path = write("a.csv", f"user_id,item_id\n{rows}user_id,item_id\n{rows}")
    with pytest.raises(DataError, match=r"a.csv:42: the line repeats the header"):
        prepare(path)
    report, _ = quietly(path, tmp_path / "out", skip_bad_lines=True)
    assert report["read"] == {"users": 4, "items": 7, "interactions": 80}
    with pytest.raises(DataError, match=r"a.csv:42: column 'timestamp' has the value 'timestamp'"):
        prepare(write("a.csv", CSV + CSV))


# ids


@pytest.mark.parametrize("word", ["nan", "NaN", "NULL", "None", "NA", "<NA>", "\\N"])
def test_words_for_missing_values(write, tmp_path, word):
    path = write("a.csv", CSV + f"{word},i0,1600000100\n{word},i1,1600000101\nu0,{word},1600000102\n")
    report, said = quietly(path, tmp_path / "kept")
    assert f"user {word!r} (2), item {word!r} (1)" in "".join(said)
    assert "--missing_ids drop" in "".join(said)
    assert word in ids(tmp_path / "kept")[0]
    assert "missing_ids" not in report["options"]
    report, said = quietly(path, tmp_path / "dropped", missing_ids="drop")
    assert report["filters"] == [
        {"filter": "missing_ids", "value": "drop", "dropped": {"users": 1, "items": 1, "interactions": 3}}
    ]
    assert ids(tmp_path / "dropped")[0] == ["u0", "u1", "u2", "u3"]
    assert report["without_id"] == 0


def test_empty_ids_are_dropped_on_demand(write, tmp_path):
    path = write("a.csv", CSV + ",i0,1600000100\nu0,  ,1600000101\n")
    with pytest.raises(DataError, match=r"a.csv:42: column 'user_id' has no value.*--missing_ids drop"):
        prepare(path)
    report, _ = quietly(path, tmp_path / "out", missing_ids="drop")
    assert (report["without_id"], report["read"]["interactions"]) == (2, 40)
    frame = pl.DataFrame({"user": ["a", None, "a", "a"], "item": ["x", "y", None, "z"], "timestamp": [1, 2, 3, 4]})
    frame.write_parquet(tmp_path / "a.parquet")
    report, _ = quietly(tmp_path / "a.parquet", tmp_path / "parquet", missing_ids="drop", split="leave-one-out")
    assert (report["without_id"], report["read"]["interactions"]) == (2, 2)


def test_blanks_around_ids_are_left_out(write, tmp_path):
    quietly(write("a.csv", CSV), tmp_path / "bare")
    spaced = CSV.replace(",", ", ").replace("u3,", " u3 ,")
    report, said = quietly(write("b.csv", spaced), tmp_path / "spaced")
    assert any("the white space around 7 ids is left out" in line for line in said)
    assert ids(tmp_path / "spaced") == ids(tmp_path / "bare")
    for name in ("sequences.safetensors", "users.parquet", "items.parquet"):
        assert (tmp_path / "spaced" / name).read_bytes() == (tmp_path / "bare" / name).read_bytes()
    mixed = write("c.csv", CSV + "u0 ,i0,1600000200\n u0,\ti1,1600000201\n")
    assert quietly(mixed, tmp_path / "mixed")[0]["read"] == {"users": 4, "items": 7, "interactions": 42}
    with pytest.raises(DataError, match=r"c.csv:42: an id is white space alone"):
        prepare(write("c.csv", CSV + "  ,i0,1600000200\n"))
    report, _ = quietly(write("c.csv", CSV + "  ,i0,1600000200\n"), tmp_path / "skipped", skip_bad_lines=True)
    assert (report["skipped_lines"]["count"], report["read"]["interactions"]) == (1, 40)


def test_blanks_around_ids_of_metadata_and_features(write, tmp_path):
    items = pl.Series(["i0", "i1"])
    for name, text in {
        "a.csv": "item_id, title\n i0 , One\n i1, Two\n",
        "a.jsonl": '{"item_id": " i0", "title": "One"}\n',
    }.items():
        assert item_features(write(name, text), items)[0]["title"][0] == "One"
    features = write("f.json", json.dumps({" i0": ["red"], "i1 ": ["blue"]}))
    assert read_features(features, ["i0", "i1"])[0].values.tolist() == [1, 0]


# Parquet


def test_times_of_decimals_keep_their_fraction_or_are_refused(tmp_path):
    path = tmp_path / "a.parquet"

    def write_times(*times: str) -> None:
        whole = pl.Series("timestamp", [Decimal(time) for time in times], dtype=pl.Decimal(20, 3))
        pl.DataFrame({"user": ["a"] * len(times), "item": [f"i{n}" for n in range(len(times))]}).with_columns(
            whole
        ).write_parquet(path)

    write_times("1600000001.000", "1600000000.000")
    assert prepare(path, split="leave-one-out").items.tolist() == [1, 0]
    write_times("1600000001.000", "1600000000.500")
    with pytest.raises(DataError, match=r"a.parquet:2: column 'timestamp' has the value .*1600000000.500"):
        prepare(path)


CASES = Path(__file__).parent / "cases"


def test_a_fixed_offset_is_one_line_of_message(tmp_path):
    path = CASES / "offset-india.parquet"
    for read in (
        lambda: prepare(path),
        lambda: item_features(path, pl.Series(["i0"])),
        lambda: read_features(path, ["i0"]),
    ):
        with pytest.raises(DataError, match=r"time zone '\+05:30', which polars does not read"):
            read()
    command = [sys.executable, "-m", "plr", "prepare", str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# other kinds of files

OTHER_KINDS = {
    "bzip2": bz2.compress(CSV.encode()),
    "xz": lzma.compress(CSV.encode()),
    "packed twice, within with Zstandard": gzip.compress(zstd.compress(CSV.encode())),
    "as pzstd and some": b"\x50\x2a\x4d\x18\x04\0\0\0" + (99).to_bytes(4, "little") + zstd.compress(CSV.encode()),
    "zip archive": b"PK\x03\x04 and more",
    "UTF-16": CSV.encode("utf-16"),
    "UTF-32": CSV.encode("utf-32"),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"\n<!DOCTYPE html><html><body>Not found</body></html>\n",
    "packed twice, within with gzip": gzip.compress(gzip.compress(CSV.encode())),
    "is JSON": b"".join(json.dumps({"user_id": row[0], "item_id": row[1]}).encode() + b"\n" for row in ROWS),
    "file is JSON": json.dumps([{"user_id": row[0]} for row in ROWS] * 20_000).encode(),
    "carriage return alone": CSV.replace("\n", "\r").encode(),
    "SQLite": b"SQLite format 3\0 and more",
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a", "a.inter"])
def test_other_kinds_of_files_are_named(write, kind, name):
    path = write(name, OTHER_KINDS[kind])
    with pytest.raises(DataError, match=kind) as caught:
        prepare(path)
    assert len(str(caught.value)) < 600


def test_parquet_may_hold_carriage_returns_and_no_line_feed(tmp_path):
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame({"user_id": ["a\r"] * 4, "item_id": list("wxyz"), "timestamp": range(4)})
    frame.write_parquet(path, compression="uncompressed", statistics=False)
    assert b"\n" not in path.read_bytes()
    assert len(prepare(path, split="leave-one-out").items) == 4


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_a_tar_archive(write, tmp_path, pack):
    source, archive = write("ratings.csv", CSV), tmp_path / "plain.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(source, "ratings.csv")
    with pytest.raises(DataError, match=r"a.csv: the file is a tar archive: unpack it"):
        prepare(write("a.csv", pack(archive.read_bytes())))


def test_parquet_is_told_by_its_content(write, tmp_path):
    """A text file's name does not make text of it; read as text it would be refused for a byte of it."""
    rows = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
    path = tmp_path / "a.csv"
    rows.write_parquet(path)
    assert prepare(path).report["format"] == "parquet"
    with pytest.raises(DataError, match="the file is Parquet, and would be read as 'csv'"):
        prepare(path, format="csv")
    with pytest.raises(DataError, match=r"a.csv: the file is Parquet, and would be read as 'csv': files .* one format"):
        write_folder([write("b.csv", CSV), path], tmp_path / "out", PrepareOptions())
    for name in ("c.parquet.gz", "c.gz"):
        with pytest.raises(DataError, match="Parquet packed with gzip cannot be read: unpack it"):
            prepare(write(name, gzip.compress(path.read_bytes())))


def test_a_file_is_not_taken_twice(write, tmp_path):
    path, other = write("a.csv", CSV), tmp_path / "b.csv"
    other.symlink_to(path)
    for twice in ([path, path], [path, other]):
        with pytest.raises(DataError, match="the file is named twice"):
            write_folder(twice, tmp_path / "out", PrepareOptions())
    assert not (tmp_path / "out").exists()


def test_a_zip_archive(tmp_path):
    path = tmp_path / "a.csv"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ratings.csv", CSV)
    with pytest.raises(DataError, match=r"a zip archive .*unpack it"):
        prepare(path)


def test_no_message_is_longer_than_a_screen(write):
    longest = "x" * 1_000_000
    header = ",".join(f"column{n}" for n in range(3000))
    for name, text in {
        "a.csv": header + "\n1\n",
        "b.csv": f"{longest},{longest}\n1,2\n",
        "c.csv": f"user,item,rating,timestamp\na,x,{longest},1\n",
        "d.txt": f"{longest}\n",
        "e.txt": f"{longest} x\n{longest} y z\n",
        "f.csv": f"user,item,timestamp\na,x,1\na,{longest},{longest}\n",
    }.items():
        with pytest.raises(DataError) as caught:
            prepare(write(name, text))
        assert len(str(caught.value)) < 2_000
        assert str(caught.value).count("column1") < 20


# the rest


def test_ratings_may_be_missing_where_none_are_needed(write, tmp_path):
    text = 'user,item,rating,timestamp\na,x,,1\na,y,3,2\na,z, ,3\na,w,"",4\n'
    path = write("a.csv", text)
    assert quietly(path, tmp_path / "out", split="leave-one-out")[0]["read"]["interactions"] == 4
    with pytest.raises(DataError, match=r"a.csv:2: column 'rating' has no value; accepted: a finite number"):
        prepare(path, min_rating=1)
    with pytest.raises(DataError, match=r"a.csv:3: column 'rating' has the value 'good'"):
        prepare(write("a.csv", text.replace("3,2", "good,2")))


def test_four_columns_without_a_header(write, tmp_path):
    rows = [f"{n % 4}\t{n % 7}\t{1 + n % 5}\t{880_000_000 + n}\n" for n in range(40)]
    with pytest.raises(DataError, match=r"four columns.*--format movielens"):
        prepare(write("a.txt", "".join(rows)))
    assert quietly(write("a.txt", "".join(rows)), tmp_path / "out", format="movielens")[0]["read"]["interactions"] == 40
    for name, separator in (("b.txt", " "), ("c.txt", ","), ("d.csv", ",")):
        with pytest.raises(DataError, match="header"):
            prepare(write(name, "".join(rows).replace("\t", separator)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are text")
def test_names_that_are_not_utf_8(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv"))
    path.write_text(CSV)
    with pytest.raises(DataError, match=r"caf\\udce9.csv: the name is not UTF-8; rename it"):
        prepare(path)
    command = [sys.executable, "-m", "plr", "prepare", os.fsencode(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_one_time_for_all_says_the_cut_and_what_to_do(write):
    text = "user,item,timestamp\n" + "".join(f"{user},{item},1600000000\n" for user, item, _ in ROWS)
    with pytest.raises(DataError, match=r"begin at one time.*1600000000.*--split leave-one-out") as caught:
        prepare(write("a.csv", text))
    assert "[]" not in str(caught.value)
    with pytest.raises(DataError, match=r"no training row.*valid_time 5"):
        prepare(write("b.csv", CSV), valid_time=5, test_time=6)
