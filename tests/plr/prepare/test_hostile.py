"""Files as they come: damaged, mixed up, odd. Each works, or stops naming file and line, or is skipped and listed."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plr.data import SequenceDataset, open_prepared, prepare
from plr.errors import DataError
from plr.prepare import PrepareOptions, write_folder
from plr.prepare.readers import FORMATS, read
from plr.prepare.readers.packed import SUFFIXES, zstd
from plr.prepare.timestamps import firsts_of_units, unit_of

HEADER = "user,item,rating,timestamp\n"
SECONDS = 1_600_000_000


def prepared(path: Path, skip: bool = True, **options) -> SequenceDataset:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_folder([path], Path(folder) / "out", PrepareOptions(**options), skip_bad_lines=skip)
        dataset = open_prepared(Path(folder) / "out")
        assert len(dataset.user_ids) == dataset.num_users  # read while the folder is there
        assert len(dataset.item_ids) == dataset.num_items
        return SequenceDataset(**{**vars(dataset), "items": dataset.items.clone()})


def interactions(dataset: SequenceDataset) -> Counter:
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets.numpy()))
    return Counter(
        (dataset.user_ids[int(user)], dataset.item_ids[item])
        for user, item in zip(users, dataset.items.tolist(), strict=True)
    )


PACKINGS = pytest.mark.parametrize(
    ("pack", "packing"), [(gzip.compress, "gzip"), (zstd.compress, "Zstandard")], ids=["gzip", "Zstandard"]
)


@PACKINGS
def test_packed_files_are_read_as_they_are(write, pack, packing):
    text = HEADER + "".join(f"u{n % 7},i{n % 5},1,{n}\n" for n in range(500))
    plain, packed = write("a.csv", text), write(f"b.csv{SUFFIXES[packing == 'Zstandard']}", pack(text.encode()))
    unmarked = write("c.csv", pack(text[:99].encode()) + pack(text[99:].encode()))  # told by its content, not its name
    made = [prepare(path) for path in (plain, packed, unmarked)]
    assert interactions(made[0]) == interactions(made[1]) == interactions(made[2])
    lines = write("d.txt.gz", pack(b"a x y z w\nb x y z w\n"))
    assert prepare(lines).num_users == 2


@PACKINGS
@pytest.mark.parametrize("name", ["a.csv.gz", "a.txt.gz", "a.inter.gz"])
def test_a_cut_off_file_names_the_line(write, name, pack, packing):
    texts = {
        "a.csv.gz": HEADER + "".join(f"u{n * n % 9973},i{n * n % 7919},1,{n}\n" for n in range(30_000)),
        "a.txt.gz": "".join(f"u{n} i{n * n % 7919} i{n % 7} i{n % 11}\n" for n in range(30_000)),
        "a.inter.gz": "user_id:token\titem_id:token\n"
        + "".join(f"u{n * n % 9973}\ti{n * n % 7919}\n" for n in range(30_000)),
    }
    whole = pack(texts[name].encode())
    with pytest.raises(DataError, match=rf"{name}:\d+: the {packing} file ends too early") as caught:
        prepare(write(name, whole[: len(whole) // 2]))
    assert 1 < caught.value.line < 30_000


@PACKINGS
def test_what_a_cut_off_file_holds_can_be_had(write, pack, packing):
    text = HEADER + "".join(f"u{n * n % 9973},i{n * n % 7919},1,{n}\n" for n in range(30_000))
    whole = pack(text.encode())
    report = prepared(write("a.csv.gz", whole[: len(whole) // 2])).report
    assert f"the {packing} file ends here: it was cut off" in report["skipped_lines"]["first"][-1]["reason"]
    assert 5_000 < report["read"]["interactions"] < 30_000


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-8] + bytes(4) + packed[-4:],
        lambda packed: packed[:5_000] + b"\xff\0" * 50 + packed[5_100:],
        lambda packed: packed + b"behind the end",
    ],
    ids=["checksum", "middle", "end"],
)
def test_a_damaged_gzip_names_the_line_and_what_is_before_can_be_had(write, damage):
    text = HEADER + "".join(f"u{n % 97},i{n % 89},1,{n}\n" for n in range(30_000))
    path = write("a.csv.gz", damage(gzip.compress(text.encode(), mtime=0)))
    with pytest.raises(DataError, match=r"a.csv.gz:\d+: ") as caught:
        prepare(path)
    report = prepared(path).report
    entry = report["skipped_lines"]["first"][-1]
    assert "cannot be read from here on" in entry["reason"]
    assert 500 < report["read"]["interactions"] == entry["line"] - 2 <= 30_000
    assert abs(caught.value.line - entry["line"]) <= 1


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["plain", "gzip", "Zstandard"])
@pytest.mark.parametrize(
    ("name", "text", "bad", "file_format"),
    [
        ("a.csv", HEADER + "a,x,1,5\na,y\0,1,6\nb,x,1,7\nb,y,1,8\n", 3, "csv"),
        ("a.txt", "a x y z w\nb x y\0 z\nc w x\n", 2, "sequences"),
        ("a.txt", "a x y z w\nb x y\1 z\nc w x\n", 2, "sequences"),
        ("a.txt", "a x\na y\na z\nb x\x1cy\nb x\nb y\n", 4, "pairs"),
        ("ratings.dat", "1::2::5::10\n1::3\1::5::11\n1::4::4::12\n2::3::4::10\n2::2::4::11\n", 2, "movielens"),
    ],
)
def test_control_bytes_are_refused_packed_or_not(write, pack, name, text, bad, file_format):
    path = write(name, pack(text.encode()))
    with pytest.raises(DataError, match="does not belong in a text file") as caught:
        prepare(path, split="leave-one-out", format=file_format)
    assert caught.value.line == bad
    report = prepared(path, split="leave-one-out", format=file_format).report
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [bad]


@pytest.mark.parametrize("bad", ["a\0,y,1,1", "a,y\0,1,1"])
def test_the_first_line_with_a_zero_byte_is_named_in_a_packed_file(write, bad):
    rows = [f"u{n % 3},i{n % 4},1,{n}" for n in range(40)]
    rows[30:30], rows[20:20] = [bad], [bad]
    path = write("a.csv", gzip.compress((HEADER + "\n".join(rows) + "\n").encode()))
    with pytest.raises(DataError, match=r"a.csv:22: the id '\w.x00' holds a byte that does not belong in a text file"):
        prepare(path)


def test_a_bad_line_leaves_the_others_of_a_file_without_a_header(write):
    path = write("a.txt", b"a\tx\ty\nb\tx\ty\tz\tw\nc\tx\xff\nd\tx\ty\tz\n")  # more fields than the first line's
    report = prepared(path, format="sequences").report
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [3]
    assert report["read"] == {"users": 3, "items": 4, "interactions": 9}


def test_stray_quotes_are_left_out_line_by_line(write):
    good = [f"u{n % 3},i{n % 4},1,{n}" for n in range(40)]
    lines = list(good)
    lines[5:5], lines[20:20], lines[30:30] = ['a,"x,1,5'], ['a,"x,1,5'], ['a,"x"y,1,5']  # two close each other
    path = write("a.csv", HEADER + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="closed before the end of its field") as caught:
        prepare(path)
    assert caught.value.line == 7
    report = prepared(path).report
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [7, 22, 32]
    assert report["read"]["interactions"] == 40


def test_unquoted_inches_are_named_and_left_out_line_by_line(write):
    lines = [f"u{n % 3},i{n % 4},{n},a title" for n in range(100)]
    lines[30], lines[70] = 'u0,i0,3,5" tall', 'u0,i1,4,7" tall'
    path = write("a.csv", "user,item,timestamp,title\n" + "\n".join(lines) + "\n")
    with pytest.raises(DataError, match="stands within a field that does not begin with one") as caught:
        prepare(path)
    assert caught.value.line == 32
    report = prepared(path).report
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [32, 72]
    assert report["read"]["interactions"] == 98


@pytest.mark.parametrize("header", [b"user,item,t\xff", b'user,item,"t', b"user,item,item", b"item,user,user"])
def test_a_header_that_cannot_be_read_is_never_left_out(write, header):
    path = write("a.csv", header + b"\n" + b"".join(b"u%d,i%d,0\n" % (n % 3, n % 4) for n in range(20)))
    for skip in (False, True):
        with pytest.raises(DataError) as caught:
            prepared(path, skip)
        assert caught.value.line == 1


def test_a_file_that_changes_while_it_is_read(write, monkeypatch, tmp_path):
    path = write("a.txt", "a x y z w\nb x y z w\n")

    def read_and_append(*arguments, **options):
        found = read(*arguments, **options)
        path.write_text("a x y z w\nb x y z w\nc x\n")
        return found

    monkeypatch.setattr("plr.prepare.sources.read", read_and_append)
    with pytest.raises(DataError, match=r"a.txt: the file changed while it was read"):
        write_folder([path], tmp_path / "out", PrepareOptions())
    assert not (tmp_path / "out").exists()


def test_seconds_and_milliseconds_are_not_mixed(write):
    rows = [f"u{n % 3},i{n % 4},1,{SECONDS + n}\n" for n in range(30)]
    rows[20] = f"u1,i1,1,{(SECONDS + 20) * 1000}\n"
    with pytest.raises(
        DataError, match=r"a.csv:22: timestamp 1600000020000 looks like milliseconds, .*line 2 like seconds"
    ):
        prepare(write("a.csv", HEADER + "".join(rows)))


def test_split_times_in_another_unit_are_refused(write):
    path = write("a.csv", HEADER + "".join(f"u{n % 3},i{n % 4},1,{SECONDS + n}\n" for n in range(30)))
    with pytest.raises(
        DataError, match=r"valid_time 1.62864e.12 looks like milliseconds, the file's timestamps .* seconds"
    ):
        prepare(path, valid_time=1628643414042, test_time=1658002729837)
    assert prepare(path, valid_time=SECONDS + 10, test_time=SECONDS + 20).report["rows"]["test"]


@pytest.mark.parametrize(
    ("odd", "count", "said"),
    [
        ({3: "0", 9: "-1"}, 2, "a.csv:5: timestamp 0 is not between 1980 and 2100 in seconds"),
        ({9: "-1"}, 1, "a.csv:11: timestamp -1 is not"),
        ({29: "16000"}, 1, "a.csv:31: timestamp 16000 is not"),  # the file was cut off there
        (dict.fromkeys(range(15), "0"), 15, "a.csv:2: timestamp 0 is not"),
        ({n: str(n) for n in range(16)}, 0, None),  # rather a counter, some of whose numbers look like times
        ({}, 0, None),
    ],
)
@pytest.mark.parametrize("partitions", [0, 3])
def test_times_far_from_the_others_are_said(write, tmp_path, odd, count, said, partitions):
    rows = [f"u{n % 3},i{n % 4},1,{odd.get(n, SECONDS + n)}\n" for n in range(30)]
    path = write("a.csv", HEADER + "".join(rows))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = PrepareOptions(split="leave-one-out")
        report = write_folder([path], tmp_path / "out", options, partitions=partitions)
    found = [str(warning.message) for warning in caught if "1980" in str(warning.message)]
    assert len(found) == (said is not None)
    assert report["time_unit"] == "seconds"
    if said is not None:
        assert said in found[0]
        assert f"({count})" in found[0]


@pytest.mark.filterwarnings("error:.*1980")
def test_a_counter_some_of_whose_numbers_look_like_times_has_no_unit(write):
    numbers = [*range(0, 30 * 10**10, 10**10), SECONDS]
    path = write("a.csv", HEADER + "".join(f"u{n % 3},i{n % 4},1,{number}\n" for n, number in enumerate(numbers)))
    assert prepare(path, split="leave-one-out").report["time_unit"] is None


def test_a_date_that_stands_for_none_leaves_the_unit(write):
    rows = [f"u{n % 3},i{n % 4},1,2021-04-{1 + n % 28:02}\n" for n in range(30)]
    path = write("a.csv", HEADER + "".join(rows) + "u1,i1,1,9999-12-31\n")
    with pytest.warns(UserWarning, match=r"a.csv:32: timestamp 2534\d* is not between 1980 and 2100 in microseconds"):
        assert prepare(path, split="leave-one-out").report["time_unit"] == "microseconds"


@pytest.mark.parametrize("unit", ["seconds", "milliseconds", "microseconds", "nanoseconds"])
def test_units_are_told(unit):
    per_second = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}[unit]
    assert unit_of(SECONDS * per_second) == unit
    times = np.array([-5, 0, 7, *(SECONDS * per_second + n for n in range(5))])  # counters have no unit
    other, others = (SECONDS, "seconds") if unit != "seconds" else (SECONDS * 1000, "milliseconds")
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(times) + 1)
    found = firsts_of_units(np.append(times, other)[order], order)
    assert found == {unit: (3, SECONDS * per_second), others: (8, other)}
    assert firsts_of_units(times, np.arange(len(times))) == {unit: (3, SECONDS * per_second)}


def test_counters_are_no_unit():
    assert unit_of(17) is None
    assert firsts_of_units(np.array([], dtype=np.int64), np.array([], dtype=np.uint32)) == {}


def test_duplicates_are_counted_and_dropped_on_demand(write):
    rows = ["a,x,1,5\n", "a,y,1,5\n", "a,x,1,5\n", "a,x,1,6\n", "b,x,1,5\n", "a,y,1,5\n", "b,y,1,7\n", "a,z,1,9\n"]
    path = write("a.csv", HEADER + "".join(rows))
    kept = prepare(path, split="leave-one-out")
    assert kept.report["duplicates_kept"] == 2
    dropped = prepare(path, split="leave-one-out", duplicates="drop")
    assert dropped.report["filters"][0]["dropped"] == {"users": 0, "items": 0, "interactions": 2}
    assert interactions(dropped) == Counter({("a", "x"): 2, ("a", "y"): 1, ("a", "z"): 1, ("b", "x"): 1, ("b", "y"): 1})
    with pytest.raises(DataError, match="duplicates='drop' needs timestamps"):
        prepare(write("a.txt", "a x y z\n"), duplicates="drop")


def test_a_user_with_a_hundred_thousand_interactions(write):
    text = HEADER + "".join(f"busy,i{n % 1000},1,{n}\n" for n in range(100_000)) + "b,i1,1,1\nb,i2,1,2\n"
    dataset = prepare(write("a.csv", text))
    rows = dataset.rows("train", 50)
    assert len(rows) == dataset.report["rows"]["train"]
    batch = rows.batch(rows.lengths.long().argmax()[None])
    assert batch.item_ids.shape == (1, 50)


def test_unsorted_input_gives_the_same_as_sorted(write):
    rows = [f"u{n % 13},i{n * 7 % 31},{1 + n % 5},{n}\n" for n in range(2000)]
    shuffled = random.Random(0).sample(rows, len(rows))
    one, other = (
        prepare(write(f"{name}.csv", HEADER + "".join(text))) for name, text in (("a", rows), ("b", shuffled))
    )
    assert one.items.tolist() == other.items.tolist()
    assert one.roles.tolist() == other.roles.tolist()


BAD_LINES = {
    "a,x,1,late": "'late'; accepted: a whole number",
    ",x,1,5": "column 'user' has no value",
    "a,x,1,5,6": "5 fields; the header has 4",
    "a,\xff,1,5": "is not UTF-8",
    "a,x\0,1,5": "byte 0x00",
    'a,"x,1,5': "never closed",
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_bad_lines_of_a_csv_are_skipped_and_listed(write, bad):
    good = [f"u{n % 3},i{n % 4},1,{n}" for n in range(40)]
    lines = [*good[:20], bad, *good[20:]]
    path = write("a.csv", (HEADER + "\n".join(lines) + "\n").encode("latin-1"))
    with pytest.raises(DataError) as caught:
        prepare(path)
    assert caught.value.line == 22
    dataset = prepared(path)
    skipped = dataset.report["skipped_lines"]
    assert (skipped["count"], skipped["first"][0]["file"], skipped["first"][0]["line"]) == (1, "a.csv", 22)
    assert BAD_LINES[bad] in skipped["first"][0]["reason"]
    assert dataset.report["read"]["interactions"] == 40
    assert dataset.content_hash != prepared(write("b.csv", HEADER + "\n".join(good))).content_hash


def test_every_twentieth_line_is_malformed(write):
    kinds = list(BAD_LINES)[:5]
    lines = [kinds[n // 20 % 5] if n % 20 == 0 else f"u{n % 30},i{n % 40},1,{n}" for n in range(10_000)]
    report = prepared(write("a.csv", (HEADER + "\n".join(lines) + "\n").encode("latin-1"))).report
    assert report["skipped_lines"]["count"] == 500
    assert len(report["skipped_lines"]["first"]) == 100
    assert report["read"]["interactions"] == 9_500
    assert all((entry["line"] - 2) % 20 == 0 for entry in report["skipped_lines"]["first"])


@pytest.mark.parametrize(
    ("name", "text", "line", "left"),
    [
        ("a.txt", "a x y z w\nlonely\nb x y z w\n", 2, 8),
        ("a.txt", "a x y z w\nb x y z w\na w w w w w w\n", 3, 8),
        ("a.inter", "user_id:token\titem_id:token\na\tx\na\ty\na\tz\textra\nb\tx\nb\ty\n", 4, 4),
        ("ratings.dat", "1::2::5::10\n1::3::5::11\n1::4::five::12\n2::3::4::10\n2::2::4::11\n", 3, 4),
        ("ratings.dat", "1::2::5::10\n1::3::5::11\n1::4::5::12::13\n2::3::4::10\n2::2::4::11\n", 3, 4),
    ],
)
def test_bad_lines_of_other_formats(write, name, text, line, left):
    path = write(name, text)
    with pytest.raises(DataError) as caught:
        prepare(path, format="sequences" if name == "a.txt" else "auto")
    assert caught.value.line == line
    report = prepared(path, split="leave-one-out", format="sequences" if name == "a.txt" else "auto").report
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [line]
    assert report["read"]["interactions"] == left


def test_pairs_skip_lines_of_other_lengths(write):
    report = prepared(write("a.txt", "a x\na\na y\nb x\nb y z\nb y\na z\na w\n"), format="pairs").report
    assert [entry["line"] for entry in report["skipped_lines"]["first"]] == [2, 5]


def test_an_item_without_metadata_and_bad_metadata_lines(write, tmp_path):
    records = [{"item_id": f"i{n}", "title": f"Title\t{n}"} for n in range(3)]
    meta = write("items.jsonl", "\n".join([json.dumps(records[0]), "{broken", json.dumps(records[2])]))
    path = write("a.txt", "a i0 i1 i2 007\nb i1 i2 i0 007\n")
    with pytest.raises(DataError, match=r"items.jsonl:2: not JSON"):
        write_folder([path], tmp_path / "out", PrepareOptions(), items=meta)
    assert not (tmp_path / "out").exists()
    write_folder([path], tmp_path / "out", PrepareOptions(), items=meta, skip_bad_lines=True)
    dataset = open_prepared(tmp_path / "out")
    items = pl.read_parquet(dataset.item_features)
    assert items["item_id"].to_list() == ["007", "i0", "i1", "i2"]
    assert items["title"].to_list() == [None, "Title\t0", None, "Title\t2"]
    assert items["text"].to_list() == [None, "Title 0", None, "Title 2"]
    assert dataset.report["skipped_lines"]["first"][0]["file"] == "items.jsonl"


TEXT = st.text(st.sampled_from('ab1,;\t":. \n\r\\\x00\ufeffé|-'), max_size=200)


@settings(max_examples=150, deadline=None)
@given(
    content=st.one_of(
        TEXT.map(str.encode), st.binary(max_size=120), TEXT.map(lambda text: gzip.compress(text.encode())[:-3])
    ),
    name=st.sampled_from(["a.csv", "a.inter", "a.txt", "ratings.dat", "a.parquet", "a", "a.csv.gz", "u.data"]),
    header=st.sampled_from([b"", HEADER.encode(), b"user_id:token\titem_id:token\n", b"a x\n", b"1::2::3::4\n"]),
    skip=st.booleans(),
)
@example(content=b'a,"x', name="a.csv", header=HEADER.encode(), skip=True)
@example(content=b"a 1", name="a.txt", header=b"a x\n", skip=False)
def test_readers_read_or_say_why_not(content, name, header, skip):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(header + content)
        try:
            dataset = prepared(path, skip)
        except DataError as error:
            if not str(error).startswith(folder):
                raise
            return
        assert dataset.report["read"]["interactions"] >= len(dataset.items) >= 2
        assert not dataset.user_ids.is_null().any()
        assert (dataset.item_ids != "").all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["007", "7", "é", 'q"q', "t\tb"]), st.integers(0, 9)),
        min_size=1,
    ),
    st.sampled_from(["csv", "parquet", "inter", "dat"]),
)
def test_no_interaction_is_lost_or_invented(rows, kind):
    rows = [row for row in rows if kind == "csv" or kind == "parquet" or "\t" not in row[1]]
    if not rows:
        return
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / {"dat": "ratings.dat"}.get(kind, f"a.{kind}")
        if kind == "csv":
            frame.write_csv(path)
        elif kind == "parquet":
            frame.write_parquet(path)
        elif kind == "inter":
            head = "user_id:token\titem_id:token\ttimestamp:float\n"
            path.write_text(head + "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows), encoding="utf-8")
        else:
            path.write_text("".join(f"{user}::{item}::1::{time}\n" for user, item, time in rows), encoding="utf-8")
        try:
            dataset = prepare(path, format="movielens" if kind == "dat" else "auto", split="leave-one-out")
        except DataError as error:
            if "no training row" not in str(error):
                raise
            return
    assert interactions(dataset) == Counter((user, item) for user, item, _ in rows)


def test_all_formats_are_tested_here_or_in_readers():
    assert set(FORMATS) == {"sequences", "pairs", "movielens", "recbole", "csv", "parquet", "huggingface"}


@pytest.mark.parametrize("file_format", ["auto", "sequences", "pairs"])
def test_lines_that_a_carriage_return_joins_are_not_one_line(write, file_format):
    """All that follows in the line would be items of the first user."""
    pairs = file_format == "pairs"
    path = write("a.txt", b"u a\ru b\nu c\nu d\nu e\nu f\n" if pairs else b"u1 a b c d\ru2 c d\nu3 a b c d\n")
    with pytest.raises(DataError, match=r"a\.txt:1: the line holds a carriage return"):
        prepare(path, format=file_format)
    left = interactions(prepared(path, format=file_format))
    expected = [("u", item) for item in "cdef"] if pairs else [("u3", item) for item in "abcd"]
    assert left == Counter(expected)


def test_carriage_returns_around_a_line_are_blanks(write):
    odd = write("a.txt", b"u1 a b c d\r\r\n\ru2 c d\n\ru3 a b c d \r\n\r\n")
    plain = write("b.txt", b"u1 a b c d\nu2 c d\nu3 a b c d\n")
    assert interactions(prepare(odd)) == interactions(prepare(plain))


def test_quoted_names_of_columns_say_nothing_of_the_separator(write):
    lines = "".join(f"u,i{item},x\n" for item in range(4))
    odd = write("a.csv", '"user_id","item_id","kinds; a; b;\tc"\n' + lines)
    plain = write("b.csv", "user_id,item_id,kinds\n" + lines)
    assert interactions(prepared(odd, skip=False)) == interactions(prepared(plain, skip=False))
    assert interactions(prepared(write("c.csv", odd.read_text() + "u,i9,x,x\n"))) == interactions(prepared(plain))


@pytest.mark.parametrize("partitions", [0, 2])
def test_a_file_that_is_read_again_without_lines_is_warned_about_once_and_by_its_name(write, tmp_path, partitions):
    path = write("a.csv", "user_id,item_id\n" + "".join(f"u,i{item}\n" for item in range(4)) + 'u,"x\nu,i1,x\n')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        report = write_folder([path], tmp_path / "out", PrepareOptions(), skip_bad_lines=True, partitions=partitions)
    assert report["skipped_lines"]["count"] == 2
    about_times = [str(each.message) for each in told if "no timestamp column" in str(each.message)]
    assert len(about_times) == 1
    assert about_times[0].startswith(f"{path}: ")
