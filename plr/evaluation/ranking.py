"""The rank of every target among all items: exact, in blocks of rows, ties counted half.

The tie rule, used everywhere in this package:

    rank = 1 + #(items scored above the target) + #(other items scored equal) / 2

the mean rank over all orders of the tied items. A constant scorer hence ranks every target in the middle,
neither first nor last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plr.errors import EvaluationError
from plr.models.scoring import ItemScorer
from plr.signals import raise_again

if TYPE_CHECKING:
    from plr.data import Batch
    from plr.models.recommender import RecommenderModel

    ScorerOf = Callable[[RecommenderModel], Callable[[Batch], ItemScorer] | None]


@dataclass(frozen=True)
class Ranking:
    """The ranks of one evaluation, on the CPU, in the order of its rows.

    Attributes:
        users: int64 [R], the user of each row.
        targets: int64 [R], the item to be found.
        ranks: float64 [R], its rank, from 1 (best); halves come from ties.
        equal: int64 [R], how many other items have its score; None where that was not kept.
    """

    users: Tensor
    targets: Tensor
    ranks: Tensor
    equal: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ranks)


def target_ranks(states: Tensor, items: Tensor, targets: Tensor, *, exclude: Tensor | None = None) -> Tensor:
    """Rank each row's target among all items by dot product: 1 + #greater + #equal others / 2.

    Items with equal vectors tie exactly (`plr_kernels.target_rank`); [R, V] is never built. In C++ the target's own
    score has the arithmetic of the others'; elsewhere it is a sum of its own, within rounding of theirs.

    Args:
        states: [R, d], one representation per row, of any floating dtype; scores are float32 at least.
        items: [V, d], the item table, in the dtype and on the device of states.
        targets: int64 [R], each in [0, V).
        exclude: int64 [R, X] items that do not count (for example the seen ones), padded with -1. The target
            always counts.

    Returns:
        float64 [R] on the device of states.

    Raises:
        EvaluationError: a score is not finite; the message names the row and the item.
        TypeError, ValueError: shapes, dtypes or ids that do not fit.
    """
    greater, equal = _counts(ItemScorer(states), items, targets, exclude)
    return 1 + greater + equal.double() / 2


@torch.no_grad()
def rank_rows(
    model: RecommenderModel,
    batches: Iterable[Batch],
    *,
    exclude_seen: bool = False,
    on_batch: Callable[[int], None] | None = None,
    scorer_of: ScorerOf | None = None,
) -> Ranking:
    """Rank the target of every row of the batches with the model, in evaluation mode and without gradients.

    The item table is computed once. Every module's training mode is as before afterwards, also after an
    error.

    Args:
        model: scores the rows of `candidates(table)` [V, d], table being `item_table()`, by `scorer(batch, table)`.
        batches: item_ids [B, L], lengths [B], targets [B] and users [B] each, on any device; they are ranked on the
            model's.
        exclude_seen: leave the items of each row's history (as far as the row holds it) out of the ranking;
            a target that was seen before still counts.
        on_batch: called with the number of rows after each batch, for a progress bar.
        scorer_of: takes the model, in evaluation mode, and returns what makes the batches' scorers in its place, or
            None.

    Returns:
        Ranking of all rows in their order; empty where there are no batches.

    Raises:
        EvaluationError: a score is not finite; the message names the user, the row of the batch and the item.
        TypeError, ValueError: shapes, dtypes or ids that do not fit.
    """
    modes = [(module, module.training) for module in model.modules()]
    users, targets, ranks, ties = [], [], [], []
    try:
        model.eval()
        table = model.item_table()
        items = model.candidates(table)
        scorer = None if scorer_of is None else scorer_of(model)
        for batch in batches:
            raise_again()
            batch = batch.to(items.device)
            exclude = seen_items(batch.item_ids, batch.lengths) if exclude_seen else None
            try:
                users_scorer = model.scorer(batch, table) if scorer is None else scorer(batch)
                counts = _counts(users_scorer, items, batch.targets, exclude)
            except _NonFiniteScoreError as error:
                raise EvaluationError(f"user {int(batch.users[error.row])}: {error}") from error
            greater, equal = (count.cpu() for count in counts)  # Apple's GPUs have no float64
            ranks.append(1 + greater + equal.double() / 2)
            ties.append(equal)
            users.append(batch.users.cpu())
            targets.append(batch.targets.cpu())
            if on_batch is not None:
                on_batch(len(batch))
    finally:
        for module, training in modes:
            module.training = training
    return Ranking(
        users=torch.cat(users) if users else torch.empty(0, dtype=torch.int64),
        targets=torch.cat(targets) if targets else torch.empty(0, dtype=torch.int64),
        ranks=torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.float64),
        equal=torch.cat(ties) if ties else torch.empty(0, dtype=torch.int64),
    )


def seen_items(item_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the items of each history, item_ids int64 [B, L], with -1 beyond its length (lengths [B])."""
    positions = torch.arange(item_ids.shape[1], device=item_ids.device)
    return item_ids.masked_fill(positions >= lengths[:, None], -1)


class _NonFiniteScoreError(EvaluationError):
    def __init__(self, row: int, item: int, score: float):
        too_large = " and too large to be ranked in float32" if math.isfinite(score) else ""
        super().__init__(
            f"the score of row {row} for item {item} is {score}{too_large}; check the row's user embedding and the "
            "item's vector: training has diverged, or their product overflows"
        )
        self.row = row


@torch.no_grad()
def _counts(scorer: ItemScorer, items: Tensor, targets: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return how many other items score above the target and the same: int64 [R] each."""
    greater, equal = scorer.target_rank(items, targets, exclude=exclude)
    wrong = (greater < 0).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise _not_finite(scorer.of_rows(slice(row, row + 1)), items, row)
    return greater, equal


def _not_finite(scorer: ItemScorer, items: Tensor, row: int) -> _NonFiniteScoreError:
    """Find the first item whose score for the one row of the scorer is not finite."""
    scores = scorer.scores(items.to(scorer.states.dtype))[0]
    wrong = (~scores.isfinite()).nonzero()[:, 0].tolist()
    item = wrong[0] if wrong else int(scores.abs().argmax())  # the kernels' sums overflowed before the formula's
    return _NonFiniteScoreError(row, item, float(scores[item]))
