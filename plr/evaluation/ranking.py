"""The rank of every target among all items: exact, in blocks of rows, ties counted half.

The tie rule, used everywhere in this package:

    rank = 1 + #(items scored above the target) + #(other items scored equal) / 2

the mean rank over all orders of the tied items. A constant scorer hence ranks every target in the middle,
neither first nor last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plr.errors import EvaluationError

if TYPE_CHECKING:
    from plr.data import Batch
    from plr.models.recommender import Recommender


@dataclass(frozen=True)
class Ranking:
    """The ranks of one evaluation, on the CPU, in the order of its rows.

    Attributes:
        users: int64 [R], the user of each row.
        targets: int64 [R], the item to be found.
        ranks: float64 [R], its rank, from 1 (best); halves come from ties.
    """

    users: Tensor
    targets: Tensor
    ranks: Tensor

    def __len__(self) -> int:
        return len(self.ranks)


def target_ranks(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    exclude: Tensor | None = None,
    max_elements: int = 2**22,
) -> Tensor:
    """Rank each row's target among all items by dot product: 1 + #greater + #equal others / 2.

    Works in blocks of max(1, max_elements // V) rows; [R, V] is never built. The target's own score is read
    from the same product as the others', and items with equal vectors get one and the same score, so that
    they tie exactly whatever the rounding of the matrix product.

    Args:
        states: [R, d], one user embedding per row, of any floating dtype; scores are float32 at least.
        items: [V, d], the item table, on the same device.
        targets: int64 [R], each in [0, V).
        exclude: int64 [R, X] items that do not count (for example the seen ones), padded with -1. The target
            always counts.
        max_elements: the largest block of scores held at once, in elements.

    Returns:
        float64 [R] on the device of states.

    Raises:
        EvaluationError: a score is not finite; the message names the row and the item.
        ValueError: shapes, dtypes or ids that do not fit.
    """
    _check(states, items, targets, exclude)
    if max_elements < 1:
        raise ValueError(f"max_elements must be at least 1; found {max_elements}")
    return _ranks(states, _ItemTable.of(items), targets, exclude, max_elements)


@torch.no_grad()
def rank_rows(
    model: Recommender,
    batches: Iterable[Batch],
    *,
    exclude_seen: bool = False,
    max_elements: int = 2**22,
    on_batch: Callable[[int], None] | None = None,
) -> Ranking:
    """Rank the target of every row of the batches with the model, in evaluation mode and without gradients.

    The item table is computed once. Every module's training mode is as before afterwards, also after an
    error.

    Args:
        model: scores an item by the dot product of `user_embedding(batch, table)` [B, d] with its row of
            `candidates(table)` [V, d], where table is `item_table()`.
        batches: item_ids [B, L], lengths [B], targets [B] and users [B] each, on any device.
        exclude_seen: leave the items of each row's history (as far as the row holds it) out of the ranking;
            a target that was seen before still counts.
        max_elements: as in `target_ranks`.
        on_batch: called with the number of rows after each batch, for a progress bar.

    Returns:
        Ranking of all rows in their order; empty where there are no batches.

    Raises:
        EvaluationError: a score is not finite; the message names the user, the row of the batch and the item.
        ValueError: shapes, dtypes or ids that do not fit.
    """
    modes = [(module, module.training) for module in model.modules()]
    users, targets, ranks = [], [], []
    try:
        model.eval()
        embeddings = model.item_table()
        items = model.candidates(embeddings)
        table = _ItemTable.of(items)
        for batch in batches:
            batch = batch.to(items.device)
            states = model.user_embedding(batch, embeddings)
            exclude = seen_items(batch.item_ids, batch.lengths) if exclude_seen else None
            _check(states, items, batch.targets, exclude)
            try:
                ranks.append(_ranks(states, table, batch.targets, exclude, max_elements).cpu())
            except _NonFiniteScoreError as error:
                raise EvaluationError(f"user {int(batch.users[error.row])}: {error}") from error
            users.append(batch.users.cpu())
            targets.append(batch.targets.cpu())
            if on_batch is not None:
                on_batch(len(states))
    finally:
        for module, training in modes:
            module.training = training
    return Ranking(
        users=torch.cat(users) if users else torch.empty(0, dtype=torch.int64),
        targets=torch.cat(targets) if targets else torch.empty(0, dtype=torch.int64),
        ranks=torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.float64),
    )


def seen_items(item_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the items of each history, item_ids int64 [B, L], with -1 beyond its length (lengths [B])."""
    positions = torch.arange(item_ids.shape[1], device=item_ids.device)
    return item_ids.masked_fill(positions >= lengths[:, None], -1)


class _NonFiniteScoreError(EvaluationError):
    def __init__(self, row: int, item: int, score: float):
        super().__init__(
            f"the score of row {row} for item {item} is {score}; check the row's user embedding and the "
            "item's vector: training has diverged, or their product overflows"
        )
        self.row = row


@dataclass(frozen=True)
class _ItemTable:
    """Item vectors, each distinct one once if some are equal.

    A matrix product does not promise the same rounding in every column: equal vectors could score unequally.
    """

    vectors: Tensor  # [W, d], W <= V
    index: Tensor | None  # int64 [V]: each item's row of `vectors`; None if these are the items themselves

    @classmethod
    def of(cls, items: Tensor) -> _ItemTable:
        items = items.detach()
        # NaN has no place in the order that unique() sorts by; the scores then say which row and item it is.
        if not bool(items.isfinite().all()):
            return cls(items, None)
        distinct, index = torch.unique(items, dim=0, return_inverse=True)
        return cls(items, None) if len(distinct) == len(items) else cls(distinct, index)

    def __len__(self) -> int:
        return len(self.vectors) if self.index is None else len(self.index)


@torch.no_grad()
def _ranks(states: Tensor, table: _ItemTable, targets: Tensor, exclude: Tensor | None, max_elements: int) -> Tensor:
    ranks = torch.empty(len(states), dtype=torch.float64, device=states.device)
    dtype = torch.promote_types(torch.promote_types(states.dtype, table.vectors.dtype), torch.float32)
    vectors = table.vectors.to(dtype).T
    rows = max(1, max_elements // max(1, len(table)))
    for start in range(0, len(states), rows):
        block = slice(start, start + rows)
        with torch.autocast(states.device.type, enabled=False):
            scores = states[block].to(dtype) @ vectors
        if table.index is not None:
            scores = scores[:, table.index]
        _check_finite(scores, start)
        target = targets[block, None]
        own = scores.gather(1, target)
        if exclude is not None:
            excluded = exclude[block]
            scores.scatter_(1, torch.where(excluded < 0, target, excluded), -torch.inf)
            scores.scatter_(1, target, own)
        greater = (scores > own).sum(1, dtype=torch.int32)
        equal_others = (scores == own).sum(1, dtype=torch.int32) - 1
        ranks[block] = 1 + greater + equal_others.double() / 2
    return ranks


def _check_finite(scores: Tensor, first_row: int) -> None:
    lowest, highest = torch.aminmax(scores)
    if not bool(lowest.isfinite() & highest.isfinite()):
        row, item = (~scores.isfinite()).nonzero()[0].tolist()
        raise _NonFiniteScoreError(first_row + row, item, float(scores[row, item]))


def _check(states: Tensor, items: Tensor, targets: Tensor, exclude: Tensor | None) -> None:
    if states.ndim != 2 or items.ndim != 2 or states.shape[1] != items.shape[1]:
        raise ValueError(f"states must be [R, d] and items [V, d]; found {list(states.shape)} and {list(items.shape)}")
    if not (states.is_floating_point() and items.is_floating_point()):
        raise ValueError(f"states and items must be floating; found {states.dtype} and {items.dtype}")
    _check_ids("targets", targets, (len(states),), 0, len(items))
    if exclude is not None:
        if exclude.ndim != 2:
            raise ValueError(f"exclude must be [R, X], padded with -1; found {list(exclude.shape)}")
        _check_ids("exclude", exclude, (len(states), exclude.shape[1]), -1, len(items))


def _check_ids(name: str, ids: Tensor, shape: tuple[int, ...], lowest: int, end: int) -> None:
    if tuple(ids.shape) != shape or ids.dtype != torch.int64:
        raise ValueError(f"{name} must be int64 {list(shape)}; found {ids.dtype} {list(ids.shape)}")
    if ids.numel() and not bool(((ids >= lowest) & (ids < end)).all()):
        raise ValueError(f"{name} must lie in [{lowest}, {end}); found {int(ids.min())} to {int(ids.max())}")
