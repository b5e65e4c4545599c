"""consistent_mixture_cross_entropy against a loop, the two operators that it is made of, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from plr_kernels import consistent_mixture_cross_entropy, mixture_cross_entropy, pairwise_kl, use_backend
from tests.plr_kernels.harness import CONSISTENT_MIXTURE_CROSS_ENTROPY, Case, evaluate, make_case, targets

OPERATOR = CONSISTENT_MIXTURE_CROSS_ENTROPY


@pytest.fixture(params=targets(), ids=str)
def target(request):
    with use_backend(request.param.backend):
        yield request.param


def make(target, **sizes):
    return make_case(OPERATOR, {**OPERATOR.small, "histories": 6, "ignored": 0.4, **sizes}, device=target.device)


def history_by_history(states, log_weights, items, targets, drawn, weight, temperature):
    """The three results from their definitions, in Python floats."""
    entropies, divergences = [], []
    table = items.double().tolist()
    for views, weights, wanted, stream in zip(
        states.double().tolist(), log_weights.double().tolist(), targets.tolist(), drawn.tolist(), strict=True
    ):
        log_p = []  # of each view, stream and item
        for streams in views:
            logits = [[sum(a * b for a, b in zip(z, e, strict=True)) / temperature for e in table] for z in streams]
            log_p.append([[s - math.log(sum(map(math.exp, row))) for s in row] for row in logits])
        p, q = log_p[0][stream], log_p[1][stream]
        divergences.append(sum((math.exp(a) - math.exp(b)) * (a - b) for a, b in zip(p, q, strict=True)) / 2)
        if wanted != -100:
            for view, of_view in zip(log_p, weights, strict=True):
                mixed = sum(math.exp(g + row[wanted]) for g, row in zip(of_view, view, strict=True))
                entropies.append(-math.log(mixed))
    cross_entropy = sum(entropies) / len(entropies)
    divergence = sum(divergences) / len(divergences)
    return cross_entropy + weight * divergence, cross_entropy, divergence


@pytest.mark.parametrize("sizes", [{}, {"streams": 1}, {"weight": 0.0}, {"weight": -3.0}, {"histories": 19}], ids=str)
def test_equals_history_by_history(target, sizes):
    case = make(target, **sizes)
    expected = history_by_history(*case.tensors.values(), **case.options)
    results = consistent_mixture_cross_entropy(**case.tensors, **case.options)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result.item(), value, rtol=1e-5, atol=1e-6)


def one_by_one(case: Case):
    """The three results as the two operators give them."""
    states, log_weights, items = case.tensors.values()
    numbers = torch.arange(len(states), device=states.device)
    temperature = case.options["temperature"]
    wanted = case.options["targets"].repeat_interleave(2)
    cross_entropy = mixture_cross_entropy(
        states.flatten(0, 1), log_weights.flatten(0, 1), items, wanted, temperature=temperature
    )
    divergence = pairwise_kl(states[numbers, :, case.options["drawn"]], items, temperature=temperature)
    return cross_entropy + case.options["weight"] * divergence, cross_entropy, divergence


@pytest.mark.parametrize("ignored", [0.0, 0.4, 1.1])
@pytest.mark.parametrize("streams", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_is_made_of_two_operators(target, streams, ignored, dtype):
    """Targets that win among them. With every history ignored the divergence is left, with its gradients."""
    case = make_case(
        OPERATOR,
        OPERATOR.large | {"streams": streams, "ignored": ignored, "vocabulary": 211},
        dtype=dtype,
        device=target.device,
    )
    states, _, items = case.tensors.values()
    wanted, numbers = case.options["targets"], torch.arange(len(states), device=target.device)
    best = (states[numbers, 0, case.options["drawn"]] @ items.T).argmax(dim=1)
    case.options["targets"] = torch.where((wanted >= 0) & (numbers % 2 == 0), best, wanted)
    leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]
    results, expected = consistent_mixture_cross_entropy(**case.tensors, **case.options), one_by_one(case)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-5, atol=1e-6)
    # Half-precision gradients are rounded once, or each of two, whose sum is rounded again.
    rounding = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-4
    for gradient, value in zip(*(torch.autograd.grad(each[0], leaves) for each in (results, expected)), strict=True):
        torch.testing.assert_close(gradient, value, rtol=rounding, atol=rounding * value.abs().max().item())


def test_only_the_loss_has_gradients(target):
    case = make(target)
    loss, *parts = consistent_mixture_cross_entropy(
        **{name: tensor.requires_grad_() for name, tensor in case.tensors.items()}, **case.options
    )
    assert loss.requires_grad
    assert not any(part.requires_grad for part in parts)
    torch.testing.assert_close(loss.detach(), parts[0] + case.options["weight"] * parts[1])


def test_of_an_ignored_history_the_drawn_stream_counts_and_no_other(target):
    case = make(target)
    ignored = case.options["targets"] == -100
    assert 0 < ignored.sum() < len(ignored)
    results = evaluate(OPERATOR.public, case)
    gradient = results["gradient of states"]
    drawn = torch.nn.functional.one_hot(case.options["drawn"], gradient.shape[2]).bool()[:, None].expand(-1, 2, -1)
    assert not gradient[ignored[:, None, None] & ~drawn].any()
    assert gradient[ignored[:, None, None] & drawn].abs().sum(-1).gt(0).all()
    assert not results["gradient of log_weights"][ignored].any()

    case.tensors["states"][ignored[:, None, None] & ~drawn] = math.nan
    case.tensors["log_weights"][ignored] = math.nan
    for name, result in evaluate(OPERATOR.public, case).items():
        torch.testing.assert_close(result, results[name], rtol=0, atol=0, msg=name)
    case.tensors["states"][ignored] = math.nan
    loss, cross_entropy, divergence = consistent_mixture_cross_entropy(**case.tensors, **case.options)
    assert loss.isnan()
    assert divergence.isnan()
    assert cross_entropy.isfinite()


def test_an_item_as_the_ignored_target(target):
    """`ignore_index` may be an item's number: it is no target then, but an item like any other."""
    case = make(target, ignored=0.0, histories=17)
    case.options["targets"][::3] = 2
    numbered = {name: tensor.clone() for name, tensor in case.tensors.items()}
    results = evaluate(OPERATOR.public, Case(numbered, case.options | {"ignore_index": 2}))
    case.options["targets"] = case.options["targets"].masked_fill(case.options["targets"] == 2, -100)
    for name, result in evaluate(OPERATOR.public, case).items():
        torch.testing.assert_close(results[name], result, rtol=0, atol=0, msg=name)


