"""Ranking metrics from the ranks of the targets, one target per row.

With a single relevant item per row, recall@k and the hit rate hr@k are the same number; both names are
given because both are in use. Fractional ranks (ties, see `plr.evaluation.ranking`) enter as they are: a
rank counts at k if it is at most k. Report the number of rows, `len(ranking)`, beside the metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor


def metrics(ranks: ArrayLike | Tensor, ks: Sequence[int] = (10, 20)) -> dict[str, float]:
    """Return the mean over rows of recall@k, ndcg@k, mrr@k and hr@k for each k, and of mrr (no cut-off).

    recall@k = hr@k = [rank <= k], ndcg@k = [rank <= k] / log2(rank + 1) (the ideal DCG of one target is 1),
    mrr@k = [rank <= k] / rank, all in float64.

    Args:
        ranks: [R] ranks from 1, as `target_ranks` returns them; R >= 1.
        ks: cut-offs, each at least 1.

    Raises:
        ValueError: no ranks, ranks below 1 or not finite, or a cut-off below 1.
    """
    ranks = _as_ranks(ranks)
    if not len(ranks):
        raise ValueError("there are no ranks: no row was evaluated, so the metrics are undefined")
    result: dict[str, float] = {}
    for k in ks:
        recall = float(_hits(ranks, k).mean())
        result[f"recall@{k}"] = recall
        result[f"ndcg@{k}"] = float(ndcg(ranks, k).mean())
        result[f"mrr@{k}"] = float((_hits(ranks, k) / ranks).mean())
        result[f"hr@{k}"] = recall
    result["mrr"] = float((1 / ranks).mean())
    return result


def ndcg(ranks: ArrayLike | Tensor, k: int) -> Tensor:
    """Return ndcg@k of each row of ranks [R], float64 [R]: 1 / log2(rank + 1) where rank <= k, else 0."""
    ranks = _as_ranks(ranks)
    return _hits(ranks, k) / torch.log2(ranks + 1)


def _hits(ranks: Tensor, k: int) -> Tensor:
    if k < 1:
        raise ValueError(f"a cut-off must be at least 1; found {k}")
    return (ranks <= k).double()


def _as_ranks(ranks: ArrayLike | Tensor) -> Tensor:
    ranks = torch.as_tensor(ranks, dtype=torch.float64)
    if ranks.ndim != 1 or not bool(((ranks >= 1) & ranks.isfinite()).all()):
        raise ValueError(f"ranks must be [R], finite and at least 1; found shape {list(ranks.shape)}")
    return ranks
