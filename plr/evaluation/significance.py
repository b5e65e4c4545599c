"""Is one system better than another? Paired comparison of the same users, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plr.evaluation.metrics import metric_of_rows
from plr.evaluation.ranking import Ranking


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of n users.

    Attributes:
        n: users compared.
        difference: mean over users of first - second.
        low, high: bootstrap percentile confidence interval of the difference: over users, and over the runs of a system
            that has several.
        t: Student's paired t statistic, n - 1 degrees of freedom.
        p_value: two-sided p-value of t; correct several of them with `holm`.
    """

    n: int
    difference: float
    low: float
    high: float
    t: float
    p_value: float

    @property
    def effect_size(self) -> float:
        """Cohen's d of paired values: the mean difference over the differences' standard deviation, t / √n."""
        return self.t / math.sqrt(self.n)


def compare(
    first: Sequence[Ranking],
    second: Sequence[Ranking],
    *,
    metric: str = "ndcg@10",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two systems by each user's metric, averaged over the user's rows and the system's runs (seeds).

    The t-test is over the users, of runs' means. The interval draws users and, of each system with several runs, runs:
    it is of what another training of both would show to other users.

    Args:
        first, second: one ranking per run of each system, all of the same users and targets, in any order.
        metric: as in `metric_of_rows`.
        confidence, resamples, seed: of the bootstrap, as in `paired_comparison`.

    Raises:
        ValueError: no run, runs of different rows, fewer than two users, or no such metric.
    """
    if not first or not second:
        raise ValueError("each system needs at least one ranking")
    values = per_user([*first, *second], metric)
    if values.shape[1] < 2:
        raise ValueError(f"a paired test needs two users at least; found {values.shape[1]}")
    return _comparison(values[: len(first)], values[len(first) :], confidence, resamples, seed)


def per_user(rankings: Sequence[Ranking], metric: str = "ndcg@10") -> NDArray[np.float64]:
    """Return each user's mean metric in each ranking, float64 [rankings, users], users in ascending order.

    Raises:
        ValueError: the (user, target) rows of the rankings differ.
    """
    values, rows = [], None
    for ranking in rankings:
        order = np.lexsort((ranking.targets.numpy(), ranking.users.numpy()))
        these = np.stack([ranking.users.numpy()[order], ranking.targets.numpy()[order]])
        rows = these if rows is None else rows
        if not np.array_equal(these, rows):
            raise ValueError("the rankings differ in users or targets: evaluate all systems on one split")
        _, user, count = np.unique(these[0], return_inverse=True, return_counts=True)
        values.append(np.bincount(user, metric_of_rows(ranking.ranks, metric).numpy()[order], len(count)) / count)
    return np.stack(values)


def paired_comparison(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare paired values [n]: Student's paired t-test, and a seeded percentile bootstrap.

    With no variance among the differences, t is 0 and p is 1 if they are zero, else t is infinite and p is 0.

    Args:
        first, second: [n] values of the same users in the same order, n >= 2.
        confidence: of the interval, in (0, 1).
        resamples: draws of n users with replacement.
        seed: of those draws.

    Raises:
        ValueError: fewer than two pairs, unequal shapes, non-finite values, or settings out of range.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"need two [n] of the same n >= 2; found {list(first.shape)} and {list(second.shape)}")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"need 0 < confidence < 1 and resamples >= 1; found {confidence} and {resamples}")
    if not np.isfinite(first - second).all():
        raise ValueError("the values to compare must be finite")
    return _comparison(first[None], second[None], confidence, resamples, seed)


def _comparison(
    first: NDArray[np.float64], second: NDArray[np.float64], confidence: float, resamples: int, seed: int
) -> Comparison:
    """Compare the runs' values of the same users, [runs, n] each."""
    differences = first.mean(0) - second.mean(0)  # [n]
    n = len(differences)
    mean = differences.mean()
    if np.ptp(differences) == 0:
        t = math.copysign(math.inf, mean) if mean else 0.0
    else:
        t = float(mean / differences.std(ddof=1) * math.sqrt(n))
    generator = np.random.default_rng(seed)
    several = len(first) > 1 or len(second) > 1
    means = []
    for _ in range(resamples):
        drawn = _drawn_mean(first, generator) - _drawn_mean(second, generator) if several else differences
        means.append(drawn[generator.integers(n, size=n)].mean())
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Comparison(n, float(mean), float(low), float(high), t, student_t_p_value(t, n - 1))


def _drawn_mean(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the mean [n] of as many rows of [runs, n] as there are, drawn with replacement."""
    runs = len(values)
    return np.bincount(generator.integers(runs, size=runs), minlength=runs) / runs @ values


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values [m] for m comparisons by Holm's step-down method, in the order given.

    The i-th smallest (from 0) becomes max over j <= i of min(1, (m - j) · p_j); reject where it is at most
    the level. Source: S. Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Raises:
        ValueError: a value outside [0, 1].
    """
    p_values = np.asarray(p_values, np.float64)
    if p_values.ndim != 1 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError("p-values must be [m], each in [0, 1]")
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factors * p_values[order]))
    return adjusted


def student_t_p_value(t: float, degrees: int) -> float:
    """Return P(|T| >= |t|) for Student's t: I_x(degrees / 2, 1 / 2) with x = degrees / (degrees + t²)."""
    if math.isinf(t):
        return 0.0
    tail = t * t / (degrees + t * t)
    if tail < 3 / (degrees + 5):  # 1 - x in the range where the fraction of the complement converges fast
        return 1 - _regularized_beta(tail, 1 - tail, 0.5, degrees / 2)
    return _regularized_beta(degrees / (degrees + t * t), tail, degrees / 2, 0.5)


def _regularized_beta(x: float, complement: float, a: float, b: float) -> float:
    """I_x(a, b) by the continued fraction DLMF 8.17.22 (modified Lentz), for x < (a + 1) / (a + b + 2)."""
    if x == 0:
        return 0.0
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(complement)
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            return math.exp(scale) * fraction / a
    raise ArithmeticError(f"the incomplete beta function did not converge at x={x}, a={a}, b={b}")
