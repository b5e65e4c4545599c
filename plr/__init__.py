"""Parallel Latent Reasoning for sequential recommendation, and the systems it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plr.version import __version__

if TYPE_CHECKING:
    from plr.serving import Recommender

__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: plr.serving imports the rest of the package.
    if name == "Recommender":
        from plr.serving import Recommender

        return Recommender
    raise AttributeError(f"module 'plr' has no attribute {name!r}")
