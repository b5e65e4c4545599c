"""Seconds, milliseconds, microseconds or nanoseconds: units are told by magnitude, and never mixed."""

from __future__ import annotations

import numpy as np

__all__ = ["first_of_another_unit", "unit_of"]

_EARLIEST = 315_532_800  # 1980-01-01 in seconds since 1970
_LATEST = 4_102_444_800  # 2100-01-01
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


def unit_of(time: float) -> str | None:
    """Return the unit in which ``time`` lies between 1980 and 2100; None where there is none (a counter, say)."""
    for unit, per_second in _UNITS.items():
        if _EARLIEST * per_second <= time <= _LATEST * per_second:
            return unit
    return None


def first_of_another_unit(times: np.ndarray) -> tuple[int, int] | None:
    """Return the positions of the first two of ``times`` (int64 [N]) whose units differ; None where none do.

    Times without a recognised unit differ from none.
    """
    firsts = []
    for per_second in _UNITS.values():
        inside = (times >= _EARLIEST * per_second) & (times <= _LATEST * per_second)
        if inside.any():
            firsts.append(int(inside.argmax()))
    return (sorted(firsts)[0], sorted(firsts)[1]) if len(firsts) > 1 else None
