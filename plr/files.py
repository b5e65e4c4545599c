"""Files as a whole: written aside, then renamed, so that a reader sees all of one or none; and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

from plr.lock import process_is_gone
from plr.signals import cleaned_up, deferred

__all__ = ["atomic_path", "remove_leftovers", "sha256_of"]


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 (hex) of a file's bytes; memory does not grow with the file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write a file or make a folder at; rename it on success.

    Nothing exists yet at the yielded path, its suffix is that of ``path``, and its parent folder is made if
    missing. The body must create it. An existing file at ``path`` is replaced in one step; an existing
    folder is moved away first (an operating system replaces only empty folders), then removed; with
    ``replace=False`` that raises a FileExistsError unless it is empty. A link to a folder means that folder. When the
    body raises, what it wrote is removed and ``path`` stays as it was; what a killed process left is removed by the
    next that writes there. Files get the mode that the umask leaves, also where a library lets only the owner read
    (safetensors).

    Raises:
        OSError: nothing can be written there (a full disk, say), whatever the library that noticed it raises; or
            ``path`` is a device or a pipe, which a file would take the place of.
    """
    path = Path(path)
    _refuse_device(path)
    if path.is_symlink() and path.is_dir():
        path = path.resolve()  # no system renames a folder to where a link is
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_what_killed_processes_left(path)
    temporary = _sibling(path)
    try:
        with cleaned_up(partial(_remove, temporary)):
            mode = _usual_mode(temporary)
            yield temporary
            _complete(temporary, mode)
            with deferred():
                _replace(temporary, path, replace)
    except Exception as error:
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that somebody has given
        reason = None if isinstance(error, (OSError, ValueError)) else _reason_of_system(error)
        if reason is None:
            raise
        raise OSError(f"{path} cannot be written: {reason}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed in the body of `atomic_path` left in the folder; nobody may write there."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..*\.([0-9a-f]{12}|[0-9a-f]{16})(\.[^.]*)?", path.name):
            _remove(path)


def _refuse_device(path: Path) -> None:
    try:
        mode = path.stat().st_mode  # asked once: another process may move a folder away between two questions
    except OSError:
        return  # nothing is there, or nothing can be: that is said by what is done next
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{path} is a device or a pipe, which no file may replace; name a file")


def _sibling(path: Path) -> Path:
    """Return a new name beside ``path`` that says which process of which host it is of."""
    return path.with_name(f".{path.stem}.{_host()}{os.getpid():06x}{uuid.uuid4().hex[:6]}{path.suffix}")


def _remove_what_killed_processes_left(path: Path) -> None:
    """Remove siblings of ``path`` that processes of this host were writing when they were killed."""
    own = re.compile(rf"\.{re.escape(path.stem)}\.{_host()}([0-9a-f]{{6}})[0-9a-f]{{6}}{re.escape(path.suffix)}")
    with os.scandir(path.parent) as entries:
        found = [(entry.name, own.fullmatch(entry.name)) for entry in entries]
    for name, match in found:
        if match and process_is_gone(int(match[1], 16)):
            with suppress(OSError):  # another process was faster
                _remove(path.with_name(name))


@cache
def _host() -> str:
    """Four hexadecimal digits of this host and, on Linux, of the set of processes that this one sees."""
    try:
        seen = os.readlink("/proc/self/ns/pid")
    except OSError:
        seen = ""
    return hashlib.sha256(f"{socket.gethostname()} {seen}".encode()).hexdigest()[:4]


def _usual_mode(path: Path) -> int:
    """Return the mode of a new file at ``path``; the umask itself can be read only by changing it for all threads."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        path.unlink()


def _complete(path: Path, mode: int) -> None:
    """Set the files' mode, and flush them to the disk: a power cut after the rename cannot leave an empty file."""
    files = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)
    for file in files:
        file.chmod(mode)
        with open(file, "r+b" if os.name == "nt" else "rb") as handle:  # Windows flushes only what may be written
            os.fsync(handle.fileno())


def _reason_of_system(error: Exception) -> str | None:
    """Return what the operating system said where an error of safetensors, polars or PyTorch stems from it."""
    if "(os error " in str(error):  # how libraries written in Rust end such a message
        return str(error).splitlines()[0]
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return None if cause is None else str(cause)


def _replace(temporary: Path, path: Path, folders: bool) -> None:
    if not temporary.is_dir():
        os.replace(temporary, path)
        return
    while True:
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not (os.name == "nt" and path.is_dir()):
                raise
            if os.name == "nt" and not any(path.iterdir()):  # not even an empty folder is replaced there
                path.rmdir()
                continue
            if not folders:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        former = _sibling(path)
        with suppress(FileNotFoundError):  # another process was faster
            os.replace(path, former)
            shutil.rmtree(former)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
