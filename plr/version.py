"""The version, which what is written records."""

from __future__ import annotations

__version__ = "0.1.0"
