"""Frames of other libraries in and out: of pandas, pyarrow, polars, and whatever else hands over an Arrow stream."""

from __future__ import annotations

from typing import Any

import polars as pl

from plr.errors import DataError

__all__ = ["as_polars", "is_frame", "like"]


def is_frame(value: Any) -> bool:
    """Return whether a value is a table with named columns."""
    return isinstance(value, (pl.DataFrame, pl.LazyFrame)) or hasattr(value, "__arrow_c_stream__") or _is_pandas(value)


def as_polars(frame: Any) -> pl.DataFrame:
    """Return a frame for which `is_frame` holds as polars', without a copy where its memory can be shared.

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
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"a frame of {_library(frame)} that cannot be read: {reason}") from error


def like(given: Any, result: pl.DataFrame) -> Any:
    """Return a result as a frame of the library that `given` is of: pandas, pyarrow, or polars for all others."""
    if _is_pandas(given):
        return type(given)(result.to_dict(as_series=False))
    return result.to_arrow() if _library(given) == "pyarrow" else result


def _library(frame: Any) -> str:
    return type(frame).__module__.partition(".")[0]


def _is_pandas(value: Any) -> bool:
    return _library(value) == "pandas" and type(value).__name__ == "DataFrame"
