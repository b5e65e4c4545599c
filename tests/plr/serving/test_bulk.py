"""`plr recommend --users`: every form of a file gets the answers of single users, whole, and goes on when killed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
import torch

import plr
from plr.cli import main
from plr.config import Config
from plr.errors import ConfigError, DataError, RequestError, RunError
from plr.lock import LOCK
from plr.runs import RunFolder
from plr.serving import bulk, user_files
from plr.serving.bulk import parts_folder, read_item_list, recommend_users
from plr.text import TextVectors
from plr.training import train


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        Config(
            data=str(small_data), out=str(out), method="plr", dim=8, ffn_dim=8, max_length=10, batch_size=32, epochs=2,
            streams=2, progress=False, threads=1,
        )
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def recommender(run):
    return plr.Recommender.load(run)


# In the order of the users' ids, as interaction files are answered.
HISTORIES = {
    f"v{user:02}": [f"i{(user * 5 + step * step) % 26}" for step in range(1 + user % 7)]  # i24, i25: unknown
    for user in range(23)
} | {"w1": ["never", "never2"], "w2": ["i24"]}
ROWS = [(user, item, 1000 + step) for user, items in HISTORIES.items() for step, item in enumerate(items)]


def expected(recommender, histories=HISTORIES, **options):
    frame = pl.DataFrame({"user": list(histories), "history": list(histories.values())})
    with pytest.warns(UserWarning, match="never seen in training"):
        return recommender.recommend_frame(frame, **options)


def table(rows, separator=","):
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_file(form, folder):
    """Write the histories in a form; returns the path."""
    path = folder / form
    long = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
    shuffled = long.sample(fraction=1, shuffle=True, seed=1)
    if form == "long.csv":
        shuffled.write_csv(path)
    elif form == "long.parquet":
        shuffled.write_parquet(path)
    elif form == "sequences.txt":
        path.write_text("".join(f"{user} {' '.join(items)}\n" for user, items in HISTORIES.items()) + "x a b c\n")
    elif form == "wide.parquet":
        pl.DataFrame({"user": list(HISTORIES), "history": list(HISTORIES.values())}).write_parquet(path)
    elif form == "wide.csv":
        path.write_text(table([("user_id", "history"), *((user, " ".join(ids)) for user, ids in HISTORIES.items())]))
    elif form == "wide.tsv.gz":
        rows = [("age", "history", "user"), *((3, json.dumps(ids), user) for user, ids in HISTORIES.items())]
        path.write_bytes(gzip.compress(table(rows, "\t").encode()))
    elif form == "wide.jsonl":
        path.write_text("".join(json.dumps({"user": u, "history": i, "x": None}) + "\n" for u, i in HISTORIES.items()))
    return path


@pytest.mark.parametrize("form", ["long.csv", "long.parquet", "wide.parquet", "wide.csv", "wide.tsv.gz", "wide.jsonl"])
def test_every_form_gets_the_answers_of_its_histories(form, run, recommender, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "BLOCK", 7)
    monkeypatch.setattr("plr.serving.user_files._PARQUET_ROWS", 15)
    out = tmp_path / "out.parquet"
    counts = recommend_users(run, as_file(form, tmp_path), out, k=4)
    assert pl.read_parquet(out).equals(expected(recommender, k=4))
    assert not parts_folder(out).exists()
    items = [item for ids in HISTORIES.values() for item in ids]
    unknown = sum(item not in recommender.item_ids for item in items)
    assert (counts.users, counts.popular, counts.rows) == (25, 2, 100)
    assert (counts.interactions, counts.unknown) == (len(items), unknown)


def test_a_prepared_folder_and_lines_of_items(run, recommender, small_data, tmp_path):
    assert main(["prepare", str(small_data), "--out", str(tmp_path / "prepared")]) == 0
    recommend_users(run, tmp_path / "prepared", tmp_path / "prepared.parquet", k=3)
    recommend_users(run, small_data, tmp_path / "lines.parquet", k=3)
    found = pl.read_parquet(tmp_path / "prepared.parquet")
    assert found.equals(pl.read_parquet(tmp_path / "lines.parquet"))
    lines = [line.split() for line in small_data.read_text().splitlines()]
    histories = {user: items for user, *items in sorted(lines)}
    answers = recommender.recommend(histories.values(), 3)
    assert found["user"].to_list() == [user for user in histories for _ in range(3)]
    assert found["item"].to_list() == [each.item for answer in answers for each in answer]
    assert found["score"].to_list() == [each.score for answer in answers for each in answer]


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_every_name_is_a_format(name, run, recommender, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "BLOCK", 10)
    path = tmp_path / name
    recommend_users(run, as_file("wide.jsonl", tmp_path), path, k=2)
    content = path.read_bytes()
    if name.endswith(".gz"):
        content = gzip.decompress(content)
    if ".csv" in name:
        found = pl.read_csv(content, schema_overrides={"rank": pl.Int32, "score": pl.Float32})
    elif ".jsonl" in name:
        lines = map(json.loads, content.decode().splitlines())
        found = pl.DataFrame(list(lines), schema_overrides={"rank": pl.Int32, "score": pl.Float32})
    else:
        found = pl.read_parquet(path)
    assert found.equals(expected(recommender, k=2))


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", ["out.parquet", "out.csv.gz"])
@pytest.mark.parametrize("form", ["wide.parquet", "wide.jsonl", "long.csv"])
def test_killed_anywhere_it_goes_on_and_the_file_is_the_same(form, name, run, tmp_path, monkeypatch):
    """Every part is computed once, whatever was being written."""
    monkeypatch.setattr(bulk, "BLOCK", 4)
    monkeypatch.setattr("plr.serving.user_files._PARQUET_ROWS", 8)
    users, whole, out = as_file(form, tmp_path), tmp_path / f"whole-{name}", tmp_path / name
    recommend_users(run, users, whole, k=2)
    answers, replace, asked = plr.serving.Recommender.answers, bulk.atomic_path, []

    def counted(self, block, k, **options):
        asked.extend(block.users)
        return answers(self, block, k, **options)

    left = 0

    def killed(path, **options):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return replace(path, **options)

    monkeypatch.setattr(plr.serving.Recommender, "answers", counted)
    monkeypatch.setattr(bulk, "atomic_path", killed)
    kills = 0
    while True:
        left = 3  # the first: job, part, what is done; later ones: a part, what is done, a part
        try:
            counts = recommend_users(run, users, out, k=2)
            break
        except Killed:
            assert not out.exists()
            kills += 1
            assert kills < 30
    assert kills > 2
    assert out.read_bytes() == whole.read_bytes()
    assert counts.users == 25
    assert set(asked) == set(HISTORIES)
    assert len(asked) < 2 * len(HISTORIES)  # a part that was not noted as done is computed again
    assert not parts_folder(out).exists()


SLOWLY = """
import sys, time
import plr
from plr.cli import main
from plr.serving import bulk, user_files

