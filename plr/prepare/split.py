"""Which interaction is a target of training, validation or test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from plr.prepare.blocks import BLOCK, by_blocks, in_threads, mark
from plr.prepare.interactions import Interactions, gather, is_first, user_blocks
from plr.prepare.parts import Partitions, Parts, Whole

__all__ = [
    "SPLITS",
    "Rule",
    "Split",
    "Steps",
    "default_cuts",
    "held_out_users",
    "leave_out",
    "report_of",
    "splits_of",
    "time_split",
]

_SAMPLE = 1 << 16
SPLITS = ("train", "valid", "test")
"""The splits; the role of an interaction is 1, 2 or 3 where it is a target of one, and else 0."""


_SUMS = ("users_too_short_to_test", "interactions_with_unseen_items", "interactions_after_the_last_target")


@dataclass(frozen=True, eq=False)
class Split:
    """Sequences of a part's users and their targets.

    ``offsets`` int64 [U+1] bounds each user's part; ``roles`` uint8 [N]
    says of which split each is a target (0 of none, else 1 + the place in SPLITS); ``training_stop`` int64
    [U] is the flat position after each user's last training interaction; ``report`` holds what the split
    dropped and what there is to know about it, and ``rows`` int64 [3] how many rows each split had before.
    """

    interactions: Interactions
    offsets: np.ndarray
    roles: np.ndarray
    training_stop: np.ndarray
    report: dict
    rows: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=np.int64))


Steps = Generator["np.ndarray | None", "np.ndarray | None", Split]
"""A part being split: yields which items (bool [V]) its training holds, is sent those of all parts, returns the split.

