"""Text without a header: ``user item item …`` (a line per user), ``user item`` (one per interaction).

Such a line says nothing of what it is. A mark of comments (``#``, ``%``) that stands alone, or a doubled ``%``, is one.
An id that begins with a mark is one where every line has it, or where the format was named: that is the user's word for
data, of all but the first line. That is a header where it begins with usual names of columns, or else with a mark, and
its ids are in no other line.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import polars as pl

from plr.errors import DataError
from plr.prepare.readers.columns import is_header
from plr.prepare.readers.packed import open_plain
from plr.prepare.readers.source import MARKS, IdVocabulary, Skipped, Source, one_to_one

__all__ = ["CONTROL_BYTES", "read_pairs", "read_sequences"]

CONTROL_BYTES = bytes(byte for byte in range(32) if byte not in b"\t\n\v\f\r")
"""Bytes that no line of ids may hold."""

_COMMENT = (
    "the line begins with {user!r}, as comments do; delete it, or leave such lines out with "
    "plr prepare --skip_bad_lines. "
)
_MOVE = "If the line holds ids, put another first"
_FIRST = _COMMENT + _MOVE
_ALONE = _COMMENT + "Ids that begin so can be read from a CSV with a header"
_JOINED = _COMMENT + "Where ids begin so, name the format with --format"
_HEADER = (
    "the line is a header, which this format has none of; delete it, or leave it out with plr prepare "
    "--skip_bad_lines. A file with a header is separated by commas, semicolons or tabs (--format csv). " + _MOVE
)
_RETURN = (
    "the line holds a carriage return, which ended lines once on Macintoshes: it may be several; save the file with "
    "\\n at the end of each"
)
_NEVER = "\x01"  # a control byte, refused before: so every line is one field


def read_sequences(path: Path, vocabulary: IdVocabulary, skipped: Skipped | None = None, named: bool = False) -> Source:
    """Read lines of ``user item item …``, white space between, oldest item first; blank lines are left out.

    Where ``skipped`` is given, lines that cannot be used are added to it instead of raising. ``named``: the format was
    named, not told from the file.

    Raises:
        DataError: naming file and line, for a user without an item or a user with two lines.
    """
    lines = _tokens(path)
    first = pl.col("tokens").list.first().alias("user")
    counted = vocabulary.collect(lines.select("row", first, "returns", pl.col("tokens").list.len(), *_marks(first)))
    no_data = _refuse_no_data(counted, path, vocabulary, skipped, named)
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


def read_pairs(path: Path, vocabulary: IdVocabulary, skipped: Skipped | None = None, named: bool = False) -> Source:
    """Read lines of ``user item``, white space between, oldest interaction first; blank lines are left out.

    Where ``skipped`` is given, lines that cannot be used are added to it instead of raising. ``named``: the format was
    named, not told from the file.

    Raises:
        DataError: naming file and line, for a line of more or fewer than two fields.
    """
    lines = _tokens(path)
    first = pl.col("tokens").list.first().alias("user")
    pairs = vocabulary.collect(
        lines.select(
            "row",
            first,
            "returns",
            pl.col("tokens").list.get(1, null_on_oob=True).alias("item"),
            pl.col("tokens").list.len(),
            *_marks(first),
        )
    )
    pairs = pairs.filter(~_refuse_no_data(pairs, path, vocabulary, skipped, named))
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
    """Return ``row`` (0-based line), ``tokens`` (list of one or more strings) of all but blank lines, and ``returns``:
    whether a carriage return stands between them.
    """
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
        .select(
            "row",
            pl.col("line").str.extract_all(r"\S+").alias("tokens"),
            pl.col("line").str.strip_chars().str.contains("\r", literal=True).fill_null(False).alias("returns"),
        )
        .filter(pl.col("tokens").list.len() > 0)
    )


def _marks(first: pl.Expr) -> list[pl.Expr]:
    """Return whether a line's first field begins with a mark of comments, and whether it is nothing else."""
    marked = first.str.contains(f"^[{MARKS}]")
    alone = first.str.starts_with("%%") | (first.str.strip_chars(MARKS) == "")
    return [marked.fill_null(False).alias("marked"), alone.fill_null(False).alias("alone")]


def _header_in(path: Path, marked: bool) -> tuple[int, str] | None:
    """Return the 0-based row of the first line that is not blank and what it is, where that is no data.

    It may be a header; and with ``marked`` a line that begins as comments do.
    """
    header: list[str] = []
    found = None
    with open_plain(path) as file:
        for row, line in enumerate(file):
            fields = line.decode("utf-8-sig", errors="replace").split()
            if not header and fields:
                header = fields
                if is_header([fields[0].lstrip(MARKS), *fields[1:]]):
                    found = row, _HEADER
                elif marked and fields[0][0] in MARKS:
                    found = row, _FIRST
                else:
                    return None
            elif header and fields != header and (fields[:1] == header[:1] or set(header[1:]) & set(fields[1:])):
                return None  # ids that other lines have, too
    return found


def _refuse_no_data(
    frame: pl.DataFrame, path: Path, vocabulary: IdVocabulary, skipped: Skipped | None, named: bool
) -> pl.Series:
    """Refuse comments, a header, and lines that may be several: returns which lines are such."""
    wrong = _refuse(frame, pl.col("returns"), path, vocabulary, _RETURN, skipped)
    wrong |= _refuse(frame, pl.col("alone") & ~wrong, path, vocabulary, _ALONE, skipped)
    marked = frame["marked"] & ~wrong
    mixed = not (marked | wrong).all()  # else all ids begin so
    if mixed and not named:
        joined = pl.col("marked") & ~pl.col("alone") & ~pl.col("returns")
        wrong |= _refuse(frame, joined, path, vocabulary, _JOINED, skipped)
    if (first := _header_in(path, mixed and named)) is not None:
        row, message = first
        wrong |= _refuse(frame, (pl.col("row") == row) & ~wrong, path, vocabulary, message, skipped)
    marked &= ~wrong
    if mixed and marked.any():
        warnings.warn(
            f"{path}: {int(marked.sum()):,} lines begin with # or %, as comments do, and are read since the format was "
            f"named. The first is line {frame['row'].filter(marked).to_list()[0] + 1}",
            stacklevel=2,
        )
    return wrong


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
