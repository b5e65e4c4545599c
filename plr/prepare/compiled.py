"""The C++ extension of plr.prepare, where it was built: all works without it, slower."""

from __future__ import annotations

try:
    from plr.prepare import _cpp
except ImportError:
    _cpp = None  # type: ignore[assignment]

__all__ = ["_cpp"]
