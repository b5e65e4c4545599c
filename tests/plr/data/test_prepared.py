"""The cache gives back what was stored, or builds it again; writing is all or nothing."""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path

import pytest
import torch

from plr.data import SequenceDataset, prepare
from plr.data.atomic import atomic_path

TEXT = "a x y z w\nb y x\nlone x\nc w z y x w\n"


def same(one: SequenceDataset, other: SequenceDataset) -> bool:
    tensors = ("items", "offsets", "roles", "training_stop")
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and one.user_ids.equals(other.user_ids)
        and one.item_ids.equals(other.item_ids)
        and (one.split, one.report, one.content_hash) == (other.split, other.report, other.content_hash)
    )


@pytest.fixture
def source(write) -> Path:
    return write("data.txt", TEXT)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def no_reading(monkeypatch):
    """Call this to make any further reading of a source file fail."""

    def forbid():
        monkeypatch.setattr("plr.data.pipeline.read", lambda *_: pytest.fail("the file was read again"))

    return forbid


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_round_trip(source, cache, no_reading):
    built = prepare(source, cache_dir=cache)
    assert same(built, prepare(source))
    no_reading()
    assert same(built, prepare(source, cache_dir=cache))


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_a_moved_file_is_found_again_and_warnings_name_it(source, cache, no_reading):
    built = prepare(source, cache_dir=cache)
    moved = source.rename(source.with_name("moved.txt"))
    no_reading()
    with pytest.warns(UserWarning, match=r"moved.txt:3: user 'lone'"):
        assert same(built, prepare(moved, cache_dir=cache))


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_hash_follows_content_and_options(source, write):
    first = prepare(source).content_hash
    assert prepare(source, format="sequences").content_hash == first
    assert prepare(source, core=2).content_hash != first
    assert prepare(write("data.txt", TEXT + "d x y\n")).content_hash != first


@pytest.mark.filterwarnings("ignore:.*single interaction")
@pytest.mark.parametrize("name", ["manifest.json", "sequences.safetensors", "users.parquet", "items.parquet"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "replace"])
def test_damage_is_noticed_and_repaired(source, cache, no_reading, name, damage):
    built = prepare(source, cache_dir=cache)
    (folder,) = cache.iterdir()
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        file.unlink()
    else:
        file.write_text("[]")
    with pytest.warns(UserWarning, match="cannot be used and is built again"):
        assert same(built, prepare(source, cache_dir=cache))
    no_reading()
    assert same(built, prepare(source, cache_dir=cache))


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_foreign_cache_is_noticed(source, write, cache):
    prepare(source, cache_dir=cache)
    (folder,) = cache.iterdir()
    other = write("other.txt", TEXT + "d x y\n")
    built = prepare(other)
    folder.rename(cache / built.content_hash[:32])
    with pytest.warns(UserWarning, match="belongs to other data"):
        assert same(built, prepare(other, cache_dir=cache))


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_nothing_is_left_of_a_failed_write(source, cache, monkeypatch):
    monkeypatch.setattr("plr.data.prepared.FORMAT_VERSION", object())  # fails in the manifest, which is written last
    with pytest.raises(TypeError, match="not JSON"):
        prepare(source, cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_refused_data_leaves_no_cache(write, cache):
    with pytest.raises(ValueError):
        prepare(write("bad.txt", "a\n"), cache_dir=cache)
    assert not cache.exists()


def test_no_pickle(source, cache):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepare(source, cache_dir=cache)
    for file in cache.rglob("*.*"):
        assert file.suffix in (".json", ".safetensors", ".parquet")


def _break_off(write, *args) -> None:
    write(*args)
    raise KeyError


def test_atomic_file(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    with atomic_path(path) as aside:
        assert (aside.parent, aside.suffix) == (path.parent, ".txt")
        aside.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(KeyError), atomic_path(path) as aside:
        _break_off(aside.write_text, "broken")
    assert path.read_text() == "new"
    assert [child.name for child in path.parent.iterdir()] == ["file.txt"]


def test_atomic_folder(tmp_path):
    path = tmp_path / "run"
    for content in ("old", "new"):
        with atomic_path(path) as aside:
            aside.mkdir()
            (aside / content).write_text(content)
    assert [child.name for child in path.iterdir()] == ["new"]
    with pytest.raises(KeyError), atomic_path(path) as aside:
        _break_off(aside.mkdir)
    assert [child.name for child in tmp_path.iterdir()] == ["run"]
    assert [child.name for child in path.iterdir()] == ["new"]


def test_atomic_body_that_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


def _write_folder(path: Path) -> None:
    for _ in range(20):
        with atomic_path(path) as aside:
            aside.mkdir()
            (aside / "whole").write_text("x" * 1000)


def test_atomic_folder_under_competition(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_folder, args=(tmp_path / "run",)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [child.name for child in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "whole").read_text() == "x" * 1000
