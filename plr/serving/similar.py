"""Which items a trained run takes for like: by the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch.nn import functional

from plr.errors import RequestError, RunError, listed, shortened
from plr.serving.recommender import Recommendation, Recommender
from plr_kernels import top_items

__all__ = ["similar_items"]


@torch.inference_mode()
def similar_items(
    recommender: Recommender, items: Sequence[str | int], k: int | None = None
) -> list[list[Recommendation]]:
    """Return the k items nearest to each, the nearest first; ties go to the smaller item number.

    The score is the cosine of the vectors that the run scores items by, in [-1, 1]: of learned vectors, text or
    features. An item is not similar to itself; another one with the same vector has score 1.

    Args:
        recommender: a loaded run.
        items: item ids as in the training file.
        k: how many, at most V - 1; None: 10, or all others where there are fewer.

    Raises:
        RequestError: an item that training never saw, or a k outside 1..V-1.
        TypeError: items is no sequence of ids, or k no whole number.
        RunError: the item vectors are not finite.
    """
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise TypeError(f"items must be a sequence of item ids; found {shortened(items)}")
    others = len(recommender.item_ids) - 1
    k = min(10, others) if k is None else k
    if not isinstance(k, Integral) or isinstance(k, bool):
        raise TypeError(f"k must be a whole number; found {k!r}")
    if not 1 <= k <= others:
        raise RequestError(f"k must be in 1..{others}, the number of other items; found {k}")
    number_of = {item_id: number for number, item_id in enumerate(recommender.item_ids)}
    unknown = [item for item in map(str, items) if item not in number_of]
    if unknown:
        raise RequestError(f"items never seen in training: {listed(dict.fromkeys(unknown))}")
    model = recommender.model
    vectors = functional.normalize(model.candidates(model.item_table()), dim=-1)  # [V, d]
    if not bool(torch.isfinite(vectors).all()):
        raise RunError("the item vectors are not finite; the weights are damaged")
    own = torch.tensor([number_of[str(item)] for item in items], dtype=torch.int64, device=vectors.device)
    scores, numbers = top_items(vectors[own], vectors, int(k), exclude=own[:, None])
    return [
        [
            Recommendation(recommender.item_ids[number], min(1.0, max(-1.0, score)))
            for score, number in zip(*row, strict=True)
        ]
        for row in zip(scores.tolist(), numbers.tolist(), strict=True)
    ]
