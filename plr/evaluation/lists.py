"""Metrics of what is recommended: the lists of all rows, taken in batches; nothing is kept but sums and exposures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ListMetrics"]


class ListMetrics:
    """Precision, MAP, coverage, Gini, popularity, novelty, serendipity and diversity of lists.

    docs/metrics.md has the equations. Memory is O(V · cut-offs), whatever the number of lists.

    Args:
        counts: int64 [V], training interactions of each item.
        ks: the cut-offs.
        categories: of each item [V], the numbers of its categories, none twice; None where nothing is known of them.

    Raises:
        ValueError: no cut-off, or one below 1.
    """

    def __init__(
        self, counts: NDArray[np.int64], ks: Sequence[int], categories: Sequence[NDArray[np.int64]] | None = None
    ):
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must be positive, one at least; found {list(ks)}")
        self.ks = tuple(ks)
        self._counts = counts.astype(np.float64)
        total = max(float(self._counts.sum()), 1.0)
        self._information = -np.log2(np.maximum(self._counts, 1) / total)
        order = np.argsort(-counts, kind="stable")
        self._place = np.empty(len(counts), np.int64)  # in the order of popularity, from 0
        self._place[order] = np.arange(len(counts))
        self._exposure = {k: np.zeros(len(counts), np.int64) for k in self.ks}
        self._sums: dict[str, float] = {}
        self._rows_of: dict[str, int] = {}
        self._rows = 0
        self._categories = None if categories is None else _padded(categories)  # [V, C]

    def update(self, items: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Add lists [B, K], best first, −1 behind the last item, K at least the largest k or V; and targets [B]."""
        self._rows += len(items)
        for k in self.ks:
            top = items[:, :k]
            real = top >= 0
            found = real & (top == targets[:, None])
            size = real.sum(1)
            some = size > 0
            ranks = np.arange(1, top.shape[1] + 1)
            self._add(f"precision@{k}", found.sum(1) / k)
            self._add(f"map@{k}", (found / ranks).sum(1))
            unexpected = real & (self._place[top] >= k)
            useful = (unexpected & found).sum(1)
            self._add(f"serendipity@{k}", useful / np.maximum(unexpected.sum(1), 1))
            for name, of_item in (("popularity", self._counts), ("novelty", self._information)):
                means = np.where(real, of_item[top], 0).sum(1)[some] / size[some]
                self._add(f"{name}@{k}", means)
            self._exposure[k] += np.bincount(top[real], minlength=len(self._counts))
        if self._categories is not None:
            self._add_diversity(items, self._categories)

    def results(self) -> dict[str, float]:
        """Return the metrics by name, of all lists so far; those of which no list says anything are left out.

        Raises:
            ValueError: there was no list.
        """
        if not self._rows:
            raise ValueError("there are no lists: no row was evaluated, so the metrics are undefined")
        result = {}
        for k in self.ks:
            for kind in ("precision", "map"):
                result[f"{kind}@{k}"] = self._mean(f"{kind}@{k}")
            exposure = self._exposure[k]
            result[f"coverage@{k}"] = float((exposure > 0).mean())
            if exposure.any():
                result[f"gini@{k}"] = _gini(exposure)
            for kind in ("popularity", "novelty", "serendipity", "diversity"):
                if self._rows_of.get(f"{kind}@{k}"):
                    result[f"{kind}@{k}"] = self._mean(f"{kind}@{k}")
        return result

    def _add(self, name: str, values: NDArray[np.float64]) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())
        self._rows_of[name] = self._rows_of.get(name, 0) + len(values)

    def _mean(self, name: str) -> float:
        return self._sums[name] / self._rows_of[name]

    def _add_diversity(self, items: NDArray[np.int64], categories: NDArray[np.int64]) -> None:
        """Add 1 − Jaccard of each pair of a list whose items both have categories."""
        own = np.where(items[:, :, None] >= 0, categories[items], -1)  # [B, K, C]
        size = (own >= 0).sum(2)  # [B, K]
        sums, pairs = np.zeros(len(items)), np.zeros(len(items), np.int64)
        for second in range(1, items.shape[1]):
            for first in range(second):
                a, b = own[:, first], own[:, second]
                common = ((a[:, :, None] == b[:, None, :]) & (a[:, :, None] >= 0)).sum((1, 2))
                both = (size[:, first] > 0) & (size[:, second] > 0)
                union = np.maximum(size[:, first] + size[:, second] - common, 1)
                sums += np.where(both, 1 - common / union, 0)
                pairs += both
            if second + 1 in self.ks or (second + 1 == items.shape[1]):
                for k in self.ks:
                    if k == second + 1 or (second + 1 == items.shape[1] < k):
                        some = pairs > 0
                        self._add(f"diversity@{k}", sums[some] / pairs[some])


def _gini(exposure: NDArray[np.int64]) -> float:
    """Return Σ_i (2i − V − 1) x_(i) / (V Σ x), x ascending, i from 1: 0 where all are shown alike."""
    ordered, count = np.sort(exposure).astype(np.float64), len(exposure)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float(weights @ ordered / (count * ordered.sum()))


def _padded(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    result = np.full((len(lists), max(1, max(map(len, lists), default=0))), -1, np.int64)
    for row, numbers in zip(result, lists, strict=True):
        row[: len(numbers)] = numbers
    return result
