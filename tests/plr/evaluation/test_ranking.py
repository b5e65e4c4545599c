from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plr.data import Batch
from plr.evaluation import EvaluationError, popularity_ranks, rank_rows, ranking, target_ranks
from plr.evaluation.ranking import seen_items
from plr.models.scoring import ItemScorer

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def ranks_by_hand(scores: list[list[float]], targets: list[int], exclude: list[list[int]]) -> list[float]:
    """Count item by item."""
    ranks = []
    for row, target, excluded in zip(scores, targets, exclude, strict=True):
        others = [score for item, score in enumerate(row) if item != target and item not in excluded]
        greater = sum(score > row[target] for score in others)
        equal = sum(score == row[target] for score in others)
        ranks.append(1 + greater + equal / 2)
    return ranks


@st.composite
def ranking_cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Small whole numbers: their products are exact in every dtype, and ties abound.
    rows, dim = draw(st.integers(0, 6)), draw(st.integers(1, 5))
    count = draw(st.sampled_from([1, 2, 3, 7, 31, 97]))
    width = draw(st.integers(0, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from(DTYPES))
    states = torch.randint(-2, 3, (rows, dim), generator=generator).to(dtype)
    items = torch.randint(-2, 3, (count, dim), generator=generator).to(dtype)
    targets = torch.randint(count, (rows,), generator=generator)
    exclude = torch.randint(-1, count, (rows, width), generator=generator)
    return states, items, targets, exclude


@settings(max_examples=200, deadline=None)
@given(ranking_cases())
def test_ranks_are_those_counted_item_by_item(case):
    states, items, targets, exclude = case
    scores = (states.double() @ items.double().T).tolist()

    excluding = target_ranks(states, items, targets, exclude=exclude)
    plain = target_ranks(states, items, targets)

    assert excluding.dtype == plain.dtype == torch.float64
    assert excluding.tolist() == ranks_by_hand(scores, targets.tolist(), exclude.tolist())
    assert plain.tolist() == ranks_by_hand(scores, targets.tolist(), [[]] * len(targets))


def test_the_rank_of_ties_is_the_mean_of_their_places():
    states, items = torch.ones(3, 1), torch.tensor([[5.0], [2.0], [2.0], [2.0], [1.0]])
    assert target_ranks(states, items, torch.tensor([0, 2, 4])).tolist() == [1.0, 3.0, 5.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 2, 33, 64])
@pytest.mark.parametrize("count", [7, 64, 101, 997])
def test_equal_vectors_tie_exactly_whatever_the_rounding_of_the_product(dtype, rows, count):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, 50, generator=generator, dtype=dtype)
    items = torch.randn(1, 50, generator=generator, dtype=dtype).expand(count, 50)
    targets = torch.randint(count, (rows,), generator=generator)
    assert target_ranks(states, items, targets).tolist() == [(count + 1) / 2] * rows


def test_a_few_equal_vectors_among_distinct_ones_tie_too():
    generator = torch.Generator().manual_seed(0)
    distinct = torch.randn(101, 50, generator=generator)
    items = distinct[torch.arange(303) % 101]  # every vector three times, far apart
    states = torch.randn(64, 50, generator=generator)
    targets = torch.randint(303, (64,), generator=generator)
    # Among distinct vectors with rank r, three of each: 3 (r - 1) are above, and 2 others tie.
    expected = 3 * (target_ranks(states.double(), distinct.double(), targets % 101) - 1) + 2
    assert torch.equal(target_ranks(states, items, targets), expected)


def test_half_precision_is_scored_in_float32():
    # 256 + 1 rounds to 256 in bfloat16: a half-precision product would tie the two items.
    states = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)
    items = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert target_ranks(states, items, torch.tensor([1])).tolist() == [2.0]