def slowly(*arguments, **options):
    time.sleep(0.1)
    return answers(*arguments, **options)

bulk.BLOCK = 2
answers, plr.serving.Recommender.answers = plr.serving.Recommender.answers, slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("form", "name"), [("long.csv", "out.parquet"), ("wide.jsonl", "out.csv.gz")])
def test_a_command_that_is_killed_twice_part_way_and_repeated_ends_with_the_same_bytes(
    form, name, run, tmp_path, monkeypatch
):
    """By SIGKILL, of which no process knows; what was noted as done is not done again."""
    monkeypatch.setattr(bulk, "BLOCK", 2)
    users, whole, out = as_file(form, tmp_path), tmp_path / f"whole-{name}", tmp_path / name
    recommend_users(run, users, whole, k=2)
    command = [sys.executable, "-c", SLOWLY, "recommend", str(run), "--users", str(users), "--out", str(out), "-k", "2"]
    done, users_done, parts = parts_folder(out) / "done.json", 0, {}
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and (not done.exists() or json.loads(done.read_text())["users"] < users_done + 6):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        users_done = json.loads(done.read_text())["users"]
        assert 6 <= users_done < 25
        assert not out.exists()
        kept = {path.name: path.stat().st_mtime_ns for path in done.parent.glob("part-*")}
        assert parts.items() <= kept.items()
        parts = {bulk._part(done.parent, bulk.table_format(out), first).name for first in range(0, users_done, 2)}
        parts = {part: kept[part] for part in parts}
    subprocess.run(command, check=True, capture_output=True)
    assert out.read_bytes() == whole.read_bytes()
    assert not done.parent.exists()