It yields None, and may be sent anything, where the items do not matter.
"""
Rule = Callable[[Interactions], Steps]


def splits_of(parts: Parts, rule: Rule) -> Iterator[Split]:
    """Yield the split of each part. Where the items matter that takes two passes over several parts."""
    seen: np.ndarray | None = None
    for part in parts:
        steps = rule(part)
        here = next(steps)
        if here is None or isinstance(parts, Whole):
            yield _result(steps, here)
        else:
            seen = here if seen is None else seen | here
    if seen is not None:
        for part in parts:
            steps = rule(part)
            next(steps)
            yield _result(steps, seen)


def _result(steps: Steps, seen: np.ndarray | None) -> Split:
    try:
        steps.send(seen)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("a rule looks at the items once")


def report_of(reports: Sequence[dict], rows: np.ndarray) -> dict:
    """Return the report of all parts.

    Args:
        reports: Those of the parts, one at least.
        rows: How many rows each split had before any was dropped, int64 [3].
    """
    report = dict(reports[0])
    for name in _SUMS:
        if name in report:
            report[name] = sum(each[name] for each in reports)
    dropped = {}
    for code, part in enumerate(SPLITS):
        if part in report["dropped_rows"]:
            counts = [each["dropped_rows"][part] for each in reports]
            reasons = {reason: sum(each[reason] for each in counts) for reason in counts[0]}
            gone = sum(reasons.values())
            dropped[part] = reasons | {"share": float(gone / rows[code]) if rows[code] else 0.0}
    report["dropped_rows"] = dropped
    if "held_out_users" in report:
        before = {part: sum(each["held_out_users"][part] for each in reports) for part in ("valid", "test")}
        report["held_out_users"] = before
        report["notes"] = [
            f"{before['valid']:,} users are held out for validation and {before['test']:,} for the test; training "
            "holds nothing of theirs. Their times are not looked at: others' training interactions may be later."
        ]
    return report


def leave_out(interactions: Interactions, k: int = 1, name: str = "leave-one-out") -> Steps:
    """Split off each user's last k interactions as test and the k before them as validation targets.

    That of users with at least 2k + 1; the others' belong to training whole. Every training interaction but
    a user's first is a training target. The history of a held-out target is all that is before it, held-out
    interactions too. All items of the file are in the vocabulary.
    """
    yield None
    offsets = interactions.offsets
    length = np.diff(offsets)
    split_off = length >= 2 * k + 1
    stops = offsets[1:][split_off]
    held_out = 2 * k if len(stops) else 0  # of a user; k may be any number
    training_stop = offsets[1:] - held_out * split_off
    roles = np.ones(len(interactions), dtype=np.uint8)
    roles[offsets[:-1]] = 0
    for back in range(1, held_out + 1):
        roles[stops - back] = 3 if back <= k else 2
    return Split(
        interactions,
        offsets,
        roles,
        training_stop,
        {
            "split": name,
            "notes": [
                f"{name.capitalize()} leaks across users: a user's training interactions may be later than "
                "another's test target. Its figures compare with published ones; to judge a system "
                "prefer the time split."
            ],
            "dropped_rows": {part: {"unseen_target": 0, "empty_history": 0} for part in ("valid", "test")},
            "users_too_short_to_test": int((~split_off).sum()),
        },
    )


def held_out_users(interactions: Interactions, valid_users: float, test_users: float, seed: int, k: int = 1) -> Steps:
    """Hold users out of training wholly; the last k interactions of each are targets of validation, or of the test.

    Which users, `drawn` says: of each by itself, so that users stay where they are when others come or go. The
    vocabulary holds the items of the users who are left; interactions of held-out users with another item leave
    their sequences, and what is last is so among the rest. A user's first interaction is never a target: of one with at
    most k those that follow it are. Every interaction of the other users but the first is a training target.
    """
    share = drawn(interactions.user_ids.to_list(), seed)
    part = np.where(share < test_users, 2, np.where(share < test_users + valid_users, 1, 0)).astype(np.uint8)
    before = {name: int((part == code).sum()) for code, name in ((1, "valid"), (2, "test"))}
    period = gather(part, interactions.user())
    seen = np.zeros(len(interactions.item_ids), dtype=bool)
    mark(seen, interactions.item, period == 0)
    everywhere = yield seen
    assert everywhere is not None
    seen = everywhere
    known = gather(seen, interactions.item)
    kept = interactions if known.all() else interactions.take(known)
    period = period[known]
    offsets = kept.offsets
    roles = np.ones(len(kept), dtype=np.uint8)
    held_out = period > 0
    roles[held_out] = 0
    length = np.diff(offsets)
    for back in range(1, min(k, int(length.max(initial=0))) + 1):
        last = offsets[1:][length > back] - back
        roles[last] = period[last] + np.uint8(1)
    roles[offsets[:-1]] = 0
    of_user = period[offsets[:-1]]
    testable = {name: int(((of_user == code) & (length > 1)).sum()) for code, name in ((1, "valid"), (2, "test"))}
    return Split(
        kept,
        offsets,
        roles,
        np.where(of_user == 0, offsets[1:], offsets[:-1]),
        {
            "split": "users",
            "notes": [],
            "dropped_rows": {name: {"unseen_target": 0, "empty_history": 0} for name in ("valid", "test")},
            "held_out_users": before,
            "users_too_short_to_test": sum(before.values()) - sum(testable.values()),
            "unseen_items": int((~seen).sum()),
            "interactions_with_unseen_items": int((~known).sum()),
        },
    )


def drawn(user_ids: Sequence[str], seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each user: float64 [U], of BLAKE2b of the seed and the id, so of nothing else."""
    numbers = (hashlib.blake2b(f"{seed}:{user_id}".encode(), digest_size=8).digest() for user_id in user_ids)
    words = np.frombuffer(b"".join(numbers), dtype=">u8")
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def default_cuts(parts: Parts) -> tuple[int, int]:
    """Return the 80 % and 90 % quantiles of the times: the defaults of ``valid_time`` and ``test_time``."""
    places = (len(parts) * 8 // 10, len(parts) * 9 // 10)
    if isinstance(parts, Whole):
        times = parts.interactions.timestamp
        assert times is not None
        return _nth(times, places[0]), _nth(times, places[1])
    first, second = (_nth_of_parts(parts, place) for place in places)
    return first, second


def _nth_of_parts(parts: Partitions, place: int) -> int:
    """Return what stands at ``place`` among the sorted times: each pass over the parts tells 16 bits of it."""
    low = -(2**63)  # what is looked for is at most 2^(bits + 16) - 1 above it
    for bits in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, dtype=np.int64)
        for times in parts.times():
            above = times.view(np.uint64) - np.uint64(low % 2**64)  # modulo 2^64: those below are the farthest above
            if bits < 48:
                above = above[above < np.uint64(1 << (bits + 16))]
            counts += np.bincount((above >> np.uint64(bits)).astype(np.int64), minlength=1 << 16)
        ends = np.cumsum(counts)
        found = int(np.searchsorted(ends, place, side="right"))
        place -= int(ends[found] - counts[found])
        low += found << bits
    return low


