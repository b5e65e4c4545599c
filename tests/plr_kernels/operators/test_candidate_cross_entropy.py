"""candidate_cross_entropy and its mixture against loops over rows, what they estimate, and their sparse gradients."""

import importlib
import math

import pytest
import torch

from plr_kernels import (
    candidate_cross_entropy,
    candidate_mixture_cross_entropy,
    linear_cross_entropy,
    mixture_cross_entropy,
    use_backend,
)
from tests.plr_kernels.harness import (
    CANDIDATE_CROSS_ENTROPY,
    CANDIDATE_MIXTURE_CROSS_ENTROPY,
    evaluate,
    make_case,
    targets,
)

REDUCTIONS = ["mean", "sum", "none"]
PLAIN = {"with_log_q": False, "ignored": 0.0}


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in CANDIDATE_CROSS_ENTROPY.implementations:
        pytest.skip("this backend has no candidate_cross_entropy")
    with use_backend(request.param.backend):
        yield request.param


def make(target, operator=CANDIDATE_CROSS_ENTROPY, **sizes):
    sizes = {**operator.small, "rows": 6, "ignored": 0.4, "reduction": "none", **sizes}
    return make_case(operator, sizes, device=target.device)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def row_by_row(case):
    states, items = (tensor.double().tolist() for tensor in case.tensors.values())
    options, losses = case.options, []
    for row, (state, wanted) in enumerate(zip(states, options["targets"].tolist(), strict=True)):
        if wanted == -100:
            losses.append(0.0)
            continue
        own = options["candidates"] if options["candidates"].ndim == 1 else options["candidates"][row]
        log_q = options["log_q"]
        corrections = [0.0] * len(own)
        if log_q is not None:
            corrections = (log_q if log_q.ndim == 1 else log_q[row]).tolist()

        def score(item, state=state):
            return sum(a * b for a, b in zip(state, items[item], strict=True)) / options["temperature"]

        listed = [
            score(item) - correction
            for item, correction in zip(own.tolist(), corrections, strict=True)
            if item not in (wanted, -1)
        ]
        if options["kind"] == "softmax":
            losses.append(math.log(sum(map(math.exp, [score(wanted), *listed]))) - score(wanted))
        else:
            of_target = -options["positive_power"] * math.log(sigmoid(score(wanted)))
            losses.append((of_target - sum(math.log(sigmoid(-s)) for s in listed)) / (len(own) + 1))
    return losses


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per_row"])
@pytest.mark.parametrize("with_log_q", [False, True], ids=["plain", "log_q"])
def test_equals_row_by_row(target, reduction, kind, per_row, with_log_q):
    case = make(target, reduction=reduction, kind=kind, per_row=per_row, with_log_q=with_log_q, count=9)
    wanted, candidates = case.options["targets"], case.options["candidates"]
    assert (candidates == wanted[:, None]).any(), "no accidental hit is tried"
    losses = row_by_row(case)
    counted = (wanted != -100).sum().item()
    assert 0 < counted < len(losses)
    expected = {"mean": sum(losses) / counted, "sum": sum(losses), "none": losses}[reduction]
    output = candidate_cross_entropy(**case.tensors, **case.options)
    torch.testing.assert_close(output.cpu(), torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


def test_over_all_items_it_is_the_full_loss(target):
    case = make(target, **PLAIN)
    every = torch.arange(case.tensors["items"].shape[0], device=target.device)
    options = {"targets": case.options["targets"], "temperature": 0.7}
    full = evaluate(linear_cross_entropy, type(case)(case.tensors, options))
    listed = evaluate(candidate_cross_entropy, type(case)(case.tensors, options | {"candidates": every}))
    for name, result in listed.items():
        torch.testing.assert_close(result, full[name], rtol=1e-5, atol=1e-6, msg=name)

    case = make(target, CANDIDATE_MIXTURE_CROSS_ENTROPY, **PLAIN)
    options["targets"] = case.options["targets"]
    full = evaluate(mixture_cross_entropy, type(case)(case.tensors, options))
    listed = evaluate(candidate_mixture_cross_entropy, type(case)(case.tensors, options | {"candidates": every}))
    for name, result in listed.items():
        torch.testing.assert_close(result, full[name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_corrected_sum_is_unbiased():
    """The mean over many draws of Σ exp(s − log_q) is Σ exp(s) over all items but the target, whatever the sampler."""
    generator = torch.Generator().manual_seed(0)
    state, items = torch.randn(1, 4, generator=generator), torch.randn(12, 4, generator=generator)
    probability = torch.softmax(torch.randn(12, generator=generator), dim=0)
    draws, count = 20000, 5
    candidates = torch.multinomial(probability, draws * count, replacement=True, generator=generator)
    log_q = (count * probability[candidates]).log()
    wanted = torch.full((draws,), 3)
    losses = candidate_cross_entropy(
        state.expand(draws, 4), items, wanted, candidates.view(draws, count), log_q=log_q.view(draws, count),
        reduction="none",
    )  # fmt: skip
    scores = (state @ items.T)[0]
    sums = (losses.exp() - 1) * scores[3].exp()
    others = scores.exp().sum() - scores[3].exp()
    assert abs(sums.mean() - others) < 5 * sums.std() / draws**0.5


@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per_row"])
@pytest.mark.parametrize("content", [math.nan, math.inf, 1e30])
def test_not_even_non_finite_ignored_rows_count(target, per_row, content):
    case = make(target, per_row=per_row)
    expected = evaluate(candidate_cross_entropy, case)
    ignored = case.options["targets"] == -100
    assert not expected["gradient of states"][ignored].any()
    case.tensors["states"][ignored] = content
    for name, result in evaluate(candidate_cross_entropy, case).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize("sizes", [{"rows": 0}, {"ignored": 1.1}], ids=str)
def test_no_row_counted_gives_zero(target, sizes, kind):
    for name, result in evaluate(candidate_cross_entropy, make(target, kind=kind, **sizes)).items():
        assert not result.any(), name


def test_small_losses_of_sigmoids_keep_their_digits(target):
    """log(1 + e^s) of s far below 0 is e^s, not 0: what 1 + e^s rounds away is all of it."""
    states = torch.ones(1, 1, device=target.device)
    items = torch.tensor([[20.0], [-20.0], [-9.0]], device=target.device)
    wanted, listed = torch.tensor([0], device=target.device), torch.tensor([1, 2], device=target.device)
    loss = candidate_cross_entropy(states, items, wanted, listed[:1], kind="bce")
    both = candidate_cross_entropy(states, items, wanted, listed, kind="bce")
    small, larger = math.log1p(math.exp(-20)), math.log1p(math.exp(-9))
    assert float(loss) == pytest.approx(small, rel=1e-5)
    assert float(both) == pytest.approx((2 * small + larger) / 3, rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "bce"])
def test_logits_far_beyond_the_range_of_exponentials(target, kind):
    states = torch.tensor([[400.0], [-400.0]], device=target.device).requires_grad_()
    items = torch.tensor([[1.0], [-1.0], [0.0]], device=target.device).requires_grad_()
    wanted, listed = torch.tensor([1, 1], device=target.device), torch.tensor([0, 2], device=target.device)
    losses = candidate_cross_entropy(states, items, wanted, listed, kind=kind, reduction="none")
    softmax, bce = [800.0, 0.0], [(400 + 400 + math.log(2)) / 3, math.log(2) / 3]
    torch.testing.assert_close(losses.tolist(), softmax if kind == "softmax" else bce, rtol=1e-6, atol=1e-6)
    gradients = torch.autograd.grad(losses.sum(), (states, items))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per_row"])
@pytest.mark.parametrize("ignored", [0.4, 1.1])
def test_a_sparse_gradient_is_the_dense_one(target, per_row, ignored):
    case = make(target, vocabulary=40, per_row=per_row, ignored=ignored, reduction="mean")
    dense = evaluate(candidate_cross_entropy, case)
    states, items = (tensor.clone().requires_grad_() for tensor in case.tensors.values())
    loss = candidate_cross_entropy(states, items, **case.options, sparse_gradient=True)
    loss.backward()
    gradient = items.grad
    assert gradient.is_sparse
    named = gradient._indices()[0]
    assert len(named.unique()) == len(named) <= 6 * (case.options["candidates"].shape[-1] + 1)
    torch.testing.assert_close(loss.detach(), dense["output"])
    torch.testing.assert_close(states.grad, dense["gradient of states"])
    torch.testing.assert_close(gradient.to_dense(), dense["gradient of items"])


def test_a_sparse_gradient_of_a_mixture(target):
    case = make(target, CANDIDATE_MIXTURE_CROSS_ENTROPY, vocabulary=40, reduction="mean")
    expected = evaluate(candidate_mixture_cross_entropy, case)["gradient of items"]
    states, log_weights, items = (tensor.clone().requires_grad_() for tensor in case.tensors.values())
    candidate_mixture_cross_entropy(states, log_weights, items, **case.options, sparse_gradient=True).backward()
    torch.testing.assert_close(items.grad.to_dense(), expected)


@pytest.mark.parametrize("operator", [CANDIDATE_CROSS_ENTROPY, CANDIDATE_MIXTURE_CROSS_ENTROPY], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sparse_gradient_under_autocast(target, operator, dtype):
    """That of the named rows, cast: PyTorch casts no sparse gradient back."""
    case = make(target, operator, vocabulary=40, reduction="mean")

    def under_autocast(**arguments):
        with torch.autocast(target.device, dtype=dtype):
            return operator.public(**arguments)

    dense = evaluate(under_autocast, case)
    case.options["sparse_gradient"] = True
    sparse = evaluate(under_autocast, case)
    assert sparse["gradient of items"].is_sparse
    assert sparse["gradient of items"].dtype == torch.float32
    for name, result in sparse.items():
        torch.testing.assert_close(result.to_dense(), dense[name], msg=name)


@pytest.mark.parametrize("ignore_index", [0, 1, 3])
def test_a_sparse_gradient_beside_an_item_as_the_ignored_target(target, ignore_index):
    """Rows are numbered anew among those that are named: no number may be taken for the ignored item's."""
    case = make(target, vocabulary=40, ignored=0.0)
    wanted = torch.tensor([11, ignore_index, 12, 30, ignore_index, 11], device=target.device)
    case.options.update(targets=wanted, ignore_index=ignore_index)
    dense = evaluate(candidate_cross_entropy, case)
    case.options["sparse_gradient"] = True
    sparse = candidate_cross_entropy(*case.tensors.values(), **case.options)
    torch.testing.assert_close(sparse, dense["output"])
    assert torch.equal(sparse == 0, wanted == ignore_index)


def test_a_sparse_gradient_of_a_mixture_beside_an_item_as_the_ignored_target(target):
    case = make(target, CANDIDATE_MIXTURE_CROSS_ENTROPY, vocabulary=40, ignored=0.0)
    case.options.update(targets=torch.tensor([11, 0, 12, 30, 0, 11], device=target.device), ignore_index=0)
    expected = candidate_mixture_cross_entropy(*case.tensors.values(), **case.options)
    found = candidate_mixture_cross_entropy(*case.tensors.values(), **case.options, sparse_gradient=True)
    torch.testing.assert_close(found, expected)


def test_log_q_has_no_gradient(target):
    case = make(target)
    log_q = case.options.pop("log_q").requires_grad_()
    assert not candidate_cross_entropy(**case.tensors, **case.options, log_q=log_q).requires_grad


WRONG = {
    "states must have shape [R, D], found [4, 3, 3]": {"states": torch.zeros(4, 3, 3)},
    "items must have shape [V, D=3], found [5, 2]": {"items": torch.zeros(5, 2)},
    "candidates must have dtype torch.int64, found torch.float32": {"candidates": torch.zeros(3)},
    "candidates must have shape [K] or [R=4, K], found [3, 2]": {"candidates": torch.zeros(3, 2, dtype=torch.int64)},
    "candidates must have at least one entry along K, found K=0": {"candidates": torch.zeros(0, dtype=torch.int64)},
    "candidates must be in [0, V), or -1 as padding (V=5), found 5 at position [1]": {
        "candidates": torch.tensor([0, 5])
    },
    "log_q must have the shape of candidates, [3], found [4]": {"log_q": torch.zeros(4)},
    "log_q must be a torch.Tensor, found float": {"log_q": 0.5},
    "targets must be in [0, V) or ignore_index (V=5, ignore_index=-100), found -1 at position [0]": {
        "targets": torch.tensor([-1, 1, 0, 2])
    },
    "kind must be 'softmax' or 'bce', found 'hinge'": {"kind": "hinge"},
    "positive_power must be 1 with kind 'softmax', found 0.5": {"positive_power": 0.5},
    "positive_power must be 0 or more, found -1": {"kind": "bce", "positive_power": -1},
    "temperature must be above 0, found 0": {"temperature": 0},
    "reduction must be 'mean', 'sum' or 'none', found 'max'": {"reduction": "max"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    arguments = {
        "states": torch.zeros(4, 3),
        "items": torch.zeros(5, 3),
        "targets": torch.zeros(4, dtype=torch.int64),
        "candidates": torch.zeros(3, dtype=torch.int64),
    } | WRONG[message]
    with pytest.raises((TypeError, ValueError)) as error:
        candidate_cross_entropy(**arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["targets", "candidates"])
@pytest.mark.parametrize("wrong", [-2, 5])
def test_wrong_ids_of_a_sparse_gradient_are_found_by_the_look_up_on_a_gpu(name, wrong, monkeypatch):
    """Nothing before looks at them there, and kernels see the numbers of the rows that were looked up."""
    operator = importlib.import_module("plr_kernels.candidate_cross_entropy.operator")
    monkeypatch.setattr(operator, "checks_values", lambda *_: True)
    ids = {"targets": torch.tensor([1, 2]), "candidates": torch.tensor([0, -1, 4])}
    states, items = torch.randn(2, 3), torch.randn(5, 3, requires_grad=True)
    candidate_cross_entropy(states, items, **ids, sparse_gradient=True)
    ids[name][1] = wrong
    with pytest.raises(IndexError):
        candidate_cross_entropy(states, items, **ids, sparse_gradient=True)
