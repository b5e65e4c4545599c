"""Arrays on disk, in files without a name: what stands in them goes with the process, whatever ends it."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plr.errors import DataError

__all__ = ["BlockFile"]


class BlockFile:
    """Blocks of columns that are appended, and read back one by one.

    On POSIX the file has no name: no process that is killed leaves it behind, and its space is given back when it is
    closed or nothing refers to this object any more. Not for several threads at once.

    Args:
        folder: On the disk of which to write.
        dtypes: Of the columns.

    Raises:
        DataError: the disk is full, or the folder cannot be written to.
    """

    def __init__(self, folder: Path, dtypes: Sequence[Any]) -> None:
        self.dtypes = [np.dtype(dtype) for dtype in dtypes]
        self._folder = folder
        self._begins: list[int] = []  # of every block, in bytes
        self._lengths: list[list[int]] = []  # of its columns
        self._end = 0
        try:
            # Without a buffer: what it held would be written when the file is closed, and fail there.
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed with this object)
        except OSError as error:
            raise self._unwritable(error) from error
        self.close = weakref.finalize(self, self._file.close)
        """Give the space back, now and not only when nothing refers to this object."""

    def __len__(self) -> int:
        return len(self._begins)

    def append(self, *columns: np.ndarray) -> None:
        """Append a block; its columns may differ in length."""
        self._begins.append(self._end)
        self._lengths.append([len(column) for column in columns])
        try:
            self._file.seek(self._end)
            for column, dtype in zip(columns, self.dtypes, strict=True):
                left = _bytes_of(np.ascontiguousarray(column, dtype=dtype))
                self._end += len(left)
                while left:  # the system may take less than all
                    left = left[self._file.write(left) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def lengths(self, block: int) -> list[int]:
        """Return the lengths of the columns of a block."""
        return self._lengths[block]

    def __getitem__(self, block: int) -> list[np.ndarray]:
        """Return the columns of a block."""
        return [self.column(block, number) for number in range(len(self.dtypes))]

    def column(self, block: int, number: int) -> np.ndarray:
        """Return one column of a block."""
        sizes = [length * dtype.itemsize for length, dtype in zip(self._lengths[block], self.dtypes, strict=True)]
        column = np.empty(self._lengths[block][number], self.dtypes[number])
        self._file.seek(self._begins[block] + sum(sizes[:number]))
        left = _bytes_of(column)
        while left:
            found = self._file.readinto(left)
            if not found:
                raise DataError("a temporary file ends too early", self._folder)
            left = left[found:]
        return column

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return (self[block] for block in range(len(self)))

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"the temporary files of --partitions, up to 60 bytes an interaction, cannot be written there: "
            f"{error.strerror or error}",
            self._folder,
        )


def _bytes_of(array: np.ndarray) -> memoryview:
    """Return the memory of a contiguous array."""
    return array.view(np.uint8).data
