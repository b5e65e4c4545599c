"""A prepared folder is opened as it was written, or refused.

The cache gives back what was stored, or builds it again; writing is all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from plr.config import Config
from plr.data import SequenceDataset, open_prepared, prepare
from plr.errors import DataError
from plr.files import atomic_path
from plr.inputs import load_dataset
from plr.prepare import PrepareOptions, write_folder
from plr.prepare.pipeline import Preparation

ROOT = Path(__file__).parents[3]

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
        monkeypatch.setattr("plr.prepare.sources.read", lambda *_: pytest.fail("the file was read again"))

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
    monkeypatch.setattr("plr.prepare.folder.FORMAT_VERSION", object())  # fails in the manifest, which is written last
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")  # as /dev/stdout is one, which root may replace
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="is a device or a pipe"), atomic_path(tmp_path / name) as aside:
            aside.touch()
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_a_folder_means_that_folder(tmp_path):
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").mkdir()
    for _ in range(2):
        with atomic_path(tmp_path / "link") as aside:
            aside.mkdir()
            (aside / "content").touch()
        assert sorted(child.name for child in tmp_path.iterdir()) == ["link", "real"]
        assert [child.name for child in (tmp_path / "real").iterdir()] == ["content"]
    with pytest.raises(FileExistsError, match="real"), atomic_path(tmp_path / "link", replace=False) as aside:
        aside.mkdir()


@pytest.mark.parametrize("name", ["run", "file.json"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path, name):
    context, read = multiprocessing.get_context("fork"), []
    for _ in range(2):
        begun = context.Event()
        process = context.Process(target=_write_for_ever, args=(tmp_path / name, begun))
        process.start()
        assert begun.wait(60)
        if not read:
            process.kill()
            process.join()
        read.append(next(path for path in tmp_path.iterdir() if path.name.startswith(".") and path not in read))
    foreign = tmp_path / f".{Path(name).stem}.0123456789abcdef{Path(name).suffix}"
    foreign.touch()  # of another host
    with atomic_path(tmp_path / name) as aside:
        aside.touch()
    assert not read[0].exists()  # of the killed one
    assert read[1].exists()  # of the living one
    assert foreign.exists()
    process.kill()
    process.join()


def _write_for_ever(path: Path, begun) -> None:
    with atomic_path(path) as aside:
        aside.mkdir()
        (aside / "half").touch()
        begun.set()
        time.sleep(600)


def test_atomic_body_that_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())


def _save_tensors(path: Path) -> None:
    save_file({"zeros": torch.zeros(50_000)}, path)


def _save_table(path: Path) -> None:
    pl.DataFrame({"item_id": [f"item{number}" for number in range(50_000)]}).write_parquet(path, compression="zstd")


def _save_checkpoint(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"zeros": torch.zeros(50_000)}, file)


def _save_text(path: Path) -> None:
    path.write_text("x" * 200_000)


def _save(path: Path, write: Callable[[Path], None], as_folder: bool) -> None:
    with atomic_path(path) as aside:
        if as_folder:
            aside.mkdir()
        write(aside / "inside" if as_folder else aside)


@pytest.mark.parametrize("write", [_save_tensors, _save_table, _save_checkpoint, _save_text])
@pytest.mark.parametrize("as_folder", [False, True])
def test_atomic_path_that_cannot_be_written_is_named(tmp_path, write, as_folder):
    """As on a full disk; each library raises something else."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            _save(tmp_path / "file", write, as_folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_folder", [False, True])
def test_atomic_files_are_as_readable_as_others(tmp_path, as_folder):
    usual, path = tmp_path / "usual", tmp_path / "file"
    usual.touch()
    _save(path, _save_tensors, as_folder)
    assert (path / "inside" if as_folder else path).stat().st_mode == usual.stat().st_mode


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


def test_a_folder_that_another_writer_moves_away_meanwhile_is_no_device(tmp_path, monkeypatch):
    path, looked = tmp_path / "run", Path.stat
    path.mkdir()

    def looked_at_last(self, **options):
        found = looked(self, **options)
        if self == path:
            path.rename(tmp_path / "former")
        return found

    monkeypatch.setattr(Path, "stat", looked_at_last)
    with atomic_path(path) as aside:
        aside.mkdir()
    assert sorted(os.listdir(tmp_path)) == ["former", "run"]


