"""Item metadata as JSON lines: decoded by blocks, and line by line where that might mean another thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import polars as pl

from plr.prepare.readers.packed import DAMAGED

__all__ = ["PlainRecords", "blocks_of_lines", "plain_records"]

_BLOCK = 100_000  # lines
_FIELDS: dict[str, Any] = {
    "parent_asin": pl.String,
    "title": pl.String,
    "categories": pl.List(pl.String),
    "store": pl.String,
}
_OTHER = (
    r"(?s)^(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|[\[{].*)$"  # polars makes strings of them all
)
_WORDS = r"^[^\s\x1c-\x1f]+( [^\s\x1c-\x1f]+)*$"


def blocks_of_lines(file: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (1-based number of the first, lines); lines before an error in reading come before it is raised."""
    first, lines = 1, []
    try:
        for line in file:
            lines.append(line)
            if len(lines) == _BLOCK:
                yield first, lines
                first, lines = first + len(lines), []
    except (EOFError, *DAMAGED):
        yield first, lines
        raise
    yield first, lines


@dataclass(frozen=True)
class PlainRecords:
    """Which of some lines (bool [n]) are plain records, and those of the items asked for.

    ``records`` has their ``place`` among the lines, ``item``, ``title``, ``categories`` and ``store``.
    """

    lines: pl.Series
    records: pl.DataFrame


def plain_records(lines: list[bytes], item_ids: pl.Series) -> PlainRecords | None:
    """Decode the lines that are records as Amazon publishes them, with nothing to interpret.

    Those have their id, title and store as strings and their categories as a list of strings, under the names
    ``parent_asin``, ``title``, ``store`` and ``categories`` (the first that are looked for), none of them empty and
    words parted by single spaces. What could have been another thing than it looks like decoded is not among them.
    None where not every line can be decoded.
    """
    try:
        frame = pl.read_ndjson(b"".join(lines), schema=_FIELDS)
        texts = pl.Series(lines, dtype=pl.Binary).cast(pl.String)
    except pl.exceptions.PolarsError:
        return None
    if frame.height != len(lines):  # blank ones were left out
        return None
    words = pl.element().str.contains(_WORDS) & ~pl.element().str.contains(_OTHER)
    plain = frame.select(
        pl.all_horizontal(
            *(pl.lit(texts).str.count_matches(f'"{name}"', literal=True) == 1 for name in _FIELDS),
            # Half a character can be written so, and a letter of a second field of the same name.
            ~pl.lit(texts).str.contains(r"\\u([dD]|00[4-7])"),
            pl.col("parent_asin").str.contains("^[!-~]+$"),
            pl.col("title", "store").str.contains(_WORDS),
            ~pl.col("parent_asin", "title", "store").str.contains(_OTHER),
            pl.col("categories").list.eval(words.fill_null(False)).list.all(),
        ).fill_null(False)
    ).to_series()
    wanted = frame.with_row_index("place").filter(plain & frame["parent_asin"].is_in(item_ids.implode()))
    return PlainRecords(plain, wanted.rename({"parent_asin": "item"}))
