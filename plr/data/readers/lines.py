"""Text without a header: ``user item item …`` (a line per user), ``user item`` (one per interaction)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from plr.data.errors import DataError
from plr.data.readers.source import Source, collect

__all__ = ["CONTROL_BYTES", "read_pairs", "read_sequences"]

CONTROL_BYTES = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r")
"""Bytes that no line of ids may hold."""

_NEVER = "\x01"  # a control byte, refused before: so every line is one field


def read_sequences(path: Path) -> Source:
    """Read lines of ``user item item …``, white space between, oldest item first; blank lines are skipped.

    Raises:
        DataError: naming file and line, for a user without an item or a user with two lines.
    """
    lines = _tokens(path)
    counted = collect(lines.select("row", pl.col("tokens").list.first().alias("user"), pl.col("tokens").list.len()))
    _refuse(counted, pl.col("tokens") < 2, path, "user {user!r} has no item; expected 'user item item …'")
    repeated = counted.filter(pl.col("user").is_duplicated()).filter(pl.col("user") == pl.col("user").first())
    if repeated.height:
        first, second = repeated["row"][:2].to_list()
        raise DataError(
            f"user {repeated['user'][0]!r} already has line {first + 1}; expected one line per user "
            "('user item item …'). For one interaction per line use format='pairs', or a CSV with a header",
            path,
            second + 1,
        )
    del counted
    items = lines.select(
        "row", pl.col("tokens").list.first().alias("user"), pl.col("tokens").list.slice(1).alias("item")
    ).explode("item")
    return Source(path, collect(items), _line_of)


def read_pairs(path: Path) -> Source:
    """Read lines of ``user item``, white space between, oldest interaction first; blank lines are skipped.

    Raises:
        DataError: naming file and line, for a line of more or fewer than two fields.
    """
    lines = _tokens(path)
    pairs = collect(
        lines.select(
            "row",
            pl.col("tokens").list.first().alias("user"),
            pl.col("tokens").list.get(1, null_on_oob=True).alias("item"),
            pl.col("tokens").list.len(),
        )
    )
    _refuse(pairs, pl.col("tokens") == 1, path, "user {user!r} has no item; expected 'user item'")
    _refuse(
        pairs,
        pl.col("tokens") > 2,
        path,
        "{tokens} fields; expected 'user item'. For one line per user use format='sequences'",
    )
    return Source(path, pairs.drop("tokens"), _line_of)


def _tokens(path: Path) -> pl.LazyFrame:
    """Return ``row`` (0-based line) and ``tokens`` (list of one or more strings) of all but blank lines."""
    lines = pl.scan_csv(
        path,
        has_header=False,
        separator=_NEVER,
        quote_char=None,
        infer_schema=False,
        new_columns=["line"],
        glob=False,
    )
    return (
        lines.with_row_index("row")
        .select("row", pl.col("line").str.extract_all(r"\S+").alias("tokens"))
        .filter(pl.col("tokens").list.len() > 0)
    )


def _refuse(frame: pl.DataFrame, wrong: pl.Expr, path: Path, message: str) -> None:
    first = frame.filter(wrong).head(1)
    if first.height:
        values = first.row(0, named=True)
        raise DataError(message.format(**values), path, _line_of(values["row"]))


def _line_of(row: int) -> int:
    return row + 1
