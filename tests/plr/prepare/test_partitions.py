"""Preparing in partitions writes the bytes that preparing in memory writes, and says the same."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plr.cli.prepare import Request, run
from plr.errors import ConfigError, DataError
from plr.prepare import PrepareOptions, write_folder
from plr.prepare.block_file import BlockFile
from plr.prepare.parts import Partitions, _bounds
from plr.prepare.readers.spooled import Spooled
from plr.prepare.split import default_cuts

ROOT = Path(__file__).parents[3]
HEADER = "user_id,item_id,rating,timestamp\n"
SECONDS = 1_600_000_000


def outcome(sources: list[Path], out: Path, partitions: int, options: dict, **more) -> tuple[dict | str, list[str]]:
    """Return the bytes of every file of the folder, or the error; and what was warned about."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            report = write_folder(sources, out, PrepareOptions(**options), partitions=partitions, **more)
            found = {file.name: file.read_bytes() for file in sorted(out.iterdir())} | {"report": report}
        except DataError as error:
            found = str(error)
    return found, [str(each.message) for each in said]


def check_all(sources: list[Path], partitions: tuple[int, ...], options: dict, **more) -> dict | str:
    """Compare partitions with all in memory; returns what came of that."""
    with tempfile.TemporaryDirectory() as folder:
        whole = outcome(sources, Path(folder) / "whole", 0, options, **more)
        before = sorted(os.listdir(folder))
        for count in partitions:
            out = Path(folder) / f"in-{count}"
            assert outcome(sources, out, count, options, **more) == whole, (count, options)
        beside = set(os.listdir(folder)) - {f"in-{count}" for count in partitions}
        assert sorted(beside) == before  # nothing stays beside
    return whole[0]