def test_a_weight_of_zero_leaves_the_cross_entropy_alone(target):
    """Even where the divergence is not finite: its history's target does not count."""
    case = make(target, weight=0.0)
    ignored = case.options["targets"] == -100
    case.tensors["states"][ignored] = math.nan
    results = evaluate(OPERATOR.public, case)
    states, log_weights, items = case.tensors.values()
    expected = evaluate(
        mixture_cross_entropy,
        Case(
            {"states": states.flatten(0, 1), "log_weights": log_weights.flatten(0, 1), "items": items},
            {"targets": case.options["targets"].repeat_interleave(2), "temperature": case.options["temperature"]},
        ),
    )
    for name, result in results.items():
        assert torch.equal(result, expected[name].view_as(result)), name
    assert consistent_mixture_cross_entropy(**case.tensors, **case.options)[2].isnan()


@pytest.mark.parametrize("sizes", [{"histories": 0}, {"histories": 0, "weight": 0.0}], ids=str)
def test_no_histories_give_zero(target, sizes):
    case = make(target, **sizes)
    for name, result in evaluate(OPERATOR.public, case).items():
        assert not result.any(), name
    assert not any(result.any() for result in consistent_mixture_cross_entropy(**case.tensors, **case.options))


def test_a_drawn_stream_of_weight_zero_has_the_gradient_of_the_divergence_alone(target):
    case = make(target, ignored=0.0)
    case.options["drawn"].fill_(1)
    case.tensors["log_weights"][..., 1] = -math.inf
    results = evaluate(OPERATOR.public, case)
    assert all(result.isfinite().all() for result in results.values())
    assert not results["gradient of log_weights"][..., 1].any()
    pairs = Case(
        {"states": case.tensors["states"][:, :, 1], "items": case.tensors["items"]},
        {"temperature": case.options["temperature"]},
    )
    expected = case.options["weight"] * evaluate(pairwise_kl, pairs)["gradient of states"]
    torch.testing.assert_close(results["gradient of states"][:, :, 1], expected, rtol=1e-5, atol=1e-7)


