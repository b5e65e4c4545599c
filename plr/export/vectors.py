"""The item vectors as the ranking uses them, for an index of inner products."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from plr.export.check import Answer
from plr.models.scoring import ItemScorer
from plr.serving import Recommender
from plr.serving.ragged import Ragged


def write_vectors(recommender: Recommender, folder: Path, manifest: dict[str, Any]) -> None:
    """Write vectors.npy (float32 [V, d]), items.parquet (item, in the order of the vectors) and manifest.json."""
    vectors = recommender.item_vectors.numpy().astype(np.float32)
    states = recommender.user_states([[recommender.item_ids[0]]])
    mixture = None
    if states.log_weights is not None:
        mixture = {
            "components": states.states.shape[1],
            "score": "logsumexp over m of log_weights[m] + log_softmax(vectors @ states[m] / temperature)",
        }
    facts = {
        **manifest,
        "dim": vectors.shape[1],
        "metric": "inner product",
        "temperature": recommender.model.temperature,
        "mixture": mixture,
        "user_states": "plr.Recommender.load(RUN).user_states(histories)",
    }
    folder.mkdir()
    np.save(folder / "vectors.npy", vectors, allow_pickle=False)
    pl.DataFrame({"item": pl.Series(recommender.item_ids, dtype=pl.String)}).write_parquet(folder / "items.parquet")
    (folder / "manifest.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_vectors(recommender: Recommender, folder: Path, manifest: dict[str, Any]) -> Answer:
    """Read the vectors back; return what ranks them by users' states, without exclusion."""
    vectors = torch.from_numpy(np.load(folder / "vectors.npy", allow_pickle=False))
    facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    ids = pl.read_parquet(folder / "items.parquet")["item"].to_list()

    def answer(histories: Ragged, k: int, exclude_seen: bool) -> tuple[np.ndarray, np.ndarray]:
        named = [[ids[number] for number in row] for row in histories.lists()]
        states, log_weights = recommender.user_states(named)
        exclude = torch.from_numpy(histories.padded(-1)) if exclude_seen else None
        scorer = ItemScorer(states, log_weights, facts["temperature"])
        scores, items = scorer.top_items(vectors, k, exclude=exclude)
        return scores.numpy(), items.numpy()

    return answer
