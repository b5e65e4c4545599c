"""Public sets from a local server: fetched, checked, unpacked, and what the messages say where that fails."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import zipfile

import pytest
from rich.console import Console

from plr.cli import main
from plr.cli.get import get, listed
from plr.errors import ConfigError, DataError
from plr.prepare import public
from plr.prepare.download import RECORD
from plr.prepare.public import AMAZON_DOMAINS, SETS, PublicFile, PublicSet, fetch, public_set
from tests.plr.prepare.test_download import Server

RATINGS = "".join(f"{user}::{item}::5::{978300000 + item}\n" for user in range(1, 7) for item in range(1, 9))


def packed(**members):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"tiny/{name.replace('_', '.')}", content)
    return target.getvalue()


ARCHIVE = packed(ratings_dat=RATINGS, movies_dat="1::One (1999)::Drama\n", other_txt="not wanted")
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


@pytest.fixture
def server():
    one = Server()
    one.files["/tiny.zip"] = ARCHIVE
    yield one
    one.close()


@pytest.fixture
def tiny(server, monkeypatch):
    """A set of the local server, known by its size and hash."""
    members = ("tiny/ratings.dat", "tiny/movies.dat")
    file = PublicFile("tiny.zip", f"{server.url}/tiny.zip", len(ARCHIVE), SHA256, members)
    monkeypatch.setitem(public.SETS, "tiny", PublicSet("tiny", "a tiny one", (file,), "https://example.org"))
    return file


def run(*arguments, **options):
    out = io.StringIO()
    get(*arguments, pause=0, console=Console(file=out, width=300), **options)
    return out.getvalue()


def test_a_set_is_fetched_checked_unpacked_and_prepared(server, tiny, tmp_path):
    folder = tmp_path / "raw"
    said = run("Tiny", str(folder))
    assert f"SHA-256 {SHA256}, as expected" in said
    assert f"plr prepare {folder} --out data/tiny" in said
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "movies.dat", "ratings.dat", "tiny.zip"]
    assert (folder / "ratings.dat").read_text() == RATINGS
    assert main(["prepare", str(folder), "--out", str(tmp_path / "data")]) == 0
    (folder / "ratings.dat").write_text(RATINGS[:-1] + "x")
    (folder / "movies.dat").unlink()
    run("tiny", str(folder))
    assert len(server.asked) == 1  # the archive was there, and whole
    assert (folder / "ratings.dat").read_text() == RATINGS
    assert (folder / "movies.dat").exists()


@pytest.mark.parametrize("archive", [None, ARCHIVE], ids=["to be fetched", "put there by hand"])
def test_a_file_of_the_users_own_is_not_replaced(server, tiny, tmp_path, archive):
    (tmp_path / "movies.dat").write_text("my own")
    if archive is not None:
        (tmp_path / "tiny.zip").write_bytes(archive)
    message = "movies.dat: is there already and is not known to be of tiny.zip; choose another folder"
    for _ in range(2):  # nor where the command is repeated
        with pytest.raises(DataError, match=re.escape(message)):
            run("tiny", str(tmp_path))
        assert (tmp_path / "movies.dat").read_text() == "my own"
    assert not server.asked
    (tmp_path / "movies.dat").unlink()
    run("tiny", str(tmp_path))
    run("tiny", str(tmp_path))
    assert (tmp_path / "movies.dat").read_text().startswith("1::One")


def test_what_is_not_known_beforehand_is_recorded_and_expected_from_then_on(server, tmp_path):
    file = PublicFile("tiny.zip", f"{server.url}/tiny.zip")
    found = fetch(file, tmp_path, pause=0)
    assert (found.known, found.sha256, found.unpacked) == (False, SHA256, ())
    assert json.loads((tmp_path / RECORD).read_text())["tiny.zip"]["sha256"] == SHA256
    assert fetch(file, tmp_path, pause=0).known
    server.files["/tiny.zip"] = packed(ratings_dat=RATINGS * 2)
    (tmp_path / "tiny.zip").write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"expected {SHA256}"):
        fetch(file, tmp_path, pause=0)
    assert (tmp_path / "tiny.zip").read_bytes() == b"damaged"
    server.files["/tiny.zip"] = ARCHIVE
    assert fetch(file, tmp_path, pause=0).sha256 == SHA256


def test_another_place_must_have_the_same_file(server, tiny, tmp_path):
    server.files["/mirror/tiny.zip"] = server.files["/renamed"] = ARCHIVE
    server.files["/other/tiny.zip"] = ARCHIVE[:-1] + b"x"
    run("tiny", str(tmp_path / "a"), url=f"{server.url}/mirror/")
    run("tiny", str(tmp_path / "b"), url=f"{server.url}/renamed")
    assert (tmp_path / "b" / "tiny.zip").read_bytes() == ARCHIVE
    with pytest.raises(DataError, match=f"the file has the SHA-256 [0-9a-f]{{64}}; expected {SHA256}"):
        run("tiny", str(tmp_path / "c"), url=f"{server.url}/other/")
    assert not list((tmp_path / "c").glob("tiny*"))
    other = packed(ratings_dat=RATINGS * 2, movies_dat="")
    server.files["/other/tiny.zip"] = other
    sha256 = hashlib.sha256(other).hexdigest().upper()
    said = run("tiny", str(tmp_path / "d"), url=f"{server.url}/other/", sha256=sha256)
    assert "as expected" in said


def test_a_file_of_another_size_is_not_fetched(server, tiny, tmp_path):
    server.files["/tiny.zip"] = ARCHIVE * 100
    with pytest.raises(DataError, match=rf"has a file of {len(ARCHIVE) * 100:,} bytes; expected {len(ARCHIVE):,}"):
        run("tiny", str(tmp_path / "raw"))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == []


def test_more_than_expected_of_a_server_that_tells_no_size_is_left(server, tiny, tmp_path):
    server.files["/tiny.zip"] = ARCHIVE * 100
    server.tells_size = False
    with pytest.raises(DataError, match=f"sends more than the expected {len(ARCHIVE):,} bytes"):
        run("tiny", str(tmp_path / "raw"))
    assert [path.name for path in (tmp_path / "raw").iterdir()] == []
    server.files["/tiny.zip"] = ARCHIVE
    assert "as expected" in run("tiny", str(tmp_path / "raw"))


def test_a_file_put_there_by_hand_is_said_to_be_that(server, monkeypatch, tmp_path):
    file = PublicFile("tiny.zip", f"{server.url}/tiny.zip")
    monkeypatch.setitem(public.SETS, "tiny", PublicSet("tiny", "a tiny one", (file,), "https://example.org"))
    (tmp_path / "tiny.zip").write_bytes(ARCHIVE)
    said = run("tiny", str(tmp_path))
    assert f"tiny.zip was there already: {len(ARCHIVE):,} bytes, SHA-256 {SHA256}, known neither beforehand" in said
    assert server.url not in said
    assert server.asked == []
    assert not (tmp_path / RECORD).exists()


def test_interruptions_and_what_was_cut_off(server, tiny, tmp_path):
    server.cut, server.cuts = 60, 2
    run("tiny", str(tmp_path / "a"))
    assert server.asked == [None, "bytes=60-", "bytes=120-"]
    server.cut, server.cuts = 20, 5
    with pytest.raises(DataError, match=r"broke off 5 times .*; 100 bytes are kept, repeat the command to go on"):
        run("tiny", str(tmp_path / "b"))
    assert not (tmp_path / "b" / "tiny.zip").exists()
    run("tiny", str(tmp_path / "b"))
    assert server.asked[-1] == "bytes=100-"
    with pytest.raises(DataError, match="the server answers 404"):
        run("tiny", str(tmp_path / "c"), url=f"{server.url}/nowhere/")


def test_the_command(server, tiny, tmp_path, capsys):
    assert main(["data", "get", "tiny", "--out", str(tmp_path / "raw")]) == 0
    assert "as expected" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "get", "tiny", "--out", str(tmp_path / "b"), "--url", f"{server.url}/no/"]) == 2
    assert "the server answers 404" in capsys.readouterr().err
    assert main(["data", "get", "tiny", "--metadata"]) == 2
    assert main(["data", "list"]) == 0


def test_no_network_is_said(tiny, tmp_path, monkeypatch, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    with pytest.raises(DataError, match=r"127\.0\.0\.1:\d+ cannot be reached \(Connection refused\); is there a"):
        run("tiny", str(tmp_path / "raw"), url=closed)

    def no_names(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    with pytest.raises(DataError, match=r"example\.org cannot be reached \(Name or service not known\)"):
        run("tiny", str(tmp_path / "raw"), url="http://example.org/")
    assert not list((tmp_path / "raw").glob("tiny*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(movies_dat="1"), "the archive has no tiny/ratings.dat"),
        (b"<html>", "the archive cannot be unpacked: File is not a zip file"),
        (ARCHIVE.replace(ARCHIVE[45:60], b"x" * 15), "the archive cannot be unpacked"),
    ],
)
def test_archives_that_are_others_or_damaged(server, tmp_path, content, message):
    server.files["/tiny.zip"] = content
    file = PublicFile("tiny.zip", f"{server.url}/tiny.zip", members=("tiny/ratings.dat",))
    with pytest.raises(DataError, match=message):
        fetch(file, tmp_path, pause=0)
    assert not (tmp_path / "ratings.dat").exists()
    # What the message says to do helps: the right archive was refused for not being the wrong one.
    (tmp_path / "tiny.zip").unlink()
    server.files["/tiny.zip"] = ARCHIVE
    assert fetch(file, tmp_path, pause=0).sha256 == SHA256
    assert (tmp_path / "ratings.dat").read_text() == RATINGS


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_where_the_folder_should_be_is_named(server, tiny, tmp_path, below):
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    with pytest.raises(DataError, match=f"{folder}: cannot create the folder: a file of that name exists"):
        fetch(tiny, folder, pause=0)


def test_amazon_2023_from_another_place(server, tmp_path):
    server.files["/m/Toys_and_Games.csv.gz"] = server.files["/m/meta_Toys_and_Games.jsonl.gz"] = b"\x1f\x8b"
    said = run("amazon-2023/toys_and_games", str(tmp_path), url=f"{server.url}/m/", metadata=True)
    assert (tmp_path / "meta_Toys_and_Games.jsonl.gz").exists()
    assert said.count("recorded in downloads.json") == 2
    prepare = f"plr prepare amazon-2023 --domain Toys_and_Games --raw {tmp_path}"
    assert f"{prepare} --out data/amazon-2023-toys_and_games" in said


def test_what_does_not_fit_together_is_named(tiny):
    for options, message in (
        ({"url": "ftp://x"}, "--url must begin with http:// or https://; found 'ftp://x'"),
        ({"sha256": "abc"}, "--sha256 must be 64 hexadecimal digits; found 'abc'"),
        ({"metadata": True}, "--metadata belongs to amazon-2023"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            run("tiny", **options)
    with pytest.raises(ConfigError, match="must be a folder that ends in /, as there are 2 files"):
        run("amazon-2023/Books", metadata=True, url="http://x/y")
    with pytest.raises(ConfigError, match="--sha256 is of one file, and there are 2"):
        run("amazon-2023/Books", metadata=True, sha256="0" * 64)
    with pytest.raises(ConfigError, match="no public set 'ml-2m', the nearest known is ml-"):
        run("ml-2m")
    with pytest.raises(ConfigError, match="the nearest known is amazon-2023/Books"):
        run("amazon-2023/Book")


def test_every_set_is_well_formed_and_listed():
    out = io.StringIO()
    listed(Console(file=out, width=300))
    for name in [*SETS, *(f"amazon-2023/{domain}" for domain in AMAZON_DOMAINS)]:
        each = public_set(name)
        assert name.rpartition("/")[2] in out.getvalue()
        for file in (*each.files, *each.items):
            assert file.url.startswith("https://")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert "/" not in file.name


def test_the_names_are_listed_without_pytorch():
    code = "import sys; from plr.cli import main; main(['data', 'list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
