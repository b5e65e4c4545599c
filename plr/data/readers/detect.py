"""Which format a file has: by its extension, and for other names by its first lines."""

from __future__ import annotations

import re
from pathlib import Path

from plr.data.errors import DataError
from plr.data.readers.columns import Columns, find_columns
from plr.data.readers.delimited import separator_of

__all__ = ["detect_format"]

_EXTENSIONS = {".inter": "recbole", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_HEAD = 1 << 16
_TYPED = re.compile(r"\S+:(token|float)(_seq)?")


def detect_format(path: Path) -> str:
    """Return "sequences", "pairs", "recbole", "csv" or "parquet".

    A text file is RecBole's when its first line holds ``name:type``; CSV when that line names a user and an
    item column or is a comma separated line without spaces; pairs when every one of its first lines (64
    KiB) has two fields; else sequences.
    """
    if (known := _EXTENSIONS.get(path.suffix.lower())) is not None:
        return known
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PAR1"):
        return "parquet"
    lines = [line for line in head.decode("utf-8-sig", errors="replace").split("\n") if line.strip()]
    if not lines:
        return "sequences"
    if len(head) == _HEAD and len(lines) > 1:
        lines.pop()  # cut in the middle
    first = lines[0]
    if _TYPED.search(first):
        return "recbole"
    if _is_header(first) or ("," in first and len(first.split()) == 1):
        return "csv"
    if len(head) == _HEAD and len(lines) == 1:
        return "sequences"  # no two ids are that long
    return "pairs" if all(len(line.split()) == 2 for line in lines) else "sequences"


def _is_header(line: str) -> bool:
    try:
        find_columns([name.strip('"') for name in line.split(separator_of(line))], Columns(), Path())
    except DataError:
        return False
    return True
