"""Which interaction is a target of training, validation or test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plr.data.interactions import Interactions

__all__ = ["SPLITS", "Split", "default_cuts", "leave_one_out", "time_split"]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Sequences and their targets.

    ``interactions`` are in user order, ``offsets`` int64 [U+1] bounds each user's part; ``targets`` maps a
    split to flat positions, int64 [R], ascending; ``training_stop`` int64 [U] is the flat position after
    each user's last training interaction; ``report`` holds what the split dropped and what there is to know
    about it.
    """

    interactions: Interactions
    offsets: np.ndarray
    targets: dict[str, np.ndarray]
    training_stop: np.ndarray
    report: dict


def leave_one_out(interactions: Interactions) -> Split:
    """Split off each user's last interaction as test and the one before as validation target.

    That of users with at least three; the others' belong to training whole. Every training interaction but
    a user's first is a training target. All items of the file are in the vocabulary.

    Args:
        interactions: In user order.
    """
    offsets = _offsets(interactions)
    length = np.diff(offsets)
    split_off = length >= 3
    training_stop = offsets[1:] - 2 * split_off
    last = offsets[1:][split_off] - 1
    return Split(
        interactions,
        offsets,
        {"train": _ranges(offsets[:-1] + 1, training_stop), "valid": last - 1, "test": last},
        training_stop,
        {
            "split": "leave-one-out",
            "notes": [
                "Leave-one-out leaks across users: a user's training interactions may be later than "
                "another's test target. Its figures compare with published ones; to judge a system "
                "prefer the time split."
            ],
            "dropped_rows": {
                part: {"unseen_target": 0, "empty_history": 0, "share": 0.0} for part in ("valid", "test")
            },
            "users_too_short_to_test": int((~split_off).sum()),
        },
    )


def default_cuts(timestamps: np.ndarray) -> tuple[int, int]:
    """Return the 80 % and 90 % quantiles of the times: the defaults of ``valid_time`` and ``test_time``."""
    count = len(timestamps)
    places = [count * 8 // 10, count * 9 // 10]
    valid_time, test_time = np.partition(timestamps, places)[places]
    return int(valid_time), int(test_time)


def time_split(interactions: Interactions, valid_time: float, test_time: float) -> Split:
    """Split by absolute time.

    A target before ``valid_time`` trains, one before ``test_time`` validates, later ones test. Its history is
    all of the user's earlier interactions (at equal times: those before it in the
    file). The vocabulary holds the items of the training period. Interactions with another item leave the
    sequences: as targets of validation and test they are dropped, and they are removed from histories; a
    target whose history is emptied by that is dropped too. All three are counted in the report.

    Args:
        interactions: In user order, with timestamps.
        valid_time: In the unit of the timestamps.
        test_time: Likewise, at least ``valid_time``.
    """
    start = _offsets(interactions)[:-1]
    place = np.arange(len(interactions)) - start[interactions.user]
    period = np.searchsorted([valid_time, test_time], interactions.timestamp, side="right")
    seen = np.zeros(len(interactions.item_ids), dtype=bool)
    seen[interactions.item[period == 0]] = True
    known = seen[interactions.item]

    kept = interactions.take(known)
    offsets = _offsets(kept)
    kept_place = np.arange(len(kept)) - offsets[:-1][kept.user]
    kept_period = period[known]
    is_target = kept_place > 0
    targets = {name: np.flatnonzero(is_target & (kept_period == code)) for code, name in enumerate(SPLITS)}
    training_stop = offsets[:-1] + np.bincount(kept.user[kept_period == 0], minlength=len(kept.user_ids))

    could_be = place > 0
    dropped = {}
    for code, name in list(enumerate(SPLITS))[1:]:
        here = could_be & (period == code)
        unseen = int((here & ~known).sum())
        rows = int(here.sum())
        dropped[name] = {
            "unseen_target": unseen,
            "empty_history": rows - unseen - len(targets[name]),
            "share": (rows - len(targets[name])) / rows if rows else 0.0,
        }
    return Split(
        kept,
        offsets,
        targets,
        training_stop,
        {
            "split": "time",
            "notes": [],
            "valid_time": valid_time,
            "test_time": test_time,
            "dropped_rows": dropped,
            "unseen_items": int((~seen).sum()),
            "interactions_with_unseen_items": int((~known).sum()),
        },
    )


def _offsets(interactions: Interactions) -> np.ndarray:
    counts = np.bincount(interactions.user, minlength=len(interactions.user_ids))
    return np.concatenate([[0], np.cumsum(counts)])


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Return start..stop-1 of every pair, one after the other (nothing where stop <= start)."""
    counts = np.maximum(stops - starts, 0)
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)
