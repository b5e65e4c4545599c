"""Work on long arrays block by block, on all cores: what a block needs beside them stays in the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import polars as pl

from plr.prepare.compiled import _cpp

__all__ = ["BLOCK", "by_blocks", "in_threads", "mark"]

BLOCK = 1 << 18
_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def by_blocks(function: Callable[[slice], _Result], length: int) -> list[_Result]:
    """Return what ``function`` returns for each of the consecutive blocks of 0..length, in their order."""
    return in_threads(function, [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)])


def in_threads(function: Callable[[_Part], _Result], parts: Iterable[_Part]) -> list[_Result]:
    """Return ``function`` of every part, in their order.

    It is called in as many threads as polars has, which numpy lets run beside each other; for one part in this one.
    """
    parts = list(parts)
    if len(parts) < 2 or pl.thread_pool_size() == 1:
        return [function(part) for part in parts]
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        return list(pool.map(function, parts))


def mark(marks: np.ndarray, index: np.ndarray, chosen: np.ndarray | None = None) -> None:
    """Set ``marks`` (bool [M]) at every ``index`` (int32 or uint32 [N]), or at those ``chosen`` (bool [N])."""
    if _cpp is None:
        marks[index if chosen is None else index[chosen]] = True
    else:
        _cpp.mark(marks, index.view(np.uint32), chosen)