@pytest.fixture
def folder(source, tmp_path) -> Path:
    out = tmp_path / "prepared"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_folder([source], out, PrepareOptions())
    return out


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_a_folder_is_what_prepare_makes(source, folder):
    assert same(open_prepared(folder), prepare(source))
    assert same(prepare(folder), prepare(source))
    assert pl.read_parquet(folder / "items.parquet").columns == ["item_id"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["report"]["sources"][0]["file"] == "data.txt"
    assert manifest["report"]["sources"][0]["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (manifest["users"], manifest["items"], manifest["interactions"]) == (4, 4, 12)
    assert {*manifest["written_by"]} == {"plr", "polars"}


def test_opening_reads_no_ids_and_hashes_nothing(folder, monkeypatch):
    monkeypatch.setattr("plr.prepare.folder.sha256_of", lambda _: pytest.fail("a file was hashed"))
    with monkeypatch.context() as patch:
        patch.setattr("polars.read_parquet", lambda *_, **__: pytest.fail("ids were read"))
        dataset = open_prepared(folder)
        assert (dataset.num_users, dataset.num_items) == (4, 4)
        rows = dataset.rows("train", 5)
        assert rows.batch(torch.arange(len(rows))).item_ids.shape[0] == dataset.report["rows"]["train"]
    assert dataset.item_ids.to_list() == ["w", "x", "y", "z"]
    assert dataset.user_ids.to_list() == ["a", "b", "c", "lone"]


def test_arrays_are_mapped_not_read(folder):
    dataset = open_prepared(folder)
    before = dataset.items.clone()
    dataset.items.fill_(3)  # a private mapping: the file stays as it is
    assert torch.equal(open_prepared(folder, verify=True).items, before)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("manifest.json", lambda text: "{", "damaged"),
        (
            "manifest.json",
            lambda text: text.replace('"version": 2', '"version": 1'),
            "format version 1; this plr reads 2",
        ),
        ("manifest.json", lambda text: text.replace("plr prepared", "other"), "not the manifest"),
        ("manifest.json", lambda text: text.replace('"interactions": 12', '"interactions": 11'), "shape"),
        ("users.parquet", lambda text: text + "x", "not as it was written"),
    ],
)
def test_a_damaged_folder_is_refused(folder, name, change, message):
    file = folder / name
    file.write_bytes(change(file.read_bytes().decode("latin-1")).encode("latin-1"))
    with pytest.raises(DataError, match=message):
        open_prepared(folder)


def test_a_flipped_bit_is_found_on_demand(folder):
    file = folder / "sequences.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    open_prepared(folder)
    with pytest.raises(DataError, match=r"sequences.safetensors: not as it was written"):
        open_prepared(folder, verify=True)


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_a_flipped_bit_is_not_trained_on_and_preparing_again_repairs_it(source, folder):
    file = folder / "sequences.safetensors"
    content = bytearray(file.read_bytes())
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"sequences.safetensors: not as it was written"):
        load_dataset(Config(data=str(folder)))
    write_folder([source], folder, PrepareOptions())
    assert file.read_bytes() == content


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_another_process_that_was_faster_is_not_overwritten(source, folder, tmp_path, monkeypatch):
    other = shutil.copytree(folder, tmp_path / "other")

    def build(job, *arguments):
        shutil.copytree(other, tmp_path / "out")
        return built(job, *arguments)

    built = Preparation.build
    monkeypatch.setattr(Preparation, "build", build)
    write_folder([source], tmp_path / "out", PrepareOptions())  # the same
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(DataError, match="other files or options"):
        write_folder([source], tmp_path / "out", PrepareOptions(core=2))
    assert same(open_prepared(tmp_path / "out", verify=True), open_prepared(other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.txt", "other", "out", "prepared"]


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_where_nothing_can_be_written(source, tmp_path):
    with pytest.raises(DataError, match=r"data.txt: the folder cannot be written to; choose another --out"):
        write_folder([source], source / "out", PrepareOptions())
    code = "import sys; from plr.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ["bash", "-c", "ulimit -f 0; trap '' XFSZ; exec \"$@\"", "bash", sys.executable, "-c", code]
    command += ["prepare", str(source), "--out", str(tmp_path / "out")]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert printed.returncode == 2, printed.stderr
    assert "cannot be written" in printed.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["data.txt"]


def test_out_is_no_link_to_nothing_and_no_file(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Preparation, "build", None)  # said before all work is done
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match="link: a link that leads nowhere"):
        write_folder([source], tmp_path / "link", PrepareOptions())
    with pytest.raises(DataError, match=r"data.txt: a file, where a folder is to be written"):
        write_folder([source], source, PrepareOptions())


