"""Filters before the split: duplicates, users with few interactions, k-core."""

from __future__ import annotations

import numpy as np

from plr.prepare.blocks import by_blocks
from plr.prepare.interactions import Interactions, counts_of, gather, is_first
from plr.prepare.parts import Parts, Whole

__all__ = ["duplicates", "k_core", "min_interactions"]


def duplicates(interactions: Interactions) -> np.ndarray:
    """Return which interactions (bool [N]), with timestamps, repeat an earlier one: the same user, item and time."""
    time, item = interactions.timestamp, interactions.item
    assert time is not None
    first, follows = is_first(interactions.offsets), np.zeros(len(interactions), dtype=bool)

    def compare(block: slice) -> None:
        """Find those that share user and time with the one before."""
        one, other = slice(max(block.start, 1), block.stop), slice(max(block.start - 1, 0), block.stop - 1)
        np.logical_and(time[one] == time[other], ~first[one], out=follows[one])

    by_blocks(compare, len(follows))
    place = np.flatnonzero(follows)
    place = np.union1d(place, place - 1)
    group = np.cumsum(~follows[place])  # of one user and time
    order = np.lexsort((item[place], group))
    place, group = place[order], group[order]
    mask = np.zeros(len(interactions), dtype=bool)
    mask[place[1:][(group[1:] == group[:-1]) & (item[place][1:] == item[place][:-1])]] = True
    return mask


def min_interactions(interactions: Interactions, least: int) -> np.ndarray:
    """Return which interactions (bool [N]) are of users who have at least ``least``."""
    counts = np.diff(interactions.offsets)
    return np.repeat(counts >= least, counts)


def k_core(parts: Parts, core: int) -> None:
    """Keep the largest set in which every user and item has at least ``core`` interactions.

    Repeated interactions of one user with one item each count. What is left does not depend on the order in which users
    and items are left out.
    """
    if isinstance(parts, Whole):
        parts.keep(lambda part: _core_of(part, core))
        return
    before = None
    while before != len(parts):
        before = len(parts)
        counts = np.zeros(len(parts.item_ids), dtype=np.int64)
        for part in parts:
            counts += counts_of(part.item, len(counts))
        often = counts >= core
        parts.keep(lambda part, often=often: min_interactions(part, core) & gather(often, part.item))  # type: ignore[misc]


def _core_of(interactions: Interactions, core: int) -> np.ndarray:
    """Return the positions (int64) of what `k_core` keeps of all interactions."""
    user, item = interactions.user(), interactions.item
    users, items = len(interactions.user_ids), len(interactions.item_ids)
    kept = np.arange(len(user))
    while len(user):
        often = gather(counts_of(user, users) >= core, user) & gather(counts_of(item, items) >= core, item)
        if often.all():
            break
        kept, user, item = kept[often], user[often], item[often]
    return kept
