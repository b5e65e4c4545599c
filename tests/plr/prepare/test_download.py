"""Downloads from a local server: whole, gone on with, refused, changed, checked."""

from __future__ import annotations

import errno
import functools
import gzip
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plr.cli.prepare import Request, run
from plr.errors import DataError
from plr.prepare.download import RECORD, download

CONTENT = bytes(range(256)) * 5000


class Server:
    """Serves `files` with ranges; breaks off after `cut` bytes of an answer as often as `cuts` says."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.elsewhere: dict[str, str] = {}
        self.cut, self.cuts = 0, 0
        self.ranges = self.tells_size = True
        self.asked: list[str | None] = []
        handler = functools.partial(_Handler, self)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, owner: Server, *arguments) -> None:
        self.owner = owner
        super().__init__(*arguments)

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.owner
        wanted = self.headers.get("Range")
        owner.asked.append(wanted)
        content = owner.files.get(self.path)
        if self.path in owner.elsewhere:
            self.send_response(302)
            self.send_header("Location", owner.elsewhere[self.path])
            self.end_headers()
            return
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        if wanted and owner.ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start > len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", tag)
        if owner.tells_size:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if owner.cuts > 0:
            owner.cuts -= 1
            rest = rest[: owner.cut]
        self.wfile.write(rest)


@pytest.fixture
def server():
    one = Server()
    one.files["/file.gz"] = CONTENT
    yield one
    one.close()


def fetch(server: Server, path: Path, **options) -> None:
    download(f"{server.url}/file.gz", path, pause=0, **options)


def test_whole_and_recorded(server, tmp_path):
    seen = []
    path = tmp_path / "new" / "file.gz"
    fetch(server, path, on_progress=lambda there, size: seen.append((there, size)))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    record = json.loads((path.parent / RECORD).read_text())["file.gz"]
    assert record == {
        "url": f"{server.url}/file.gz",
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    assert sorted(child.name for child in path.parent.iterdir()) == [RECORD, "file.gz"]


def test_two_at_once_fetch_it_once(server, tmp_path):
    path = tmp_path / "file.gz"
    with ThreadPoolExecutor(2) as pool:
        for outcome in [pool.submit(fetch, server, path) for _ in range(2)]:
            outcome.result()
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize("damage", ["[]", "{", '{"file.gz": {}}', '{"file.gz": 5}'])
def test_a_damaged_record(server, tmp_path, damage):
    path = tmp_path / "file.gz"
    (tmp_path / RECORD).write_text(damage)
    fetch(server, path)
    assert json.loads((tmp_path / RECORD).read_text())["file.gz"]["bytes"] == len(CONTENT)
    fetch(server, path)
    assert len(server.asked) == 1


def test_there_already(server, tmp_path):
    path = tmp_path / "file.gz"
    fetch(server, path)
    fetch(server, path)
    assert len(server.asked) == 1
    path.write_bytes(b"damaged")
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_goes_on_after_interruptions(server, tmp_path):
    server.cut, server.cuts = 300_000, 3
    path = tmp_path / "file.gz"
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_gives_up_and_a_repeated_command_goes_on(server, tmp_path):
    server.cut, server.cuts = 100_000, 5
    path = tmp_path / "file.gz"
    with pytest.raises(DataError, match=r"broke off 5 times .*; 500000 bytes are kept"):
        fetch(server, path)
    assert not path.exists()
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=500000-"


def test_a_full_disk_is_said_at_once(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("plr.prepare.download._transfer", full)
    monkeypatch.setattr("plr.prepare.download.time.sleep", lambda _: pytest.fail("there is nothing to wait for"))
    with pytest.raises(DataError, match=r"no room for it \(No space left on device\)"):
        download("http://127.0.0.1/any", tmp_path / "file.csv")


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.cut, server.cuts = 100_000, 5
    path = tmp_path / "file.gz"
    with pytest.raises(DataError):
        fetch(server, path)
    server.files["/file.gz"] = CONTENT[::-1]
    fetch(server, path)
    assert path.read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges(server, tmp_path):
    server.ranges = False
    server.cut, server.cuts = 100_000, 2
    path = tmp_path / "file.gz"
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_a_rest_that_does_not_fit_is_thrown_away(server, tmp_path):
    server.cut, server.cuts = 100_000, 5
    path = tmp_path / "file.gz"
    with pytest.raises(DataError):
        fetch(server, path)
    part = path.with_name("file.gz.part")
    part.write_bytes(CONTENT * 2)  # longer than the file: the server has nothing from there on
    fetch(server, path)
    assert path.read_bytes() == CONTENT


def test_checksum(server, tmp_path):
    path = tmp_path / "file.gz"
    with pytest.raises(DataError, match=r"SHA-256 [0-9a-f]{64}; expected abc"):
        fetch(server, path, sha256="abc")
    assert not list(tmp_path.glob("file*"))
    fetch(server, path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.exists()


def test_refusals(server, tmp_path):
    with pytest.raises(DataError, match="404"):
        download(f"{server.url}/nothing", tmp_path / "nothing", pause=0)
    assert len(server.asked) == 1  # it makes no sense to ask again
    with pytest.raises(DataError, match="http"):
        download("file:///etc/hostname", tmp_path / "x")


def test_from_https_it_goes_on_to_https_alone(server, tmp_path, monkeypatch):
    """https without TLS: what is asked and answered is the same."""
    monkeypatch.setattr(HTTPSConnection, "connect", HTTPConnection.connect)
    secure = server.url.replace("http:", "https:")
    server.elsewhere = {
        "/plain": f"{server.url}/file.gz", "/kept": f"{secure}/file.gz", "/twice": f"{secure}/plain",
        "/own": "/file.gz", "/ftp": "ftp://127.0.0.1/file.gz",
    }  # fmt: skip
    for name in ("plain", "twice"):
        said = rf"^{secure}/plain: the server sends on to {server.url}/file.gz, which is not encrypted"
        with pytest.raises(DataError, match=said):
            download(f"{secure}/{name}", tmp_path / name, pause=0)
    with pytest.raises(DataError, match=r"sends on to ftp://127.0.0.1/file.gz, which is not encrypted"):
        download(f"{secure}/ftp", tmp_path / "ftp", pause=0)
    assert not list(tmp_path.iterdir())
    for number, address in enumerate((f"{secure}/kept", f"{secure}/own", f"{server.url}/plain", f"{server.url}/kept")):
        download(address, tmp_path / str(number), pause=0)
        assert (tmp_path / str(number)).read_bytes() == CONTENT


def test_prepare_downloads_what_it_needs(server, tmp_path):
    valid, test = 1628643414042, 1658002729837
    ratings = "user_id,parent_asin,rating,timestamp\n" + "".join(
        f"A{user},B{item},5.0,{time}\n"
        for user in range(3)
        for item, time in enumerate((valid - 9, valid - 8, valid - 7, valid, test))
        if not (user == 0 and item == 3)
    ).replace("B4", "B0").replace("B3", "B1")
    meta = '{"parent_asin": "B0", "title": "Zero", "categories": ["Toys"], "store": null}\n'
    server.files = {
        "/benchmark/5core/rating_only/Toys_and_Games.csv.gz": gzip.compress(ratings.encode()),
        "/raw/meta_categories/meta_Toys_and_Games.jsonl.gz": gzip.compress(meta.encode()),
    }
    request = Request(
        "amazon-2023",
        str(tmp_path / "out"),
        domain="Toys_and_Games",
        raw=str(tmp_path / "raw"),
        download=True,
        base_url=server.url,
    )
    report = run(request)
    assert report["rows"] == {"train": 6, "valid": 2, "test": 3}
    assert report["metadata"]["items_with_title"] == 1
    assert [source["file"] for source in report["sources"]] == [
        "Toys_and_Games.csv.gz",
        "meta_Toys_and_Games.jsonl.gz",
    ]
