"""Products of float32 numbers as six of bfloat16, of parts that add up to them (csrc/simd/float32_parts.h).

Where the CPU has AMX tiles and they are asked for. The float32 kernels beside them are those of the same instruction
set without.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")

from plr_kernels import extension, linear_cross_entropy, pairwise_kl, use_backend
from tests.plr_kernels.cpu.test_workspace import reduced
from tests.plr_kernels.cpu.test_workspace import sizes_of as some_sizes_of
from tests.plr_kernels.harness import (
    CONSISTENT_MIXTURE_CROSS_ENTROPY,
    LINEAR_CROSS_ENTROPY,
    MIXTURE_CROSS_ENTROPY,
    PAIRWISE_KL,
    assert_accurate,
    evaluate,
    make_case,
)

WITH_PARTS, WITHOUT = "avx512_amx_parts", "avx512_amx"

pytestmark = pytest.mark.skipif(
    extension._cpp.instruction_set(WITH_PARTS) is None, reason="this CPU has no AMX tiles of bfloat16"
)


OPERATORS = (
    reduced(LINEAR_CROSS_ENTROPY, "mean"),
    reduced(LINEAR_CROSS_ENTROPY, "none"),
    reduced(MIXTURE_CROSS_ENTROPY, "sum"),
    reduced(MIXTURE_CROSS_ENTROPY, "none"),
    PAIRWISE_KL,
    dataclasses.replace(PAIRWISE_KL, variant="-detached", large=PAIRWISE_KL.large | {"detach_reference": True}),
    CONSISTENT_MIXTURE_CROSS_ENTROPY,
)
for_every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)

# The fewest states, items and columns that take parts: of rows, groups of two, histories with two views of two streams.
LEAST = {"rows": 64, "batch": 32, "group": 2, "histories": 16, "streams": 2, "vocabulary": 1024, "dim": 32}


def sizes_of(operator, **sizes):
    return some_sizes_of(operator, **LEAST | sizes)


def run(instruction_set, function, *arguments, **options):
    before = extension._instruction_set
    extension._instruction_set = instruction_set
    try:
        with use_backend("cpp"):
            return function(*arguments, **options)
    finally:
        extension._instruction_set = before


def same(operator, case):
    """Whether the results are those of the float32 kernels to the bit, one by one."""
    with_parts, without = (run(name, evaluate, operator.public, case) for name in (WITH_PARTS, WITHOUT))
    return [torch.equal(result, without[name]) for name, result in with_parts.items()]


@for_every_operator
@pytest.mark.parametrize("dim", [32, 33, 47, 64, 80, 131])
@pytest.mark.parametrize("chunk", [0, 32, 96, 256])
def test_as_accurate_as_the_plain_formula(rows_at_once, operator, dim, chunk):
    rows_at_once(chunk)
    for sizes in ({}, {"rows": 101, "batch": 53, "histories": 37, "streams": 3, "vocabulary": 1061}):
        case = make_case(operator, sizes_of(operator, dim=dim, **sizes))
        assert_accurate(run(WITH_PARTS, evaluate, operator.public, case), operator, case)


@for_every_operator
@pytest.mark.parametrize("chunk", [0, 1024])
def test_chunks_of_more_than_one_block_of_states(rows_at_once, operator, chunk):
    rows_at_once(chunk)
    case = make_case(operator, sizes_of(operator, rows=299, batch=299, histories=101, vocabulary=1500, dim=50))
    assert_accurate(run(WITH_PARTS, evaluate, operator.public, case), operator, case)


@for_every_operator
@pytest.mark.parametrize("chunk", [0, 64])
def test_when_parts_are_taken(rows_at_once, operator, chunk):
    rows_at_once(chunk)
    assert not all(same(operator, make_case(operator, sizes_of(operator))))
    fewer = {"vocabulary": 1023}, {"dim": 31}, {"rows": 21, "batch": 31, "histories": 15}
    for sizes in fewer:
        assert all(same(operator, make_case(operator, sizes_of(operator, **sizes)))), sizes


@for_every_operator
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, 2.0**31, -(2.0**31)], ids=str)
@pytest.mark.parametrize("name", ["states", "items"])
def test_numbers_whose_parts_might_not_be_finite(rows_at_once, operator, name, number):
    """One of them anywhere: float32 has rules for what is not finite that sums of parts do not keep."""
    case = make_case(operator, sizes_of(operator, dim=50))
    rows_at_once(64)
    assert not all(same(operator, case))
    tensor = case.tensors[name].flatten(0, -2)
    for row, column in ((0, 0), (len(tensor) - 1, 49), (len(tensor) // 2, 17)):
        changed = case.tensors | {name: case.tensors[name].clone()}
        changed[name].flatten(0, -2)[row, column] = number
        with_parts, without = (
            run(which, evaluate, operator.public, dataclasses.replace(case, tensors=changed))
            for which in (WITH_PARTS, WITHOUT)
        )
        for result, expected in zip(with_parts.values(), without.values(), strict=True):
            torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@for_every_operator
@pytest.mark.parametrize("name", ["states", "items"])
def test_numbers_that_are_all_tiny(operator, name):
    """2**-126 has no part below it."""
    case = make_case(operator, sizes_of(operator))
    case.tensors[name].mul_(2.0**-120)
    assert all(same(operator, case))


@pytest.mark.parametrize("scale", [2.0**-26, 2.0**-10, 2.0**10, 2.0**26])
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_numbers_of_any_size_in_between(operator, scale):
    case = make_case(operator, sizes_of(operator))
    case.tensors["items"].mul_(scale)
    case.tensors["states"].div_(scale)
    assert not all(same(operator, case))
    assert_accurate(run(WITH_PARTS, evaluate, operator.public, case), operator, case)


@pytest.mark.parametrize("weight", [2.0**-100, 2.0**61, 2.0**90, torch.inf, torch.nan], ids=str)
def test_gradients_of_any_size(weight):
    """Of one row: what other rows get does not depend on it, and it gets its own."""
    case = make_case(reduced(LINEAR_CROSS_ENTROPY, "none"), sizes_of(LINEAR_CROSS_ENTROPY, reduction="none"))
    names = ("states", "items")
    weights = torch.ones(64)
    weights[5] = weight

    def gradients(weights):
        leaves = [case.tensors[name].clone().requires_grad_() for name in names]
        losses = linear_cross_entropy(*leaves, **case.options)
        return torch.autograd.grad(losses, leaves, weights)

    (mine, by_item), (ones, _) = run(WITH_PARTS, gradients, weights), run(WITH_PARTS, gradients, torch.ones(64))
    (expected, expected_by_item) = run(WITHOUT, gradients, weights)
    others = torch.arange(64) != 5
    unit = 1e-5 * ones.abs().max().item()
    torch.testing.assert_close(mine[others], ones[others], rtol=0, atol=unit)
    finite = weight < torch.inf
    torch.testing.assert_close(mine[5], expected[5], rtol=0, atol=unit * weight if finite else 0, equal_nan=True)
    atol = 1e-5 * expected_by_item.abs().max().item() if finite else 0
    torch.testing.assert_close(by_item, expected_by_item, rtol=0, atol=atol, equal_nan=True)


def test_a_probability_near_nothing_has_its_gradient():
    """Of items whose probabilities are down to 2**-118, near the least normal number: each as exact as any other."""
    rows, dim = 64, 32
    exponents = torch.linspace(0, 118, 1024)
    items = torch.zeros(1024, dim)
    items[:, 0] = -exponents / 2  # powers of two, and sums of few bits: the scores are exact
    items[:, 0] = (items[:, 0] * 8).round() / 8
    states = torch.zeros(rows, dim)
    states[:, 0] = 1.375
    states[:, 1] = torch.linspace(1, 2, rows)
    leaves = [states.requires_grad_(), items.requires_grad_()]

    def gradients():
        loss = linear_cross_entropy(*leaves, torch.zeros(rows, dtype=torch.long), reduction="sum")
        return torch.autograd.grad(loss, leaves)

    _, by_item = run(WITH_PARTS, gradients)
    x, y = states.detach().double(), items.detach().double()
    by_score = (x @ y.T).softmax(1)
    by_score[:, 0] -= 1
    truth = by_score.T @ x
    # exp2 of scores near 118 is off by their rounding; one in 2**8 of a bfloat16 would be off by far more.
    relative = ((by_item[:, :2] - truth[:, :2]) / truth[:, :2]).abs().amax()
    assert relative <= 2 * 118 * torch.finfo(torch.float32).eps
    assert truth[-1, 0] < 2.0**-100


@pytest.mark.parametrize("threads", [1, 2, 3])
@for_every_operator
def test_threads_change_nothing(rows_at_once, operator, threads):
    case = make_case(operator, sizes_of(operator, rows=101, batch=53, histories=37, vocabulary=3001))
    before = torch.get_num_threads()
    try:
        for chunk in (0, 64):
            rows_at_once(chunk)
            torch.set_num_threads(1)
            expected = run(WITH_PARTS, evaluate, operator.public, case)
            torch.set_num_threads(threads)
            for name, result in run(WITH_PARTS, evaluate, operator.public, case).items():
                assert torch.equal(result, expected[name]), name
    finally:
        torch.set_num_threads(before)


def test_only_by_name():
    assert extension._cpp.instruction_set("auto") == WITHOUT
    assert extension._cpp.instruction_set(WITH_PARTS) == WITH_PARTS


def test_a_row_does_not_depend_on_where_it_stands():
    case = make_case(LINEAR_CROSS_ENTROPY, sizes_of(LINEAR_CROSS_ENTROPY, rows=150, reduction="none"))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    losses = run(WITH_PARTS, linear_cross_entropy, **case.tensors, **case.options)
    moved = case.options | {"targets": case.options["targets"][order]}
    shuffled = run(WITH_PARTS, linear_cross_entropy, case.tensors["states"][order], case.tensors["items"], **moved)
    assert torch.equal(shuffled, losses[order])


def test_equal_states_have_no_divergence():
    """To the bit: each state's scores are the same sums."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 1, 64, generator=generator).expand(40, 4, 64)
    items = torch.randn(2000, 64, generator=generator)
    assert run(WITH_PARTS, pairwise_kl, states, items).item() == 0.0
