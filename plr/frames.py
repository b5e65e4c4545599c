"""Frames of other libraries in and out: pandas, pyarrow, DuckDB, polars, and whatever else has an Arrow stream."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from plr.errors import DataError, shortened

__all__ = ["as_polars", "is_frame", "like", "write_frame"]

_POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
_UNREADABLE = (*_POLARS, TypeError, ValueError, NotImplementedError, OverflowError)
"""What polars and pyarrow raise for values that they have no type for."""


def is_frame(value: Any) -> bool:
    """Return whether a value is a table with named columns."""
    return isinstance(value, (pl.DataFrame, pl.LazyFrame)) or hasattr(value, "__arrow_c_stream__") or _is_pandas(value)


def as_polars(frame: Any) -> pl.DataFrame:
    """Return a frame for which `is_frame` holds, or a mapping from names to columns, as polars'.

    Nothing is copied where its memory can be shared.

    Raises:
        DataError: it cannot be read; says what is missing.
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    try:
        return pl.from_pandas(frame) if _is_pandas(frame) else pl.DataFrame(frame)
    except ImportError as error:
        raise DataError(f"a frame of {_library(frame)} is read through pyarrow; pip install pyarrow") from error
    except _UNREADABLE as error:
        what = "a mapping of columns" if isinstance(frame, Mapping) else f"a frame of {_library(frame)}"
        raise DataError(f"{what} that cannot be read: {_why(frame, error)}") from error


def _why(frame: Any, error: BaseException) -> str:
    """Return the reason, of a frame of pandas with the name of the column."""
    if _is_pandas(frame):
        names = list(frame.columns)
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            return f"it has the column {shortened(twice)} more than once"
        for name in names:
            values = frame[name].dropna() if frame[name].dtype == object else ()
            kinds = sorted({type(value).__name__ for value in values})
            if len(kinds) > 1:
                return f"column {shortened(name)} holds values of several types, {', '.join(kinds)}; make them one"
        for name in names:
            try:
                pl.from_pandas(frame[[name]])
            except _UNREADABLE as reason:
                return f"column {shortened(name)} of type {frame[name].dtype}: {_first_line(reason)}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_frame(frame: Any, path: Path) -> None:
    """Write a frame for which `is_frame` holds as Parquet.

    Raises:
        DataError: it cannot be read, or Parquet does not hold a column's values, whether they are needed or not.
    """
    table = as_polars(frame)
    try:
        table.write_parquet(path)
    except _POLARS:
        for column in table:
            try:
                column.head(1).to_frame().write_parquet(io.BytesIO())
            except _POLARS as reason:
                raise DataError(
                    f"column {shortened(column.name)} of the frame has the type {column.dtype}, which is not to be "
                    f"kept in a file ({_first_line(reason)}): leave it out, or give it another type"
                ) from reason
        raise


def like(given: Any, result: pl.DataFrame) -> Any:
    """Return a result as a frame of the library that `given` is of: pandas, pyarrow, DuckDB; of polars for others.

    Around one of these, narwhals comes out as narwhals.
    """
    if _is_pandas(given):
        return type(given)(_pandas(result))
    if _library(given).lstrip("_") == "duckdb" and hasattr(given, "query"):  # a relation of the same connection
        return given.query("plr_given", "SELECT * FROM result")  # DuckDB finds the variable, and keeps what it holds
    if _library(given) == "narwhals":
        around = sys.modules[type(given).__module__.removesuffix(".dataframe")]  # narwhals, or a stable one of it
        return around.from_native(like(given.to_native(), result))
    return result.to_arrow() if _library(given) == "pyarrow" else result


def _pandas(result: pl.DataFrame) -> Any:
    """Return a frame of pandas, or what makes one, whose columns have the types of the result's."""
    try:
        return result.to_pandas()
    except ImportError:  # without pyarrow NumPy's arrays do, with an object for each text
        return {column.name: column.to_numpy() for column in result}


def _library(frame: Any) -> str:
    return type(frame).__module__.partition(".")[0]


def _is_pandas(value: Any) -> bool:
    return _library(value) == "pandas" and type(value).__name__ == "DataFrame"
