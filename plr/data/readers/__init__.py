"""Readers: a file of one of five formats -> its interactions in file order, checked."""

from __future__ import annotations

from pathlib import Path

from plr.data.readers.columns import Columns
from plr.data.readers.delimited import read_csv, read_recbole
from plr.data.readers.detect import detect_format
from plr.data.readers.lines import CONTROL_BYTES, read_pairs, read_sequences
from plr.data.readers.parquet import read_parquet
from plr.data.readers.source import Source

__all__ = ["CONTROL_BYTES", "FORMATS", "Columns", "Source", "detect_format", "read"]

FORMATS = ("sequences", "pairs", "recbole", "csv", "parquet")


def read(path: Path, file_format: str, columns: Columns) -> Source:
    """Read ``path``; ``columns`` counts for the formats with named columns.

    Raises:
        DataError: for anything in the file that cannot be used, naming file and line.
        ValueError: for column names given with a format that has none.
    """
    if file_format in ("sequences", "pairs"):
        if columns != Columns():
            raise ValueError(f"the format {file_format!r} has no named columns; a CSV, RecBole or Parquet file has")
        return read_sequences(path) if file_format == "sequences" else read_pairs(path)
    return {"recbole": read_recbole, "csv": read_csv, "parquet": read_parquet}[file_format](path, columns)
