"""Parallel Latent Reasoning for sequential recommendation, and the systems it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plr.version import __version__

if TYPE_CHECKING:
    from plr.api import compare, evaluate, train
    from plr.estimators import PLR, BERT4Rec, Recommender, SASRec, UniSRec, load

__all__ = [
    "PLR", "BERT4Rec", "Recommender", "SASRec", "UniSRec", "__version__", "compare", "evaluate", "load", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Loaded on first use: they import the rest of the package.
    if name in ("compare", "evaluate", "train"):
        from plr import api

        return getattr(api, name)
    if name in __all__:
        from plr import estimators

        return getattr(estimators, name)
    raise AttributeError(f"module 'plr' has no attribute {name!r}")
