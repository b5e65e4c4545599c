"""The one error that bad input data raises."""

from __future__ import annotations

import os

__all__ = ["DataError"]


class DataError(ValueError):
    """Input data that cannot be used: what is wrong, in which file, and on which line where there is one.

    ``path``, ``line`` (1-based, a header counts; the row number for Parquet) and ``reason`` (the message
    without its place) are also attributes.
    """

    def __init__(
        self,
        message: str,
        path: str | os.PathLike[str] | None = None,
        line: int | None = None,
    ) -> None:
        self.path = None if path is None else os.fspath(path)
        self.line = line
        self.reason = message
        place = "" if path is None else f"{self.path}: " if line is None else f"{self.path}:{line}: "
        super().__init__(place + message)
