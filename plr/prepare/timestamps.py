"""Seconds, milliseconds, microseconds or nanoseconds: units are told by magnitude, and never mixed."""

from __future__ import annotations

import numpy as np

__all__ = ["firsts_of_units", "outside_of", "unit_of"]

_EARLIEST = 315_532_800  # 1980-01-01 in seconds since 1970
_LATEST = 4_102_444_800  # 2100-01-01
_UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


def unit_of(time: float) -> str | None:
    """Return the unit in which ``time`` lies between 1980 and 2100; None where there is none (a counter, say)."""
    for unit, per_second in _UNITS.items():
        if _EARLIEST * per_second <= time <= _LATEST * per_second:
            return unit
    return None


def firsts_of_units(times: np.ndarray, positions: np.ndarray) -> dict[str, tuple[int, int]]:
    """Return the first in the file of the times of each unit: {unit: (position, time)}.

    Args:
        times: int64 [N]; those without a recognised unit are of none.
        positions: Where in the file each stands, [N].
    """
    firsts = {}
    for unit, per_second in _UNITS.items():
        inside = np.flatnonzero((times >= _EARLIEST * per_second) & (times <= _LATEST * per_second))
        if len(inside):
            first = inside[positions[inside].argmin()]
            firsts[unit] = int(positions[first]), int(times[first])
    return firsts


def outside_of(unit: str, times: np.ndarray, positions: np.ndarray) -> tuple[int, tuple[int, int] | None]:
    """Return how many times are not between 1980 and 2100 in ``unit``, and the first in the file: (position, time).

    Args:
        unit: One of those that ``unit_of`` returns.
        times: int64 [N].
        positions: Where in the file each stands, [N].
    """
    per_second = _UNITS[unit]
    outside = np.flatnonzero((times < _EARLIEST * per_second) | (times > _LATEST * per_second))
    if not len(outside):
        return 0, None
    first = outside[positions[outside].argmin()]
    return len(outside), (int(positions[first]), int(times[first]))
