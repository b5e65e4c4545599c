"""Operators on tensors without values, and in graphs that make_fx and torch.export trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from plr_kernels import linear_cross_entropy, stream_attention, top_items, use_backend
from tests.plr_kernels.harness import OPERATORS, evaluate, implemented, make_case, targets

on_every_target = pytest.mark.parametrize(
    ("target", "operator"), [pytest.param(t, o, id=f"{t}-{o}") for t, o in implemented()]
)
for_every_target = pytest.mark.parametrize("target", targets(), ids=str)
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)


@pytest.fixture(autouse=True)
def _chosen_backend(request):
    known = "target" in request.fixturenames
    with use_backend(request.getfixturevalue("target").backend if known else "auto"):
        yield


def described(tensor: Tensor):
    return tensor.shape, tensor.dtype, tensor.stride()


@on_every_target
def test_fake_tensors(target, operator):
    """Outputs and gradients have the shapes and dtypes of real ones."""
    case = make_case(operator, operator.small, device=target.device)
    expected = evaluate(operator.public, case)
    with FakeTensorMode() as mode:
        tensors = {name: mode.from_tensor(tensor).requires_grad_() for name, tensor in case.tensors.items()}
        options = {
            name: mode.from_tensor(option) if isinstance(option, Tensor) else option
            for name, option in case.options.items()
        }
        output = operator.public(**tensors, **options)
        gradients = torch.autograd.grad(output.sum(), list(tensors.values()))
    if target.backend != "reference":  # whose formula makes tensors of its own, real ones outside the mode
        again = operator.public(**tensors, **options)
        assert described(again) == described(output)
    for result, real in zip((output, *gradients), expected.values(), strict=True):
        assert result.shape == real.shape
        assert result.dtype == real.dtype
        assert result.device == real.device


@every_operator
def test_meta_tensors_on_auto(operator):
    case = make_case(operator, operator.small)
    expected = evaluate(operator.public, case)
    on_meta = make_case(operator, operator.small, device="meta")
    leaves = {name: tensor.requires_grad_() for name, tensor in on_meta.tensors.items()}
    output = operator.public(**leaves, **on_meta.options)
    gradients = torch.autograd.grad(output.sum(), list(leaves.values()))
    for result, real in zip((output, *gradients), expected.values(), strict=True):
        assert result.device.type == "meta"
        assert (result.shape, result.dtype) == (real.shape, real.dtype)


@for_every_target
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_top_items_without_values(target, kind):
    if kind == "meta" and target.backend != "reference":
        pytest.skip("a named fused backend takes no meta tensors")
    states, items, exclude = torch.ones(2, 3), torch.ones(5, 3), torch.zeros(2, 1, dtype=torch.int64)
    if kind == "meta":
        scores, ids = top_items(states.to("meta"), items.to("meta"), 4, exclude=exclude.to("meta"))
    else:
        with FakeTensorMode() as mode:
            scores, ids = top_items(*map(mode.from_tensor, (states, items)), 4, exclude=mode.from_tensor(exclude))
    assert (scores.shape, scores.dtype) == ((2, 4), torch.float32)
    assert (ids.shape, ids.dtype) == ((2, 4), torch.int64)


@on_every_target
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(target, operator, tracing_mode):
    """A traced forward and backward pass gives the same bits on other values."""
    first, second = (
        make_case(operator, operator.small, device=target.device, generator_seed=number) for number in (0, 1)
    )

    def run(tensors, options):
        output = operator.public(**tensors, **options)
        return output, *torch.autograd.grad(output.sum(), list(tensors.values()))

    def leaves(case):
        return {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}

    graph = make_fx(run, tracing_mode=tracing_mode)(leaves(first), first.options)
    results, expected = graph(leaves(second), second.options), run(leaves(second), second.options)
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


def test_a_traced_graph_still_checks_values():
    """What is found wrong on the way in is found wrong in the graph."""
    states, items = torch.randn(2, 3), torch.randn(5, 3)
    targets, lengths = torch.tensor([1, 4]), torch.tensor([2])

    def loss(states, items, targets):
        return linear_cross_entropy(states, items, targets)

    graph = make_fx(loss)(states, items, targets)
    torch.testing.assert_close(graph(states, items, targets), linear_cross_entropy(states, items, targets))
    with pytest.raises(RuntimeError, match=r"targets must be in \[0, V\)"):
        graph(states, items, targets + 1)

    prefix, stream = torch.randn(1, 1, 2, 3), torch.randn(1, 1, 2, 0, 3)

    def attend(prefix, stream, lengths):
        return stream_attention(prefix, prefix, prefix, stream, stream, prefix_lengths=lengths)

    graph = make_fx(attend)(prefix, stream, lengths)
    with pytest.raises(RuntimeError, match=r"prefix_lengths must be in \[0, P\]"):
        graph(prefix, stream, lengths + 1)


def test_symbolic_shapes_serve_other_sizes():
    """A graph of one size runs with another: only D is a constant of attention's."""

    def top(states, items):
        return top_items(states, items, min(3, items.shape[0]))

    graph = make_fx(top, tracing_mode="symbolic")(torch.randn(2, 3), torch.randn(5, 3))
    states, items = torch.randn(4, 3), torch.randn(9, 3)
    assert torch.equal(graph(states, items)[1], top_items(states, items, 3)[1])


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, tensors, options):
        return self.function(**tensors, **options)


@on_every_target
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "compiled"])
def test_export(target, operator, strict):
    case = make_case(operator, operator.small, device=target.device)
    # Written out, so that no draw of the mask is in the graph: those take long to trace.
    options = case.options | ({"dropout_p": 0.0} if "dropout_p" in case.options else {})
    exported = torch.export.export(Module(operator.public), (case.tensors, options), strict=strict).module()
    assert torch.equal(exported(case.tensors, options), operator.public(**case.tensors, **options))


def test_export_of_top_items_with_any_number_of_rows():
    states, items = torch.randn(4, 3), torch.randn(9, 3)
    exported = torch.export.export(
        Module(top_items),
        ({"states": states, "items": items}, {"k": 3}),
        dynamic_shapes=({"states": {0: torch.export.Dim("R")}, "items": None}, {"k": None}),
    ).module()
    more = torch.randn(6, 3)
    assert torch.equal(exported({"states": more, "items": items}, {"k": 3})[1], top_items(more, items, 3)[1])