def test_losses_beyond_the_range_of_probabilities(target):
    """A target whose probability is far below the smallest float32: the loss is a difference of logits all the same."""
    states = torch.tensor([[[[400.0], [300.0]]] * 2], device=target.device).requires_grad_()
    items = torch.tensor([[1.0], [-1.0]], device=target.device)
    log_weights = torch.full((1, 2, 2), math.log(0.5), device=target.device)
    wanted, drawn = torch.tensor([1], device=target.device), torch.tensor([0], device=target.device)
    results = consistent_mixture_cross_entropy(states, log_weights, items, wanted, drawn, weight=2.0)
    assert results[0].item() == pytest.approx(600 + math.log(2), rel=1e-6)
    assert results[2].item() == 0
    (gradient,) = torch.autograd.grad(results[0], states)  # the second stream's responsibility is 1
    torch.testing.assert_close(gradient[..., 0], torch.tensor([[[0.0, 1.0]] * 2], device=target.device))


WRONG = {
    "states must have shape [N, 2, M, D], found [4, 3, 3]": {"states": torch.zeros(4, 3, 3)},
    "states must have shape [N, 2, M, D], found [4, 3, 3, 5]": {"states": torch.zeros(4, 3, 3, 5)},
    "log_weights must have shape [N=4, 2, M=3], found [4, 3, 3]": {"log_weights": torch.zeros(4, 3, 3)},
    "states must have at least one entry along M, found M=0": {
        "states": torch.zeros(4, 2, 0, 3),
        "log_weights": torch.zeros(4, 2, 0),
    },
    "items must have shape [V, D=3], found [5, 2]": {"items": torch.zeros(5, 2)},
    "log_weights must have the dtype of states, torch.float32, found torch.bfloat16": {
        "log_weights": torch.zeros(4, 2, 3, dtype=torch.bfloat16)
    },
    "targets must have shape [N=4], found [8]": {"targets": torch.zeros(8, dtype=torch.int64)},
    "targets must be in [0, V) or ignore_index (V=5, ignore_index=-100), found 5 at position [2]": {
        "targets": torch.tensor([0, 1, 5, 2])
    },
    "drawn must have dtype torch.int64, found torch.int32": {"drawn": torch.zeros(4, dtype=torch.int32)},
    "drawn must have shape [N=4], found [4, 1]": {"drawn": torch.zeros(4, 1, dtype=torch.int64)},
    "drawn must be in [0, M) (M=3), found 3 at position [1]": {"drawn": torch.tensor([0, 3, 1, 2])},
    "weight must be finite, found nan": {"weight": math.nan},
    "weight must be a number, found Tensor": {"weight": torch.tensor(1.0)},
    "temperature must be above 0, found 0": {"temperature": 0},
    "ignore_index must be an int, found NoneType": {"ignore_index": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    arguments = {
        "states": torch.zeros(4, 2, 3, 3),
        "log_weights": torch.zeros(4, 2, 3),
        "items": torch.zeros(5, 3),
        "targets": torch.zeros(4, dtype=torch.int64),
        "drawn": torch.zeros(4, dtype=torch.int64),
        "weight": 1.0,
    } | WRONG[message]
    with pytest.raises((TypeError, ValueError)) as error:
        consistent_mixture_cross_entropy(**arguments)
    assert str(error.value) == message
