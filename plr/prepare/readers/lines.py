"""Text without a header: ``user item item …`` (a line per user), ``user item`` (one per interaction)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import is_header
from plr.prepare.readers.source import IdVocabulary, Skipped, Source, one_to_one, open_plain

__all__ = ["COMMENT", "CONTROL_BYTES", "HEADER", "header_in", "is_comment", "read_pairs", "read_sequences"]

CONTROL_BYTES = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r")
"""Bytes that no line of ids may hold."""

COMMENT = (
    "the line begins with {user!r}, as comments do; delete it, or leave such lines out with --skip_bad_lines. Ids that "
    "begin so can be read from a CSV with a header"
)
HEADER = (
    "the line is a header, which this format has none of; delete it, or leave it out with --skip_bad_lines. A file "
    "with a header is separated by commas, semicolons or tabs (--format csv)"
)
_NEVER = "\x01"  # a control byte, refused before: so every line is one field


def read_sequences(path: Path, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read lines of ``user item item …``, white space between, oldest item first; blank lines are left out.

    Where ``skipped`` is given, lines that cannot be used are added to it instead of raising.

    Raises:
        DataError: naming file and line, for a user without an item or a user with two lines.
    """
    lines = _tokens(path)
    first = pl.col("tokens").list.first().alias("user")
    counted = vocabulary.collect(lines.select("row", first, pl.col("tokens").list.len(), is_comment(first)))
    no_data = _refuse_no_data(counted, path, vocabulary, skipped)
    if no_data.any():
        lines = lines.filter(~pl.col("row").is_in(counted["row"].filter(no_data).to_list()))
        counted = counted.filter(~no_data)
    lonely = _refuse(
        counted,
        pl.col("tokens") < 2,
        path,
        vocabulary,
        "user {user!r} has no item; expected 'user item item …'",
        skipped,
    )
    repeated = counted.filter(~pl.col("user").is_first_distinct() & ~lonely)
    if repeated.height and skipped is None:
        number, second = repeated.sort("row")["user", "row"].row(0)
        former = min(counted.filter(pl.col("user") == number)["row"].to_list())
        raise DataError(
            f"user {vocabulary.user.string(number)!r} already has line {former + 1}; expected one line per user "
            "('user item item …'). For one interaction per line use format='pairs', or a CSV with a header",
            path,
            second + 1,
        )
    for number, row in repeated.sort("row")["user", "row"].iter_rows():
        assert skipped is not None
        skipped.add(path, row + 1, f"user {vocabulary.user.string(number)!r} already has a line")
    del counted
    items = lines.filter(~pl.col("row").is_in(repeated["row"].to_list())) if repeated.height else lines
    items = items.select("row", first, pl.col("tokens").list.slice(1).alias("item")).explode("item")
    frame = vocabulary.collect(items.filter(pl.col("item").is_not_null()))
    return Source(path, frame.drop("row"), one_to_one, frame["row"].to_numpy())


def read_pairs(path: Path, vocabulary: IdVocabulary, skipped: Skipped | None = None) -> Source:
    """Read lines of ``user item``, white space between, oldest interaction first; blank lines are left out.

    Where ``skipped`` is given, lines that cannot be used are added to it instead of raising.

    Raises:
        DataError: naming file and line, for a line of more or fewer than two fields.
    """
    lines = _tokens(path)
    pairs = vocabulary.collect(
        lines.select(
            "row",
            pl.col("tokens").list.first().alias("user"),
            pl.col("tokens").list.get(1, null_on_oob=True).alias("item"),
            pl.col("tokens").list.len(),
            is_comment(pl.col("tokens").list.first()),
        )
    )
    pairs = pairs.filter(~_refuse_no_data(pairs, path, vocabulary, skipped))
    few = _refuse(
        pairs, pl.col("tokens") == 1, path, vocabulary, "user {user!r} has no item; expected 'user item'", skipped
    )
    many = _refuse(
        pairs,
        pl.col("tokens") > 2,
        path,
        vocabulary,
        "{tokens} fields; expected 'user item'. For one line per user use format='sequences'",
        skipped,
    )
    pairs = pairs.filter(~few & ~many)
    return Source(path, pairs.select("user", "item"), one_to_one, pairs["row"].to_numpy())


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


def is_comment(first: pl.Expr) -> pl.Expr:
    """Return whether a line's first field begins as comments do: the column ``comment``."""
    return (first.str.starts_with("#") | first.str.starts_with("%")).fill_null(False).alias("comment")


def header_in(path: Path, separator: str | None = None) -> int | None:
    """Return the 0-based row of the first line that is not blank, where it is a header; None where it is data."""
    with open_plain(path) as file:
        for row, line in enumerate(file):
            text = line.decode("utf-8-sig", errors="replace").strip()
            if text:
                return row if is_header(text.split(separator)) else None
    return None


def _refuse_no_data(frame: pl.DataFrame, path: Path, vocabulary: IdVocabulary, skipped: Skipped | None) -> pl.Series:
    """Refuse comments, and a header: returns which lines are such."""
    comments = _refuse(frame, pl.col("comment"), path, vocabulary, COMMENT, skipped)
    row = header_in(path)
    return comments | _refuse(frame, pl.col("row") == (-1 if row is None else row), path, vocabulary, HEADER, skipped)


def _refuse(
    frame: pl.DataFrame, wrong: pl.Expr, path: Path, vocabulary: IdVocabulary, message: str, skipped: Skipped | None
) -> pl.Series:
    """Raise for the first wrong line; with ``skipped`` note all of them. Returns which are wrong."""
    mask = frame.select(wrong.alias("wrong")).to_series()
    for values in frame.filter(mask).iter_rows(named=True):
        values["user"] = vocabulary.user.string(values["user"])[:100]
        if skipped is None:
            raise DataError(message.format(**values), path, values["row"] + 1)
        skipped.add(path, values["row"] + 1, message.format(**values))
    return mask
