"""Data sets in the layouts in which others publish them, found in their folder by their names."""

from __future__ import annotations

import gzip
import json

import polars as pl
import pytest

from plr.cli.prepare import Request, run
from plr.data import open_prepared, prepare
from plr.errors import DataError

ITEMS = (10, 9, 11, 9)
RATINGS = [(user, item, 4, 978300000 + 10 * user + n) for user in (1, 2) for n, item in enumerate(ITEMS)]


def made(source, tmp_path, **options):
    run(Request(str(source), str(tmp_path / "out"), options={"split": "leave-one-out", **options}))
    return open_prepared(tmp_path / "out")


def test_movielens_folder(tmp_path):
    folder = tmp_path / "ml"
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in RATINGS))
    (folder / "movies.dat").write_bytes("9::Amélie (2001)::Comedy|Romance\n10::Heat (1995)::Crime\n".encode("latin-1"))
    dataset = made(folder, tmp_path)
    assert dataset.report["format"] == "movielens"
    items = pl.read_parquet(dataset.item_features)
    assert items["item_id"].to_list() == ["10", "11", "9"]
    assert items["title"].to_list() == ["Heat (1995)", None, "Amélie (2001)"]
    assert items["categories"].to_list()[2] == ["Comedy", "Romance"]


def test_metadata_beside_packed_files(tmp_path):
    csv = "userId,movieId,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in RATINGS)
    (tmp_path / "ratings.csv.gz").write_bytes(gzip.compress(csv.encode()))
    (tmp_path / "movies.csv.gz").write_bytes(gzip.compress(b"movieId,title,genres\n10,Heat,Crime\n"))
    dataset = made(tmp_path / "ratings.csv.gz", tmp_path)
    assert pl.read_parquet(dataset.item_features)["title"].to_list() == ["Heat", None, None]


def test_movielens_with_tabs(tmp_path):
    (tmp_path / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    dataset = prepare(tmp_path / "u.data")
    assert (dataset.report["format"], len(dataset.items), dataset.report["time_unit"]) == ("movielens", 8, "seconds")


def test_recbole_folder(tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(head + "".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n10\tHeat\t1995\tCrime Drama\n"
    )
    dataset = made(folder, tmp_path, min_rating=4.0)
    items = pl.read_parquet(dataset.item_features)
    assert items["title"].to_list() == ["Heat", None, None]
    assert items["categories"].to_list()[0] == ["Crime", "Drama"]


def write_arrow(folder, frames) -> None:
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(frames):05}.arrow" for number in range(len(frames))]
    for name, frame in zip(names, frames, strict=True):
        frame.write_ipc_stream(folder / name)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def test_hugging_face_folder(tmp_path):
    frame = pl.DataFrame(RATINGS, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    write_arrow(tmp_path / "one", [frame[:4], frame[4:]])
    dataset = made(tmp_path / "one", tmp_path)
    assert (dataset.report["format"], dataset.num_users, len(dataset.items)) == ("huggingface", 2, 8)
    assert len(dataset.report["sources"]) == 2
    for split, part in (("train", frame[:5]), ("test", frame[5:])):
        write_arrow(tmp_path / "dict" / split, [part])
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    assert prepare(tmp_path / "dict", split="leave-one-out").items.tolist() == dataset.items.tolist()


def test_broken_hugging_face_folders(tmp_path):
    write_arrow(tmp_path / "one", [pl.DataFrame({"user_id": ["a"], "item_id": ["x"]})])
    file = tmp_path / "one" / "data-00000-of-00001.arrow"
    file.write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"data-00000-of-00001.arrow: not a readable Arrow stream file"):
        prepare(tmp_path / "one")
    file.unlink()
    with pytest.raises(DataError, match="which is missing"):
        prepare(tmp_path / "one")
    state = tmp_path / "one" / "state.json"
    state.write_text('{"_data_files": ["data.arrow"]}')
    with pytest.raises(DataError, match=r"state.json: an entry of '_data_files' names no file"):
        prepare(tmp_path / "one")
    state.write_text('{"_data_files": [], "_indices_data_files": [{"filename": "indices.arrow"}]}')
    with pytest.raises(DataError, match="chosen by indices"):
        prepare(tmp_path / "one")
    state.write_text("{}")
    with pytest.raises(DataError, match="no '_data_files'"):
        prepare(tmp_path / "one")


def test_folders_without_or_with_several_files(tmp_path):
    with pytest.raises(DataError, match="it holds nothing"):
        prepare(tmp_path)
    (tmp_path / "a.inter").touch()
    (tmp_path / "b.inter").touch()
    with pytest.raises(DataError, match=r"several files of interactions \(a.inter, b.inter\); name one"):
        prepare(tmp_path)
