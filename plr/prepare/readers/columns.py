"""Named columns: which one is which, and values checked into the types of a Source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from polars.selectors import by_name  # takes no name for a pattern, as pl.col takes ^...$

from plr.errors import DataError
from plr.prepare.readers.source import LISTED, IdVocabulary, LinesOf, Skipped, Source, collect

__all__ = ["Columns", "find_columns", "normalise", "read_columns"]

ROLES = ("user", "item", "rating", "timestamp")
_USUAL = {
    "user": {"user", "userid", "reviewerid", "customerid", "uid"},
    "item": {"item", "itemid", "parentasin", "asin", "productid", "movieid", "iid"},
    "rating": {"rating", "overall", "score", "stars"},
    "timestamp": {"timestamp", "time", "unixreviewtime", "unixtime", "datetime", "date"},
}
_PLAIN = {"rating": pl.Float64, "timestamp": pl.Int64}
_FIRST = 100  # records that tell how numbers are written
_EXACT = 2**53  # beyond it a float64 no longer tells neighbouring whole numbers apart


@dataclass(frozen=True)
class Columns:
    """The names asked for; None = find it by its usual name."""

    user: str | None = None
    item: str | None = None
    rating: str | None = None
    timestamp: str | None = None


def normalise(name: str) -> str:
    """Return ``name`` to compare with the usual names: lower case, no type suffix, separators or spaces."""
    return name.split(":")[0].strip().lower().translate(str.maketrans("", "", "_- "))


def find_columns(names: Sequence[str], wanted: Columns, path: Path, line: int | None = 1) -> dict[str, str]:
    """Return {role: column name}; ``rating`` and ``timestamp`` are absent where the file has none.

    A name asked for may leave out the type suffix of a RecBole header.

    Raises:
        DataError: naming the file and listing its columns, for a column that is missing or not to be told
            from others.
    """
    listed = "the file has the columns " + ", ".join(repr(name) for name in names)
    found: dict[str, str] = {}
    for role in ROLES:
        asked = getattr(wanted, role)
        if asked is not None:
            exact = [name for name in names if name == asked]
            matches = exact or [name for name in names if name.split(":")[0] == asked]
            problem = f"no column {asked!r}"
        else:
            matches = [name for name in names if normalise(name) in _USUAL[role]]
            problem = f"no {role} column by a usual name (name it with {role}_column)"
        if len(matches) > 1:
            raise DataError(
                f"{' and '.join(map(repr, matches))} could each be the {role} column "
                f"(name it with {role}_column); {listed}",
                path,
                line,
            )
        if matches:
            found[role] = matches[0]
        elif asked is not None or role in ("user", "item"):
            raise DataError(f"{problem}; {listed}", path, line)
    roles_of: dict[str, list[str]] = {}
    for role, name in found.items():
        roles_of.setdefault(name, []).append(role)
    for name, roles in roles_of.items():
        if len(roles) > 1:
            raise DataError(f"column {name!r} was named as {' and as '.join(roles)}", path, line)
    return found


def read_columns(
    path: Path,
    table: pl.LazyFrame,
    columns: Mapping[str, str],
    lines_of: LinesOf,
    vocabulary: IdVocabulary,
    whole_lines: bool = False,
    skipped: Skipped | None = None,
    typed: Callable[[Mapping[str, pl.DataType]], pl.LazyFrame] | None = None,
) -> Source:
    """Check and convert the ``columns`` ({role: name}) of ``table``; rows without any value are left out.

    With ``whole_lines`` the other columns are read too, for only then does polars count the fields of every line.
    Where ``skipped`` is given, rows with a value that cannot be used are added to it instead of raising. For text
    ``typed`` returns the table read with these types of columns, which costs less than to convert them afterwards.

    Raises:
        DataError: naming file, line, column, the value found and what is accepted, for the first value that
            is missing or does not convert.
    """
    schema = table.collect_schema()
    for role, name in columns.items():
        _check_dtype(role, name, schema[name], path)
    others = [name for name in schema.names() if whole_lines and name not in columns.values()]
    counted = [pl.any_horizontal(by_name(others).is_null()).alias("counted")] if others else []

    def converted(lines: pl.LazyFrame, plain: bool) -> pl.DataFrame:
        types = lines.collect_schema()
        wanted = [_convert(role, pl.col(name), types[name], plain) for role, name in columns.items()]
        if "rating" in columns:
            number = wanted[2]
            high = pl.lit(True) if vocabulary.min_rating is None else number >= vocabulary.min_rating
            wanted[2] = pl.when(number.is_not_null()).then(high).alias("rating")
        frame = vocabulary.collect(lines.select(*wanted, *counted))
        return pl.DataFrame([frame[role] for role in columns])  # frame.select would copy all of it into one chunk

    # Numbers are mostly written plainly; to allow for every other form costs as much again as reading them.
    numbers = {name: _PLAIN[role] for role, name in columns.items() if role in _PLAIN and schema[name] == pl.String}
    plainly = table if typed is None else typed(numbers)
    try:
        for lines in (plainly.head(_FIRST), plainly):
            frame = converted(lines, plain=True)
            if any(frame[role].null_count() for role in _PLAIN if role in columns):
                raise pl.exceptions.ComputeError("a number that is not written plainly")
    except pl.exceptions.PolarsError:  # or a line that cannot be read, which stops this too
        frame = converted(table, plain=False)
    if not any(frame[role].null_count() for role in columns):
        return Source(path, frame, lines_of, records=frame.height)
    wrong = frame.select(pl.any_horizontal(pl.col(*columns).is_null())).to_series()

    # Blank lines come as rows without any value. Only now is it worth reading every column to tell them.
    numbered = table.with_row_index("row")
    blank = collect(numbered.filter(pl.all_horizontal(by_name(schema.names()).is_null())).select("row"))
    kept = np.ones(frame.height, dtype=bool)
    kept[blank["row"].to_numpy()] = False
    bad = np.flatnonzero(kept & wrong.to_numpy())
    if len(bad):
        errors = _bad_values(path, numbered, columns, frame, bad[: 1 if skipped is None else LISTED], lines_of)
        if skipped is None:
            raise errors[0]
        for error in errors:
            skipped.add(path, error.line, error.reason)
        skipped.count += len(bad) - len(errors)
        kept[bad] = False
    return Source(path, frame.filter(pl.Series(kept)), lines_of, np.flatnonzero(kept), frame.height)


def _check_dtype(role: str, name: str, dtype: pl.DataType, path: Path) -> None:
    text = dtype in (pl.String, pl.Categorical, pl.Enum)
    if role in ("user", "item"):
        accepted, fine = "strings or integers", text or dtype.is_integer()
    elif role == "rating":
        accepted, fine = "numbers", text or dtype.is_numeric()
    else:
        accepted, fine = (
            "numbers, dates or datetimes",
            text or dtype.is_numeric() or dtype in (pl.Date, pl.Datetime),
        )
    if not fine:
        raise DataError(f"column {name!r} ({role}) has the type {dtype}; accepted: {accepted}", path)


def _convert(role: str, column: pl.Expr, dtype: pl.DataType, plain: bool) -> pl.Expr:
    """Return the typed column; a value that does not convert becomes null.

    With ``plain`` text converts only where it is a number as usually written: digits without spaces, times without a
    fraction.
    """
    if role in ("user", "item"):
        return column.cast(pl.String).alias(role)
    text = column.cast(pl.String).str.strip_chars() if dtype in (pl.String, pl.Categorical, pl.Enum) else column
    if plain and dtype == pl.String and role == "timestamp":
        return column.cast(pl.Int64, strict=False).alias(role)
    if plain and dtype == pl.String:
        text = column
    if role == "rating":
        number = text.cast(pl.Float64, strict=False)
        return pl.when(number.is_finite()).then(number).alias(role)
    if dtype in (pl.Date, pl.Datetime):
        return column.to_physical().cast(pl.Int64).alias(role)
    if dtype.is_integer():
        return column.cast(pl.Int64, strict=False).alias(role)
    number = text.cast(pl.Float64, strict=False)
    whole = pl.when((number == number.floor()) & (number.abs() <= _EXACT)).then(number).cast(pl.Int64, strict=False)
    if dtype.is_float():
        return whole.alias(role)
    return pl.coalesce(text.cast(pl.Int64, strict=False), whole).alias(role)


_ACCEPTED = {
    "user": "a non-empty id",
    "item": "a non-empty id",
    "rating": "a finite number",
    "timestamp": "a whole number, such as seconds or milliseconds since 1970 (1.0 and negative ones too)",
}


def _bad_values(
    path: Path,
    numbered: pl.LazyFrame,
    columns: Mapping[str, str],
    frame: pl.DataFrame,
    rows: np.ndarray,
    lines_of: LinesOf,
) -> list[DataError]:
    """Return what is wrong with each of the ``rows``, in one further pass over the file."""
    texts = collect(numbered.filter(pl.col("row").is_in(rows.tolist())).select(*columns.values()))
    errors = []
    for found, text, line in zip(frame[rows].iter_slices(1), texts.iter_rows(named=True), lines_of(rows), strict=True):
        role = next(role for role in columns if found[role].null_count())
        value = text[columns[role]]
        what = "no value" if value is None or value == "" else f"the value {str(value)[:100]!r}"
        errors.append(DataError(f"column {columns[role]!r} has {what}; accepted: {_ACCEPTED[role]}", path, line))
    return errors
