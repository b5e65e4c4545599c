"""External ids of users or items."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

__all__ = ["Ids"]


class Ids:
    """External ids (strings), read when they are first asked for: a prepared set is opened without them."""

    def __init__(self, ids: pl.Series | Callable[[], pl.Series], count: int | None = None) -> None:
        self._ids = ids
        if count is None:
            count = len(ids if isinstance(ids, pl.Series) else ids())
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    def series(self) -> pl.Series:
        """All of them."""
        if not isinstance(self._ids, pl.Series):
            self._ids = self._ids()
        return self._ids
