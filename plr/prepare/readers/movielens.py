"""MovieLens' ratings without a header: ``user::item::rating::timestamp``, or with tabs (``u.data``)."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from plr.prepare.readers.columns import read_columns
from plr.prepare.readers.packed import open_plain
from plr.prepare.readers.source import IdVocabulary, Skipped, Source, one_to_one

__all__ = ["is_movielens", "read_movielens"]

_NEVER = "\x01"  # refused before: so every line is one field
_FIELDS = ("user", "item", "rating", "timestamp")
_LINE = re.compile(r"[^:\s]+::[^:\s]+::[\d.]+::\d+\r?")


def is_movielens(path: Path, first_line: str) -> bool:
    """Tell by the first line, or by the name of the oldest of these files."""
    return bool(_LINE.fullmatch(first_line)) or path.name == "u.data"


def read_movielens(path: Path, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read lines of ``user::item::rating::timestamp``, or with tabs for ``::``; blank lines are left out.

    Raises:
        DataError: naming file and line, for a line with other than four fields or a value that does not convert.
    """
    with open_plain(path) as file:
        separator = "::" if b"::" in file.readline() else "\t"
    lines = pl.scan_csv(
        path, has_header=False, separator=_NEVER, quote_char=None, infer_schema=False, new_columns=["line"], glob=False
    )
    parts = pl.col("line").str.strip_chars_end("\r").str.split(separator)
    rest = parts.list.slice(3).list.join(separator)  # of a line with more fields: no timestamp that converts
    table = lines.select(
        *[parts.list.get(place, null_on_oob=True).alias(name) for place, name in enumerate(_FIELDS[:3])],
        pl.when(rest != "").then(rest).alias("timestamp"),
    )
    return read_columns(path, table, {name: name for name in _FIELDS}, one_to_one, vocabulary, skipped=skipped)
