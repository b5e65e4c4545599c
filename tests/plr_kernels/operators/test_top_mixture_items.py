"""top_mixture_items against sorting all log-probabilities in float64."""

from __future__ import annotations

import math
from itertools import product

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from plr_kernels import top_items, top_mixture_items, use_backend
from plr_kernels.dispatch.backend import TRITON_INTERPRETED
from plr_kernels.top_items import reference as top_items_reference
from plr_kernels.top_mixture_items import operator
from tests.plr_kernels.harness import EXAMPLES, LAYOUTS, normal, targets
from tests.plr_kernels.operators.test_top_items import masks, with_forbidden


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in operator.IMPLEMENTATIONS:
        pytest.skip("this backend has no top_mixture_items")
    with use_backend(request.param.backend):
        yield request.param


@pytest.fixture
def _small_blocks(monkeypatch):
    """Blocks of 8 items, so that small tables take several."""
    monkeypatch.setattr(top_items_reference, "ITEM_BLOCK", 8)


def log_probabilities(states, log_weights, items, temperature):
    log_p = torch.log_softmax(states.double() @ items.double().T / temperature, dim=2)
    return torch.logsumexp(log_weights.double()[:, :, None] + log_p, dim=1)  # [R, V]


def assert_best(found, truth, k, exclude, tolerance):
    """The ids are the best by truth, up to what rounding may swap, each once; scores are theirs."""
    scores, ids = (part.cpu() for part in found)
    truth = truth.cpu().clone()
    if exclude is not None:
        for row, excluded in enumerate(exclude.tolist()):
            truth[row, [item for item in excluded if item >= 0]] = -math.inf
    best = truth.sort(dim=1, descending=True).values[:, :k]
    for row in range(len(ids)):
        there = int(truth[row].isfinite().sum().clamp(max=k))
        assert ids[row, there:].tolist() == [-1] * (k - there)
        assert (scores[row, there:] == -math.inf).all()
        chosen = ids[row, :there]
        assert len(set(chosen.tolist())) == there
        torch.testing.assert_close(scores[row, :there].double(), truth[row, chosen], rtol=0, atol=tolerance)
        torch.testing.assert_close(truth[row, chosen], best[row, :there], rtol=0, atol=2 * tolerance)
        falls = scores[row, :there].diff()
        assert (falls <= 0).all()
        assert (chosen.diff()[falls == 0] > 0).all()  # ties to the smaller id


