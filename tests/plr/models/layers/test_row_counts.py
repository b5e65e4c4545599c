"""Rows padded to few counts, and linear layers that compute with them."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from plr.models.layers import linear
from plr.models.layers.linear import Linear
from plr.models.layers.row_counts import few_counts


def test_rows_are_followed_by_zeros_up_to_one_of_few_counts():
    counts = set()
    for count in range(1, 2000):
        rows = torch.ones(count, 3)
        padded = few_counts(rows)
        assert len(padded) >= count
        assert torch.equal(padded[:count], rows)
        assert not padded[count:].any()
        counts.add(len(padded))
    assert counts == {16, 32, 64, 128, *range(256, 2049, 256)}


def test_rows_that_are_right_stay_and_others_are_converted():
    rows = torch.randn(512, 3)
    assert few_counts(rows) is rows
    assert few_counts(rows, torch.bfloat16).dtype == torch.bfloat16
    assert few_counts(torch.randn(3, 300).T[:200], torch.bfloat16).shape == (256, 3)  # any layout


@pytest.fixture
def bfloat16_by_onednn(monkeypatch):
    """As on a CPU with AVX-512, where PyTorch multiplies them by oneDNN; elsewhere it does it otherwise, as right."""
    monkeypatch.setattr(linear, "_BFLOAT16_BY_ONEDNN", True)


@pytest.mark.usefixtures("bfloat16_by_onednn")
@pytest.mark.parametrize("shape", [(7, 5, 24), (1, 24), (300, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", ["autocast", "autocast, states halved", "halved"])
def test_results_and_gradients_are_as_near_as_pytorchs(shape, bias, given, monkeypatch):
    torch.manual_seed(0)
    layer = Linear(24, 31, bias=bias)
    states = torch.randn(*shape).transpose(0, -2).contiguous().transpose(0, -2)  # any layout
    weights = torch.randn(*shape[:-1], 31)
    if given == "halved":
        layer = layer.bfloat16()
    if given != "autocast":
        states = states.bfloat16()
    exact = nn.Linear(24, 31, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    exact_states = states.double().requires_grad_()
    expected = exact(exact_states)
    (expected * weights).sum().backward()
    truth = [expected, exact_states.grad, *(each.grad for each in exact.parameters())]

    def errors(taken):
        monkeypatch.setattr(linear, "_BFLOAT16_BY_ONEDNN", taken)
        layer.zero_grad()
        own = states.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=given != "halved"):
            result = layer(own)
        assert (type(result.grad_fn).__name__ == "_BFloat16LinearBackward") == taken
        (result.float() * weights).sum().backward()
        found = [result, own.grad, *(each.grad for each in layer.parameters())]
        assert [each.dtype for each in found[1:]] == [own.dtype, *(each.dtype for each in layer.parameters())]
        pairs = zip(found, truth, strict=True)
        return [float(((one.double() - two).abs().max() / two.abs().max()).detach()) for one, two in pairs]

    # PyTorch's own rounds each of the same numbers once, or twice; one unit in the last place is 2^-8.
    for mine, pytorchs in zip(errors(True), errors(False), strict=True):
        assert mine <= pytorchs + 2**-9


@pytest.mark.usefixtures("bfloat16_by_onednn")
def test_products_of_any_number_of_rows_have_few_shapes(monkeypatch):
    shapes, product = set(), torch.nn.functional.linear

    def seen(rows, *others):
        shapes.add(rows.shape)
        return product(rows, *others)

    monkeypatch.setattr(linear.functional, "linear", seen)
    layer = Linear(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        for count in range(257, 768, 7):
            layer(torch.ones(1, count, 4))
    assert shapes == {(512, 4), (768, 4)}


@pytest.mark.usefixtures("bfloat16_by_onednn")
def test_frozen_parts_get_no_gradient_and_none_needs_gradients():
    layer = Linear(4, 3).requires_grad_(False)
    states = torch.ones(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            alone = layer(states)
        result = layer(states)
    assert torch.equal(alone, result)
    result.sum().backward()
    assert states.grad.shape == (2, 4)
    assert layer.weight.grad is None


@pytest.mark.usefixtures("bfloat16_by_onednn")
def test_second_derivatives_are_refused():
    layer, states = Linear(4, 3), torch.ones(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(states)
    (gradient,) = torch.autograd.grad(result.sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.usefixtures("bfloat16_by_onednn")
def test_operations_are_those_of_the_rows():
    layer = Linear(4, 3)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(2, 5, 4, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * 4 * 3


@pytest.mark.usefixtures("bfloat16_by_onednn")
def test_what_is_not_bfloat16_is_left_to_pytorch():
    layer, states = Linear(4, 3), torch.ones(2, 4)
    assert type(layer(states).grad_fn).__name__ != "_BFloat16LinearBackward"
    with torch.autocast("cpu", torch.float16):
        assert layer(states).dtype == torch.float16
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(0, 4)).shape == (0, 3)
        assert layer(torch.ones(4)).shape == (3,)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.ones(2, 5))
