"""top_items against sorting all scores. Small integers make every sum exact, so that ids must agree, ties included."""

from __future__ import annotations

from itertools import product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch._subclasses import FakeTensorMode

from plr_kernels import top_items, use_backend
from plr_kernels.dispatch.backend import TRITON_INTERPRETED
from plr_kernels.top_items import operator as top_items_operator
from plr_kernels.top_items import reference as top_items_reference
from tests.plr_kernels.harness import DTYPES, EXAMPLES, LAYOUTS, normal, targets


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in top_items_operator.IMPLEMENTATIONS:
        pytest.skip("this backend has no top_items")
    with use_backend(request.param.backend):
        yield request.param


@pytest.fixture
def _small_blocks(monkeypatch):
    """Blocks of 8 items, so that small tables take several."""
    monkeypatch.setattr(top_items_reference, "ITEM_BLOCK", 8)


def masks(vocabulary, generator, device):
    """Masks of the items: most, some, few, one and none of them allowed, in several layouts."""
    for share in (0.9, 0.5, 0.1):
        yield (torch.rand(vocabulary, generator=generator) < share).to(device)
    wide = torch.rand(2 * vocabulary, generator=generator).to(device) < 0.5
    yield wide[::2]
    one = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    one[vocabulary - 1] = True
    yield one
    yield torch.zeros(1, dtype=torch.bool, device=device).expand(vocabulary)
    yield torch.ones(1, dtype=torch.bool, device=device).expand(vocabulary)


def with_forbidden(exclude, where, rows):
    """The ids [rows, X] of `exclude`, and all that `where` does not allow."""
    forbidden = (~where).nonzero()[:, 0].expand(rows, -1)
    return forbidden if exclude is None else torch.cat([exclude, forbidden], dim=1)


def by_sorting(states, items, k, exclude):
    """All scores, sorted by (score down, id up), in Python."""
    scores, ids = [], []
    for row, state in enumerate(states.double().tolist()):
        excluded = set() if exclude is None else set(exclude[row].tolist())
        ranked = sorted(
            (-sum(a * b for a, b in zip(state, item, strict=True)), number)
            for number, item in enumerate(items.double().tolist())
            if number not in excluded
        )
        ranked = [(-score, number) for score, number in ranked[:k]]
        ranked += [(-torch.inf, -1)] * (k - len(ranked))
        scores.append([score for score, _ in ranked])
        ids.append([number for _, number in ranked])
    return torch.tensor(scores).view(-1, k).float(), torch.tensor(ids, dtype=torch.int64).view(-1, k)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_equals_sorting_ties_included(target, dtype, data):
    if dtype == torch.float64 and target.backend != "reference":
        pytest.skip("float64 is for the reference")
    rows, vocabulary = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 37))
    k, dim = data.draw(st.integers(1, vocabulary)), data.draw(st.integers(1, 3))
    layout = data.draw(st.sampled_from(LAYOUTS))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    states = torch.randint(-2, 3, (rows, dim), generator=generator).to(target.device, dtype)
    items = torch.randint(-2, 3, (vocabulary, dim), generator=generator).to(target.device, dtype)
    states, items = layout(states), layout(items)
    exclude = None
    if data.draw(st.booleans()):
        count = data.draw(st.integers(0, vocabulary + 3))
        exclude = torch.randint(-1, vocabulary, (rows, count), generator=generator).to(target.device)
    where = data.draw(st.sampled_from([None, *masks(vocabulary, generator, target.device)]))
    scores, ids = top_items(states, items, k, exclude=exclude, where=where)
    left_out = exclude if where is None else with_forbidden(exclude, where, rows)
    expected_scores, expected_ids = by_sorting(states, items, k, left_out)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(ids.cpu(), expected_ids)
    assert torch.equal(scores.float().cpu(), expected_scores)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_as_accurate_as_a_product(target, dtype):
    generator = torch.Generator().manual_seed(0)
    states, items = (normal(generator, size, 50).to(target.device, dtype) for size in (17, 9001))
    scores, ids = top_items(states, items, 13)
    truth = states.double() @ items.double().T
    best = truth.sort(dim=1, descending=True).values[:, :13]
    # Of a sum of D products, in any order: |error| <= D eps Σ |product|.
    bound = 50 * torch.finfo(torch.float32).eps * (states.double().abs() @ items.double().abs().T).max()
    assert (scores - best).abs().max() <= bound
    assert (scores - truth.gather(1, ids)).abs().max() <= bound
    assert (ids.sort(dim=1).values.diff(dim=1) > 0).all()


def test_all_equal_scores_give_the_first_ids(target):
    scores, ids = top_items(torch.zeros(2, 3, device=target.device), torch.ones(9001, 3, device=target.device), 7)
    assert ids.tolist() == [list(range(7))] * 2
    assert not scores.any()


