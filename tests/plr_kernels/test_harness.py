"""The rule of the harness refuses what it should: a parity test that accepts anything tests nothing."""

from __future__ import annotations

import pytest
import torch

from tests.plr_kernels.harness import DTYPES, LAYOUTS, OPERATORS, assert_accurate, cast, evaluate, make_case

for_every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)


def some_case(operator, dtype=torch.float32):
    return make_case(operator, operator.large, dtype=dtype)


@for_every_operator
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accepts_the_rounded_truth(operator, dtype):
    case = some_case(operator, dtype)
    truth = evaluate(operator.formula, cast(case, torch.float64))
    assert_accurate({name: result.to(dtype) for name, result in truth.items()}, operator, case)


@for_every_operator
@pytest.mark.parametrize(
    "fault",
    [lambda entry: entry * 1.0001 + 1e-4 * entry.sign(), lambda entry: entry * torch.nan],  # away from 0: it adds up
    ids=["off", "nan"],
)
def test_refuses_one_wrong_entry_anywhere(operator, fault):
    case = some_case(operator)
    results = evaluate(operator.public, case)
    for name, result in results.items():
        wrong = result.clone(memory_format=torch.contiguous_format)
        largest = wrong.abs().argmax()
        wrong.view(-1)[largest] = fault(wrong.view(-1)[largest])
        with pytest.raises(AssertionError, match=f"{operator.name}: {name} is off by"):
            assert_accurate({**results, name: wrong}, operator, case)


@for_every_operator
def test_refuses_half_precision_inside_a_float32_operator(operator):
    case = some_case(operator)
    results = evaluate(operator.public, case)
    sloppy = evaluate(operator.formula, cast(case, torch.bfloat16))
    for name, result in sloppy.items():
        with pytest.raises(AssertionError, match=f"{operator.name}: {name} is off by"):
            assert_accurate({**results, name: result.float()}, operator, case)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_keep_values(layout):
    tensor = torch.arange(24.0).view(2, 3, 4)
    expanded = layout.__name__ == "_expanded"
    for original, repeated in ((tensor, tensor[:1]), (tensor[0], tensor[0, :, :1])):
        laid_out = layout(original)
        assert laid_out.shape == original.shape
        assert torch.equal(laid_out, repeated.expand_as(original) if expanded else original)
        assert laid_out.is_contiguous() == (layout.__name__ == "_contiguous")


def test_fresh_memory_is_poisoned():
    assert torch.empty(1000).isnan().all()
