"""target_rank and target_mixture_rank against counting. Small integers make every sum exact, ties included."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from plr_kernels import target_mixture_rank, target_rank, use_backend
from plr_kernels.dispatch.backend import TRITON_INTERPRETED
from plr_kernels.target_mixture_rank import operator as target_mixture_rank_operator
from plr_kernels.target_rank import operator as target_rank_operator
from plr_kernels.target_rank.reference import vector_keys
from plr_kernels.top_items import reference as top_items_reference
from tests.plr_kernels.harness import EXAMPLES, LAYOUTS, normal, targets

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Items: many blocks for each program. The interpreter, which takes time for each block, has 64 items in one and four
# programs.
MANY, FEWER = (900, 600) if TRITON_INTERPRETED else (9000, 3000)


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in target_rank_operator.IMPLEMENTATIONS:
        pytest.skip("this backend has no target_rank")
    with use_backend(request.param.backend):
        yield request.param


@pytest.fixture(params=targets(), ids=str)
def mixture_target(request):
    if request.param.backend not in target_mixture_rank_operator.IMPLEMENTATIONS:
        pytest.skip("this backend has no target_mixture_rank")
    with use_backend(request.param.backend):
        yield request.param


@pytest.fixture
def _small_blocks(monkeypatch):
    """Blocks of 8 items, so that small tables take several."""
    monkeypatch.setattr(top_items_reference, "ITEM_BLOCK", 8)


def integers(generator, *shape, largest=2):
    return torch.randint(-largest, largest + 1, shape, generator=generator).double()


def counted(scores, wanted, exclude):
    """(greater, equal) of each row by looking at every item."""
    found = []
    for row, of_items in enumerate(scores.tolist()):
        excluded = set() if exclude is None else set(exclude[row].tolist())
        own = of_items[wanted[row]]
        others = [score for item, score in enumerate(of_items) if item != wanted[row] and item not in excluded]
        found.append((sum(score > own for score in others), sum(score == own for score in others)))
    return found


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_are_exact(target, dtype):
    if dtype == torch.float64 and target.backend != "reference":
        pytest.skip("float64 is for the reference")

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
    @given(st.data())
    def check(data):
        rows, vocabulary, dim = (data.draw(st.integers(low, high)) for low, high in ((0, 5), (1, 40), (1, 17)))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        layouts = [data.draw(st.sampled_from(LAYOUTS)) for _ in range(2)]
        states, items = (
            layout(integers(generator, size, dim).to(target.device, dtype))
            for layout, size in zip(layouts, (rows, vocabulary), strict=True)
        )
        wanted = torch.randint(vocabulary, (rows,), generator=generator).to(target.device)
        exclude = None
        if data.draw(st.booleans()):
            count = data.draw(st.integers(0, vocabulary + 3))
            exclude = torch.randint(-1, vocabulary, (rows, count), generator=generator).to(target.device)
        greater, equal = target_rank(states, items, wanted, exclude=exclude)
        assert (greater.dtype, equal.dtype) == (torch.int64, torch.int64)
        scores = states.double() @ items.double().T
        assert list(zip(greater.tolist(), equal.tolist(), strict=True)) == counted(scores, wanted.tolist(), exclude)

    check()


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_vectors_tie_wherever_they_stand(target, rows, dtype):
    """Real numbers, whose sums round: every third item is the target's copy, and all others are not."""
    generator = torch.Generator().manual_seed(rows)
    states = normal(generator, rows, 50).to(target.device, dtype)
    items = normal(generator, MANY + 1, 50).to(target.device, dtype)
    wanted = torch.arange(rows, device=target.device) * 3
    items[::3] = items[0].clone()
    _, equal = target_rank(states, items, wanted)
    assert equal.tolist() == [len(items[::3]) - 1] * rows


