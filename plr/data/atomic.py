"""Write aside, then rename: a reader sees a whole file or folder, or none."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_path"]


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write a file or make a folder at; rename it on success.

    Nothing exists yet at the yielded path, its suffix is that of ``path``, and its parent folder is made if
    missing. The body must create it. An existing file at ``path`` is replaced in one step; an existing
    folder is moved away first (an operating system replaces only empty folders), then removed; with
    ``replace=False`` that raises a FileExistsError unless it is empty. When the body raises, what it wrote is
    removed and ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        yield temporary
        _sync(temporary)
        _replace(temporary, path, replace)
    finally:
        _remove(temporary)


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}")


def _sync(path: Path) -> None:
    """Flush what was written to the disk, so that a power cut after the rename cannot leave an empty file."""
    files = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def _replace(temporary: Path, path: Path, folders: bool) -> None:
    if not temporary.is_dir():
        os.replace(temporary, path)
        return
    while True:
        try:
            os.replace(temporary, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
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