def _nth(values: np.ndarray, place: int) -> int:
    """Return what stands at ``place`` among the sorted ``values``.

    A sample says between which two values it must be looked for; where it is not there, all are.
    """
    sample = np.sort(values[:: max(1, len(values) // _SAMPLE)])
    middle, margin = place * len(sample) // len(values), 4 * int(len(sample) ** 0.5)
    low, high = sample[max(0, middle - margin)], sample[min(len(sample) - 1, middle + margin)]

    def between(block: slice) -> tuple[int, np.ndarray]:
        part = values[block]
        above = part >= low
        return len(part) - int(np.count_nonzero(above)), part[above & (part <= high)]

    below, near = zip(*by_blocks(between, len(values)), strict=True)
    rank, near = place - sum(below), np.concatenate(near)
    if not 0 <= rank < len(near):
        rank, near = place, values
    return int(np.partition(near, rank)[rank])


def time_split(
    interactions: Interactions,
    valid_time: float,
    test_time: float,
    *,
    train_time: float | None = None,
    positive: np.ndarray | None = None,
    min_history: Sequence[int] = (1, 1, 1),
    unseen: str = "drop-items",
    untitled: np.ndarray | None = None,
) -> Steps:
    """Split by absolute time.

    A target before ``valid_time`` (and not before ``train_time``, where that is given) trains, one before
    ``test_time`` validates, later ones test. Its history is all of the user's earlier interactions (at equal times:
    those before it in the file). A row is dropped, and counted in the report, when its target is not ``positive`` or
    its history is shorter than ``min_history``. Items that training does not know are treated in one of two ways:

    - ``unseen="drop-items"``: the vocabulary holds the items of the training period. Interactions with another
      item leave the sequences: as targets of validation and test they are dropped, and they are removed from
      histories; a target whose history is emptied by that is dropped too.
    - ``unseen="drop-rows"``: rows with an ``untitled`` item in history or target are dropped. The vocabulary
      holds the items of the training rows that are left, histories and targets. Rows of validation and test
      with another item in history or target are dropped. What follows a user's last target is left out.

    Args:
        interactions: With timestamps.
        valid_time: In the unit of the timestamps.
        test_time: Likewise, at least ``valid_time``.
        train_time: Likewise, before ``valid_time``: what is earlier stands in histories, and is no target.
        positive: bool [N], which interactions may be targets; None = all.
        min_history: The least length of a history in training, validation and test, each at least 1.
        unseen: "drop-items" or "drop-rows".
        untitled: bool [V], the items without a title; with ``unseen="drop-rows"``.
    """
    times, period = interactions.timestamp, np.empty(len(interactions), dtype=np.uint8)

    assert times is not None

    def place(block: slice) -> None:
        late, later = times[block] >= valid_time, times[block] >= test_time
        np.add(late.view(np.uint8), later.view(np.uint8), out=period[block])

    by_blocks(place, len(times))
    early = None if train_time is None else times < train_time
    make = _drop_items if unseen == "drop-items" else _drop_rows
    split = yield from make(interactions, period, positive, np.asarray(min_history), untitled, early)
    split.report.update(split="time", notes=[], valid_time=valid_time, test_time=test_time)
    if train_time is not None:
        split.report["train_time"] = train_time
    return split


def _drop_items(
    interactions: Interactions,
    period: np.ndarray,
    positive: np.ndarray | None,
    min_history: np.ndarray,
    _: np.ndarray | None,
    early: np.ndarray | None,
) -> Steps:
    seen = np.zeros(len(interactions.item_ids), dtype=bool)

    def see(block: slice) -> None:
        mark(seen, interactions.item[block], period[block] == 0)

    by_blocks(see, len(period))
    everywhere = yield seen
    assert everywhere is not None
    seen = everywhere
    tally = _Tally(period, ~is_first(interactions.offsets))
    if early is not None:
        tally.drop("before_train_time", early)
    if positive is not None:
        tally.drop("low_rated", ~positive)
    kept = interactions
    known = None
    if not seen.all():
        known = gather(seen, interactions.item)
        tally.drop("unseen_target", ~known)
        kept, period = interactions.take(known), period[known]
        positive = None if positive is None else positive[known]
    offsets = kept.offsets
    short = _shorter(kept, offsets, min_history, period)
    if known is not None:  # what was its user's first before is no target anyway
        tally.drop("empty_history", is_first(offsets), known)
    if short is not None:
        tally.drop("short_history", short, known)
    left = tally.left(known)
    roles = np.empty_like(period)
    trained = np.zeros(len(offsets) - 1, dtype=np.int64)

    def finish(users: tuple[int, int]) -> None:
        first, last = users
        part = slice(offsets[first], offsets[last])
        np.multiply(period[part] + np.uint8(1), left[part], out=roles[part])
        before = np.concatenate([[0], np.cumsum(period[part] == 0)])
        trained[first:last] = np.diff(before[offsets[first : last + 1] - part.start])

    in_threads(finish, user_blocks(offsets, BLOCK))
    report = {
        "dropped_rows": tally.report(),
        "unseen_items": int((~seen).sum()),
        "interactions_with_unseen_items": 0 if known is None else int((~known).sum()),
    }
    return Split(kept, offsets, roles, offsets[:-1] + trained, report, tally.rows)


def _drop_rows(
    interactions: Interactions,
    period: np.ndarray,
    positive: np.ndarray | None,
    min_history: np.ndarray,
    untitled: np.ndarray | None,
    early: np.ndarray | None,
) -> Steps:
    user, item = interactions.user(), interactions.item
    offsets = interactions.offsets
    tally = _Tally(period, ~is_first(offsets))
    if early is not None:
        tally.drop("before_train_time", early)
    if positive is not None:
        tally.drop("low_rated", ~positive)
    if untitled is not None:
        tally.drop("untitled", _any_so_far(gather(untitled, item), user, offsets))
    short = _shorter(interactions, offsets, min_history, period)
    if short is not None:
        tally.drop("short_history", short)

    training_stop = _after_last(tally.left() & (period == 0), user, offsets)
    place = np.arange(len(user))
    seen = np.zeros(len(interactions.item_ids), dtype=bool)
    seen[item[place < gather(training_stop, user)]] = True
    everywhere = yield seen
    assert everywhere is not None
    seen = everywhere
    new = ~gather(seen, item)
    held_out = period > 0
    tally.drop("unseen_target", new & held_out)
    tally.drop("unseen_history", _any_so_far(new, user, offsets) & held_out)

    left = tally.left()
    stop = _after_last(left, user, offsets)
    inside = place < gather(stop, user)
    kept = interactions.take(inside)
    with_rows = stop > offsets[:-1]
    roles = np.where(left, period + np.uint8(1), np.uint8(0))[inside]
    kept_offsets = kept.offsets
    trained = np.minimum(training_stop, stop) - offsets[:-1]
    report = {
        "dropped_rows": tally.report(),
        "unseen_items": int((~seen).sum()),
        "interactions_after_the_last_target": int((~inside).sum()),
    }
    return Split(kept, kept_offsets, roles, kept_offsets[:-1] + trained[with_rows], report, tally.rows)


class _Tally:
    """Which interactions are still targets, and how many of each period were dropped for which reason."""

    def __init__(self, period: np.ndarray, candidates: np.ndarray) -> None:
        self._period = period
        self._left = candidates
        self.rows = _count(period, candidates)  # int64 [3]
        self._dropped: dict[str, np.ndarray] = {}

    def drop(self, reason: str, mask: np.ndarray, among: np.ndarray | None = None) -> None:
        """Drop the targets in ``mask``; ``among`` says (bool [N]) which interactions the mask is about."""
        places = np.flatnonzero(mask) if among is None else np.flatnonzero(among)[mask]
        places = places[self._left[places]]
        self._left[places] = False
        self._dropped[reason] = np.bincount(self._period[places], minlength=3)

    def left(self, among: np.ndarray | None = None) -> np.ndarray:
        """Return which interactions (or those of ``among``) are targets."""
        return self._left if among is None else self._left[among]

    def report(self) -> dict:
        """Return the counts of every split."""
        counts = {"unseen_target": np.zeros(3, dtype=int), "empty_history": np.zeros(3, dtype=int), **self._dropped}
        return {
            part: {reason: int(count[code]) for reason, count in counts.items()} for code, part in enumerate(SPLITS)
        }


def _count(period: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return how many of the ``chosen`` (bool [N]) are of each period: int64 [3]."""

    def count(block: slice) -> list[int]:
        return [int(np.count_nonzero(chosen[block] & (period[block] == code))) for code in range(3)]

    return np.sum([(0, 0, 0), *by_blocks(count, len(period))], axis=0)


def _shorter(
    interactions: Interactions, offsets: np.ndarray, min_history: np.ndarray, period: np.ndarray
) -> np.ndarray | None:
    """Return which interactions have fewer than ``min_history`` before them; None where all could have enough."""
    if (min_history <= 1).all():
        return None
    return np.arange(len(interactions)) - gather(offsets, interactions.user()) < gather(min_history, period)


def _any_so_far(mask: np.ndarray, user: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return where the mask is true at this or an earlier interaction of the same user."""
    count = np.concatenate([[0], np.cumsum(mask)])
    return count[1:] > gather(count[offsets], user)


def _after_last(mask: np.ndarray, user: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the flat position after each user's last true place of the mask (their start where none is)."""
    stop = offsets[:-1].copy()
    places = np.flatnonzero(mask)
    stop[user[places]] = places + 1  # ascending: the last one stays
    return stop
