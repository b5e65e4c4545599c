"""What was read, on disk: a frame of numbers that is too long for memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from plr.prepare.block_file import BlockFile

__all__ = ["Numbers", "Spooled", "blocks_of", "missing_in", "nulls_in"]

_DTYPES = {pl.UInt32: np.uint32, pl.Int64: np.int64, pl.Boolean: np.bool_}


class Spooled:
    """A frame of numbers (UInt32, Int64, Boolean) on disk. In memory stands a bit for each value of blocks with a null.

    Args:
        folder: On the disk of which to write.
        like: A frame with the columns.
    """

    def __init__(self, folder: Path, like: pl.DataFrame) -> None:
        self.columns = like.columns
        self.height = 0
        self._stored = like.columns
        self._file = BlockFile(folder, [_DTYPES[type(dtype)] for dtype in like.dtypes])
        self._missing: list[pl.DataFrame | None] = []  # of every block, where it has any
        self._heights: list[int] = []
        self._kept: pl.Series | None = None

    @classmethod
    def of(cls, folder: Path, frame: pl.DataFrame) -> Spooled:
        """Return a frame on disk."""
        spooled = cls(folder, frame)
        for block in frame.iter_slices(1 << 19):
            spooled.append(block)
        return spooled

    def append(self, block: pl.DataFrame) -> None:
        """Append a block, before any is left out."""
        if not block.height:
            return
        columns = [block[name] for name in self._stored]
        nulls = any(column.null_count() for column in columns)
        self._missing.append(pl.DataFrame([column.is_null() for column in columns]) if nulls else None)
        if nulls:
            columns = [column.fill_null(False if column.dtype == pl.Boolean else 0) for column in columns]
        self._file.append(*(column.to_numpy() for column in columns))
        self._heights.append(block.height)
        self.height += block.height

    def null_count(self, name: str) -> int:
        """Return how many values of a column are null."""
        return sum(0 if missing is None else int(missing[name].sum()) for missing in self._missing)

    def missing(self) -> pl.DataFrame:
        """Return which values are null: a frame of booleans."""
        parts = [pl.DataFrame(schema=dict.fromkeys(self._stored, pl.Boolean))]
        for missing, height in zip(self._missing, self._heights, strict=True):
            none = pl.repeat(False, height, dtype=pl.Boolean, eager=True)
            parts.append(pl.DataFrame(dict.fromkeys(self._stored, none)) if missing is None else missing)
        return pl.concat(parts)

    def filter(self, kept: pl.Series) -> Spooled:
        """Leave out all rows but the ``kept`` (Boolean [height]), once, and return this."""
        self._kept, self.height = kept, int(kept.sum())
        return self

    def with_rating_as(self, name: str | None) -> Spooled:
        """Rename the column ``rating``, or with None leave it out, and return this."""
        self._stored = [(name or "") if column == "rating" else column for column in self._stored]
        self.columns = [column for column in self._stored if column]
        return self

    def blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the columns, block by block: {name: values [n]}. Rows with a null must have been left out."""
        start = 0
        for height, values in zip(self._heights, self._file, strict=True):
            columns = {name: column for name, column in zip(self._stored, values, strict=True) if name}
            if self._kept is not None:
                kept = self._kept[start : start + height].to_numpy()
                columns = {name: column[kept] for name, column in columns.items()}
            start += height
            yield columns


Numbers = pl.DataFrame | Spooled
"""The columns of a Source, in memory or on disk."""


def nulls_in(frame: Numbers, name: str) -> int:
    """Return how many values of a column are null."""
    return frame.null_count(name) if isinstance(frame, Spooled) else frame[name].null_count()


def missing_in(frame: Numbers) -> pl.DataFrame:
    """Return which values are null: a frame of booleans."""
    return frame.missing() if isinstance(frame, Spooled) else frame.select(pl.all().is_null())


def blocks_of(frame: Numbers, name: str) -> Iterator[pl.Series]:
    """Yield a column block by block."""
    if isinstance(frame, Spooled):
        for block in frame.blocks():
            yield pl.Series(name, block[name])
    else:
        yield frame[name]
