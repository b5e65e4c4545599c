"""Text with a header: CSV (comma, semicolon or tab) and RecBole's atomic ``.inter`` files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from plr.data.errors import DataError
from plr.data.readers.columns import Columns, find_columns, read_columns
from plr.data.readers.source import Source

__all__ = ["read_csv", "read_recbole", "separator_of"]


def read_csv(path: Path, columns: Columns) -> Source:
    """Read a CSV with a header, separated by whichever of comma, semicolon and tab the header has most of.

    Fields may be quoted with ``"``. A line whose every field is empty is skipped.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, and for a line with more fields than the header.
    """
    header = next(_records(path, quoted=True), (1, ""))[1]
    return _read(path, columns, separator_of(header), quoted=True)


def read_recbole(path: Path, columns: Columns) -> Source:
    """Read a tab separated file with a header like ``user_id:token``, ``item_id:token``, ``rating:float``.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, and for a line with more fields than the header.
    """
    return _read(path, columns, "\t", quoted=False)


def separator_of(header: str) -> str:
    """Return the separator of a CSV with this header line."""
    return max(",;\t", key=header.count)


def _read(path: Path, columns: Columns, separator: str, quoted: bool) -> Source:
    table = pl.scan_csv(
        path,
        separator=separator,
        quote_char='"' if quoted else None,
        infer_schema=False,
        glob=False,
    )

    def line_of(row: int) -> int:
        return next((line for record, (line, _) in enumerate(_records(path, quoted)) if record == row + 1), row + 2)

    try:
        names = table.collect_schema().names()
        return read_columns(path, table, find_columns(names, columns, path), line_of, names[-1])
    except pl.exceptions.PolarsError as error:
        raise _malformed(path, separator, quoted, error) from error


def _records(path: Path, quoted: bool) -> Iterator[tuple[int, str]]:
    """Yield (first line, text) of the header and of every record after it, blank ones too.

    A quoted field may span lines; blank lines before the header are left out.
    """
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        start, parts, open_quote, seen = 1, [], False, False
        for number, line in enumerate(file, start=1):
            start = start if parts else number
            parts.append(line)
            open_quote ^= quoted and line.count('"') % 2 == 1
            if open_quote:
                continue
            record = "".join(parts).rstrip("\r\n")
            parts.clear()
            seen = seen or bool(record.strip())
            if seen:
                yield start, record
        if parts:
            yield start, "".join(parts).rstrip("\r\n")


def _malformed(path: Path, separator: str, quoted: bool, error: Exception) -> DataError:
    """Find the line that polars could not read: slow, but only for a file that is refused anyway."""
    expected = None
    for line, record in _records(path, quoted):
        if quoted and record.count('"') % 2:
            return DataError('a quote (") is opened and never closed', path, line)
        fields = (re.sub(r'"[^"]*"', "", record) if quoted else record).count(separator) + 1
        if expected is None:
            expected = fields
        elif fields > expected:
            return DataError(f"{fields} fields; the header has {expected}", path, line)
    return DataError(f"cannot be read: {str(error).splitlines()[0]}", path)
