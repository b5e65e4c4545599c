"""Losses that make their gradients in the forward pass, by chunks of rows, as PLR_KERNELS_WORKSPACE_MB allows."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from bench.peers import extra_memory, training_step
from plr_kernels import consistent_mixture_cross_entropy, extension, linear_cross_entropy
from plr_kernels.dispatch import workspace
from tests.plr_kernels.cpu.test_cpp import INSTRUCTION_SETS
from tests.plr_kernels.harness import (
    CONSISTENT_MIXTURE_CROSS_ENTROPY,
    DTYPES,
    LINEAR_CROSS_ENTROPY,
    MIXTURE_CROSS_ENTROPY,
    PAIRWISE_KL,
    assert_accurate,
    evaluate,
    make_case,
)

pytestmark = pytest.mark.usefixtures("on_cpp")

OPS = torch.ops.plr_kernels


def reduced(operator, reduction):
    return dataclasses.replace(
        operator, variant=f"-{reduction}", large=operator.large | {"reduction": reduction}
    )


OPERATORS = (
    reduced(LINEAR_CROSS_ENTROPY, "mean"),
    reduced(LINEAR_CROSS_ENTROPY, "sum"),
    reduced(MIXTURE_CROSS_ENTROPY, "mean"),
    reduced(MIXTURE_CROSS_ENTROPY, "sum"),
    PAIRWISE_KL,
    dataclasses.replace(PAIRWISE_KL, variant="-detached", large=PAIRWISE_KL.large | {"detach_reference": True}),
    CONSISTENT_MIXTURE_CROSS_ENTROPY,
)
for_every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)


# Rows beyond one chunk of 32 or 64, of 16 groups, of whole rows of a mixture, and chunks' ends in all places.
SIZES = {"rows": 75, "batch": 37, "histories": 37, "group": 3, "streams": 3, "vocabulary": 211, "dim": 19}


def sizes_of(operator, **sizes):
    wanted = SIZES | sizes
    return {name: wanted.get(name, size) for name, size in operator.large.items()}


@for_every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_chunks_are_as_accurate_as_the_plain_formula(monkeypatch, rows_at_once, operator, dtype, instruction_set):
    monkeypatch.setattr(extension, "_instruction_set", instruction_set)
    rows_at_once(32)
    # The second has products of bfloat16 where there are such.
    for sizes in ({}, {"vocabulary": 1031, "dim": 50}):
        case = make_case(operator, sizes_of(operator, **sizes), dtype=dtype)
        assert_accurate(evaluate(operator.public, case), operator, case)


@for_every_operator
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 63, 64, 65, 97])
def test_any_number_of_rows(rows_at_once, operator, rows):
    case = make_case(operator, sizes_of(operator, rows=rows, batch=rows, histories=rows))
    for chunk in (32, 64, 256):
        rows_at_once(chunk)
        assert_accurate(evaluate(operator.public, case), operator, case)


@pytest.mark.parametrize("operator", OPERATORS[:4], ids=str)
@pytest.mark.parametrize("ignored", [0.5, 0.97, 1.1])
def test_ignored_rows(rows_at_once, operator, ignored):
    rows_at_once(32)
    case = make_case(operator, sizes_of(operator, ignored=ignored, rows=90))
    results = evaluate(operator.public, case)
    assert_accurate(results, operator, case)
    assert not results["gradient of states"][case.options["targets"] == -100].any()
    case.tensors["states"][case.options["targets"] == -100] = torch.nan
    for name, result in evaluate(operator.public, case).items():
        assert torch.equal(result, results[name]), name


@pytest.mark.parametrize("operator", OPERATORS[:-1], ids=str)
def test_the_loss_is_that_of_a_pass_without_gradients(rows_at_once, operator):
    """To the bit, whatever the chunks: a row that is left out, counted twice or cut apart changes it."""
    for vocabulary in (7, 211, 5003):  # one block of items, several, several in each part of them
        case = make_case(operator, sizes_of(operator, vocabulary=vocabulary))
        expected = operator.public(**case.tensors, **case.options)
        for chunk in (0, 32, 64, 256):
            rows_at_once(chunk)
            assert torch.equal(evaluate(operator.public, case)["output"], expected)


@pytest.mark.parametrize("streams", [1, 2, 9])
@pytest.mark.parametrize("ignored", [0.0, 0.5, 1.1])
def test_chunks_leave_both_parts_of_the_loss_as_they_are(rows_at_once, streams, ignored):
    """And so does a pass without gradients; where the two losses have a sweep each, only rounding differs."""
    operator = CONSISTENT_MIXTURE_CROSS_ENTROPY
    sizes = sizes_of(operator, histories=75, streams=streams, vocabulary=5003) | {"ignored": ignored}
    case = make_case(operator, sizes)
    with_gradients = {name: tensor.clone().requires_grad_() for name, tensor in case.tensors.items()}
    parts = []
    for chunk in (0, 32, 64, 256, 2000):
        rows_at_once(chunk)
        parts.append(consistent_mixture_cross_entropy(**case.tensors, **case.options))
        parts.append(consistent_mixture_cross_entropy(**with_gradients, **case.options))
    terms = (case.tensors["states"] @ case.tensors["items"].T).abs().max()
    for mine in parts[1:]:
        for value, first, one_sweep in zip(mine, parts[0], parts[2], strict=True):
            assert abs(value - first) <= 4 * torch.finfo(torch.float32).eps * terms
            assert torch.equal(value, one_sweep) or torch.equal(value, first)


@pytest.mark.parametrize("weight", [0.0, 1e-7, 0.7])
@pytest.mark.parametrize("grad", [False, True])
def test_how_many_products_two_views_take(rows_at_once, weight, grad):
    """Of 4 states a history 2 have a divergence: of one sweep 4, of two 6, and thrice that with both gradients."""
    case = make_case(CONSISTENT_MIXTURE_CROSS_ENTROPY, sizes_of(CONSISTENT_MIXTURE_CROSS_ENTROPY, streams=2))
    leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]

    def states():
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            loss, *_ = consistent_mixture_cross_entropy(**case.tensors, **case.options | {"weight": weight})
            if grad:
                torch.autograd.grad(loss, leaves)
        return counter.get_total_flops() / (2 * 37 * 211 * 19)

    expected = {0.0: 3 * 4 + 2, 1e-7: 3 * 6, 0.7: 3 * 4} if grad else {0.0: 6, 1e-7: 6, 0.7: 4}
    assert states() == expected[weight]
    rows_at_once(0)
    assert states() == {0.0: 4 * 4 + 2, 1e-7: 4 * 6, 0.7: 4 * 6}[weight] if grad else 6


@pytest.mark.parametrize("streams", [1, 5])
def test_chunks_of_one_row(streams):
    generator = torch.Generator().manual_seed(0)
    states, items = torch.randn(9, streams, 6, generator=generator), torch.randn(101, 6, generator=generator)
    log_weights = torch.randn(9, streams, generator=generator).log_softmax(1)
    targets = torch.randint(101, (9,), generator=generator)
    targets[4] = -100

    def run(chunk):
        options = (targets, 0.7, -100, "sum", chunk)
        if streams == 1:
            return OPS.linear_cross_entropy_with_gradients(states[:, 0], items, *options, [True] * 2, "cpp")
        arguments = (states, log_weights, items, *options, [True] * 3, "cpp")
        return OPS.mixture_cross_entropy_with_gradients(*arguments)

    for mine, together in zip(run(streams), run(9 * streams), strict=True):
        torch.testing.assert_close(mine, together, rtol=1e-5, atol=1e-6)


@for_every_operator
def test_gradients_only_where_asked(rows_at_once, operator):
    rows_at_once(32)
    case = make_case(operator, sizes_of(operator))
    full = evaluate(operator.public, case)
    for count in range(1, len(case.tensors)):
        for wanted in itertools.combinations(case.tensors, count):
            for name, result in evaluate(operator.public, case, wanted).items():
                assert torch.equal(result, full[name]), f"{name} for {wanted}"


@for_every_operator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_second_backward_pass_gives_the_same(rows_at_once, operator, dtype):
    """And leaves what the first one gave alone, though the last one writes into what was kept."""
    rows_at_once(32)
    case = make_case(operator, sizes_of(operator), dtype=dtype)
    leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]
    loss = 0.3 * operator.public(**case.tensors, **case.options)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    before = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(loss, leaves, retain_graph=True)
    third = torch.autograd.grad(loss, leaves)
    for gradients in zip(before, first, second, third, strict=True):
        assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@for_every_operator
def test_gradients_of_gradients_are_refused(rows_at_once, operator):
    rows_at_once(32)
    case = make_case(operator, sizes_of(operator))
    leaves = [tensor.requires_grad_() for tensor in case.tensors.values()]
    gradients = torch.autograd.grad(operator.public(**case.tensors, **case.options), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        torch.autograd.grad(gradients[0].sum(), leaves)


@for_every_operator
def test_the_number_of_threads_changes_no_bit(rows_at_once, operator):
    rows_at_once(64)
    before = torch.get_num_threads()
    case = make_case(operator, sizes_of(operator, rows=300, batch=150, histories=150, vocabulary=5003, dim=40))
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(evaluate(operator.public, case))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, result in other.items():
            assert torch.equal(result, results[0][name]), name


def test_which_way_is_taken(rows_at_once):
    """Counted in products of states and items: forward, backward."""
    states, items = torch.randn(8, 4), torch.randn(9, 4)
    targets = torch.arange(8)

    def products(needs=(True, True), reduction="mean", grad=True):
        leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip((states, items), needs, strict=True)]
        counts = []
        with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
            loss = linear_cross_entropy(*leaves, targets, reduction=reduction)
            counts.append(counter.get_total_flops())
            if loss.requires_grad:
                loss.sum().backward()
                counts.append(counter.get_total_flops() - counts[0])
        return [count / (2 * 8 * 9 * 4) for count in counts]

    assert products() == [3, 0]
    assert products((True, False)) == products((False, True)) == [2, 0]
    assert products(reduction="none") == [1, 3]
    assert products((False, False)) == products(grad=False) == [1]
    rows_at_once(0)
    assert products() == [1, 3]


@pytest.mark.parametrize(
    ("megabytes", "rows", "items", "group", "expected"),
    [
        (512, 1024, 87_969, 1, 256),
        (0, 8, 5, 1, 0),
        (64, 1024, 87_969, 1, 160),  # 190 are affordable
        (32, 1024, 87_969, 1, 0),  # 95: fewer than pay
        (32, 90, 87_969, 1, 0),  # not all at once
        (32, 60, 87_969, 1, 64),  # all at once
        (512, 1024, 87_969, 3, 255),
        (512, 1024, 87_969, 300, 300),
        (64, 1024, 87_969, 300, 0),  # a group needs more
    ],
)
def test_rows_at_once(monkeypatch, megabytes, rows, items, group, expected):
    monkeypatch.setattr(workspace, "_megabytes", megabytes)
    assert workspace.rows_at_once(rows, items, group) == expected


@pytest.mark.parametrize("rows", [512, 2048])
def test_memory_does_not_grow_with_the_rows(rows):
    vocabulary, dim = 20_011, 16
    targets = torch.randint(vocabulary, (rows,))
    step = training_step(
        lambda *both: linear_cross_entropy(*both, targets),
        torch.randn(rows, dim),
        torch.randn(vocabulary, dim),
        backend="cpp",
    )
    step()
    extra = extra_memory(step)
    if extra is None:
        pytest.skip("the system does not tell the peak")
    assert extra["both"] < 1.5 * 256 * 4 * vocabulary < 512 * 4 * vocabulary


@pytest.mark.parametrize("needs", [[True, True], [True, False], [False, True]], ids=str)
def test_opcheck(needs):
    states, items, targets = torch.randn(8, 4), torch.randn(9, 4), torch.arange(8)
    leaves = [tensor.requires_grad_(need) for tensor, need in zip((states, items), needs, strict=True)]
    options = (0.7, -100, "mean", 32, needs, "cpp")
    torch.library.opcheck(OPS.linear_cross_entropy_with_gradients.default, (*leaves, targets, *options))
    groups = leaves[0].detach().view(2, 4, 4).requires_grad_(needs[0])
    torch.library.opcheck(OPS.pairwise_kl_with_gradients.default, (groups, leaves[1], 0.7, False, 64, needs, "cpp"))
    # Weights that sum to 1: opcheck's gradient w.r.t. a negative loss is −1, by which the backward pass multiplies in
    # place the gradients that opcheck has as outputs.
    log_weights = torch.full((2, 4), 0.25).log().requires_grad_()
    arguments = (groups, log_weights, leaves[1], targets[:2], *options[:4], [needs[0], True, needs[1]], "cpp")
    torch.library.opcheck(OPS.mixture_cross_entropy_with_gradients.default, arguments)
    views = leaves[0].detach().view(2, 2, 2, 4).requires_grad_(needs[0])
    log_weights, drawn = torch.full((2, 2, 2), 0.5).log().requires_grad_(), torch.tensor([0, 1])
    arguments = (
        views, log_weights, leaves[1], targets[:2], drawn, 0.5, 0.7, -100, 64, [needs[0], True, needs[1]], "cpp"
    )  # fmt: skip
    torch.library.opcheck(OPS.consistent_mixture_cross_entropy_with_gradients.default, arguments)
    first, second = (tensor.detach() for tensor in leaves)
    torch.library.opcheck(OPS.scaled_gradient.default, (torch.tensor(0.5), first.clone(), first))
    torch.library.opcheck(OPS.scaled_gradient.default, (torch.tensor(0.5), first.clone(), first, second, second))


@for_every_operator
def test_compiled(rows_at_once, operator):
    rows_at_once(32)
    case = make_case(operator, sizes_of(operator))
    compiled = torch.compile(operator.public, fullgraph=True, backend="aot_eager")
    expected = evaluate(operator.public, case)
    for name, result in evaluate(compiled, case).items():
        assert torch.equal(result, expected[name]), name
