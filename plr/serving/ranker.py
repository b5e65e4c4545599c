"""Histories of item numbers in, the best items out: by the engine, on a GPU by the plan, or by the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from plr.data import Batch
from plr.errors import RunError
from plr.models import RecommenderModel
from plr.models.scoring import ItemScorer
from plr.serving.categories import CategoryLimit
from plr.serving.engine import Engine, UserStates, snapshot, why_not
from plr.serving.filters import ItemFilter
from plr.serving.gpu_plan import GPUPlan
from plr.serving.gpu_plan import why_not as why_no_plan
from plr.serving.ragged import Ragged

__all__ = ["GPUAnswers", "Ranker"]

GPUAnswers = Literal["graphs", "launches", "module"]
"""How users' states are computed on a GPU."""
MOST_EXCLUDED = 2**20
"""The most ids, with padding, of items that are left out of one ranking: 8 MiB."""
_Top = Callable[[slice, np.ndarray | None], tuple[Tensor, Tensor]]
"""What ranks for rows of some histories, without the items of int64 [rows, X]: scores and numbers [rows, k]."""


class Ranker:
    """Ranks items for histories, by a model as it is at each call.

    Args:
        model: a trained model.
        max_length: how many of a history's last items the model takes.
        gpu: how users' states are computed on a GPU: "graphs" by the plan (`plr.serving.gpu_plan`), whose shapes are
            captured as CUDA graphs; "launches" by the plan, nothing captured; "module" by the model's own forward pass,
            as where the plan cannot take the model.

    Raises:
        ValueError: gpu is another word.
    """

    def __init__(self, model: RecommenderModel, max_length: int, gpu: GPUAnswers = "graphs"):
        if gpu not in get_args(GPUAnswers):
            raise ValueError(f"gpu must be one of {', '.join(get_args(GPUAnswers))}; found {gpu!r}")
        self.model = model.eval()
        self._max_length = max_length
        self._gpu = gpu
        self._make_vectors()
        self._prepare()

    def _make_vectors(self) -> None:
        self._vectors_of = snapshot(self.model)
        with torch.inference_mode(False), torch.no_grad():
            self._table = self.model.item_table().detach()  # [V, d]
            self._candidates = self.model.candidates(self._table)  # [V, d]

    def _refresh(self) -> None:
        """Make the item vectors anew where the model has been changed: those of features and texts are not weights."""
        if snapshot(self.model) != self._vectors_of:
            self._make_vectors()

    def _prepare(self) -> None:
        """Pack the weights for what computes the answers."""
        self._engine = Engine(self.model) if why_not(self.model) is None else None
        self._plan: GPUPlan | None = None
        if self._engine is None and self._gpu != "module" and why_no_plan(self.model) is None:
            self._plan = GPUPlan(self.model, self._table, **({} if self._gpu == "graphs" else {"most_bytes": 0}))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the engine and the plan out of a copy, which makes its own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_engine", "_plan")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @property
    def engine(self) -> Engine | None:
        """What computes the answers: the engine, or None where PyTorch does, as the model is."""
        return self._engine if self._engine is not None and self._engine.fits(self.model) else None

    @property
    def gpu_plan(self) -> GPUPlan | None:
        """What computes users' states on a GPU; None where the engine or the model itself does, as the model is."""
        return self._plan if self._plan is not None and self._plan.fits(self.model) else None

    @property
    def item_vectors(self) -> Tensor:
        """The vectors [V, d] that scores are taken against, where the model is."""
        self._refresh()
        return self._candidates

    @torch.inference_mode()
    def states(self, histories: Ragged, batch_size: int) -> UserStates:
        """Return what ranks the items for B histories, none empty, so many at a time; on the CPU.

        Raises:
            RunError: the weights are damaged.
        """
        engine = self.engine
        if engine is None:
            self._refresh()
        parts = [
            self._states(histories.take(np.arange(first, min(first + batch_size, len(histories)))), engine)
            for first in range(0, max(1, len(histories)), batch_size)
        ]
        log_weights = [part.log_weights for part in parts if part.log_weights is not None]
        return UserStates(
            torch.cat([part.states for part in parts]).cpu(), torch.cat(log_weights).cpu() if log_weights else None
        )

    @torch.inference_mode()
    def rank(
        self,
        histories: Ragged,
        k: int,
        *,
        exclude_seen: bool,
        filters: ItemFilter | None = None,
        limit: CategoryLimit | None = None,
        batch_size: int = 512,
        states: UserStates | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [B, k] and items int64 [B, k], as `Recommender.rank` does."""
        if limit is not None:

            def ranked(rows: np.ndarray, wide: int) -> tuple[np.ndarray, np.ndarray]:
                return self.rank(
                    histories.take(rows),
                    wide,
                    exclude_seen=exclude_seen,
                    filters=None if filters is None else filters.take(rows),
                    batch_size=batch_size,
                    states=None if states is None else states.of_rows(rows),
                )

            return limit.fill(ranked, len(histories), k)
        if states is not None:
            _check_finite(states.states)
        engine = self.engine
        if engine is None:
            self._refresh()
        wide = self._candidates.dtype == torch.float64
        scores = np.empty((len(histories), k), np.float64 if wide else np.float32)
        items = np.empty((len(histories), k), np.int64)
        # Histories of like length together, so that little is padded.
        order = np.argsort(histories.lengths, kind="stable")
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            part = histories.take(rows)
            denied, allowed = (None, None) if filters is None else _parts(filters.take(rows))
            if exclude_seen:
                denied = part if denied is None else part.joined(denied)
            where = None
            if allowed is not None and len(allowed) == 1:
                where, allowed = allowed[0], None
            if engine is None:
                top = self._top(part, k, where)
            else:
                users = self._states(part, engine) if states is None else states.of_rows(rows)
                top = _engine_top(engine, users, k, where)
            for block in _blocks(len(rows), denied, allowed):
                found = top(block, _left_out(block, denied, allowed))
                scores[rows[block]], items[rows[block]] = (each.cpu().numpy() for each in found)
        # NaN is above all, and so among the best of whoever may get that item.
        if not np.isfinite(scores[items >= 0]).all():
            raise RunError("the score of an item is not finite; the weights are damaged")
        return scores, items

    def _states(self, histories: Ragged, engine: Engine | None) -> UserStates:
        if engine is not None:
            users = engine.states(torch.from_numpy(histories.ids), torch.from_numpy(histories.offsets))
        else:
            scorer = self._scorer(histories)
            users = UserStates(scorer.states, scorer.log_weights)
        _check_finite(users.states)
        return users

    def _top(self, histories: Ragged, k: int, where: np.ndarray | None) -> _Top:
        """Return what ranks the items of a mask bool [V] for histories, with PyTorch."""
        device = self._table.device
        scorer = self._scorer(histories)
        _check_finite(scorer.states)
        mask = _tensor(where, device)
        return lambda rows, exclude: scorer.of_rows(rows).top_items(
            self._candidates, k, exclude=_tensor(exclude, device), where=mask
        )

    def _scorer(self, histories: Ragged) -> ItemScorer:
        plan = self.gpu_plan
        if plan is not None:
            users = plan.states(torch.from_numpy(histories.ids), torch.from_numpy(histories.offsets))
            return ItemScorer(users.states, users.log_weights, self.model.temperature)
        device = self._table.device
        recent = histories.last(self._max_length)
        lengths = torch.from_numpy(recent.lengths)
        batch = Batch(
            item_ids=torch.from_numpy(recent.padded(0)).to(device),
            lengths=lengths.to(device),
            targets=torch.full_like(lengths, -100).to(device),
            users=torch.arange(len(histories), device=device),
        )
        return self.model.scorer(batch, self._table)


def _engine_top(engine: Engine, users: UserStates, k: int, where: np.ndarray | None) -> _Top:
    """Return what ranks the items of a mask bool [V] for histories, with the engine."""
    mask = _tensor(where)
    return lambda rows, exclude: engine.rank(users.of_rows(rows), k, exclude=_tensor(exclude), where=mask)


def _check_finite(states: Tensor) -> None:
    if not bool(torch.isfinite(states).all()):
        raise RunError("the user embedding of a history is not finite; the weights are damaged")


def _parts(filters: ItemFilter) -> tuple[Ragged | None, np.ndarray | None]:
    return filters.denied, filters.allowed()


def _tensor(array: np.ndarray | None, device: torch.device | str = "cpu") -> Tensor | None:
    return None if array is None else torch.from_numpy(array).to(device)


def _blocks(rows: int, denied: Ragged | None, allowed: np.ndarray | None) -> Iterator[slice]:
    """Cut rows into consecutive blocks of at most MOST_EXCLUDED ids that are left out, padding counted, or of one."""
    widths = np.zeros(rows, dtype=np.int64) if denied is None else denied.lengths
    if allowed is not None:
        widths = widths + (allowed.shape[1] - allowed.sum(axis=1))
    start, widest = 0, 0
    for row, width in enumerate(widths.tolist()):
        widest = max(widest, width)
        if row > start and (row + 1 - start) * widest > MOST_EXCLUDED:
            yield slice(start, row)
            start, widest = row, width
    if rows:
        yield slice(start, rows)


def _left_out(rows: slice, denied: Ragged | None, allowed: np.ndarray | None) -> np.ndarray | None:
    """Return the items that rows must not get: int64 [rows, X], padded with -1."""
    numbers = np.arange(rows.start, rows.stop)
    lists = None if denied is None else denied.take(numbers)
    if allowed is not None:
        mask = np.broadcast_to(~allowed if len(allowed) == 1 else ~allowed[rows], (len(numbers), allowed.shape[1]))
        places = mask.nonzero()
        forbidden = Ragged(places[1], np.searchsorted(places[0], np.arange(len(numbers) + 1)))
        lists = forbidden if lists is None else lists.joined(forbidden)
    return None if lists is None else lists.padded(-1)