@pytest.mark.usefixtures("_small_blocks")
def test_the_best_of_random_mixtures(target):
    @settings(max_examples=2 * EXAMPLES, deadline=None, derandomize=True)
    @given(st.data())
    def check(data):
        rows, streams, vocabulary, dim = (
            data.draw(st.integers(low, high)) for low, high in ((0, 4), (1, 5), (1, 60), (1, 17))
        )
        k = data.draw(st.integers(1, vocabulary))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        layout = data.draw(st.sampled_from(LAYOUTS))
        states = layout(normal(generator, rows, streams, dim).to(target.device, torch.float32))
        items = normal(generator, vocabulary, dim).to(target.device, torch.float32)
        if data.draw(st.booleans()):  # copies, whose scores are equal
            items[vocabulary // 2 :] = items[: vocabulary - vocabulary // 2].clone()
        log_weights = torch.log_softmax(data.draw(st.sampled_from([0, 1, 9])) * normal(generator, rows, streams), dim=1)
        log_weights = log_weights.to(items)
        exclude = None
        if data.draw(st.booleans()):
            count = data.draw(st.integers(0, vocabulary + 3))
            exclude = torch.randint(-1, vocabulary, (rows, count), generator=generator).to(target.device)
        where = data.draw(st.sampled_from([None, *masks(vocabulary, generator, target.device)]))
        found = top_mixture_items(states, log_weights, items, k, temperature=0.7, exclude=exclude, where=where)
        assert [part.dtype for part in found] == [torch.float32, torch.int64]
        assert [list(part.shape) for part in found] == [[rows, k]] * 2
        left_out = exclude if where is None else with_forbidden(exclude, where, rows)
        assert_best(found, log_probabilities(states, log_weights, items, 0.7), k, left_out, 1e-4)

    check()


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("rows", [1, 3] if TRITON_INTERPRETED else [1, 20])
@pytest.mark.parametrize("temperature", [0.1, 20.0])
def test_where_leaves_out_and_changes_nothing_else(target, rows, temperature):
    """The bits of excluding one by one what is not allowed; the probabilities are those among all items."""
    generator = torch.Generator().manual_seed(rows)
    states = normal(generator, rows, 3, 33).to(target.device, torch.float32)
    vocabulary = 30 if TRITON_INTERPRETED else 90
    items = normal(generator, vocabulary, 33).to(target.device, torch.float32)
    items[vocabulary // 2 :] = items[: vocabulary // 2].clone()  # ties
    log_weights = torch.log_softmax(normal(generator, rows, 3), dim=1).to(items)
    exclude = torch.randint(-1, vocabulary, (rows, 7), generator=generator).to(target.device)
    truth = log_probabilities(states, log_weights, items, temperature)
    cases = list(product(masks(vocabulary, generator, target.device), (None, exclude)))
    for where, excluded in cases[3::5] if TRITON_INTERPRETED else cases:  # the interpreter takes seconds for each
        options = {"temperature": temperature}
        found = top_mixture_items(states, log_weights, items, 12, exclude=excluded, where=where, **options)
        left_out = with_forbidden(excluded, where, rows)
        listed = top_mixture_items(states, log_weights, items, 12, exclude=left_out, **options)
        assert all(torch.equal(*pair) for pair in zip(found, listed, strict=True))
        # A log-probability is a difference of logits below 60 / temperature, in float32.
        assert_best(found, truth, 12, left_out, 60 / temperature * 4 * torch.finfo(torch.float32).eps + 1e-5)


@pytest.mark.parametrize("shape", [(6,), (2, 7)])
def test_a_mask_of_another_shape(shape):
    states, items, where = torch.zeros(2, 2, 3), torch.zeros(7, 3), torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError) as error:
        top_mixture_items(states, torch.zeros(2, 2), items, 3, where=where)
    assert str(error.value) == f"where must have shape [V=7], found {list(shape)}"


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
def test_large_tables_of_near_and_far_streams(target, rows, spread):
    """Near streams agree on the best; far ones share none of it, and the lists of each must be looked at."""
    generator = torch.Generator().manual_seed(rows)
    center, apart = normal(generator, rows, 1, 32), normal(generator, rows, 4, 32)
    states = (center + spread * apart).to(target.device, torch.float32)
    items = normal(generator, 9001, 32).to(target.device, torch.float32)
    log_weights = torch.log_softmax(normal(generator, rows, 4), dim=1).to(items)
    exclude = top_items(states[:, 0], items, 30)[1]
    for excluded in (None, exclude):
        found = top_mixture_items(states, log_weights, items, 20, exclude=excluded)
        # A log-probability is a difference of logits below |z||e| ~ 500 at the widest spread, in float32.
        assert_best(found, log_probabilities(states, log_weights, items, 1.0), 20, excluded, 1e-3)


def test_all_equal_items_give_the_first_ids(target):
    states, items = torch.ones(2, 3, 4, device=target.device), torch.ones(9001, 4, device=target.device)
    log_weights = torch.full((2, 3), math.log(1 / 3), device=target.device)
    scores, ids = top_mixture_items(states, log_weights, items, 7)
    assert ids.tolist() == [list(range(7))] * 2
    torch.testing.assert_close(scores, torch.full_like(scores, -math.log(9001)), rtol=1e-5, atol=0)


def test_a_stream_of_weight_zero_takes_no_part(target):
    generator = torch.Generator().manual_seed(0)
    states = normal(generator, 3, 2, 8).to(target.device, torch.float32)
    items = normal(generator, 100, 8).to(target.device, torch.float32)
    log_weights = torch.tensor([[0.0, -math.inf]] * 3, device=target.device)
    _, ids = top_mixture_items(states, log_weights, items, 10)
    assert torch.equal(ids, top_items(states[:, 0], items, 10)[1])


@pytest.mark.parametrize("k", [0, 6])
def test_wrong_k(k):
    with pytest.raises(ValueError) as error:
        top_mixture_items(torch.zeros(4, 2, 3), torch.zeros(4, 2), torch.zeros(5, 3), k)
    assert str(error.value) == f"k must be in [1, V=5], found {k}"


def test_opcheck():
    arguments = (torch.randn(2, 3, 3), torch.randn(2, 3), torch.randn(7, 3), 4, 0.7, torch.tensor([[0, -1], [2, 3]]))
    torch.library.opcheck(torch.ops.plr_kernels.top_mixture_items.default, arguments)
    where = torch.tensor([True, False] * 3 + [True])
    torch.library.opcheck(torch.ops.plr_kernels.top_mixture_items.default, (*arguments, where))


def test_carries_no_gradient(target):
    states = torch.randn(2, 2, 3, device=target.device, requires_grad=True)
    items = torch.randn(5, 3, device=target.device, requires_grad=True)
    scores, _ = top_mixture_items(states, torch.zeros(2, 2, device=target.device), items, 2)
    assert not scores.requires_grad
