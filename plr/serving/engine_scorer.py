"""The engine where rows are ranked: `rank_rows(model, batches, scorer_of=engine_scorer)`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from plr.data import Batch
from plr.models import RecommenderModel
from plr.models.scoring import ItemScorer
from plr.serving.engine import Engine, why_not

__all__ = ["engine_scorer"]


def engine_scorer(model: RecommenderModel) -> Callable[[Batch], ItemScorer] | None:
    """Return what computes the scorers of batches by the engine, as the model is now; None where it cannot take it."""
    if why_not(model) is not None:
        return None
    engine = Engine(model)

    def scorer(batch: Batch) -> ItemScorer:
        real = torch.arange(batch.item_ids.shape[1]) < batch.lengths[:, None]
        offsets = torch.cat([batch.lengths.new_zeros(1), batch.lengths.cumsum(0)])
        return ItemScorer(*engine.states(batch.item_ids[real], offsets), engine.temperature)

    return scorer
