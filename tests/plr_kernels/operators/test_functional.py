"""torch.func over every operator: "auto" takes the reference there, a named fused backend says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from plr_kernels import LinearCrossEntropy, PairwiseKL, linear_cross_entropy, stream_attention, top_items, use_backend
from plr_kernels.dispatch.errors import BackendError
from tests.plr_kernels.harness import LINEAR_CROSS_ENTROPY, OPERATORS, STREAM_ATTENTION, implemented, make_case

every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=str)
on_every_fused_target = pytest.mark.parametrize(
    ("target", "operator"),
    [pytest.param(t, o, id=f"{t}-{o}") for t, o in implemented() if t.backend != "reference"],
)


@pytest.fixture(autouse=True)
def _auto():
    with use_backend("auto"):
        yield


def of_tensors(operator, case):
    """The operator's output, summed, as a function of its floating tensors by place."""
    return lambda *tensors: operator.public(**dict(zip(case.tensors, tensors, strict=True)), **case.options).sum()


def gradients(function, tensors):
    """By autograd, on the reference."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with use_backend("reference"):
        return torch.autograd.grad(function(*leaves), leaves)


def assert_same(results, expected):
    for result, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(result, truth)


def all_of(tensors):
    return tuple(range(len(tensors)))


@every_operator
def test_gradients(operator):
    case = make_case(operator, operator.small)
    function, tensors = of_tensors(operator, case), list(case.tensors.values())
    expected = gradients(function, tensors)
    assert_same(torch.func.grad(function, argnums=all_of(tensors))(*tensors), expected)
    value, vjp = torch.func.vjp(function, *tensors)
    assert_same(vjp(torch.ones_like(value)), expected)
    assert_same(torch.func.jacrev(function, argnums=all_of(tensors))(*tensors), expected)
    assert_same(torch.func.jacfwd(function, argnums=all_of(tensors))(*tensors), expected)
    results, value_again = torch.func.grad_and_value(function, argnums=all_of(tensors))(*tensors)
    assert_same((*results, value_again), (*expected, value))


@every_operator
def test_second_derivatives(operator):
    case = make_case(operator, operator.small, dtype=torch.float64)
    function, tensors = of_tensors(operator, case), list(case.tensors.values())
    with use_backend("reference"):
        expected = torch.autograd.functional.hessian(lambda first: function(first, *tensors[1:]), tensors[0])
    torch.testing.assert_close(torch.func.hessian(function)(*tensors), expected)
    for derivative in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(derivative(torch.func.grad(function))(*tensors), expected)


@every_operator
def test_over_a_further_dimension(operator):
    """Values, and gradients of each; all tensors with that dimension, or the first alone, wherever it lies."""
    cases = [make_case(operator, operator.small, generator_seed=number) for number in range(3)]
    function = of_tensors(operator, cases[0])  # with the options of the first
    separate = [list(case.tensors.values()) for case in cases]
    stacked = [torch.stack(tensors) for tensors in zip(*separate, strict=True)]
    with use_backend("reference"):
        values = torch.stack([function(*tensors) for tensors in separate])
    torch.testing.assert_close(torch.vmap(function)(*stacked), values)
    torch.testing.assert_close(torch.vmap(function, chunk_size=2)(*stacked), values)
    expected = [torch.stack(parts) for parts in zip(*(gradients(function, each) for each in separate), strict=True)]
    gradient = torch.func.grad(function, argnums=all_of(stacked))
    assert_same(torch.vmap(gradient)(*stacked), expected)

    others = separate[0][1:]
    last = stacked[0].movedim(0, -1)
    expected = torch.stack([gradients(function, [each[0], *others])[0] for each in separate])
    results = torch.vmap(torch.func.grad(function), in_dims=(-1, *(None for _ in others)))(last, *others)
    torch.testing.assert_close(results, expected)


@every_operator
def test_compiled(operator):
    case = make_case(operator, operator.small | ({"dropout_p": 0.0} if operator.name == "stream_attention" else {}))
    function, tensors = of_tensors(operator, case), list(case.tensors.values())
    expected = gradients(function, tensors)
    gradient = torch.func.grad(function, argnums=all_of(tensors))
    assert_same(torch.compile(gradient, fullgraph=True, backend="aot_eager")(*tensors), expected)
    # The choice is guarded on: outside the transform the same function runs the fused backend.
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function(*tensors))


def test_targets_over_a_further_dimension():
    case = make_case(LINEAR_CROSS_ENTROPY, LINEAR_CROSS_ENTROPY.small)
    states, items = case.tensors.values()
    targets = torch.tensor([[0, 1, -100, 3], [4, 4, 2, -100]]).T  # [R, 2]
    loss = torch.vmap(lambda targets: linear_cross_entropy(states, items, targets), in_dims=1)(targets)
    expected = [linear_cross_entropy(states, items, each) for each in targets.unbind(1)]
    torch.testing.assert_close(loss, torch.stack(expected))
    targets[2, 1] = 7
    with pytest.raises(ValueError, match=r"targets must be in \[0, V\) or ignore_index .*V=5.* 7 at position \[2, 1\]"):
        torch.vmap(lambda targets: linear_cross_entropy(states, items, targets), in_dims=1)(targets)


def test_lengths_over_a_further_dimension():
    case = make_case(STREAM_ATTENTION, STREAM_ATTENTION.small)
    options = {name: option for name, option in case.options.items() if name != "prefix_lengths"}
    lengths = torch.tensor([[0, 3], [2, 1], [3, 3]])

    def attend(lengths):
        return stream_attention(**case.tensors, **options, prefix_lengths=lengths)

    torch.testing.assert_close(torch.vmap(attend)(lengths), torch.stack([attend(each) for each in lengths]))
    with pytest.raises(ValueError, match=r"prefix_lengths must be in \[0, P\]"):
        torch.vmap(attend)(lengths + 1)


def test_top_items_over_a_further_dimension():
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(-4, 5, (3, 2, 4), generator=generator).float()
    items = torch.randint(-4, 5, (3, 9, 4), generator=generator).float()
    exclude = torch.tensor([[[0, -1], [2, 3]], [[8, 8], [-1, -1]], [[1, 2], [3, 4]]])
    results = torch.vmap(lambda *tensors: top_items(*tensors[:2], 4, exclude=tensors[2]))(states, items, exclude)
    for number in range(3):
        expected = top_items(states[number], items[number], 4, exclude=exclude[number])
        assert_same([result[number] for result in results], expected)
    with pytest.raises(ValueError, match="exclude must be in"):
        torch.vmap(lambda exclude: top_items(states[0], items[0], 4, exclude=exclude))(exclude + 1)


class Head(nn.Module):
    """A model with operators in it."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(6, 4)
        self.loss, self.divergence = LinearCrossEntropy(), PairwiseKL()

    def forward(self, states: Tensor, targets: Tensor) -> Tensor:
        items = self.items.weight
        return self.loss(states, items, targets) + self.divergence(states.unsqueeze(0), items)


def test_functional_calls_and_gradients_per_sample():
    torch.manual_seed(0)
    model, states, targets = Head(), torch.randn(3, 5, 4), torch.randint(6, (3, 5))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, states, targets):
        return torch.func.functional_call(model, weights, (states, targets))

    torch.testing.assert_close(loss(weights, states[0], targets[0]), model(states[0], targets[0]))
    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, states, targets)["items.weight"]
    for number in range(3):
        model.zero_grad()
        model(states[number], targets[number]).backward()
        torch.testing.assert_close(per_sample[number], model.items.weight.grad)


@on_every_fused_target
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.vmap], ids=lambda each: each.__name__)
def test_a_named_fused_backend_says_what_to_do(target, operator, transform):
    case = make_case(operator, operator.small, device=target.device)
    tensors = [tensor.unsqueeze(0) if transform is torch.vmap else tensor for tensor in case.tensors.values()]
    message = rf"{target.backend}' cannot run {operator.name}: it cannot be transformed.*use_backend\(\"auto\"\)"
    with use_backend(target.backend), pytest.raises(BackendError, match=message):
        transform(of_tensors(operator, case))(*tensors)