IDS = ["b", "a10", "a9", "Z", "é", "nan", "NULL", " a9", "long " * 8, "", "#x", "user_id", "日本"]
ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 8), st.integers(1, 5), st.integers(0, 12)), min_size=1, max_size=60
)
MEND = st.sampled_from(["", "missing_ids", "skip_bad_lines", "both"])
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "duplicates": st.sampled_from(["keep", "drop"]),
        "min_interactions": st.integers(0, 4),
        "core": st.integers(0, 3),
    },
)
RATINGS = st.sampled_from([{}, {"min_rating": 3}, {"min_rating": 3, "low_rated": "history"}])
CUTS = {"valid_time": SECONDS + 6, "test_time": SECONDS + 9}
SPLITS = st.sampled_from(
    [
        {},
        {"split": "leave-one-out"},
        {"split": "leave-k-out", "leave_k": 2},
        {"split": "users", "valid_users": 0.3, "test_users": 0.3, "split_seed": 1},
        {"split": "users", "valid_users": 0.2, "test_users": 0.4, "leave_k": 3},
        {"split": "time", **CUTS},
        {"split": "time", "unseen": "drop-rows"},
        {**CUTS, "train_time": SECONDS + 2},
        {**CUTS, "train_time": SECONDS + 2, "unseen": "drop-rows", "min_history": (2, 1, 1)},
        {**CUTS, "unseen": "drop-rows", "untitled": "drop-rows"},
        {"min_history": (1, 2, 3)},
        {"test_time": SECONDS + 4},
    ]
)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, len(IDS) - 1), st.booleans(), st.booleans(), MEND, FILTERS, RATINGS, SPLITS)
def test_every_byte_is_that_of_memory(rows, odd, timed, blanks, mend, filters, ratings, split):
    """Odd ids, blank lines, wrong lines, titles; every filter with every split."""
    options = {**filters, **ratings, **split}
    if ratings.get("low_rated") == "history" and split.get("split", "time") != "time":
        options.pop("low_rated")
    if mend in ("missing_ids", "both"):
        options["missing_ids"] = "drop"
    lines = [f"{IDS[(user + odd) % 13]},i{item},{rating},{SECONDS + time}" for user, item, rating, time in rows]
    if blanks:
        lines[len(lines) // 2 : 0] = ["", ",,,"]
        lines.append(f"{IDS[odd]},,4,{SECONDS}")
        lines.insert(0, "a9,i1,bad,1600000003")
    text = HEADER + "\n".join(lines) + "\n"
    if not timed:
        text = "\n".join(line.rpartition(",")[0] for line in text.splitlines()) + "\n"
        text += "user_id,item_id,4\n" * blanks
    with tempfile.TemporaryDirectory() as folder:
        source, items = Path(folder) / "data.csv", Path(folder) / "items.csv"
        source.write_text(text, encoding="utf-8")
        items.write_text("item_id,title\ni0,Zero\ni1,One\ni2,\ni5,Five\ni9,Nine\n")
        more = {"skip_bad_lines": mend in ("skip_bad_lines", "both"), "items": items if odd % 2 else None}
        check_all([source], (1, 2, 3, 7), options, **more)


def long_rows(count: int = 3000) -> list[tuple[int, int, int, int]]:
    random = np.random.Generator(np.random.PCG64(7))
    users = (random.random(count) ** 2 * 200).astype(int)
    drawn = random.integers(0, (60, 6, 400), (count, 3)).tolist()
    return [(user, *others) for user, others in zip(users.tolist(), drawn, strict=True)]


@pytest.mark.parametrize("kind", ["csv", "gz", "inter", "dat", "pairs", "sequences", "parquet", "huggingface"])
def test_every_format(kind, tmp_path):
    rows = long_rows()
    source = tmp_path / {
        "csv": "a.csv", "gz": "a.csv.gz", "inter": "a.inter", "dat": "ratings.dat", "pairs": "pairs.txt",
        "sequences": "sequences.txt", "parquet": "a.parquet", "huggingface": "set",
    }[kind]  # fmt: skip
    frame = pl.DataFrame(
        {name: [row[at] for row in rows] for at, name in enumerate(("user_id", "item_id", "rating", "timestamp"))}
    ).with_columns(pl.col("timestamp") + SECONDS)
    if kind == "csv":
        frame.write_csv(source)
    elif kind == "gz":
        source.write_bytes(gzip.compress(frame.write_csv().encode()))
    elif kind == "inter":
        frame.columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
        frame.write_csv(source, separator="\t")
    elif kind == "dat":
        source.write_text("".join(f"{'::'.join(map(str, row))}\n" for row in frame.iter_rows()) + "\n")
    elif kind == "pairs":
        source.write_text("".join(f"{user} {item}\n" for user, item, *_ in rows))
    elif kind == "sequences":
        items: dict[int, list[str]] = {}
        for user, item, *_ in rows:
            items.setdefault(user, []).append(str(item))
        source.write_text("".join(f"{user} {' '.join(those)}\n" for user, those in items.items()))
    elif kind == "parquet":
        frame.write_parquet(source, row_group_size=700)
    else:
        source.mkdir()
        frame.write_ipc_stream(source / "data.arrow")
        (source / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    found = check_all([source], (2, 3, 7), {"core": 3, "min_interactions": 5})
    assert isinstance(found, dict)
    assert found["report"]["interactions"] > 1000
    check_all([source], (3,), {"split": "users"})


def test_several_files_with_periods_and_packed_ids(tmp_path):
    rows = sorted(long_rows(), key=lambda row: row[3])
    files = []
    early = sum(row[3] < 250 for row in rows)
    for number, part in enumerate((rows[:early], rows[early:])):
        files.append(tmp_path / f"{number}.csv.gz")
        lines = "".join(f"{user},{item},{rating},{SECONDS + time}\n" for user, item, rating, time in part)
        files[-1].write_bytes(gzip.compress((HEADER + lines).encode()))
    cut = SECONDS + 250
    periods = [(float("-inf"), cut), (cut, float("inf"))]
    assert isinstance(check_all(files, (2, 7), {"core": 2}, periods=periods), dict)
    wrong = check_all(files, (2, 7), {}, periods=[(float("-inf"), cut - 9), (cut, float("inf"))])
    assert "outside this file's period" in wrong
    files[1].write_bytes(gzip.compress((HEADER + f"a,b\x02,4,{cut + 1}\na,c,4,{cut + 2}\nu\x02,c,4,{cut}\n").encode()))
    check_all(files, (1, 3), {})


@pytest.mark.parametrize(
    ("line", "options", "said"),
    [
        ("u1,i1,4,1600000000000\n", {}, "a.csv:3002: timestamp 1600000000000 looks like milliseconds"),
        ("nan,i1,4,5\nu1,i1,4,1600000000000\n", {"missing_ids": "drop"}, "a.csv:3003: timestamp 16"),
        ("u1,i1,4,\n", {}, "a.csv:3002: column 'timestamp' has no value"),
        ("u1,i1,4,5,6\n", {}, "a.csv:3002: 5 fields; the header has 4"),
        ('u1,"i1,4,5\n', {}, "a.csv:3002: "),
        ("", {"core": 100}, "no interaction is left after the filters"),
        ("", {"valid_time": 1}, "valid_time"),
        ("", {"valid_time": 3, "test_time": 1}, "test_time 1 is before valid_time 3"),
        ("", {"valid_time": SECONDS, "test_time": SECONDS}, "no training row is left"),
    ],
)
def test_what_stops_a_preparation_says_the_same(line, options, said, tmp_path):
    lines = "".join(f"u{user},i{item},{rating},{SECONDS + time}\n" for user, item, rating, time in long_rows())
    (tmp_path / "a.csv").write_text(HEADER + lines + line)
    found = check_all([tmp_path / "a.csv"], (1, 2, 7), options)
    assert isinstance(found, str)
    assert said in found


@pytest.mark.parametrize("spread", [1, 3, 10**12, 2**62])
def test_quantiles_of_partitions(spread, tmp_path):
    random = np.random.Generator(np.random.PCG64(spread % 1000))
    count = 1000
    times, user = random.integers(-spread, spread, count), random.integers(0, 90, count, dtype=np.uint32)
    users = (pl.Series([f"{number:03d}" for number in range(90)]), np.arange(90, dtype=np.int32))
    parts = Partitions(lambda: [(user, user, times, None)], users, users, 4, tmp_path)
    assert default_cuts(parts) == tuple(np.sort(times)[[800, 900]])
    parts.keep(lambda part: part.timestamp % 3 == 0)
    left = np.sort(times[times % 3 == 0])
    assert default_cuts(parts) == (left[len(left) * 8 // 10], left[len(left) * 9 // 10])


def test_parts_hold_about_as_many_and_no_user_twice(tmp_path):
    assert _bounds(np.array([1, 1, 1, 1]), 2) == [0, 2, 4]
    assert _bounds(np.array([100, 1, 1]), 3) == [0, 1, 3]
    assert _bounds(np.array([1, 1, 100]), 3) == [0, 3]
    assert _bounds(np.array([5]), 7) == [0, 1]
    assert _bounds(np.zeros(0, dtype=np.int64), 7) == [0]
    bounds = _bounds(np.full(1000, 3), 7)
    assert set(np.diff(bounds)) == {142, 143}
    user = np.array([3, 1, 3, 0, 1, 1], dtype=np.uint32)  # nobody is 2
    ranks = (pl.Series(list("abcd")), np.arange(4, dtype=np.int32))
    blocks = [(part, part, None, None) for part in (user[:4], user[4:])]
    parts = Partitions(lambda: blocks, ranks, ranks, 3, tmp_path)
    assert [(part.user_ids.to_list(), part.position.tolist()) for part in parts] == [
        (["a", "b"], [3, 1, 4, 5]), (["d"], [0, 2]),
    ]  # fmt: skip
    assert (parts.user_ids.to_list(), parts.item_ids.to_list(), len(parts)) == (list("abd"), list("abd"), 6)
    parts.keep(lambda part: part.position != 3)
    parts.keep(lambda part: np.flatnonzero(part.position != 4))
    assert [(part.user_ids.to_list(), part.position.tolist(), part.item.tolist()) for part in parts] == [
        (["b"], [1, 5], [0, 0]), (["d"], [0, 2], [1, 1]),
    ]  # fmt: skip


def test_a_block_file_gives_back_what_it_was_given_and_has_no_name(tmp_path):
    file = BlockFile(tmp_path, (np.int32, np.bool_, np.int64))
    blocks = [
        (np.arange(n, dtype=np.int32), np.arange(n) % 2 == 0, np.arange(2 * n)) for n in (3, 0, 100_000)
    ]
    for block in blocks:
        file.append(*block)
    for _ in range(2):
        for found, block in zip(file, blocks, strict=True):
            assert all(np.array_equal(one, other) for one, other in zip(found, block, strict=True))
    assert [column.dtype for column in file[0]] == [np.int32, np.bool_, np.int64]
    assert np.array_equal(file.column(2, 1), blocks[2][1])
    assert (len(file), file.lengths(0)) == (3, [3, 3, 6])
    assert os.name == "nt" or not list(tmp_path.iterdir())


def test_a_spooled_frame_knows_its_nulls(tmp_path):
    frame = pl.DataFrame(
        {"user": [1, None, 3, 4], "rating": [True, None, False, True], "timestamp": [5, 2**60 + 1, None, -1]},
        schema={"user": pl.UInt32, "rating": pl.Boolean, "timestamp": pl.Int64},
    )
    spooled = Spooled(tmp_path, frame)
    for rows in (frame[:1], frame[1:], frame[:0]):
        spooled.append(rows)
    assert (spooled.height, spooled.columns) == (4, frame.columns)
    assert spooled.missing().equals(frame.select(pl.all().is_null()))
    assert [spooled.null_count(name) for name in frame.columns] == [1, 1, 1]
    spooled.filter(pl.Series([True, False, False, True])).with_rating_as("positive")
    assert (spooled.height, spooled.columns) == (2, ["user", "positive", "timestamp"])
    found = [{name: values.tolist() for name, values in block.items()} for block in spooled.blocks()]
    assert found == [
        {"user": [1], "positive": [True], "timestamp": [5]}, {"user": [4], "positive": [True], "timestamp": [-1]},
    ]  # fmt: skip
    spooled = Spooled.of(tmp_path, frame[:1]).with_rating_as(None)
    assert [sorted(block) for block in spooled.blocks()] == [["timestamp", "user"]]


@pytest.mark.parametrize("count", [-1, 513])
def test_a_number_of_partitions_that_cannot_be(count, tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "u,i,4,5\n")
    with pytest.raises(ConfigError, match=r"--partitions must be in 0..512 \(0: all in memory\); found"):
        run(Request(str(tmp_path / "a.csv"), str(tmp_path / "out"), partitions=count))
    with pytest.raises(ValueError, match="partitions must be in"):
        write_folder([tmp_path / "a.csv"], tmp_path / "out", PrepareOptions(), partitions=count)


KILLED = """
import os, signal, sys
from plr.cli import main
from plr.prepare import pipeline, sources
module, name = sys.argv.pop(1).split(":")
def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr({"pipeline": pipeline, "sources": sources}[module], name, killed)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def source(tmp_path):
    lines = "".join(f"u{user},i{item},{rating},{SECONDS + time}\n" for user, item, rating, time in long_rows())
    (tmp_path / "a.csv").write_text(HEADER + lines)
    return tmp_path / "a.csv"


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("where", ["sources:ranked", "pipeline:split_all", "pipeline:save_prepared"])
def test_a_process_that_is_killed_leaves_nothing(where, source, tmp_path):
    command = ["prepare", str(source), "--out", str(tmp_path / "out"), "--partitions", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED, where, *command], env=environment, check=False)
    assert killed.returncode == -9
    assert os.listdir(tmp_path) == ["a.csv"]
    subprocess.run([sys.executable, "-m", "plr", *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "out"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="ulimit")
def test_a_full_disk_is_named(source, tmp_path):
    code = "import sys; from plr.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["bash", "-c", "ulimit -f 20; trap '' XFSZ; exec \"$@\"", "bash", sys.executable, "-c", code]
    command += ["prepare", str(source), "--out", str(tmp_path / "out"), "--partitions", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert printed.returncode == 2, printed.stderr
    assert "temporary files of --partitions" in printed.stderr.splitlines()[-1]
    assert "File too large" in printed.stderr.splitlines()[-1]
    assert str(tmp_path) in printed.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == ["a.csv"]
