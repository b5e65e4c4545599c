"""Parquet files."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import Columns, find_columns, read_columns
from plr.prepare.readers.source import IdVocabulary, Skipped, Source, one_to_one

__all__ = ["read_parquet"]


def read_parquet(path: Path, columns: Columns, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read a Parquet file; messages name rows (1-based) instead of lines.

    Raises:
        DataError: as ``find_columns`` and ``read_columns``, for a column type that makes no sense, and for
            a broken file.
    """
    try:
        table = pl.scan_parquet(path, glob=False)
        names = table.collect_schema().names()
        found = find_columns(names, columns, path, None)
        return read_columns(path, table, found, one_to_one, vocabulary, skipped=skipped)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"not a readable Parquet file: {str(error).splitlines()[0]}", path) from error
