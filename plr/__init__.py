"""Parallel Latent Reasoning for sequential recommendation, and the systems it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plr.serving import Recommender

__version__ = "0.1.0"
__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: plr.serving imports the rest of the package.
    if name == "Recommender":
        from plr.serving import Recommender

        return Recommender
    raise AttributeError(f"module 'plr' has no attribute {name!r}")