def test_parts_of_another_command_are_not_gone_on_with(run, tmp_path, monkeypatch):
    users, out = as_file("wide.jsonl", tmp_path), tmp_path / "out.csv"

    def killed(*_):
        raise Killed

    def is_killed(name, k):
        with monkeypatch.context() as patched:
            patched.setattr(bulk, name, killed)
            with pytest.raises(Killed):
                recommend_users(run, users, out, k=k, only=["i1", "i2"])

    is_killed("_write_parts", 5)  # before there is a part
    is_killed("_join", 2)
    for options, differing in (({"k": 3, "only": ["i1", "i2"]}, "other k;"), ({"k": 2}, "other only;")):
        with pytest.raises(RunError, match=differing):
            recommend_users(run, users, out, **options)
    users.write_text(users.read_text() + '{"user": "z", "history": []}\n')
    with pytest.raises(RunError, match="other users;"):
        recommend_users(run, users, out, k=2, only=["i1", "i2"])
    (parts_folder(out) / "mine.txt").touch()
    with pytest.raises(RunError, match=r"it holds 'mine.txt'"):
        recommend_users(run, users, out, k=2, only=["i1", "i2"])
    assert (parts_folder(out) / "mine.txt").exists()


def test_a_file_with_a_wrong_line_leaves_no_parts_and_the_mended_one_is_taken(run, tmp_path, monkeypatch):
    users, out = tmp_path / "users.csv", tmp_path / "out.csv"
    monkeypatch.setattr(bulk, "BLOCK", 2)
    lines = ["user,history\n", *(f"u{number},i1 i2\n" for number in range(5))]
    users.write_text("".join([*lines, "u5\n"]))
    with pytest.raises(DataError, match=r"users.csv:7: 1 fields; the header has 2"):
        recommend_users(run, users, out, k=2)
    assert [each.name for each in tmp_path.iterdir()] == ["users.csv"]
    users.write_text("".join([*lines, "u5,i1\n"]))
    assert recommend_users(run, users, out, k=2).users == 6


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", ["i1", "i11"])
def test_a_file_that_changes_while_it_is_read_makes_no_file(form, name, run, tmp_path, monkeypatch):
    """Of one layout, too, where a part of each could be read as one file."""
    monkeypatch.setattr(bulk, "BLOCK", 2)
    monkeypatch.setattr(user_files, "_PARQUET_ROWS", 2)
    path, aside, out = tmp_path / f"users.{form}", tmp_path / "aside", tmp_path / "out.csv"

    def write(item, to):
        frame = pl.DataFrame({"user": [f"u{user}" for user in range(6)], "history": [[item]] * 6})
        if form == "parquet":
            frame.write_parquet(to, compression="uncompressed")
        else:
            frame.write_ndjson(to)

    write("i2", path)
    write_part = bulk._write_json

    def replaced(to, content):
        write_part(to, content)
        if content.get("users") == 2:
            write(name, aside)
            os.replace(aside, path)

    monkeypatch.setattr(bulk, "_write_json", replaced)
    with pytest.raises(DataError, match=r"users.*: the file changed while it was read"):
        recommend_users(run, path, out, k=1)
    assert not out.exists()
    assert not parts_folder(out).exists()


@pytest.mark.parametrize("removed", range(5))
def test_a_command_that_ends_while_it_removes_the_parts_can_be_repeated(removed, run, tmp_path, monkeypatch):
    """The kills at random of test_kills.py met it: some parts were gone, and were counted on."""
    monkeypatch.setattr(bulk, "BLOCK", 10)
    users, out = as_file("wide.parquet", tmp_path), tmp_path / "out.csv"
    recommend_users(run, users, tmp_path / "undisturbed.csv")
    unlink, files = Path.unlink, Path.iterdir
    left = [removed]

    def interrupted(path, **options):
        if path.parent == parts_folder(out) and out.exists() and path.name != LOCK:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        # The parts before what tells of them: the order of a folder is any.
        patch.setattr(Path, "iterdir", lambda folder: iter(sorted(files(folder), reverse=True)))
        with suppress(KeyboardInterrupt):
            recommend_users(run, users, out)
    assert parts_folder(out).exists() == (removed < 5)
    recommend_users(run, users, out)
    assert out.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()
    assert not parts_folder(out).exists()


