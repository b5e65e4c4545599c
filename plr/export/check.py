"""Whether an export answers as its run does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from plr.data import Batch
from plr.errors import RunError
from plr.serving import Recommender
from plr.serving.ragged import Ragged

Answer = Callable[[Ragged, int, bool], tuple[np.ndarray, np.ndarray]]
"""Ranks (histories, k, exclude_seen): scores and item numbers, [B, k] each."""
HISTORIES = 32
FACTOR = 4
"""How often the run's own float32 error an export may have: it sums the same numbers in another order."""


class Checked(NamedTuple):
    """How an export agrees with its run: histories asked, the largest error of a score and what was allowed."""

    histories: int
    error: float
    allowed: float


def check_ranking(recommender: Recommender, answer: Answer, k: int, exclude_seen: bool) -> Checked:
    """Compare an export's answers with the run's on random histories, of one item and beyond max_length too.

    The truth is the run's model in float64. A score may be away from it FACTOR times as far as the run's own float32
    scores are, or as one rounding of the largest score; so may the k-th best. Equal scores stand by their number.

    Raises:
        RunError: they disagree; the message says by how much.
    """
    histories = some_histories(len(recommender.item_ids), recommender.config.max_length)
    truth = exact_scores(recommender, histories)
    if exclude_seen:
        for row, history in zip(truth, histories.lists(), strict=True):
            row[history] = -np.inf
    best = -np.sort(-truth, axis=1)[:, :k]  # [B, k]
    own, _ = recommender.rank(histories, k, exclude_seen=exclude_seen)
    largest = float(np.abs(best[np.isfinite(best)]).max(initial=0))
    allowed = FACTOR * max(_distance(own, best), float(np.finfo(np.float32).eps) * largest)

    parts = _in_parts(answer, histories, k, exclude_seen)
    scores, items = (np.concatenate(both) for both in zip(*parts, strict=True))
    _require(scores.shape == items.shape == best.shape, f"answers of shape {scores.shape}, not {best.shape}")
    _require(bool((items < truth.shape[1]).all() and (items >= -1).all()), "numbers that no item has")
    _require(bool(((items == -1) == np.isneginf(best)).all()), "another number of items")
    ordered = np.sort(items, axis=1)
    _require(not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()), "an item twice")
    of_items = np.where(items >= 0, np.take_along_axis(truth, items.clip(0), axis=1), -np.inf)
    error = max(_distance(scores, best), _distance(scores, of_items))
    _require(error <= allowed, f"scores that are up to {error:.3g} away; float32 rounding explains {allowed:.3g}")
    tied = (scores[:, 1:] == scores[:, :-1]) & (items[:, 1:] >= 0)
    _require(bool((items[:, 1:] > items[:, :-1])[tied].all()), "equal scores not in the order of their items")
    return Checked(len(histories), error, allowed)


def _in_parts(answer: Answer, histories: Ragged, k: int, exclude_seen: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ask for one history alone, then for the others together."""
    one, others = histories.take(np.arange(1)), histories.take(np.arange(1, len(histories)))
    return [answer(one, k, exclude_seen), answer(others, k, exclude_seen)]


def _distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest difference; infinite where one is finite and the other not, 0 between equal infinities."""
    difference = np.zeros(exact.shape)
    different = found != exact
    np.subtract(found, exact, out=difference, where=different, dtype=np.float64)
    difference = np.abs(difference)
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0))


def _require(holds: bool, found: str) -> None:
    if not holds:
        raise RunError(f"the export does not answer as the run does: found {found}; nothing was written")


def some_histories(items: int, max_length: int) -> Ragged:
    """Return random histories: one of one item, of max_length, of one more, of twice as many; the others between."""
    generator = np.random.default_rng(0)
    lengths = [1, max_length, max_length + 1, 2 * max_length + 3]
    lengths += generator.integers(1, max_length + 1, HISTORIES - len(lengths)).tolist()
    return Ragged.of([generator.integers(0, items, length).tolist() for length in lengths])


@torch.no_grad()
def exact_scores(recommender: Recommender, histories: Ragged) -> np.ndarray:
    """Return the scores of all items in float64, [B, V]."""
    model = copy.deepcopy(recommender.model).cpu().double()
    recent = histories.last(recommender.config.max_length)
    table = model.item_table()
    candidates = model.candidates(table)
    rows = []
    for row in range(len(recent)):  # one at a time: a mixture's scores are [M, V] for each
        one = recent.take(np.arange(row, row + 1))
        lengths = torch.from_numpy(one.lengths)
        batch = Batch(torch.from_numpy(one.padded(0)), lengths, torch.zeros_like(lengths), torch.zeros_like(lengths))
        rows.append(model.scorer(batch, table).scores(candidates)[0].numpy())
    return np.stack(rows)
