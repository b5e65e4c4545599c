"""Filters before the split: minimum rating, k-core."""

from __future__ import annotations

import numpy as np

from plr.data.interactions import Interactions

__all__ = ["keep_core", "keep_rated"]


def keep_rated(interactions: Interactions, min_rating: float) -> Interactions:
    """Return the interactions with rating >= ``min_rating``; they must have ratings."""
    return interactions.take(interactions.rating >= min_rating)


def keep_core(interactions: Interactions, core: int) -> Interactions:
    """Return the largest part in which every user and every item has at least ``core`` interactions.

    Repeated interactions of one user with one item each count.
    """
    user, item = interactions.user, interactions.item
    kept = np.arange(len(user))
    while len(kept):
        often = (np.bincount(user)[user] >= core) & (np.bincount(item)[item] >= core)
        if often.all():
            break
        kept, user, item = kept[often], user[often], item[often]
    return interactions.take(kept)
