"""Named columns: which one is which, and values checked into the types of a Source."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.selectors import by_name  # takes no name for a pattern, as pl.col takes ^...$

from plr.errors import DataError, listed, shortened
from plr.prepare.readers.packed import open_plain
from plr.prepare.readers.source import (
    LISTED,
    IdVocabulary,
    LinesOf,
    Skipped,
    Source,
    about_comment,
    collect,
)
from plr.prepare.readers.spooled import Numbers, missing_in, nulls_in
from plr.prepare.timestamps import unit_of

__all__ = [
    "NO_TIMES", "Columns", "check_dtype", "convert", "find_columns", "is_header", "least_rating", "look_at_others",
    "normalise", "read_columns",
]  # fmt: skip

_IDS = ("user", "item")
ROLES = (*_IDS, "rating", "timestamp")
_USUAL = {
    "user": {"user", "userid", "reviewerid", "customerid", "uid"},
    "item": {"item", "itemid", "parentasin", "asin", "productid", "movieid", "iid"},
    "rating": {"rating", "overall", "score", "stars"},
    "timestamp": {"timestamp", "time", "unixreviewtime", "unixtime", "datetime", "date"},
}
NO_TIMES = "none"
"""The name of the timestamp column that says that there is none, or none to be used."""
_DATE = r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})([T ,]+\d{1,2}:\d{2}.*)?$"
_ISO_DATE = r"^\s*\d{4}-\d{2}-\d{2}"
_DATE_FORMS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_TIME_WORD = re.compile(
    r"(?i:time|date|stamp|epoch|unix|when|(^|[^a-z])(dt|ts|at|on|day)($|[^a-z]))|[a-z](At|On|Ts|Dt)$"
)
_CODED = (pl.Categorical, pl.Enum)
_PLAIN: dict[str, Any] = {"rating": pl.Float64, "timestamp": pl.Int64}
_LIST_ENDINGS = ("list", "seq", "sequence")
_LIST = r"\S[\s,;|]+\S|^\["  # several items in one value
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


def is_header(fields: Sequence[str]) -> bool:
    """Return whether the fields of a line without a header begin with a usual name of users and one of items.

    The latter may stand for several: items, item_ids, item_list, sequence and the like.
    """
    if len(fields) < 2:
        return False
    user, item = (normalise(name.strip("\"'")) for name in fields[:2])
    singular = {item, item.removesuffix("s"), *(item.removesuffix(ending) for ending in _LIST_ENDINGS)}
    return user in _USUAL["user"] and (bool(singular & _USUAL["item"]) or item in ("sequence", "history"))


def find_columns(names: Sequence[str], wanted: Columns, path: Path, line: int | None = 1) -> dict[str, str]:
    """Return {role: column name}; ``rating`` and ``timestamp`` are absent where the file has none.

    A name asked for may leave out the type suffix of a RecBole header.

    Raises:
        DataError: naming the file and listing its columns, for a column that is missing or not to be told
            from others.
    """
    columns = f"the file has the columns {listed(names)}"
    if names and not any(letter.isalpha() for name in names for letter in name.split("_duplicated_")[0]):
        columns += "; its first line looks like data: add a header such as user_id,item_id,rating,timestamp"
    for name in _lists_of_items(names, wanted.item):
        if name.endswith(":token_seq"):  # RecBole says that it holds lists
            raise _augmented(name, path, line)
    found: dict[str, str] = {}
    for role in ROLES:
        asked = getattr(wanted, role)
        if role == "timestamp" and asked == NO_TIMES and NO_TIMES not in names:
            continue
        if asked is not None:
            exact = [name for name in names if name == asked]
            matches = exact or [name for name in names if name.split(":")[0] == asked]
            problem = f"no column {shortened(asked)}"
        else:
            matches = [name for name in names if normalise(name) in _USUAL[role]]
            problem = f"no {role} column by a usual name (name it with {role}_column)"
        if len(matches) > 1:
            raise DataError(
                f"{' and '.join(map(shortened, matches))} could each be the {role} column "
                f"(name it with {role}_column); {columns}",
                path,
                line,
            )
        if matches:
            found[role] = matches[0]
        elif asked is not None or role in ("user", "item"):
            raise DataError(f"{problem}; {columns}", path, line)
    roles_of: dict[str, list[str]] = {}
    for role, name in found.items():
        roles_of.setdefault(name, []).append(role)
    for name, roles in roles_of.items():
        if len(roles) > 1:
            raise DataError(f"column {name!r} was named as {' and as '.join(roles)}", path, line)
    return found


def _lists_of_items(names: Sequence[str], item: str | None) -> list[str]:
    """Return the columns whose names are those of a list of items: item_id_list, item_seq and the like."""
    of_items = _USUAL["item"] if item is None else {*_USUAL["item"], normalise(item)}
    lists = {name + ending for name in of_items for ending in _LIST_ENDINGS}
    return [name for name in names if normalise(name) in lists]


def _augmented(name: str, path: Path, line: int | None) -> DataError:
    return DataError(
        f"column {shortened(name)} holds lists: the file is augmented beforehand, with a row for every part "
        "of a user's sequence. Give the file that it was made from, an interaction a line (user, item, time)",
        path,
        line,
    )


def _refuse_augmented(
    path: Path, table: pl.LazyFrame, columns: Mapping[str, str], wanted: Columns, line: int | None
) -> None:
    """Refuse a file whose rows hold the items before theirs, too: a column of that name whose values are lists."""
    others = [name for name in table.collect_schema().names() if name not in columns.values()]
    named = _lists_of_items(others, wanted.item)
    first = collect(table.select(by_name(named)).head(_FIRST)) if named else pl.DataFrame()
    for column in first:
        texts = column.drop_nulls()
        if texts.dtype == pl.List or (texts.dtype == pl.String and texts.str.contains(_LIST).any()):
            raise _augmented(column.name, path, line)


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
        check_dtype(role, name, schema[name], path)
    if coded := [name for role, name in columns.items() if role in _PLAIN and schema[name] in _CODED]:
        table = table.with_columns(by_name(coded).cast(pl.String))  # read as the text that they stand for
        schema = table.collect_schema()
    others = [name for name in schema.names() if whole_lines and name not in columns.values()]
    counted = [pl.any_horizontal(by_name(others).is_null()).alias("counted")] if others else []

    when = columns.get("timestamp")
    dates = False

    def converted(lines: pl.LazyFrame, plain: bool) -> Numbers:
        types = lines.collect_schema()
        wanted = [convert(role, pl.col(name), types[name], plain, dates) for role, name in columns.items()]
        if "rating" in columns:
            number = wanted[2]
            if vocabulary.min_rating is None:  # nobody needs one: it may be missing, but nothing else than a number
                missing = pl.col(columns["rating"]).is_null()
                if types[columns["rating"]] == pl.String:
                    missing |= pl.col(columns["rating"]).str.strip_chars() == ""
                high, usable = pl.lit(True), number.is_not_null() | missing
            else:
                least = least_rating(vocabulary.min_rating, types[columns["rating"]])
                high, usable = number >= least, number.is_not_null()
            wanted[2] = pl.when(usable).then(high).alias("rating")
        return vocabulary.collect_columns(lines.select(*wanted, *counted), list(columns))

    # Numbers are mostly written plainly; to allow for every other form costs as much again as reading them.
    numbers = {name: _PLAIN[role] for role, name in columns.items() if role in _PLAIN and schema[name] == pl.String}
    plainly = table if typed is None else typed(numbers)
    try:
        for lines in (plainly.head(_FIRST), plainly):
            frame = converted(lines, plain=True)
            if any(nulls_in(frame, role) for role in _PLAIN if role in columns):
                raise pl.exceptions.ComputeError("a number that is not written plainly")
    except pl.exceptions.PolarsError:  # or a line that cannot be read, which stops this too
        if when is not None and schema[when] == pl.String:
            texts = collect(table.select(by_name(when)).head(_FIRST))[when].drop_nulls()
            dates = bool(len(texts)) and bool(texts.str.contains(_ISO_DATE).all())
        frame = converted(table, plain=False)
    if not any(nulls_in(frame, role) for role in columns):
        return Source(path, frame, lines_of, records=frame.height, columns=columns)
    missing = missing_in(frame)
    wrong = missing.select(pl.any_horizontal(pl.all())).to_series()

    # Blank lines come as rows without any value. Only now is it worth reading every column to tell them.
    numbered = table.with_row_index("row")
    blank = collect(numbered.filter(pl.all_horizontal(by_name(schema.names()).is_null())).select("row"))
    kept = np.ones(frame.height, dtype=bool)
    kept[blank["row"].to_numpy()] = False
    if vocabulary.drop_missing_ids:
        without = (missing["user"] | missing["item"]).to_numpy() & kept
        vocabulary.dropped.append(int(np.count_nonzero(without)))
        kept[without] = False
    bad = np.flatnonzero(kept & wrong.to_numpy())
    if len(bad):
        shown = bad[: 1 if skipped is None else LISTED]
        errors = _bad_values(path, numbered, columns, missing, shown, lines_of, advise=skipped is None)
        if skipped is None:
            raise errors[0]
        for error in errors:
            skipped.add(path, error.line, error.reason)
        skipped.count += len(bad) - len(errors)
        kept[bad] = False
    records, left_out = frame.height, np.flatnonzero(~kept)
    return Source(path, frame.filter(pl.Series(kept)), lines_of, None, records, columns, left_out)


def look_at_others(
    path: Path, table: pl.LazyFrame, columns: Mapping[str, str], wanted: Columns, line: int | None = 1
) -> None:
    """Look at the columns that are not used: lists of items, and times.

    Raises:
        DataError: the file is augmented, or as ``_look_for_times``.
    """
    _refuse_augmented(path, table, columns, wanted, line)
    _look_for_times(path, table, columns, wanted, line)


def _look_for_times(
    path: Path, table: pl.LazyFrame, columns: Mapping[str, str], wanted: Columns, line: int | None
) -> None:
    """Say that a file has no times where ``columns`` name none, or refuse it where another column looks like them.

    One looks like times when all its values in the first records are dates, or when they are whole numbers that are
    seconds to nanoseconds of 1980 to 2100 and its name has a word of time.

    Raises:
        DataError: naming such a column.

    Warns:
        UserWarning: the order of the lines counts.
    """
    if "timestamp" in columns or wanted.timestamp == NO_TIMES:
        return
    others = [name for name in table.collect_schema().names() if name not in columns.values()]
    first = collect(table.select(by_name(others)).head(_FIRST)) if others else pl.DataFrame()
    for column in first:
        if _looks_like_times(column):
            raise DataError(
                f"no timestamp column by a usual name, but column {shortened(column.name)} looks like times "
                f"({shortened(column.drop_nulls()[0])}): name it with --timestamp_column, or give --timestamp_column "
                f"{NO_TIMES} to take the lines in the order of the file",
                path,
                line,
            )
    warnings.warn(
        f"{path}: no timestamp column by a usual name: the order of the lines is taken for the order in time "
        f"(--timestamp_column names one, or {NO_TIMES})",
        stacklevel=2,
    )


def _looks_like_times(column: pl.Series) -> bool:
    values = column.drop_nulls()
    if values.dtype in (pl.Date, pl.Datetime):
        return True
    if not len(values) or not (values.dtype in (pl.String, pl.Categorical, pl.Enum) or values.dtype.is_numeric()):
        return False
    texts = values.cast(pl.String).str.strip_chars()
    texts = texts.filter(texts != "")
    if not len(texts):
        return False
    if not values.dtype.is_numeric() and texts.str.contains(_DATE).all():
        return True
    numbers = texts.cast(pl.Float64, strict=False)
    named = _TIME_WORD.search(column.name) is not None
    return named and not numbers.null_count() and all(unit_of(number) is not None for number in numbers)


def least_rating(rating: float, dtype: pl.DataType) -> float:
    """Return a least rating as a column of this type has it: 4.1 in float32 is not below 4.1."""
    return float(np.float32(rating)) if dtype == pl.Float32 else float(rating)


def check_dtype(role: str, name: str, dtype: pl.DataType, path: Path) -> None:
    """Raise a DataError where a column of this type cannot have the role."""
    text = dtype in (pl.String, *_CODED)
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
        why = ", which pandas makes of integers where one is missing" if dtype.is_float() and role in _IDS else ""
        raise DataError(f"column {name!r} ({role}) has the type {dtype}{why}; accepted: {accepted}", path)


def convert(role: str, column: pl.Expr, dtype: pl.DataType, plain: bool = False, dates: bool = False) -> pl.Expr:
    """Return the typed column; a value that does not convert becomes null.

    With ``plain`` text converts only where it is a number as usually written: digits without spaces, times without a
    fraction. With ``dates`` times in text are dates.
    """
    if role in ("user", "item"):
        return column.cast(pl.String).alias(role)
    text = column.str.strip_chars() if dtype == pl.String else column
    if plain and dtype == pl.String and role == "timestamp":
        return column.cast(pl.Int64, strict=False).alias(role)
    if plain and dtype == pl.String:
        text = column
    if role == "rating":
        number = text.cast(pl.Float64, strict=False)
        return pl.when(number.is_finite()).then(number).alias(role)
    if dates:
        return _date(text).alias(role)
    if dtype in (pl.Date, pl.Datetime):
        return column.to_physical().cast(pl.Int64).alias(role)
    if dtype.is_integer():
        return column.cast(pl.Int64, strict=False).alias(role)
    if dtype.is_decimal():
        whole = column.cast(pl.Int64, strict=False)  # towards zero
        return pl.when(whole.cast(dtype, strict=False) == column).then(whole).alias(role)
    number = text.cast(pl.Float64, strict=False)
    whole = pl.when((number == number.floor()) & (number.abs() <= _EXACT)).then(number).cast(pl.Int64, strict=False)
    if dtype.is_float():
        return whole.alias(role)
    return pl.coalesce(text.cast(pl.Int64, strict=False), whole).alias(role)


def _date(text: pl.Expr) -> pl.Expr:
    """Return the microseconds since 1970 of dates of ISO 8601, with a time of day or without."""
    plain = text.str.replace(r"^(.{10})[Tt]", "${1} ").str.replace(r"\s*[Zz]$", "")
    forms = [plain.str.to_datetime(form, time_unit="us", strict=False) for form in _DATE_FORMS]
    zoned = plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%:z", time_unit="us", strict=False)
    return pl.coalesce(*(each.to_physical() for each in [*forms, zoned])).cast(pl.Int64)


_ACCEPTED = {
    "user": "a non-empty id",
    "item": "a non-empty id",
    "rating": "a finite number",
    "timestamp": "a whole number, such as seconds or milliseconds since 1970 (1.0 and negative ones too)",
}


def _remedy(role: str, value: object) -> str:
    """Return what to do about a value that does not convert, where there is something."""
    if role in ("user", "item") and value in (None, ""):
        return " (--missing_ids drop leaves such lines out)"
    if role == "timestamp" and any(letter in str(value)[1:] for letter in "-/:."):
        return "; dates are read where all lines have them as 2021-04-01 or 2021-04-01T12:30:00Z"
    return ""


def _about_comment(path: Path, line: int) -> str:
    """Return what to add where the line, one of a text file, begins as comments do."""
    with open_plain(path) as file:
        return about_comment(next(islice(file, line - 1, line)).decode("utf-8-sig", errors="replace"))


def _bad_values(
    path: Path,
    numbered: pl.LazyFrame,
    columns: Mapping[str, str],
    missing: pl.DataFrame,
    rows: np.ndarray,
    lines_of: LinesOf,
    advise: bool,
) -> list[DataError]:
    """Return what is wrong with each of the ``rows``, in one further pass over the file; ``advise``: and what to do.

    ``missing`` says which values did not convert.
    """
    texts = collect(numbered.filter(pl.col("row").is_in(rows.tolist())).select(*columns.values()))
    errors = []
    lines: list[int | None] = [*lines_of(rows)]
    lines += [None] * (len(rows) - len(lines))  # of records that only a parser led astray sees
    for found, text, line in zip(
        missing[rows].iter_rows(named=True), texts.iter_rows(named=True), lines, strict=True
    ):
        role = next(role for role in columns if found[role])
        value = text[columns[role]]
        none = value is None or value == ""
        what = "no value" if none else f"the value {shortened(value)}"
        remedy = _remedy(role, value) + (_about_comment(path, line) if none and line else "") if advise else ""
        errors.append(
            DataError(f"column {shortened(columns[role])} has {what}; accepted: {_ACCEPTED[role]}{remedy}", path, line)
        )
    return errors