def test_agrees_with_float64_where_scores_are_apart(target):
    generator = torch.Generator().manual_seed(0)
    states, items = normal(generator, 17, 50), normal(generator, 3001, 50)
    wanted = torch.randint(3001, (17,), generator=generator)
    scores = states.float().double() @ items.float().double().T
    own = scores.gather(1, wanted[:, None])
    # Of a sum of D products in float32: |error| <= D eps Σ |product|.
    bound = 50 * torch.finfo(torch.float32).eps * (states.abs() @ items.abs().T).max()
    greater, equal = target_rank(
        states.float().to(target.device), items.float().to(target.device), wanted.to(target.device)
    )
    assert (greater.cpu() >= (scores > own + 2 * bound).sum(dim=1)).all()
    assert ((greater + equal).cpu() <= (scores >= own - 2 * bound).sum(dim=1) - 1).all()


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("item", [0, 7, MANY - 1])
def test_a_row_with_a_score_that_is_not_finite_is_marked(target, wrong, item):
    states, items = torch.ones(3, 2, device=target.device), torch.ones(MANY, 2, device=target.device)
    items[item, 1] = wrong
    states[1, 1] = 0.0  # 0 · ∞ is no number either
    wanted = torch.tensor([7, 7, 8], device=target.device)
    greater, equal = target_rank(states, items, wanted)
    assert greater.tolist() == equal.tolist() == [-1] * 3
    states[0] = wrong
    greater, _ = target_rank(states[:1], torch.ones(MANY, 2, device=target.device), wanted[:1])
    assert greater.tolist() == [-1]


def test_an_excluded_target_still_stands(target):
    items = torch.arange(6.0, device=target.device)[:, None]
    exclude = torch.tensor([[2, 5, 5, -1]], device=target.device)
    greater, equal = target_rank(
        torch.ones(1, 1, device=target.device), items, torch.tensor([2], device=target.device), exclude=exclude
    )
    assert (greater.tolist(), equal.tolist()) == ([2], [0])


