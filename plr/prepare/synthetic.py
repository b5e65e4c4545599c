"""A seeded interaction file with several interests per user, for demonstrations and tests."""

from __future__ import annotations

import os

import numpy as np
import polars as pl

from plr.files import atomic_path

__all__ = ["generate"]

_STAY = 0.4  # probability that a user's next interaction belongs to the same interest
_STEPS = np.array([1, 2, 3])  # along the ring of an interest's items
_STEP_PROBABILITIES = np.array([0.7, 0.2, 0.05])  # the rest jumps to any item of the interest
_INTERESTS_PER_USER = (2, 3, 4)
_MEAN_LENGTH = 18
_MIN_LENGTH = 6
_EPOCH = 1_600_000_000  # seconds since 1970
_SPAN = 365 * 86_400
_NUMBERS_AT_A_TIME = 1 << 22  # drawn
_PAUSE = 2 * 86_400  # mean seconds between a user's interactions


def generate(
    path: str | os.PathLike[str],
    *,
    users: int = 2000,
    items: int = 600,
    interests: int = 12,
    seed: int = 0,
) -> None:
    """Write a CSV ``user,item,timestamp`` (seconds), in time order, the same bytes for the same arguments.

    Every item belongs to one of ``interests`` clusters, whose items lie on a ring. A user owns two to four
    interests (some are commoner than others), each with a place on its ring. An interaction stays with the
    interest of the one before or changes to another of the user's own; there it moves on along the ring by
    one (mostly), two or three items, or jumps. So what comes next follows from the last item *of each
    interest*: order matters, popularity tells little, and a user's future has several modes at once. Users
    have about 18 interactions, starting anywhere in the first 80 % of a year.

    Raises:
        ValueError: for fewer than 4 interests, or fewer than 4 items per interest, or no user.
    """
    if users < 1 or interests < max(_INTERESTS_PER_USER) or items < 4 * interests:
        raise ValueError(
            f"needs at least 1 user, {max(_INTERESTS_PER_USER)} interests and 4 items per interest; "
            f"found {users} users, {items} items, {interests} interests"
        )
    random = np.random.Generator(np.random.PCG64(seed))
    item_of_place = random.permutation(items)  # ring c is the places c, c + interests, c + 2 * interests, ...
    ring_size = np.bincount(np.arange(items) % interests)
    lengths = _MIN_LENGTH + random.poisson(_MEAN_LENGTH - _MIN_LENGTH, users)

    # All users take their n-th interaction together.
    weight = 1 / np.sqrt(1 + np.arange(interests))
    at_a_time = max(_NUMBERS_AT_A_TIME // interests, 1)
    owned = np.concatenate(
        [_first(random, weight, min(at_a_time, users - done)) for done in range(0, users, at_a_time)]
    )
    owned_count = random.choice(_INTERESTS_PER_USER, users)
    place = (random.random(owned.shape) * ring_size[owned]).astype(np.int64)
    everyone = np.arange(users)
    active = random.integers(0, owned_count)
    chosen = np.empty((users, lengths.max()), dtype=np.int64)
    for turn in range(chosen.shape[1]):
        other = (active + random.integers(1, owned_count)) % owned_count
        active = np.where(random.random(users) < _STAY, active, other)
        ring = owned[everyone, active]
        step = _steps(random, ring_size[ring])
        place[everyone, active] = (place[everyone, active] + step) % ring_size[ring]
        chosen[:, turn] = item_of_place[place[everyone, active] * interests + ring]

    start = _EPOCH + (random.random(users) * 0.8 * _SPAN).astype(np.int64)
    pauses = 1 + np.asarray(random.exponential(_PAUSE, chosen.shape)).astype(np.int64)
    times = start[:, None] + pauses.cumsum(axis=1)
    taken = np.arange(chosen.shape[1]) < lengths[:, None]
    frame = pl.DataFrame(
        {
            "user": np.broadcast_to(everyone[:, None], taken.shape)[taken],
            "item": chosen[taken],
            "timestamp": times[taken],
        }
    )
    named = frame.sort("timestamp", "user", maintain_order=True).select(
        pl.format("u{}", pl.col("user").cast(pl.String).str.zfill(len(str(users - 1)))).alias("user"),
        pl.format("i{}", pl.col("item").cast(pl.String).str.zfill(len(str(items - 1)))).alias("item"),
        "timestamp",
    )
    with atomic_path(path) as aside:
        named.write_csv(aside)


def _first(random: np.random.Generator, weight: np.ndarray, users: int) -> np.ndarray:
    """Draw interests without replacement, the most that a user can own: the first of all to arrive."""
    arrival = random.exponential(size=(users, len(weight))) / weight
    return np.argsort(arrival, axis=1, kind="stable")[:, : max(_INTERESTS_PER_USER)]


def _steps(random: np.random.Generator, ring_size: np.ndarray) -> np.ndarray:
    """Draw how far each user moves along a ring of the given size."""
    which = np.searchsorted(_STEP_PROBABILITIES.cumsum(), random.random(len(ring_size)))
    jump = (random.random(len(ring_size)) * ring_size).astype(np.int64)
    return np.where(which < len(_STEPS), _STEPS[np.minimum(which, len(_STEPS) - 1)], jump)
