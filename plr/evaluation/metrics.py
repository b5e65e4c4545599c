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
    names = [f"{kind}@{k}" for k in ks for kind in ("recall", "ndcg", "mrr", "hr")]
    return {name: float(metric_of_rows(ranks, name).mean()) for name in (*names, "mrr")}


def metric_of_rows(ranks: ArrayLike | Tensor, name: str) -> Tensor:
    """Return a metric of each row of ranks [R], float64 [R].

    Args:
        ranks: [R] ranks from 1.
        name: recall@k, hr@k, ndcg@k or mrr@k with k >= 1, or mrr.

    Raises:
        ValueError: another name, or ranks that are none.
    """
    ranks = _as_ranks(ranks)
    if name == "mrr":
        return 1 / ranks
    kind, _, cut_off = name.partition("@")
    if kind not in ("recall", "hr", "ndcg", "mrr") or not cut_off.isascii() or not cut_off.isdecimal():
        raise ValueError(f"a metric is recall@K, hr@K, ndcg@K or mrr@K with a K such as 10, or mrr; found {name!r}")
    if len(cut_off) > 18 or int(cut_off) < 1:
        raise ValueError(f"a cut-off must be at least 1 and below 10^18; found {name!r}")
    hits = (ranks <= int(cut_off)).double()
    if kind == "ndcg":
        return hits / torch.log2(ranks + 1)
    return hits / ranks if kind == "mrr" else hits


def _as_ranks(ranks: ArrayLike | Tensor) -> Tensor:
    ranks = torch.as_tensor(ranks, dtype=torch.float64)
    if ranks.ndim != 1 or not bool(((ranks >= 1) & ranks.isfinite()).all()):
        raise ValueError(f"ranks must be [R], finite and at least 1; found shape {list(ranks.shape)}")
    return ranks