def test_a_file_that_is_read_is_not_written_over(run, tmp_path, capsys):
    users, deny = as_file("wide.csv", tmp_path), tmp_path / "deny.csv"
    deny.write_text("i1\n")
    before = users.read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(users)
    for out, options in ((users, []), (link, []), (deny, ["--deny", str(deny)])):
        assert main(["recommend", str(run), "--users", str(users), "--out", str(out), *options]) == 2
        assert "--out must not be a file that is read, which it would replace; found" in capsys.readouterr().err
    assert (users.read_bytes(), deny.read_text()) == (before, "i1\n")
    assert not parts_folder(users).exists()


def test_a_folder_in_the_place_of_the_file_is_named_before_anything_is_computed(run, tmp_path, capsys):
    users, out = as_file("wide.csv", tmp_path), tmp_path / "out.csv"
    out.mkdir()
    assert main(["recommend", str(run), "--users", str(users), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"plr: --out must be a file; found the folder {str(out)!r}\n"
    assert not parts_folder(out).exists()


def test_the_parts_are_locked(run, tmp_path):
    users, out = as_file("wide.jsonl", tmp_path), tmp_path / "out.csv"
    parts_folder(out).mkdir()
    with bulk.locked(parts_folder(out)), pytest.raises(RunError, match="is writing here"):
        recommend_users(run, users, out)


def test_the_command(run, recommender, tmp_path, capsys):
    users, out = as_file("wide.csv", tmp_path), tmp_path / "out.csv"
    (tmp_path / "only.txt").write_text("\ni1\n i2 \nsold out\n" + "".join(f"i{n}\n" for n in range(5, 20)))
    (tmp_path / "deny.txt.gz").write_bytes(gzip.compress(b"i7\ni8\n", mtime=0))
    lists = ["--only", str(tmp_path / "only.txt"), "--deny", str(tmp_path / "deny.txt.gz")]
    assert main(["recommend", str(run), "--users", str(users), "--out", str(out), "-k", "3", *lists]) == 0
    printed, said = capsys.readouterr()
    assert "25 users, 75 recommendations; saved in" in printed
    assert f"{tmp_path / 'only.txt'}: 1 of 18 ids are no items of the run" in said
    assert "interactions are with items never seen in training; they are ignored" in said
    assert "2 users have no known item and got the most popular ones" in said
    found = pl.read_csv(out, schema_overrides={"rank": pl.Int32, "score": pl.Float32})
    allowed = ["i1", "i2", *(f"i{n}" for n in range(5, 20))]
    assert found.equals(expected(recommender, k=3, only=allowed, exclude=["i7", "i8"]))
    assert main(["recommend", str(run), "--history", "i3 i4", "-k", "3", *lists, "--json"]) == 0
    (answer,) = recommender.recommend([["i3", "i4"]], 3, only=allowed, exclude=["i7", "i8"])
    assert json.loads(capsys.readouterr().out) == [
        {"item": each.item, "rank": rank, "score": each.score} for rank, each in enumerate(answer, start=1)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --history, or --users and --out"),
        (["--history", "i1", "--users", "FILE"], "give --history, or --users and --out"),
        (["--users", "FILE"], "--users needs --out"),
        (["--history", "i1", "--out", "o.csv"], "--out belongs to --users"),
        (["--history", "i1", "--user_column", "u"], "--user_column belongs to --users"),
        (["--users", "FILE", "--out", "o.csv", "--json"], "--json belongs to --history"),
        (["--users", "FILE", "--out", "o.csv", "--unknown", "skip"], "--unknown belongs to --history"),
        (["--users", "FILE", "--out", "o.xlsx"], "--out must end in .parquet, .csv, .csv.gz, .jsonl, .jsonl.gz"),
        (["--users", "nowhere.csv", "--out", "o.csv"], "nowhere.csv: no such file"),
        (["--users", "FILE", "--out", "o.csv", "-k", "99"], "k must be in 1..24"),
        (["--users", "FILE", "--out", "o.csv", "--only", "nowhere"], "nowhere: no such file"),
        (["--users", "FILE", "--out", "o.csv", "--device", "abacus"], "--device abacus"),
        (["--history", "i1", "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message, run, tmp_path, capsys, monkeypatch):
    users = as_file("wide.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = [str(users) if each == "FILE" else each for each in arguments]
    assert main(["recommend", str(run), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("plr: ")
    assert message in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("u.jsonl", '{"user": "a", "history": ["i1"]}\n{"user": "b", "history": "i1"}\n',
         "u.jsonl:2: history must be a list of item ids; found 'i1'"),
        ("u.jsonl", '{"user": "a", "history": ["i1"], "history": ["i2"]}\n',
         "u.jsonl:1: not usable JSON: 'history' occurs twice"),
        ("u.jsonl", '{"user": "a", "history": ["i1"]}\n\n{"user": null, "history": []}\n',
         "u.jsonl:3: user must be an id; found None"),
        ("u.jsonl", '{"user": "a", "history": [true]}\n', "u.jsonl:1: history must be a list of item ids"),
        ("u.jsonl", '{"history": []}\n', "u.jsonl:1: no user column"),
        ("u.jsonl", "[1]\n", "u.jsonl:1: must be an object with a user and a history"),
        ("u.jsonl", '{"user": 1,\n', "u.jsonl:1: not JSON"),
        ("u.jsonl", '{"user": 1, "history": ' + "[" * 99999, "u.jsonl:1: not usable JSON: maximum recursion depth"),
        ("u.jsonl", '{"user": ' + "1" * 5000 + "}", "u.jsonl:1: not usable JSON: Exceeds the limit"),
        ("u.jsonl", r'{"user": "a\ud800", "history": []}', "u.jsonl:1: half a character"),
        ("u.jsonl", r'{"user": "a", "history": ["i1", "i\udfff"]}', "u.jsonl:1: half a character"),
        ("u.csv", "user,history\na,i1 i2\n,i3\n", "u.csv:3: the user is missing"),
        ("u.csv", "user,history\na,i1,i2\n", "u.csv:2: 3 fields; the header has 2"),
        ("u.csv", 'user,history\na,"i1\n', "u.csv:2: cannot be read: unexpected end of data"),
        ("u.csv", b"user,history\na,\xff\n", "u.csv:2: byte 0xff"),
        ("u.csv.gz", gzip.compress(b"user,history\na,i1\n", mtime=0)[:-9], "the gzip file ends too early"),
        ("u.jsonl", b"PK\x03\x04...", "a zip archive"),
        ("u.csv", "user,when\na,i1\n", "no item column"),
        ("u.csv", "", "the file is empty"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(name, content, message, run, write, tmp_path):
    path = write(name, content)
    with pytest.raises(DataError, match=re.escape(message)):
        recommend_users(run, path, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_names_of_columns_for_a_format_without_any(run, small_data, tmp_path):
    with pytest.raises(ConfigError, match="has no named columns"):
        recommend_users(run, small_data, tmp_path / "o.csv", reading={"user_column": "u"})


@pytest.mark.parametrize(
    ("form", "reading", "message"),
    [
        ("prepared", {"format": "csv", "user_column": "u", "item_column": None},
         "prepared: a prepared folder has no format, .*; found format 'csv', user_column 'u'"),
        ("wide.jsonl", {"user_column": "user", "item_column": "x"}, "lines of histories have no .*; found item_column"),
        ("wide.csv", {"timestamp_column": "age"}, "rows of histories have no rating_column, timestamp_column; found"),
        ("wide.parquet", {"rating_column": "age"}, "rows of histories have no .*; found rating_column 'age'"),
    ],
)  # fmt: skip
def test_names_that_would_be_ignored(form, reading, message, run, small_data, tmp_path):
    if form == "prepared":
        assert main(["prepare", str(small_data), "--out", str(tmp_path / form)]) == 0
    users = as_file(form, tmp_path)
    with pytest.raises(ConfigError, match=message):
        recommend_users(run, users, tmp_path / "o.csv", reading=reading)
    named = {"format": "auto", "timestamp_column": "none"}  # says what is so
    assert recommend_users(run, users, tmp_path / "o.csv", reading=named).users


def test_an_interrupted_command_that_read_other_columns_is_not_gone_on_with(run, tmp_path, monkeypatch):
    users, out = tmp_path / "users.parquet", tmp_path / "out.csv"
    pl.DataFrame({"user": ["a"], "account": ["b"], "history": [["i1"]]}).write_parquet(users)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(bulk, "_join", killed)
        with pytest.raises(Killed):
            recommend_users(run, users, out, k=2)
    with pytest.raises(RunError, match="other user_column;"):
        recommend_users(run, users, out, k=2, reading={"user_column": "account"})
    recommend_users(run, users, out, k=2, reading={"user_column": None})
    assert set(pl.read_csv(out)["user"]) == {"a"}


def test_an_interrupted_command_with_other_text_vectors_is_not_gone_on_with(
    small_data, tmp_path, monkeypatch, capsys
):
    """Vectors of one's own have the manifest that was given, whatever they are."""
    known = sorted({item for line in small_data.read_text().splitlines() for item in line.split()[1:]})

    def vectors(folder, ids, seed):
        made = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(seed))
        marks = torch.ones(len(ids), dtype=torch.bool)
        TextVectors(ids, made, marks, {"encoder": "mine"}, {}).save(tmp_path / folder)
        return tmp_path / folder

    run, out, users = tmp_path / "run", tmp_path / "out.csv", tmp_path / "users.csv"
    plr.train(small_data, run, backbone="unisrec", method="base", text_vectors=str(vectors("own", known, 0)), dim=8,
              ffn_dim=8, epochs=1, threads=1)  # fmt: skip
    users.write_text("user,history\na,i1\n")
    first, second = vectors("first", ["new"], 1), vectors("second", ["new"], 2)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(bulk, "_join", killed)
        with pytest.raises(Killed):
            recommend_users(run, users, out, k=2, text_vectors=first)
    with pytest.raises(RunError, match="other text_vectors;"):
        recommend_users(run, users, out, k=2, text_vectors=second)
    (tmp_path / "only.txt").write_text("new\ni2\nnobody\n")
    shutil.rmtree(parts_folder(out))
    options = ["-k", "2", "--text_vectors", str(first), "--only", str(tmp_path / "only.txt")]
    assert main(["recommend", str(run), "--users", str(users), "--out", str(out), *options]) == 0
    assert "only.txt: 1 of 3 ids are no items of the run" in capsys.readouterr().err
    assert sorted(pl.read_csv(out)["item"]) == ["i2", "new"]


def test_users_of_parquet_files_are_read_as_those_of_others(run, tmp_path, monkeypatch):
    monkeypatch.setattr(bulk, "BLOCK", 2)
    users, out = tmp_path / "users.parquet", tmp_path / "out.parquet"
    pl.DataFrame({"user": [" a", "b "], "history": [["i1"], ["i1"]]}).write_parquet(users)
    recommend_users(run, users, out, k=1)
    assert pl.read_parquet(out)["user"].to_list() == ["a", "b"]
    pl.DataFrame({"user": ["a", "b", "c", " "], "history": [["i1"]] * 4}).write_parquet(users)
    with pytest.raises(DataError, match=r"users.parquet: the user is missing in row 4"):
        recommend_users(run, users, out)


def test_a_user_whose_ratings_are_all_too_low_is_answered_in_a_file_and_in_a_frame(small_data, tmp_path):
    rows = [
        (user, item, 1 + (user_number + step) % 5, step)
        for user_number, (user, *items) in enumerate(map(str.split, small_data.read_text().splitlines()))
        for step, item in enumerate(items)
    ]
    frame = pl.DataFrame(rows, schema=["user", "item", "stars", "timestamp"], orient="row")
    metrics = plr.train(frame, tmp_path / "run", method="base", dim=8, ffn_dim=8, epochs=1, threads=1, min_rating=3,
                        rating_column="stars")  # fmt: skip
    assert metrics
    recommender = plr.Recommender.load(tmp_path / "run")
    first, second, third = recommender.item_ids[:3]
    rows = [("a", first, 2, 1), ("b", second, 5, 1), ("b", third, 2, 2), ("c", first, 3, 1), ("c", third, 4, 2)]
    asked = pl.DataFrame(rows, schema=["user", "item", "stars", "timestamp"], orient="row")
    asked.write_csv(tmp_path / "users.csv")
    counts = recommend_users(tmp_path / "run", tmp_path / "users.csv", tmp_path / "out.parquet", k=3)
    assert (counts.users, counts.popular, counts.interactions) == (3, 1, 3)
    found = recommender.recommend_frame(asked, 3)
    assert found.equals(pl.read_parquet(tmp_path / "out.parquet"))
    popular = found.filter(pl.col("source") == "popularity")
    assert set(popular["user"]) == {"a"}
    of_model = recommender.recommend([[second], [first, third]], 3)
    assert found.filter(pl.col("user") != "a")["item"].to_list() == [each.item for row in of_model for each in row]
    just = asked.with_columns(stars=pl.col("stars") + 0.1)  # of which float32 has less than 4.1, say
    recommender.config.min_rating = 4.1
    narrow = recommender.recommend_frame(just.with_columns(pl.col("stars").cast(pl.Float32)), 3)
    assert narrow.equals(recommender.recommend_frame(just, 3))
    assert set(narrow.filter(pl.col("source") == "popularity")["user"]) == {"a"}
    recommender.config.min_rating = 3
    assert recommender.recommend_frame(asked.head(0), 3).shape == (0, 5)
    assert recommender.recommend_frame(asked.drop("stars"), 3)["source"].unique().to_list() == ["model"]
    for stars in (None, float("nan")):
        with pytest.raises(DataError, match="column 'stars' must hold numbers, none missing"):
            recommender.recommend_frame(asked.with_columns(stars=pl.lit(stars, pl.Float64)), 3)


def test_lists_of_items(write):
    assert read_item_list(write("a", "i1\n\n  i 2\r\ni3\ri\x854\ni\u20285\ni\x1c6")) == [
        "i1", "i 2", "i3", "i\x854", "i\u20285", "i\x1c6"
    ]  # fmt: skip
    with pytest.raises(DataError, match="holds no item id"):
        read_item_list(write("b", " \n"))
    with pytest.raises(DataError, match="b:2: byte 0xff"):
        read_item_list(write("b", b"i1\n\xff\n"))


def test_no_user_makes_a_file_with_no_row(run, write, tmp_path):
    users = write("u.csv", "user,history\n")
    for name in ("out.csv", "out.parquet"):
        assert recommend_users(run, users, tmp_path / name).rows == 0
    assert (tmp_path / "out.csv").read_text() == "user,item,rank,score,source\n"
    assert pl.read_parquet(tmp_path / "out.parquet").columns == ["user", "item", "rank", "score", "source"]


def test_popularity_is_that_of_training_and_older_runs_count_it_again(run, recommender, small_data, tmp_path):
    lines = [line.split()[1:-2] for line in small_data.read_text().splitlines()]  # leave-one-out
    counts = pl.Series([item for line in lines for item in line]).value_counts()
    of_item = dict(counts.iter_rows())
    assert recommender.popularity.tolist() == [of_item.get(item, 0) for item in recommender.item_ids]
    older = tmp_path / "older"
    shutil.copytree(run, older)
    RunFolder(older).popularity.unlink()
    assert plr.Recommender.load(older).popularity.tolist() == recommender.popularity.tolist()
    for damaged in (pl.lit(None, pl.Int64), pl.lit(float("nan")), -1 - pl.col("interactions")):
        frame = pl.read_parquet(RunFolder(run).popularity).with_columns(damaged.alias("interactions"))
        frame.write_parquet(RunFolder(older).popularity)
        with pytest.raises(DataError, match=r"popularity.parquet: must hold how often each item occurs, whole numbers"):
            plr.Recommender.load(older).recommend_frame({"user": ["a"], "history": [""]})
    RunFolder(older).popularity.unlink()
    config = (older / "config.yaml").read_text()
    (older / "config.yaml").write_text(config.replace(str(small_data), "moved.txt"))
    users = tmp_path / "u.csv"
    users.write_text("user,history\na,i1\n")
    recommend_users(older, users, tmp_path / "known.csv")
    users.write_text("user,history\na,i1\nb,\n")
    with pytest.raises(RunError, match="its data are not available"):
        recommend_users(older, users, tmp_path / "unknown.csv")
    (tmp_path / "empty.txt").write_text("never\n")
    with pytest.raises(RequestError, match="only names no item"):
        recommend_users(run, users, tmp_path / "o.csv", only=read_item_list(tmp_path / "empty.txt"))