@pytest.mark.usefixtures("_small_blocks")
def test_mixtures_are_counted_as_their_scores_say(mixture_target):
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
    @given(st.data())
    def check(data):
        rows, streams, vocabulary, dim = (
            data.draw(st.integers(low, high)) for low, high in ((0, 4), (1, 4), (1, 40), (1, 9))
        )
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        states = normal(generator, rows, streams, dim).to(mixture_target.device, torch.float32)
        items = normal(generator, vocabulary, dim).to(mixture_target.device, torch.float32)
        items[vocabulary // 2 :] = items[: vocabulary - vocabulary // 2].clone()  # copies, which tie
        log_weights = torch.log_softmax(2 * normal(generator, rows, streams), dim=1).to(items)
        wanted = torch.randint(vocabulary, (rows,), generator=generator).to(mixture_target.device)
        exclude = None
        if data.draw(st.booleans()):
            count = data.draw(st.integers(0, 5))
            exclude = torch.randint(-1, vocabulary, (rows, count), generator=generator).to(mixture_target.device)
        found = target_mixture_rank(states, log_weights, items, wanted, temperature=0.7, exclude=exclude)
        log_p = torch.log_softmax(states.double() @ items.double().T / 0.7, dim=2)
        scores = torch.logsumexp(log_weights.double()[:, :, None] + log_p, dim=1)
        # Equal vectors have one score in float64 only by their keys: what is as near as rounding carries is equal.
        own = scores.gather(1, wanted[:, None].cpu().to(scores.device))
        scores = torch.where((scores - own).abs() < 1e-9, own, scores)
        apart = ((scores - own).abs() > 1e-4) | (scores == own)
        if apart.all():
            assert list(zip(*(part.tolist() for part in found), strict=True)) == counted(
                scores, wanted.tolist(), exclude
            )

    check()


def excess_over_targets(scores, log_weights, wanted, temperature, reference_scores):
    """By how much each item's probability exceeds the target's, relative to the target's largest term; float64.

    Logits are differences from `reference_scores` [R, M, 1]: float64 loses the weights beside logits beyond 2^53.

    Returns the sums over the streams [R, V], and those of the terms' magnitudes.
    """
    logits = (scores - reference_scores) / temperature
    offsets = log_weights.double() - torch.logsumexp(logits, dim=2)  # [R, M]
    index = wanted[:, None, None].expand(-1, scores.shape[1], 1)
    own = scores.gather(2, index)  # [R, M, 1]
    terms = offsets[:, :, None] + logits.gather(2, index)
    largest = terms.amax(dim=1, keepdim=True)
    own_terms = (terms - largest).exp()
    distance = (scores - own) / temperature  # [R, M, V]: of scores first, as large logits would lose it
    near = own_terms * torch.expm1(distance)
    far = (offsets[:, :, None] + logits - largest).clamp(max=600).exp() - own_terms
    excess = torch.where(distance.abs() < 1, near, far)
    return excess.sum(dim=1), excess.abs().sum(dim=1)


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize(
    ("temperature", "scale"),
    [(1e-5, 1.0), (1e-5, 2.0**30), (1e-5, 2.0**100), (1e-8, 1.0), (1.0, 2.0**100), (1e6, 1.0), (1e9, 1.0)],
)
def test_mixtures_at_small_and_large_temperatures(mixture_target, rows, temperature, scale):
    """Logits beyond float32, and probabilities that differ less than float32 tells apart.

    The scores are exact in float32, so that the counts are those of float64, but for items about as probable as the
    target: their terms are rounded a few times, each as its exponent is. A backend may take logits in float64, as the
    definition does, or differences of scores, which keep the streams' weights beside logits of 1e34, too: where the two
    disagree an item may be on either side.
    """
    generator = torch.Generator().manual_seed(rows)
    states, items = (integers(generator, *shape, largest=500) for shape in ((rows, 3, 4), (FEWER, 4)))
    log_weights = torch.log_softmax(normal(generator, rows, 3), dim=1).float()
    wanted = torch.randint(FEWER, (rows,), generator=generator)
    scores = states @ items.T * (scale / 2.0**20)
    peaks = scores.amax(dim=2, keepdim=True)
    truths = [excess_over_targets(scores, log_weights, wanted, temperature, each) for each in (0 * peaks, peaks)]
    above = [excess > 1e-4 * magnitude for excess, magnitude in truths]
    not_below = [excess >= -1e-4 * magnitude for excess, magnitude in truths]
    device = mixture_target.device
    greater, equal = target_mixture_rank(
        (states * (scale / 2.0**10)).float().to(device),
        log_weights.to(device),
        (items / 2.0**10).float().to(device),
        wanted.to(device),
        temperature=temperature,
    )
    at_least, at_most = (above[0] & above[1]).sum(dim=1), (not_below[0] | not_below[1]).sum(dim=1) - 1
    assert (greater.cpu() >= at_least).all()
    assert ((greater + equal).cpu() <= at_most).all()
    assert (at_most - at_least).max() < FEWER / 30  # else nothing would be tested


@pytest.mark.parametrize("rows", [1, 20])
def test_a_stream_that_rules_an_item_out_marks_no_row(mixture_target, rows):
    """A score of -inf in one stream leaves the mixture's probability finite; in all of them it does not."""
    device = mixture_target.device
    # 0 · ∞ is no number: so each stream looks at the infinite column, from one side or the other.
    states = torch.tensor([[1.0, 1e-3], [1e-3, 1.0]], device=device).expand(rows, 2, 2).clone()
    items = torch.tensor([[3.0, 1.0], [1.0, 0.5], [2.0, 4.0], [0.0, 0.0]], device=device).repeat(20, 1)
    log_weights = torch.full((rows, 2), math.log(0.5), device=device)
    wanted = torch.arange(rows, device=device) % 4
    items[7] = -torch.finfo(torch.float32).max
    states[:, 0, 0] = 2  # whose sum overflows, but not that of the other stream: halves of the largest number
    states[:, 1] = 0.25
    scores = states @ items.T
    assert (scores[:, 0, 7] == -math.inf).all()
    assert scores[:, 1].isfinite().all()
    greater, equal = target_mixture_rank(states, log_weights, items, wanted)
    log_p = torch.log_softmax(scores.double(), dim=2)
    expected = counted(torch.logsumexp(log_weights.double()[:, :, None] + log_p, dim=1).float(), wanted.tolist(), None)
    assert list(zip(greater.tolist(), equal.tolist(), strict=True)) == expected
    greater, _ = target_mixture_rank(states, log_weights, items, torch.full_like(wanted, 7))
    assert (greater >= 0).all()  # also as the target
    greater, equal = target_mixture_rank(states[:, :1], log_weights[:, :1], items, wanted)
    assert greater.tolist() == equal.tolist() == [-1] * rows
    log_weights[:, 1] = -math.inf  # the other has no say
    greater, equal = target_mixture_rank(states, log_weights, items, wanted)
    assert greater.tolist() == equal.tolist() == [-1] * rows


def test_one_stream_ranks_as_its_scores(mixture_target):
    generator = torch.Generator().manual_seed(1)
    states, items = (integers(generator, size, 8).float().to(mixture_target.device) for size in (6, 500))
    wanted = torch.arange(6, device=mixture_target.device)
    found = target_mixture_rank(states[:, None], states.new_zeros(6, 1), items, wanted)
    expected = counted(states.double() @ items.double().T, wanted.tolist(), None)
    assert list(zip(*(part.tolist() for part in found), strict=True)) == expected


def test_a_mixture_with_no_weight_at_all_is_marked(mixture_target):
    states, items = torch.ones(2, 2, 3, device=mixture_target.device), torch.ones(5, 3, device=mixture_target.device)
    log_weights = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]], device=mixture_target.device)
    greater, equal = target_mixture_rank(states, log_weights, items, torch.zeros_like(log_weights[:, 0]).long())
    assert (greater.tolist(), equal.tolist()) == ([0, -1], [4, -1])


