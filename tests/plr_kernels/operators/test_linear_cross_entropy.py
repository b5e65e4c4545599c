"""linear_cross_entropy against a loop over rows, ignored rows, and its limits."""

from __future__ import annotations

import math

import pytest
import torch

from plr_kernels import linear_cross_entropy, use_backend
from tests.plr_kernels.harness import LINEAR_CROSS_ENTROPY, evaluate, make_case, targets

SIZES = {"rows": 6, "vocabulary": 7, "dim": 4, "temperature": 0.8, "ignored": 0.4, "reduction": "none"}
REDUCTIONS = ["mean", "sum", "none"]


@pytest.fixture(params=targets(), ids=str)
def target(request):
    if request.param.backend not in LINEAR_CROSS_ENTROPY.implementations:
        pytest.skip("this backend has no linear_cross_entropy")
    with use_backend(request.param.backend):
        yield request.param


def make(target, **sizes):
    return make_case(LINEAR_CROSS_ENTROPY, {**SIZES, **sizes}, device=target.device)


def row_by_row(states, items, targets, temperature):
    losses = []
    table = items.double().tolist()
    for state, wanted in zip(states.double().tolist(), targets.tolist(), strict=True):
        logits = [sum(a * b for a, b in zip(state, item, strict=True)) / temperature for item in table]
        losses.append(0.0 if wanted == -100 else math.log(sum(map(math.exp, logits))) - logits[wanted])
    return losses


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equals_row_by_row(target, reduction):
    case = make(target, reduction=reduction)
    losses = row_by_row(*case.tensors.values(), case.options["targets"], SIZES["temperature"])
    counted = (case.options["targets"] != -100).sum().item()
    assert 0 < counted < SIZES["rows"]
    expected = {"mean": sum(losses) / counted, "sum": sum(losses), "none": losses}[reduction]
    output = linear_cross_entropy(**case.tensors, **case.options)
    torch.testing.assert_close(output.cpu(), torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_count_for_nothing(target, reduction):
    case = make(target, reduction=reduction)
    ignored = case.options["targets"] == -100
    results = evaluate(linear_cross_entropy, case)
    assert not results["gradient of states"][ignored].any()
    assert results["gradient of states"][~ignored].any(dim=-1).all()
    case.tensors["states"][ignored] += 3
    changed = evaluate(linear_cross_entropy, case)
    for name in results:
        torch.testing.assert_close(changed[name], results[name], msg=name)
    if reduction == "none":
        assert not results["output"][ignored].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("content", [math.nan, math.inf, 1e30])
def test_not_even_non_finite_ignored_rows_count(target, reduction, content):
    case = make(target, reduction=reduction)
    expected = evaluate(linear_cross_entropy, case)
    case.tensors["states"][case.options["targets"] == -100] = content
    for name, result in evaluate(linear_cross_entropy, case).items():
        torch.testing.assert_close(result, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("sizes", [{"rows": 0}, {"ignored": 1.1}], ids=str)
def test_no_row_counted_gives_zero(target, sizes, reduction):
    for name, result in evaluate(linear_cross_entropy, make(target, reduction=reduction, **sizes)).items():
        assert not result.any(), name


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-1, 3, 1000])
def test_any_ignore_index(target, ignore_index, reduction):
    case = make(target, reduction=reduction)
    options = dict(case.options)
    targets = options.pop("targets")
    moved = torch.where(targets == -100, ignore_index, targets.where(targets != ignore_index, 0))
    other = targets.where(targets != ignore_index, 0)
    expected = linear_cross_entropy(**case.tensors, targets=other, **options)
    output = linear_cross_entropy(**case.tensors, targets=moved, ignore_index=ignore_index, **options)
    assert torch.equal(output, expected)


def test_gradient_of_each_row_is_its_own(target):
    """Without reduction, a row's gradient of the output reaches that row only, with its own weight."""
    case = make(target, ignored=0.0)
    states = case.tensors["states"].requires_grad_()
    losses = linear_cross_entropy(states, case.tensors["items"], case.options["targets"], reduction="none")
    (alone,) = torch.autograd.grad(losses[2], states, retain_graph=True)
    assert not alone[[0, 1, 3, 4, 5]].any()
    weights = torch.arange(6.0, device=target.device)
    (weighted,) = torch.autograd.grad(losses, states, weights)
    torch.testing.assert_close(weighted[2], 2 * alone[2])
    assert not weighted[0].any()


WRONG_ARGUMENTS = {
    r"states must have shape \[R, D\], found \[2, 3, 4\]": {"states": torch.zeros(2, 3, 4)},
    r"items must have shape \[V, D=4\], found \[7, 5\]": {"items": torch.zeros(7, 5)},
    "items must have at least one entry along V": {"items": torch.zeros(0, 4)},
    "targets must be a torch.Tensor, found list": {"targets": [1]},
    "targets must have dtype torch.int64, found torch.int32": {"targets": torch.zeros(6, dtype=torch.int32)},
    r"targets must have shape \[R=6\], found \[5\]": {"targets": torch.zeros(5, dtype=torch.int64)},
    "targets must be on the device of states, cpu, found meta": {
        "targets": torch.zeros(6, dtype=torch.int64, device="meta")
    },
    r"targets must be in \[0, V\) or ignore_index \(V=7, ignore_index=-100\), found 7 at position \[2\]": {
        "targets": torch.tensor([0, 6, 7, -100, 0, 0])
    },
    r"targets must be .* found -1 at position \[5\]": {"targets": torch.tensor([0, 6, 5, -100, 0, -1])},
    r"targets must be .* ignore_index=-1\), found -100 at position \[3\]": {
        "targets": torch.tensor([0, 6, 5, -100, 0, -1]),
        "ignore_index": -1,
    },
    "ignore_index must be an int, found float": {"ignore_index": 1.0},
    "reduction must be 'mean', 'sum' or 'none', found 'max'": {"reduction": "max"},
    "temperature must be above 0, found -2": {"temperature": -2},
}


@pytest.mark.parametrize("message", WRONG_ARGUMENTS)
def test_wrong_arguments(message):
    case = make_case(LINEAR_CROSS_ENTROPY, SIZES)
    with pytest.raises((TypeError, ValueError), match=message):
        linear_cross_entropy(**{**case.tensors, **case.options, **WRONG_ARGUMENTS[message]})


def test_compiled_graph_checks_targets():
    case = make_case(LINEAR_CROSS_ENTROPY, SIZES)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    compiled(*case.tensors.values(), torch.tensor([0, 6, -100, 1, 2, 3]))
    with pytest.raises(RuntimeError, match=r"targets must be in \[0, V\)"):
        compiled(*case.tensors.values(), torch.tensor([0, 7, -100, 1, 2, 3]))


def test_a_loss_of_little_weight_has_gradients_in_half_precision(target):
    """A row's share of a mean over many rows, times a small weight, is less than float16 can hold."""
    weight, size = 2.0**-24, 2.0**14
    case = make(target, vocabulary=40, reduction="mean", ignored=0.0)
    states, items = (case.tensors["states"] / size).half(), (case.tensors["items"] * size).half()
    gradients = []
    for factor, dtype in ((weight, torch.float16), (1.0, torch.float32)):
        leaf = states.to(dtype).requires_grad_()
        loss = factor * linear_cross_entropy(leaf, items.to(dtype), **case.options)
        gradients.append(torch.autograd.grad(loss, leaf)[0].float() / factor)
    # Half a unit of float16 for the result, one for each rounded product; far less than the terms that would be lost.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=4 * 2.0**-11 * gradients[1].abs().max().item())
