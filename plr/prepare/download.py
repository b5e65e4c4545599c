"""Download files over HTTP: resumed after an interruption, and checked."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from plr.errors import DataError
from plr.files import atomic_path, sha256_of

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["RECORD", "Progress", "download", "forget", "recorded_sha256"]

RECORD = "downloads.json"
"""The file beside the downloads that says where each is from, its size and its SHA-256."""

_CHUNK = 1 << 20
_TRIES = 5
_TIMEOUT = 60  # seconds without a byte

Progress = Callable[[int, int | None], None]
"""Called with the bytes there are and the size, where the server tells it."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    on_progress: Progress | None = None,
    pause: float = 1.0,
) -> None:
    """Fetch ``url`` to ``path``, unless it is there already; resume what an earlier call left.

    What is fetched stands in ``<path>.part`` until it is whole, with the server's tag of it in ``<path>.part.json``: a
    file that has changed on the server is downloaded again. A whole file is recorded in downloads.json; one that no
    longer has the recorded size and hash is downloaded again. Waits while another process fetches into the same folder.

    Args:
        url: The address, http or https.
        path: Where to.
        sha256: What the file's hash (hex) must be, where known.
        size: How many bytes it must have, where known: a server that announces another number, or
            sends more, is left at once.
        on_progress: Told how far it is.
        pause: Seconds before the second try; doubled with each further one.

    Raises:
        DataError: the server cannot be reached or refuses, the transfer breaks off again and again, or size or hash
            are others; the folder cannot be made.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"cannot fetch {url!r}: an address begins with http:// or https://")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError("cannot create the folder: a file of that name exists", path.parent) from error
    with _alone(path.parent):
        record = _Record(path.parent / RECORD)
        if not (path.exists() and record.holds(path, sha256)):
            _fetch(url, path, record, sha256, size, on_progress, pause)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches into the folder, and keep others waiting: two would write one ``.part``."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _fetch(
    url: str, path: Path, record: _Record, sha256: str | None, size: int | None, on_progress: Progress | None,
    pause: float,
) -> None:  # fmt: skip
    part = path.with_name(f"{path.name}.part")
    tag = part.with_name(f"{part.name}.json")
    problem: OSError | HTTPException
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _transfer(url, part, tag, size, on_progress)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what is there is not the beginning of what the server has now
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise DataError(f"{url}: the server answers {error.code} {error.reason}", path) from error
            problem = error
        except (OSError, HTTPException) as error:
            problem = error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(
                    f"{url}: no room for it ({error.strerror}); what is already there is kept, repeat the command to "
                    "go on",
                    path,
                ) from error
            if attempt and (reason := _unreachable(error)) is not None:
                host = urllib.parse.urlsplit(url).netloc
                raise DataError(
                    f"{url}: {host} cannot be reached ({reason}); is there a network? What is already there is kept, "
                    "repeat the command to go on",
                    path,
                ) from error
    else:
        there = part.stat().st_size if part.exists() else 0
        raise DataError(
            f"{url}: broke off {_TRIES} times ({problem}); {there} bytes are kept, repeat the command to go on", path
        ) from problem
    found = sha256_of(part)
    if sha256 is not None and found != sha256:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise DataError(f"{url}: the file has the SHA-256 {found}; expected {sha256}", path)
    part.replace(path)
    tag.unlink(missing_ok=True)
    record.add(path, url, found)


def _unreachable(error: OSError | HTTPException) -> str | None:
    """Return why no server was reached, in the system's words; None where one was."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else None
    refused = (errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL)
    if isinstance(reason, socket.gaierror) or (isinstance(reason, OSError) and reason.errno in refused):
        return reason.strerror or str(reason)
    return None


def _transfer(url: str, part: Path, tag: Path, expected: int | None, on_progress: Progress | None) -> None:
    """Fetch what is missing of the file; raises where the connection ends before the file does."""
    there = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)
    known = json.loads(tag.read_text(encoding="utf-8")) if there and tag.exists() else None
    if known is not None:
        request.add_header("Range", f"bytes={there}-")
        request.add_header("If-Range", known)
    with _OPENER.open(request, timeout=_TIMEOUT) as response:
        if response.status != 206:
            there = 0  # the whole file comes, for it has changed or the server knows no ranges
        size = _size(response, there)
        if expected is not None and size is not None and size != expected:
            raise DataError(f"{url}: the server has a file of {size:,} bytes; expected {expected:,}")
        label = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if label is not None and not label.startswith("W/"):
            with atomic_path(tag) as aside:
                aside.write_text(json.dumps(label), encoding="utf-8")
        else:
            tag.unlink(missing_ok=True)  # without it nothing says that a later answer belongs to this file
        with open(part, "ab" if there else "wb") as file:
            while chunk := response.read1(_CHUNK):  # what has come, so that an interruption loses none of it
                file.write(chunk)
                there += len(chunk)
                if expected is not None and there > expected:  # of a server that announces no size
                    break
                if on_progress is not None:
                    on_progress(there, size)
    if expected is not None and there > expected:
        part.unlink()
        tag.unlink(missing_ok=True)
        raise DataError(f"{url}: the server sends more than the expected {expected:,} bytes")
    if size is not None and there != size:
        raise OSError(f"{there} of {size} bytes")


def recorded_sha256(path: Path) -> str | None:
    """Return the SHA-256 (hex) that downloads.json beside the file has of it, if any."""
    return _Record(path.parent / RECORD).sha256(path.name)


def forget(path: Path) -> None:
    """Let downloads.json say nothing of the file any more: another one of its name is as good."""
    with _alone(path.parent):
        _Record(path.parent / RECORD).remove(path.name)


def _size(response: HTTPResponse, there: int) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None else there + int(length)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where a server sends, but from https to nothing that anybody on the way could read or change."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the next request.

        Raises:
            DataError: it would not be encrypted, as the one before was.
        """
        if req.full_url.lower().startswith("https:") and not newurl.lower().startswith("https:"):
            raise DataError(
                f"{req.full_url}: the server sends on to {newurl}, which is not encrypted: what comes from there "
                "could be anybody's; name an address that stays with https"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


class _Record:
    """downloads.json: {file name: {url, bytes, sha256}}."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            self._entries = {name: entry for name, entry in entries.items() if {"bytes", "sha256"} <= {*entry}}
        except (OSError, ValueError, AttributeError, TypeError):  # none, or damaged
            self._entries = {}

    def sha256(self, name: str) -> str | None:
        """Return the recorded hash of the file of that name."""
        found = self._entries.get(name, {}).get("sha256")
        return found if isinstance(found, str) else None

    def holds(self, path: Path, sha256: str | None) -> bool:
        """Return whether the file is as it was recorded, and what is asked for."""
        entry = self._entries.get(path.name)
        if entry is None:
            return sha256 is None or sha256_of(path) == sha256  # put there by hand
        if sha256 is not None and entry["sha256"] != sha256:
            return False
        return path.stat().st_size == entry["bytes"] and sha256_of(path) == entry["sha256"]

    def add(self, path: Path, url: str, sha256: str) -> None:
        """Record a whole file."""
        self._entries[path.name] = {"url": url, "bytes": path.stat().st_size, "sha256": sha256}
        self._write()

    def remove(self, name: str) -> None:
        """Drop what is recorded of the file of that name, if anything is."""
        if self._entries.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        with atomic_path(self._path) as aside:
            aside.write_text(json.dumps(self._entries, indent=2, sort_keys=True), encoding="utf-8")