def test_keys_are_equal_for_equal_vectors_alone():
    generator = torch.Generator().manual_seed(0)
    items = integers(generator, 4000, 6, largest=1)
    items[items == 0] *= -1.0  # a zero has two signs
    for dtype in (torch.float32, torch.float64):
        keys = vector_keys(items.to(dtype))
        assert len(keys.unique()) == len(torch.unique(items + 0.0, dim=0))


WRONG = {
    "items must have shape [V, D=3], found [5, 2]": {"items": torch.zeros(5, 2)},
    "targets must have shape [R=4], found [3]": {"targets": torch.zeros(3, dtype=torch.int64)},
    "targets must be in [0, V) (V=5), found -1 at position [1]": {"targets": torch.tensor([0, -1, 2, 3])},
    "exclude must be in [0, V), or -1 as padding (V=5), found 5 at position [0, 0]": {"exclude": torch.full((4, 1), 5)},
    "exclude must have shape [R=4, X], found [5, 1]": {"exclude": torch.zeros(5, 1, dtype=torch.int64)},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    arguments = {"states": torch.zeros(4, 3), "items": torch.zeros(5, 3), "targets": torch.zeros(4, dtype=torch.int64)}
    arguments |= WRONG[message]
    with pytest.raises((TypeError, ValueError)) as error:
        target_rank(**arguments)
    assert str(error.value) == message
    arguments["states"] = arguments["states"][:, None]
    with pytest.raises((TypeError, ValueError)) as error:
        target_mixture_rank(log_weights=torch.zeros(4, 1), **arguments)
    assert str(error.value) == message


def test_opcheck():
    states, items, wanted = torch.randn(2, 3), torch.randn(7, 3), torch.tensor([1, 6])
    exclude = torch.tensor([[0, -1], [2, 3]])
    torch.library.opcheck(torch.ops.plr_kernels.target_rank.default, (states, items, wanted, exclude))
    streams, log_weights = torch.randn(2, 3, 3), torch.randn(2, 3)
    overload = torch.ops.plr_kernels.target_mixture_rank.default
    torch.library.opcheck(overload, (streams, log_weights, items, wanted, 0.7, exclude))


def test_compiles_whole(target):
    compiled = torch.compile(target_rank, fullgraph=True, dynamic=True)
    generator = torch.Generator().manual_seed(0)
    for rows, vocabulary in ((3, 50), (5, 70)):
        states, items = (integers(generator, size, 4).float().to(target.device) for size in (rows, vocabulary))
        wanted = torch.arange(rows, device=target.device)
        for found, expected in zip(compiled(states, items, wanted), target_rank(states, items, wanted), strict=True):
            assert torch.equal(found, expected)