def test_the_target_counts_even_if_excluded_and_so_do_repeats_and_padding():
    states, items = torch.ones(1, 1), torch.tensor([[3.0], [2.0], [1.0]])
    exclude = torch.tensor([[2, 0, 0, -1]])
    assert target_ranks(states, items, torch.tensor([2]), exclude=exclude).tolist() == [2.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_is_an_error_naming_row_and_item(value):
    states, items = torch.ones(4, 1), torch.ones(5, 1)
    items[3] = value
    with pytest.raises(EvaluationError, match=r"row 0 for item 3 is .*check"):
        target_ranks(states, items, torch.zeros(4, dtype=torch.int64))
    states[2] = value
    with pytest.raises(EvaluationError, match=r"row 2 for item 0 is"):
        target_ranks(states, torch.ones(5, 1), torch.zeros(4, dtype=torch.int64))


def test_a_mixtures_logits_beyond_float32_are_named(monkeypatch):
    """A kernel's sums may overflow where the formula's scores are finite: an error all the same, and no rank."""
    minus_one = torch.tensor([0, -1])
    monkeypatch.setattr("plr.models.scoring.target_mixture_rank", lambda *_, **__: (minus_one, minus_one))
    scorer = ItemScorer(torch.ones(2, 2, 3), torch.full((2, 2), 0.5).log())
    with pytest.raises(EvaluationError, match=r"row 1 for item 0 is -1.6.* and too large to be ranked in float32;"):
        ranking._counts(scorer, torch.ones(5, 3), torch.tensor([0, 1]), None)


def test_an_excluded_item_and_an_overflow_must_be_finite_too():
    items = torch.full((3, 1), 1e30)
    with pytest.raises(EvaluationError, match="row 1 for item 0 is inf"):
        target_ranks(torch.tensor([[0.0], [1e30]]), items, torch.tensor([1, 1]), exclude=torch.tensor([[0], [0]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.ones(2, 3)}, r"items must have shape \[V, D=3\]"),
        ({"states": torch.ones(2, 1, dtype=torch.int64)}, "states must have one of the dtypes"),
        ({"targets": torch.tensor([0, 4])}, r"targets must be in \[0, V\) \(V=4\), found 4 at position \[1\]"),
        ({"targets": torch.tensor([-1, 0])}, r"targets must be in .* found -1"),
        ({"targets": torch.tensor([0])}, r"targets must have shape \[R=2\]"),
        ({"targets": torch.tensor([0.0, 1.0])}, "targets must have dtype torch.int64"),
        ({"exclude": torch.tensor([0, 1])}, r"exclude must have shape \[R=2, X\]"),
        ({"exclude": torch.tensor([[-2], [0]])}, r"exclude must be in \[0, V\), or -1 as padding .* found -2"),
        ({"exclude": torch.tensor([[4], [0]])}, r"exclude must be in .* found 4"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"states": torch.ones(2, 1), "items": torch.ones(4, 1), "targets": torch.tensor([0, 1])}
    with pytest.raises((TypeError, ValueError), match=message):
        target_ranks(**(arguments | change))


def test_ranking_keeps_no_graph():
    states, items = torch.ones(2, 1, requires_grad=True), torch.ones(3, 1, requires_grad=True)
    assert not target_ranks(states, items, torch.tensor([0, 1])).requires_grad


class MeanModel(nn.Module):
    """Represents a history by the mean of its items' vectors; counts how often the table is asked for."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.vectors = nn.Parameter(torch.randint(-2, 3, (count, dim), generator=generator).float())
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        self.tables = 0

    def item_table(self) -> Tensor:
        self.tables += 1
        return self.vectors

    def candidates(self, table: Tensor) -> Tensor:
        return table

    def scorer(self, batch: Batch, table: Tensor) -> ItemScorer:
        assert not self.training
        assert not torch.is_grad_enabled()
        real = torch.arange(batch.item_ids.shape[1]) < batch.lengths[:, None]
        return ItemScorer(self.dropout((table[batch.item_ids] * real[..., None]).sum(1)))


def random_batches(count: int, sizes: list[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    batches, first_user = [], 100
    for size in sizes:
        lengths = torch.randint(1, 6, (size,), generator=generator)
        items = torch.randint(count, (size, 5), generator=generator)
        items[torch.arange(5) >= lengths[:, None]] = 0
        targets = torch.randint(count, (size,), generator=generator)
        batches.append(Batch(items, lengths, targets, torch.arange(first_user, first_user + size)))
        first_user += size
    return batches


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_rank_rows_ranks_every_row_of_every_batch(exclude_seen):
    model, batches, counted = MeanModel(11, 3).train(), random_batches(11, [4, 1, 6]), []
    model.frozen.eval()

    ranking = rank_rows(model, batches, exclude_seen=exclude_seen, on_batch=counted.append)

    expected = []
    for batch in batches:
        for items, length, target in zip(batch.item_ids, batch.lengths, batch.targets, strict=True):
            history = items[:length]
            scores = model.vectors[history].sum(0) @ model.vectors.T
            seen = [history.tolist()] if exclude_seen else [[]]
            expected += ranks_by_hand([scores.tolist()], [int(target)], seen)
    assert ranking.ranks.tolist() == expected
    assert ranking.users.tolist() == list(range(100, 111))
    assert torch.equal(ranking.targets, torch.cat([batch.targets for batch in batches]))
    assert len(ranking) == 11
    assert counted == [4, 1, 6]
    assert model.tables == 1
    assert [model.training, model.dropout.training, model.frozen.training] == [True, True, False]


def test_rank_rows_of_no_batches_is_empty():
    ranking = rank_rows(MeanModel(3, 2), [])
    assert len(ranking) == 0
    assert (ranking.users.dtype, ranking.ranks.dtype) == (torch.int64, torch.float64)


def test_rank_rows_names_the_user_of_a_score_that_is_not_finite_and_restores_the_model():
    model, batches = MeanModel(4, 2).train(), random_batches(4, [2, 2])
    model.vectors.data[3] = torch.nan
    batches[0].item_ids.zero_()
    batches[1].item_ids.fill_(3)
    with pytest.raises(EvaluationError, match="user 100: the score of row 0 for item 3"):
        rank_rows(model, batches)
    assert model.training


def test_seen_items_leave_padding_out_but_keep_item_zero():
    seen = seen_items(torch.tensor([[0, 2, 0], [4, 0, 0]]), torch.tensor([3, 1]))
    assert seen.tolist() == [[0, 2, 0], [4, -1, -1]]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.lists(st.integers(0, 1000), max_size=20),
)
def test_popularity_ranks_are_those_of_one_dimensional_states(counts, targets):
    counts = torch.tensor(counts)
    targets = torch.tensor(targets, dtype=torch.int64) % len(counts)
    expected = target_ranks(torch.ones(len(targets), 1), counts[:, None].float(), targets)
    assert torch.equal(popularity_ranks(counts, targets), expected)
    # Whatever the excluded are: repeated, padding between them, the target itself.
    others = targets[:, None] * torch.tensor([1, 3, 3, 0, 7]) + torch.tensor([0, 2, 2, -1, 4])
    exclude = torch.cat([targets[:, None], others % (len(counts) + 1) - 1], dim=1)
    expected = target_ranks(torch.ones(len(targets), 1), counts[:, None].float(), targets, exclude=exclude)
    assert torch.equal(popularity_ranks(counts, targets, exclude=exclude), expected)


def test_popularity_ranks_of_nothing():
    nothing = torch.empty(0, dtype=torch.int64)
    assert popularity_ranks(nothing, nothing).tolist() == []


@pytest.mark.parametrize(
    ("counts", "targets", "message"),
    [
        (torch.tensor([1.0]), torch.tensor([0]), "counts must be int64"),
        (torch.tensor([1, -1]), torch.tensor([0]), "negative"),
        (torch.tensor([1]), torch.tensor([1]), "targets must lie"),
    ],
)
def test_popularity_names_what_does_not_fit(counts, targets, message):
    with pytest.raises(ValueError, match=message):
        popularity_ranks(counts, targets)


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([1], r"exclude must be int64 \[1, X\]"),
        ([[0], [1]], r"\[1, X\]"),
        ([[2]], r"lie in \[-1, 2\)"),
        ([[-2]], "found -2"),
    ],
)
def test_popularity_names_exclusions_that_do_not_fit(exclude, message):
    with pytest.raises(ValueError, match=message):
        popularity_ranks(torch.tensor([1, 2]), torch.tensor([0]), exclude=torch.tensor(exclude))
