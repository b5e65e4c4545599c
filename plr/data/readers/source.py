"""What every reader hands over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

__all__ = ["Source", "collect", "polars_version"]


@dataclass(frozen=True)
class Source:
    """The interactions of one file, in file order.

    ``frame`` has the columns ``row`` (unsigned integer, where in the file), ``user`` and ``item`` (strings,
    never null or empty), and where the file has them ``rating`` (float64, finite) and ``timestamp``
    (int64). ``line_of(row)`` gives the 1-based line (for Parquet: the row) to name in a message; it may
    read the file again.
    """

    path: Path
    frame: pl.DataFrame
    line_of: Callable[[int], int]


def polars_version() -> tuple[int, int]:
    """Return (major, minor) of the installed polars."""
    major, minor = pl.__version__.split(".")[:2]
    return int(major), int(minor)


def collect(frame: pl.LazyFrame) -> pl.DataFrame:
    """Run ``frame`` on the streaming engine where polars has the present one, else in memory."""
    if polars_version() >= (1, 25):
        return frame.collect(engine="streaming")
    return frame.collect()
