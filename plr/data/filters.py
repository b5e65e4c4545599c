"""Filters before the split: duplicates, users with few interactions, k-core."""

from __future__ import annotations

import numpy as np

from plr.data.blocks import by_blocks
from plr.data.interactions import Interactions, counts_of, gather

__all__ = ["active", "in_core", "repeated"]


def repeated(ordered: Interactions) -> np.ndarray:
    """Return which interactions (bool [N]) repeat an earlier one: the same user, item and time.

    Args:
        ordered: In user order, with timestamps.
    """
    user, time, item = ordered.user, ordered.timestamp, ordered.item
    mask = np.zeros(len(user), dtype=bool)

    def near(block: slice) -> np.ndarray:
        """Return the places of those that share user and time with the one before, and of that."""
        one, other = slice(max(block.start, 1), block.stop), slice(max(block.start - 1, 0), block.stop - 1)
        later = np.flatnonzero((time[one] == time[other]) & (user[one] == user[other])) + one.start
        return np.stack([later - 1, later])

    place = np.unique(np.concatenate([*by_blocks(near, len(user)), np.zeros((2, 0), dtype=np.int64)], axis=1))
    order = np.lexsort((place, item[place], time[place], user[place]))
    place = place[order]
    same = (user[place][1:] == user[place][:-1]) & (time[place][1:] == time[place][:-1])
    mask[place[1:][same & (item[place][1:] == item[place][:-1])]] = True
    return mask


def active(interactions: Interactions, min_interactions: int) -> np.ndarray:
    """Return which interactions (bool [N]) are of users who have at least ``min_interactions``."""
    often = counts_of(interactions.user, len(interactions.user_ids)) >= min_interactions
    return gather(often, interactions.user)


def in_core(interactions: Interactions, core: int) -> np.ndarray:
    """Return the positions (int64) of the largest part in which every user and item has at least ``core`` interactions.

    Repeated interactions of one user with one item each count.
    """
    user, item = interactions.user, interactions.item
    users, items = len(interactions.user_ids), len(interactions.item_ids)
    kept = np.arange(len(user))
    while len(user):
        often = gather(counts_of(user, users) >= core, user) & gather(counts_of(item, items) >= core, item)
        if often.all():
            break
        kept, user, item = kept[often], user[often], item[often]
    return kept
