"""Filters before the split: duplicates, minimum rating, users with few interactions, k-core."""

from __future__ import annotations

import numpy as np

from plr.data.interactions import Interactions, counts_of, gather

__all__ = ["keep_active", "keep_core", "keep_rated", "repeated"]


def repeated(ordered: Interactions) -> np.ndarray:
    """Return which interactions (bool [N]) repeat an earlier one: the same user, item and time.

    Args:
        ordered: In user order, with timestamps.
    """
    user, time, item = ordered.user, ordered.timestamp, ordered.item
    mask = np.zeros(len(user), dtype=bool)
    together = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    near = np.zeros(len(user), dtype=bool)  # those that share user and time with a neighbour
    near[1:] |= together
    near[:-1] |= together
    place = np.flatnonzero(near)
    order = np.lexsort((place, item[place], time[place], user[place]))
    place = place[order]
    same = (user[place][1:] == user[place][:-1]) & (time[place][1:] == time[place][:-1])
    mask[place[1:][same & (item[place][1:] == item[place][:-1])]] = True
    return mask


def keep_rated(interactions: Interactions, min_rating: float) -> Interactions:
    """Return the interactions with rating >= ``min_rating``; they must have ratings."""
    return interactions.take(interactions.rating >= min_rating)


def keep_active(interactions: Interactions, min_interactions: int) -> Interactions:
    """Return the interactions of the users who have at least ``min_interactions``; items are not looked at."""
    often = counts_of(interactions.user, len(interactions.user_ids)) >= min_interactions
    return interactions if often.all() else interactions.take(gather(often, interactions.user))


def keep_core(interactions: Interactions, core: int) -> Interactions:
    """Return the largest part in which every user and every item has at least ``core`` interactions.

    Repeated interactions of one user with one item each count.
    """
    user, item = interactions.user, interactions.item
    users, items = len(interactions.user_ids), len(interactions.item_ids)
    kept = None
    while len(user):
        often = gather(counts_of(user, users) >= core, user) & gather(counts_of(item, items) >= core, item)
        if often.all():
            break
        kept = np.flatnonzero(often) if kept is None else kept[often]
        user, item = user[often], item[often]
    return interactions if kept is None else interactions.take(kept)