def test_a_full_disk_for_temporary_files_is_named(write, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("plr.prepare.sources.without_bad_records", full)
    path = write("a.csv", 'user,item\na,"x\n')
    with pytest.raises(DataError, match=rf"a.csv: its copy .* to {tempfile.gettempdir()} \(TMPDIR .*No space left"):
        write_folder([path], tmp_path / "out", PrepareOptions(), skip_bad_lines=True)


def test_a_missing_file_is_refused(folder):
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match="damaged"):
        open_prepared(folder)
    with pytest.raises(DataError, match=r"manifest.json is missing"):
        open_prepared(folder.parent)


def test_options_of_a_prepared_folder_are_fixed(folder):
    with pytest.raises(ValueError, match="is prepared already; its options cannot be changed: core"):
        prepare(folder, core=2)


@pytest.mark.filterwarnings("ignore:.*single interaction")
def test_out_is_not_overwritten(source, folder, tmp_path):
    manifest = (folder / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="other files or options"):
        write_folder([source], folder, PrepareOptions(core=2))
    assert (folder / "manifest.json").read_bytes() == manifest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(DataError, match="not empty and is not a prepared data set"):
        write_folder([source], tmp_path / "mine", PrepareOptions())
    for other in ('{"format": "plr text vectors"}', '{"name": "an application"}', "[]", "{"):  # no data set's manifest
        (tmp_path / "mine" / "manifest.json").write_text(other)
        with pytest.raises(DataError, match="not empty and is not a prepared data set"):
            write_folder([source], tmp_path / "mine", PrepareOptions())
        assert (tmp_path / "mine" / "notes.txt").exists()
    (folder / "manifest.json").write_text("{")
    write_folder([source], folder, PrepareOptions())
    assert same(open_prepared(folder), prepare(source))  # a damaged one is made anew


TWICE = """
import hashlib, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from plr.prepare import PrepareOptions, write_folder
write_folder([Path(sys.argv[1])], Path(sys.argv[2]), PrepareOptions())
print(*(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(sys.argv[2]).iterdir())))
"""


def test_every_byte_is_the_same_whatever_the_hash_seed_and_the_threads(write, tmp_path):
    lines = [f"u{n * 7919 % 613},i{n * 104729 % 997},{n * 31 % 5000}\n" for n in range(20_000)]
    path = write("data.csv", "user,item,timestamp\n" + "".join(lines))
    printed = {
        subprocess.run(
            [sys.executable, "-c", TWICE, path, tmp_path / f"out{seed}"],
            env={**os.environ, "PYTHONHASHSEED": seed, "POLARS_MAX_THREADS": threads, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        for seed, threads in (("0", "1"), ("1", "4"))
    }
    assert len(printed) == 1


def test_paths_may_be_text(source, tmp_path):
    write_folder([str(source)], str(tmp_path / "made"), PrepareOptions())
    assert same(open_prepared(str(tmp_path / "made")), prepare(str(source)))
    with pytest.raises(TypeError, match="sources must be a list of files; found "):
        write_folder(str(source), tmp_path / "other", PrepareOptions())


def test_a_name_that_cannot_be_written_is_the_one_that_was_given(tmp_path, monkeypatch):
    opened = os.open

    def refused(path, flags, *mode):
        if flags & os.O_CREAT:  # as on a read-only file system
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(OSError, match=rf"Read-only file system: '{tmp_path / 'given.md'}'"), atomic_path(
        tmp_path / "given.md"
    ):
        pytest.fail("nothing can be written")