def test_everything_excluded(target):
    states, items = torch.ones(1, 2, device=target.device), torch.ones(3, 2, device=target.device)
    scores, ids = top_items(states, items, 2, exclude=torch.tensor([[0, 1, 2, -1]], device=target.device))
    assert ids.tolist() == [[-1, -1]]
    assert scores.tolist() == [[-torch.inf, -torch.inf]]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 3] if TRITON_INTERPRETED else [1, 20])
def test_where_leaves_out_and_changes_nothing_else(target, dtype, rows):
    """The bits of the ranking of all items, and of excluding one by one what is not allowed."""
    generator = torch.Generator().manual_seed(rows)
    vocabulary = 30 if TRITON_INTERPRETED else 90
    states, items = (normal(generator, size, 33).to(target.device, dtype) for size in (rows, vocabulary))
    items[vocabulary // 2 :] = items[: vocabulary // 2].clone()  # ties
    all_scores, all_ids = (part.cpu() for part in top_items(states, items, vocabulary))
    exclude = torch.randint(-1, vocabulary, (rows, 7), generator=generator).to(target.device)
    cases = list(product(masks(vocabulary, generator, target.device), (None, exclude)))
    for where, excluded in cases[3::5] if TRITON_INTERPRETED else cases:  # the interpreter takes seconds for each
        scores, ids = top_items(states, items, 12, exclude=excluded, where=where)
        listed = top_items(states, items, 12, exclude=with_forbidden(excluded, where, rows))
        assert torch.equal(scores, listed[0])
        assert torch.equal(ids, listed[1])
        for row in range(rows):
            left = where.cpu()[all_ids[row]]
            if excluded is not None:
                left &= ~torch.isin(all_ids[row], excluded[row].cpu())
            found = min(12, int(left.sum()))
            assert torch.equal(ids[row, :found].cpu(), all_ids[row, left][:12])
            assert torch.equal(scores[row, :found].cpu(), all_scores[row, left][:12])
            assert ids[row, found:].tolist() == [-1] * (12 - found)
            assert (scores[row, found:] == -torch.inf).all()


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("k", [1, 3, 4, 5, 9, 30])
def test_not_a_number_is_above_all(target, k):
    """As in torch.sort; below it all goes by score, then by id. What scores -inf is no candidate."""
    values = [1.0, torch.nan, torch.inf, -torch.inf, torch.nan, 1.0, 0.0, torch.inf, -0.0, torch.nan]
    items = torch.tensor([*values, *[2.0] * 20, torch.nan])[:, None]
    ranked = [1, 4, 9, 30, 2, 7, *range(10, 30), 0, 5, 6, 8, -1]
    scores, ids = top_items(torch.ones(1, 1, device=target.device), items.to(target.device), k)
    assert ids.tolist() == [ranked[:k]]
    expected = torch.tensor([items[item, 0] if item >= 0 else -torch.inf for item in ranked[:k]])
    torch.testing.assert_close(scores[0].cpu(), expected, rtol=0, atol=0, equal_nan=True)
    where = torch.ones(31, dtype=torch.bool)
    where[[1, 2, 7, 12]] = False
    state, where = torch.ones(1, 1, device=target.device), where.to(target.device)
    _, ids = top_items(state, items.to(target.device), k, where=where)
    allowed = [item for item in ranked if item not in (1, 2, 7, 12)]
    assert ids.tolist() == [[*allowed, -1, -1, -1][:k]]


def test_long_lists_of_excluded_items_are_read_to_the_end(target):
    """Each row's best items are excluded, the best last, behind more padding than a kernel reads at once."""
    states = torch.ones(2, 1, device=target.device)
    items = torch.arange(200.0, device=target.device)[:, None]
    exclude = torch.full((2, 150), -1, device=target.device)
    exclude[:, 100:] = torch.arange(150, 200)
    scores, ids = top_items(states, items, 3, exclude=exclude)
    assert ids.tolist() == [[149, 148, 147]] * 2
    assert scores.tolist() == [[149.0, 148.0, 147.0]] * 2


def test_carries_no_gradient(target):
    states = torch.randn(2, 3, device=target.device, requires_grad=True)
    scores, _ = top_items(states, torch.randn(5, 3, device=target.device, requires_grad=True), 2)
    assert not scores.requires_grad


def test_never_builds_all_scores(monkeypatch):
    """What is ranked is a block of items and the list so far, and never wider."""
    widths = []
    topk = torch.Tensor.topk

    def recorded_topk(self, *arguments, **options):
        widths.append(self.shape[1])
        return topk(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "topk", recorded_topk)
    with use_backend("reference"):
        top_items(torch.randn(3, 2), torch.randn(20000, 2), 5)
    assert len(widths) > 1
    assert max(widths) <= top_items_reference.ITEM_BLOCK + 5


def test_autocast_and_compile(target):
    generator = torch.Generator().manual_seed(0)
    states, items = (normal(generator, size, 6).to(target.device, torch.float32) for size in (4, 30))
    exclude = torch.tensor([[3, -1]] * 4, device=target.device)
    with torch.autocast(target.device, dtype=torch.bfloat16):
        scores, ids = top_items(states, items, 5, exclude=exclude)
    expected_scores, expected_ids = top_items(states.bfloat16(), items.bfloat16(), 5, exclude=exclude)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(ids, expected_ids)
    compiled = torch.compile(top_items, fullgraph=True, backend="aot_eager", dynamic=True)
    where = torch.arange(30, device=target.device) % 3 > 0
    for rows, allowed in ((4, None), (3, None), (2, None), (4, where), (3, where)):
        scores, ids = compiled(states[:rows], items, 5, exclude=exclude[:rows], where=allowed)
        expected_scores, expected_ids = top_items(states[:rows], items, 5, exclude=exclude[:rows], where=allowed)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(scores, expected_scores)


def test_opcheck_with_a_mask():
    arguments = (torch.randn(2, 3), torch.randn(7, 3), 3, torch.tensor([[0, -1], [2, 3]]), torch.arange(7) > 2)
    torch.library.opcheck(torch.ops.plr_kernels.top_items.default, arguments)


def test_masks_over_a_further_dimension():
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(-4, 5, (3, 2, 4), generator=generator).float()
    items = torch.randint(-4, 5, (3, 9, 4), generator=generator).float()
    where = torch.rand(3, 9, generator=generator) < 0.5
    results = torch.vmap(lambda *tensors: top_items(*tensors[:2], 4, where=tensors[2]))(states, items, where)
    for number in range(3):
        expected = top_items(states[number], items[number], 4, where=where[number])
        assert all(torch.equal(result[number], each) for result, each in zip(results, expected, strict=True))


def test_a_mask_without_values(target):
    states, items, where = torch.ones(2, 3), torch.ones(5, 3), torch.arange(5) > 1
    with FakeTensorMode() as mode:
        states, items, where = map(mode.from_tensor, (states, items, where))
        scores, ids = top_items(states, items, 4, where=where)
    assert (scores.shape, scores.dtype) == ((2, 4), torch.float32)
    assert (ids.shape, ids.dtype) == ((2, 4), torch.int64)


def test_never_reads_a_value_on_the_host():
    states, items = torch.empty(4, 3, device="meta"), torch.empty(9, 3, device="meta")
    exclude = torch.empty(4, 2, dtype=torch.int64, device="meta")
    where = torch.empty(9, dtype=torch.bool, device="meta")
    with use_backend("reference"):
        for allowed in (None, where):
            scores, ids = top_items(states, items, 5, exclude=exclude, where=allowed)
            assert scores.shape == ids.shape == (4, 5)


WRONG_ARGUMENTS = {
    r"states must have shape \[R, D\], found \[4\]": {"states": torch.zeros(4)},
    r"items must have shape \[V, D=4\], found \[7, 5\]": {"items": torch.zeros(7, 5)},
    "items must have the dtype of states": {"items": torch.zeros(7, 4, dtype=torch.float64)},
    "k must be an int, found float": {"k": 2.0},
    r"k must be in \[1, V=7\], found 0": {"k": 0},
    r"k must be in \[1, V=7\], found 8": {"k": 8},
    "exclude must have dtype torch.int64, found torch.int32": {"exclude": torch.zeros(2, 1, dtype=torch.int32)},
    r"exclude must have shape \[R=2, X\], found \[3, 1\]": {"exclude": torch.zeros(3, 1, dtype=torch.int64)},
    r"exclude must be in \[0, V\), or -1 as padding \(V=7\), found 7 at position \[1, 0\]": {
        "exclude": torch.tensor([[0, -1], [7, 2]])
    },
    r"exclude must be .* found -2 at position \[0, 1\]": {"exclude": torch.tensor([[0, -2], [6, 2]])},
    "where must be a torch.Tensor, found list": {"where": [True] * 7},
    "where must have dtype torch.bool, found torch.int64": {"where": torch.ones(7, dtype=torch.int64)},
    r"where must have shape \[V=7\], found \[6\]": {"where": torch.ones(6, dtype=torch.bool)},
    r"where must have shape \[V=7\], found \[2, 7\]": {"where": torch.ones(2, 7, dtype=torch.bool)},
    "where must be on the device of states": {"where": torch.ones(7, dtype=torch.bool, device="meta")},
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments(message):
    arguments = {"states": torch.zeros(2, 4), "items": torch.zeros(7, 4), "k": 3}
    with pytest.raises((TypeError, ValueError), match=message):
        top_items(**{**arguments, **WRONG_ARGUMENTS[message]})
