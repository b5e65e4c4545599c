"""Readers: a file or folder of one of seven formats -> its interactions in file order, checked."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import Columns
from plr.prepare.readers.delimited import read_csv, read_recbole
from plr.prepare.readers.detect import detect_format, find_interactions
from plr.prepare.readers.huggingface import read_huggingface
from plr.prepare.readers.id_encoder import CompiledIdEncoder, IdEncoder
from plr.prepare.readers.lines import CONTROL_BYTES, read_pairs, read_sequences
from plr.prepare.readers.movielens import read_movielens
from plr.prepare.readers.packed import UNREADABLE, is_packed, is_parquet, open_plain, packing
from plr.prepare.readers.parquet import read_parquet
from plr.prepare.readers.source import IdVocabulary, Skipped, Source, unreadable

__all__ = [
    "CONTROL_BYTES",
    "FORMATS",
    "TEXT_FORMATS",
    "Columns",
    "CompiledIdEncoder",
    "IdEncoder",
    "IdVocabulary",
    "Skipped",
    "Source",
    "detect_format",
    "find_interactions",
    "forbidden_in",
    "is_packed",
    "open_plain",
    "read",
    "refuse_other_format",
]

_NAMED = {"recbole": read_recbole, "csv": read_csv, "parquet": read_parquet, "huggingface": read_huggingface}
_LINES = {"sequences": read_sequences, "pairs": read_pairs}
_UNNAMED = (*_LINES, "movielens")
FORMATS = (*_UNNAMED, *_NAMED)
TEXT_FORMATS = ("sequences", "pairs", "movielens", "recbole", "csv")


def forbidden_in(file_format: str) -> bytes:
    """Return the bytes that a text file of this format must not hold."""
    return CONTROL_BYTES if file_format in _UNNAMED else b"\0"


def refuse_other_format(path: Path, file_format: str) -> None:
    """Refuse Parquet that would be read as text, as where files of both are read as one, and Parquet that is packed.

    Raises:
        DataError: saying so.
    """
    if file_format in TEXT_FORMATS and is_parquet(path):
        raise DataError(
            f"the file is Parquet, and would be read as {file_format!r}: files that are read as one have one format",
            path,
        )
    if file_format == "parquet" and is_packed(path):
        raise DataError(f"Parquet packed with {packing(path)} cannot be read: unpack it once", path)


def read(
    path: Path,
    file_format: str,
    columns: Columns,
    vocabulary: IdVocabulary | None = None,
    skipped: Skipped | None = None,
    named: bool = False,
) -> Source:
    """Read ``path``; ``columns`` counts for the formats with named columns.

    Args:
        path: The file, or for "huggingface" the folder.
        file_format: One of FORMATS.
        columns: The names of the columns.
        vocabulary: Where the ids are kept; a new one by default. Give one to read several files into it.
        skipped: Where given, lines that cannot be used are added to it and left out.
        named: Whether the user named the format: then ids may begin with what else marks a comment.

    Raises:
        DataError: for anything in the file that cannot be used, naming file and line.
        ValueError: for column names given with a format that has none.
    """
    vocabulary = vocabulary or IdVocabulary()
    if file_format in _UNNAMED and columns != Columns():
        raise ValueError(f"the format {file_format!r} has no named columns; a CSV, RecBole or Parquet file has")
    try:
        if file_format in _UNNAMED:
            if file_format in _LINES:
                return _LINES[file_format](path, vocabulary, skipped, named)
            return read_movielens(path, vocabulary, skipped)
        return _NAMED[file_format](path, columns, vocabulary, skipped)
    except (
        pl.exceptions.PolarsError, pl.exceptions.PanicException, *UNREADABLE, UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise unreadable(path, error, CONTROL_BYTES if file_format in _UNNAMED else b"") from error
