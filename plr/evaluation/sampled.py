"""Ranks among sampled items, as in old tables. They mislead: compare with such a table, never choose by them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["sampled_ranks"]


def sampled_ranks(
    greater: NDArray[np.int64], equal: NDArray[np.int64], others: NDArray[np.int64], sampled: int, seed: int = 0
) -> NDArray[np.float64]:
    """Return each target's rank among it and `sampled` of its row's other items, drawn evenly without replacement.

    How many of the drawn ones score above the target, the same and below has the multivariate hypergeometric
    distribution of the exact counts, so it is drawn from that: the result has the distribution of scoring a sample.
    W. Krichene and S. Rendle, "On sampled metrics for item recommendation", 2020, show why such metrics mislead.

    Args:
        greater, equal: int64 [R], how many other items score above the target and the same.
        others: int64 [R], how many other items were ranked.
        sampled: n; all others where there are fewer.
        seed: of the draws.

    Returns:
        float64 [R], 1 + sampled above + sampled equal / 2.

    Raises:
        ValueError: sampled below 1, or counts that do not fit.
    """
    if sampled < 1:
        raise ValueError(f"sampled must be at least 1; found {sampled}")
    if (greater < 0).any() or (equal < 0).any() or (greater + equal > others).any():
        raise ValueError("greater and equal must not be negative, nor more than the other items together")
    generator = np.random.default_rng(seed)
    drawn = np.minimum(sampled, others)
    above = generator.hypergeometric(greater, others - greater, drawn)
    same = generator.hypergeometric(equal, others - greater - equal, drawn - above)
    return 1 + above + same / 2
