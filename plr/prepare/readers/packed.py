"""Files packed with gzip or Zstandard, read as what they hold."""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path
from typing import BinaryIO, cast

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = [
    "DAMAGED",
    "PARQUET",
    "SUFFIXES",
    "UNREADABLE",
    "is_packed",
    "is_parquet",
    "open_plain",
    "packing",
    "packing_of",
]

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard"}
PARQUET = b"PAR1"
"""What a Parquet file begins with."""
SUFFIXES = (".gz", ".zst")
"""What the names of packed files end with, as a rule."""
DAMAGED = (zlib.error, gzip.BadGzipFile, zstd.ZstdError)
"""What reading raises where a packed file is damaged; EOFError where it was cut off."""
UNREADABLE = (OSError, EOFError, zlib.error, zstd.ZstdError)
"""All that reading may raise."""


def packing_of(head: bytes) -> str | None:
    """Return what a file with these first bytes (four or more) is packed with, or None."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def packing(path: Path) -> str | None:
    """Return what a file is packed with, which its first bytes tell, not its name: gzip, Zstandard or None."""
    with open(path, "rb") as file:
        return packing_of(file.read(4))


def is_packed(path: Path) -> bool:
    """Return whether a file is packed."""
    return packing(path) is not None


def is_parquet(path: Path) -> bool:
    """Return whether a file begins as Parquet does, without being packed."""
    with open(path, "rb") as file:
        return file.read(len(PARQUET)) == PARQUET


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading bytes, unpacking it where it is packed."""
    match packing(path):
        case "gzip":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case "Zstandard":
            return cast(BinaryIO, zstd.open(path, "rb"))
        case _:
            return open(path, "rb")
