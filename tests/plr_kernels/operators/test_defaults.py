"""Operators make nothing on the default device nor in the default dtype, and take tensors of inference mode."""

from __future__ import annotations

import contextlib

import pytest
import torch

from plr_kernels import StreamAttention, top_items, use_backend
from tests.plr_kernels.harness import STREAM_ATTENTION, evaluate, implemented, make_case, targets

on_every_target = pytest.mark.parametrize(
    ("target", "operator"), [pytest.param(t, o, id=f"{t}-{o}") for t, o in implemented()]
)


@pytest.fixture(autouse=True)
def _chosen_backend(request):
    with use_backend(request.getfixturevalue("target").backend):
        yield


@contextlib.contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS = [default_device, lambda: torch.device("meta"), default_dtype]
under_other_defaults = pytest.mark.parametrize("defaults", DEFAULTS, ids=["set_default_device", "device", "dtype"])


@on_every_target
@under_other_defaults
def test_results_are_the_same(target, operator, defaults):
    case = make_case(operator, operator.small, device=target.device)

    def public(**arguments):
        with defaults():
            return operator.public(**arguments)

    def run(function):
        results = evaluate(function, case)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}
        output = function(**leaves, **case.options).sum()
        with defaults() if function is public else contextlib.nullcontext():
            gradients = torch.autograd.grad(output, list(leaves.values()))
        return [*results.values(), *gradients]

    for result, expected in zip(run(public), run(operator.public), strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@on_every_target
@under_other_defaults
def test_where_there_is_nothing_to_compute(target, operator, defaults):
    """Sizes of 0 have ways of their own."""
    empty = {name: 0 for name in ("batch", "rows", "histories") if name in operator.small}
    case = make_case(operator, operator.small | empty, device=target.device)
    expected = operator.public(**case.tensors, **case.options)
    with defaults():
        output = operator.public(**case.tensors, **case.options)
    assert (output.dtype, output.device) == (expected.dtype, expected.device)
    assert torch.equal(output, expected)


@pytest.mark.parametrize("target", targets(), ids=str)
@under_other_defaults
def test_top_items(target, defaults):
    generator = torch.Generator().manual_seed(0)
    states, items = (torch.randn(rows, 5, generator=generator).to(target.device) for rows in (3, 11))
    exclude = torch.tensor([[1, -1], [2, 3], [-1, -1]], device=target.device)
    expected = top_items(states, items, 4, exclude=exclude)
    with defaults():
        results = top_items(states, items, 4, exclude=exclude)
    for result, truth in zip(results, expected, strict=True):
        assert result.dtype == truth.dtype
        assert torch.equal(result, truth)


@pytest.mark.parametrize("target", targets(), ids=str)
@under_other_defaults
def test_dropout_of_the_layer(target, defaults):
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small, device=target.device)
    layer = StreamAttention(dropout_p=0.5)
    torch.manual_seed(0)
    expected = layer(**case.tensors)
    torch.manual_seed(0)
    with defaults():
        assert torch.equal(layer(**case.tensors), expected)


@on_every_target
def test_tensors_of_inference_mode(target, operator):
    case = make_case(operator, operator.small, device=target.device)
    expected = operator.public(**case.tensors, **case.options)
    with torch.inference_mode():
        tensors = {name: tensor.clone() for name, tensor in case.tensors.items()}
        assert torch.equal(operator.public(**tensors, **case.options), expected)
    assert torch.equal(operator.public(**tensors, **case.options), expected)  # outside the mode
    if target.backend != "reference":  # whose formulas save copies of some of them
        first = next(iter(tensors))
        asking = tensors | {first: case.tensors[first].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            operator.public(**asking, **case.options)
