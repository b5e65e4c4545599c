"""Metrics of parts of the rows, from their ranks alone: by history length, popularity and novelty of the target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from plr.errors import shortened
from plr.evaluation.metrics import metric_of_rows
from plr.evaluation.ranking import Ranking

__all__ = ["SEGMENTS", "Labels", "Segment", "history_labels", "novelty_labels", "popularity_labels", "segment_metrics"]

SEGMENTS = ("history", "popularity", "novelty")
"""What rows can be told apart by."""
_NORMAL = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True, eq=False)
class Labels:
    """Which segment each row is in.

    Attributes:
        names: the segments in the order in which they are shown.
        of_rows: int64 [R], the place in names.
        rule: how they were cut, a sentence.
    """

    names: list[str]
    of_rows: NDArray[np.int64]
    rule: str


@dataclass(frozen=True)
class Segment:
    """The metrics of one segment.

    Attributes:
        name: of the segment.
        rows: how many rows it has, at least 1.
        metrics: each metric's mean over them.
        intervals: each metric's 95 % interval; empty where the rows are of one user.
    """

    name: str
    rows: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def history_labels(lengths: NDArray[np.int64], edges: Sequence[int] | None = None) -> Labels:
    """Cut rows by how many items stand before the target.

    Args:
        lengths: int64 [R], at least 1.
        edges: the last length of each segment but the longest, ascending; None: the quartiles of lengths.

    Raises:
        ValueError: edges that are not ascending or below 1.
    """
    if edges is None:
        cuts = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="lower").astype(np.int64))
        cuts = cuts[cuts < lengths.max()]
        rule = "cut at the quartiles of the rows' history lengths"
    else:
        whole = len(edges) and all(isinstance(edge, Integral) for edge in edges)
        if not whole or any(low >= high for low, high in pairwise([0, *edges, 2**63])):
            raise ValueError(f"history edges must be ascending whole numbers from 1; found {shortened(list(edges))}")
        cuts = np.asarray(edges, np.int64)
        rule = f"history lengths up to {', '.join(map(str, cuts))} and above"
    firsts = [1, *(cuts + 1).tolist()]
    names = [str(a) if a == b else f"{a}-{b}" for a, b in zip(firsts, cuts.tolist(), strict=False)]
    names.append(f"{firsts[-1]} and more")
    return Labels(names, np.searchsorted(cuts, lengths, side="left").astype(np.int64), rule)


def popularity_labels(counts: NDArray[np.int64], targets: NDArray[np.int64]) -> Labels:
    """Cut rows by the share of training interactions with items that are more popular than the target.

    head: the share is below 1/3; mid: below 2/3; tail: the rest, and items without a training interaction. Items
    with the same count are in the same segment.

    Args:
        counts: int64 [V], training interactions of each item.
        targets: int64 [R].
    """
    values, inverse, items = np.unique(counts, return_inverse=True, return_counts=True)
    interactions = values * items
    more = interactions[::-1].cumsum()[::-1] - interactions  # with items of larger counts
    total = int(interactions.sum())
    place = (3 * more >= total).astype(np.int64) + (3 * more >= 2 * total)
    rule = (
        "head: less than a third of the training interactions are with more popular items; mid: less than two thirds; "
        "tail: the rest"
    )
    return Labels(["head", "mid", "tail"], place[inverse.reshape(-1)[targets]], rule)


def novelty_labels(counts: NDArray[np.int64], targets: NDArray[np.int64]) -> Labels:
    """Cut rows by whether their target occurs in training: counts int64 [V], targets int64 [R]."""
    rule = "known: the target occurs in training; new: it does not"
    return Labels(["known", "new"], (counts[targets] == 0).astype(np.int64), rule)


def segment_metrics(ranking: Ranking, labels: Labels, ks: Sequence[int]) -> list[Segment]:
    """Return recall@k, ndcg@k and mrr@k for each k, and mrr, of each segment that has rows.

    The interval is mean ± 1.96 standard errors, cut to [0, 1]. Rows of one user are not independent, so the standard
    error is that of users: s² = U/(U−1) · Σ_u (Σ_{r of u} (x_r − mean))² / R².

    Args:
        ranking: R rows.
        labels: of the same rows.
        ks: the cut-offs.
    """
    names = [*(f"{kind}@{k}" for k in ks for kind in ("recall", "ndcg", "mrr")), "mrr"]
    values = {name: metric_of_rows(ranking.ranks, name).numpy() for name in names}
    users = ranking.users.numpy()
    segments = []
    for number, title in enumerate(labels.names):
        rows = np.flatnonzero(labels.of_rows == number)
        if len(rows):
            each = {name: mean_and_interval(values[name][rows], users[rows]) for name in names}
            segments.append(
                Segment(
                    title,
                    len(rows),
                    {name: mean for name, (mean, _) in each.items()},
                    {name: interval for name, (_, interval) in each.items() if interval is not None},
                )
            )
    return segments


def mean_and_interval(
    values: NDArray[np.float64], users: NDArray[np.int64]
) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of values [R] in [0, 1] and its interval as in `segment_metrics`, None for one user."""
    mean = float(values.mean())
    _, user = np.unique(users, return_inverse=True)
    sums = np.bincount(user.reshape(-1), values - mean)
    count = len(sums)
    if count < 2:
        return mean, None
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)
    return mean, (max(0.0, mean - _NORMAL * error), min(1.0, mean + _NORMAL * error))
