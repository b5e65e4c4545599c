"""Parquet files."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import Columns, find_columns, look_at_others, read_columns
from plr.prepare.readers.source import IdVocabulary, Skipped, Source, one_to_one, panics_unprinted

__all__ = ["PARQUET_ERRORS", "open_parquet", "read_parquet", "unreadable_parquet"]

PARQUET_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises for files that it cannot read; a panic is no Exception."""


def read_parquet(path: Path, columns: Columns, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read a Parquet file; messages name rows (1-based) instead of lines. Only the columns that count are read.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, for a column type that makes no sense, and for
            a broken file.
    """
    table = open_parquet(path)
    found = find_columns(table.collect_schema().names(), columns, path, None)
    try:
        look_at_others(path, table, found, columns, None)
        return read_columns(path, table, found, one_to_one, vocabulary, skipped=skipped)
    except PARQUET_ERRORS as error:
        raise unreadable_parquet(path, error) from None


def open_parquet(path: Path) -> pl.LazyFrame:
    """Return a Parquet file to select from.

    Raises:
        DataError: it cannot be read.
    """
    try:
        table = pl.scan_parquet(path, glob=False)
        with panics_unprinted():
            table.collect_schema()
        return table
    except PARQUET_ERRORS as error:
        raise unreadable_parquet(path, error) from None


def unreadable_parquet(path: Path, error: BaseException, kind: str = "Parquet") -> DataError:
    """Return what to tell where ``error`` stopped the reading of a Parquet file, or of another kind."""
    reason = str(error).splitlines()[0]
    if isinstance(error, pl.exceptions.PanicException):
        zone = reason.partition("unable to parse time zone: ")[2].split("'")[1:2]
        if zone:
            return DataError(
                f"a column of datetimes has the time zone {zone[0]!r}, which polars does not read, "
                "needed or not; write it in UTC or as whole numbers, or leave it out",
                path,
            )
        reason = f"polars fails at it: {reason}"
    return DataError(f"not a readable {kind} file: {reason}", path)
