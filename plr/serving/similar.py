"""Which items a trained run takes for like: by the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch.nn import functional

from plr.errors import RequestError, RunError, listed, shortened
from plr.serving.recommender import Recommendation, Recommender
from plr_kernels import top_items

__all__ = ["Neighbours", "similar_items"]


def similar_items(
    recommender: Recommender, items: Sequence[str | int], k: int | None = None
) -> list[list[Recommendation]]:
    """Return the k items nearest to each, the nearest first: `Neighbours(recommender)(items, k)`."""
    return Neighbours(recommender)(items, k)


class Neighbours:
    """The nearest items of a run's items, whose unit vectors it keeps: float32 [V, d].

    Args:
        recommender: a loaded run.

    Raises:
        RunError: the item vectors are not finite.
    """

    @torch.inference_mode()
    def __init__(self, recommender: Recommender) -> None:
        model = recommender.model
        self._item_ids, self._number_of = recommender.item_ids, recommender._index
        self._vectors = functional.normalize(model.candidates(model.item_table()), dim=-1)
        if not bool(torch.isfinite(self._vectors).all()):
            raise RunError("the item vectors are not finite; the weights are damaged")

    @torch.inference_mode()
    def __call__(self, items: Sequence[str | int], k: int | None = None) -> list[list[Recommendation]]:
        """Return the k items nearest to each, the nearest first; ties go to the smaller item number.

        The score is the cosine of the vectors that the run scores items by, in [-1, 1]: of learned vectors, text or
        features. An item is not similar to itself; another one with the same vector has score 1.

        Args:
            items: item ids as in the training file.
            k: how many, at most V - 1; None: 10, or all others where there are fewer.

        Raises:
            RequestError: an item that training never saw, a k outside 1..V-1, or a run of one item.
            TypeError: items is no sequence of ids, or k no whole number.
        """
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise TypeError(f"items must be a sequence of item ids; found {shortened(items)}")
        others = len(self._item_ids) - 1
        if others == 0:
            raise RequestError("the run has one item, and none is similar to itself")
        k = min(10, others) if k is None else k
        if not isinstance(k, Integral) or isinstance(k, bool):
            raise TypeError(f"k must be a whole number; found {k!r}")
        if not 1 <= k <= others:
            raise RequestError(f"k must be in 1..{others}, the number of other items; found {k}")
        unknown = [item for item in map(str, items) if item not in self._number_of]
        if unknown:
            raise RequestError(f"items never seen in training: {listed(dict.fromkeys(unknown))}")
        numbers = [self._number_of[str(item)] for item in items]
        own = torch.tensor(numbers, dtype=torch.int64, device=self._vectors.device)
        scores, found = top_items(self._vectors[own], self._vectors, int(k), exclude=own[:, None])
        return [
            [
                Recommendation(self._item_ids[number], min(1.0, max(-1.0, score)))
                for score, number in zip(*row, strict=True)
            ]
            for row in zip(scores.tolist(), found.tolist(), strict=True)
        ]
