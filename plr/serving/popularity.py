"""The most popular items, for users of whom nothing is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plr.errors import DataError, RunError, UserError
from plr.inputs import load_dataset
from plr.runs import RunFolder
from plr.serving.filters import ItemFilter

__all__ = ["most_popular", "popularity_of_run"]


def popularity_of_run(path: Path) -> np.ndarray:
    """Return how often each item occurs in a run's training data, int64 [V]; of older runs from the data themselves.

    Raises:
        RunError: the run does not say, and its data are not there or have changed.
        DataError: the file is damaged.
    """
    folder = RunFolder(path)
    config, items = folder.require_finished(), folder.read_item_ids()
    recorded = folder.read_popularity()
    if recorded is not None:
        if len(recorded) != len(items):
            raise DataError(f"{len(recorded)} numbers; the run has {len(items)} items", folder.popularity)
        return recorded.to_numpy()
    try:
        dataset = load_dataset(config, run=path)
    except (UserError, OSError) as error:
        raise RunError(
            f"users without a known item get the most popular ones, which {path} does not record; its data are not "
            f"available: {error}"
        ) from error
    recorded_hash = (config.provenance or {}).get("data_hash")
    if dataset.content_hash != recorded_hash or dataset.item_ids.to_list() != items:
        raise RunError(
            f"users without a known item get the most popular ones, which {path} does not record; {config.data} has "
            "changed since it was trained"
        )
    return dataset.training_popularity(config.refit).numpy()


def most_popular(counts: np.ndarray, users: int, k: int, filters: ItemFilter) -> tuple[np.ndarray, np.ndarray]:
    """Return scores float32 [users, k] and items int64 [users, k], the most popular first, ties to the smaller number.

    Args:
        counts: int64 [V], how often each item occurs.
        users: how many.
        k: how many items of each.
        filters: what each user may get; −inf and −1 fill up where fewer are left.
    """
    order = np.argsort(-counts, kind="stable")
    allowed, denied = filters.allowed(), filters.denied
    scores = np.full((users, k), -np.inf, dtype=np.float32)
    items = np.full((users, k), -1, dtype=np.int64)
    for user in range(users):
        if user == 0 or (allowed is not None and len(allowed) > 1):
            left = order if allowed is None else order[allowed[user][order]]
        best = left[:k]
        if denied is not None:
            own = denied.ids[denied.offsets[user] : denied.offsets[user + 1]]
            best = left[: k + len(own)]
            best = best[~np.isin(best, own)][:k]
        scores[user, : len(best)], items[user, : len(best)] = counts[best], best
    return scores, items
