"""Checkpoints and hooks of saved tensors: the gradients are those of a plain run, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from plr_kernels import InfoNCE, LinearCrossEntropy, PairwiseKL, StreamAttention, use_backend
from tests.plr_kernels.harness import STREAM_ATTENTION, Operator, evaluate, implemented, make_case, targets

on_every_target = pytest.mark.parametrize(
    ("target", "operator"), [pytest.param(t, o, id=f"{t}-{o}") for t, o in implemented()]
)


@pytest.fixture(autouse=True)
def _chosen_backend(request):
    with use_backend(request.getfixturevalue("target").backend):
        yield


def with_tensors(public: Callable[..., Tensor], around: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`public` with its floating tensors passed by place, as checkpoint wants them, called by `around`."""

    def call(**arguments):
        names = [name for name, value in arguments.items() if isinstance(value, Tensor) and value.is_floating_point()]
        tensors = [arguments.pop(name) for name in names]
        return around(lambda *inner: public(**dict(zip(names, inner, strict=True)), **arguments), *tensors)

    return call


def reentrant(function, *tensors):
    return checkpoint(function, *tensors, use_reentrant=True)


def not_reentrant(function, *tensors):
    return checkpoint(function, *tensors, use_reentrant=False)


def nested(function, *tensors):
    return not_reentrant(lambda *inner: not_reentrant(function, *inner), *tensors)


def on_cpu(function, *tensors):
    with save_on_cpu():
        return function(*tensors)


def copied(function, *tensors):
    with saved_tensors_hooks(lambda tensor: [tensor.clone()], lambda kept: kept[0].clone()):
        return function(*tensors)


def checkpointed_and_copied(function, *tensors):
    return copied(lambda *inner: not_reentrant(function, *inner), *tensors)


WAYS = (not_reentrant, nested, on_cpu, copied, checkpointed_and_copied)


@on_every_target
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_gradients_are_those_of_a_plain_run(target, operator, way):
    case = make_case(operator, operator.small, device=target.device)
    plain = evaluate(operator.public, case)
    results = evaluate(with_tensors(operator.public, way), case)
    for name, result in plain.items():
        assert torch.equal(results[name], result), name


def accumulated(operator: Operator, case, around) -> list[Tensor]:
    """The gradients that `backward` adds to leaves: the only ones that a reentrant checkpoint gives."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}
    with_tensors(operator.public, around)(**leaves, **case.options).sum().backward()
    return [leaf.grad for leaf in leaves.values()]


@on_every_target
def test_gradients_of_a_reentrant_checkpoint(target, operator):
    case = make_case(operator, operator.small, device=target.device)
    plain = accumulated(operator, case, lambda function, *tensors: function(*tensors))
    for result, expected in zip(accumulated(operator, case, reentrant), plain, strict=True):
        assert torch.equal(result, expected)


@on_every_target
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_second_backward_pass_raises(target, operator, way):
    case = make_case(operator, operator.small, device=target.device)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}
    output = with_tensors(operator.public, way)(**leaves, **case.options).sum()
    output.backward()
    with pytest.raises(RuntimeError, match=r"second time|already been freed"):
        output.backward()


@on_every_target
def test_a_retained_graph_gives_the_same_twice(target, operator):
    case = make_case(operator, operator.small, device=target.device)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in case.tensors.items()}
    output = copied(lambda: operator.public(**leaves, **case.options).sum())
    first = torch.autograd.grad(output, list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(output, list(leaves.values()))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


class Layers(nn.Module):
    """Every layer, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = StreamAttention(dropout_p=0.3)
        self.divergence, self.contrast, self.loss = PairwiseKL(), InfoNCE(temperature=0.5), LinearCrossEntropy()
        self.items = nn.Parameter(torch.randn(7, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, states: Tensor) -> Tensor:
        attended = self.attention(*(states,) * 3, *(states.unsqueeze(3).repeat(1, 1, 1, 2, 1),) * 2)
        rows = attended.flatten(0, 1)  # [B·H, M, D]
        return (
            self.divergence(rows, self.items)
            + self.contrast(rows, rows.flip(0))
            + self.loss(rows.flatten(0, 1), self.items, torch.arange(rows.shape[0] * rows.shape[1]) % 7)
        )


@pytest.mark.parametrize("target", [target for target in targets() if target.device == "cpu"], ids=str)
@pytest.mark.parametrize("way", [reentrant, *WAYS], ids=lambda way: way.__name__)
def test_layers_draw_the_same_dropout_again(target, way):
    layers = Layers()

    def gradients(around):
        torch.manual_seed(3)
        states = torch.randn(2, 2, 3, 4).requires_grad_()
        layers.zero_grad()
        loss = around(layers, states)
        loss.backward()
        return loss.detach(), states.grad, layers.items.grad

    plain = gradients(lambda function, states: function(states))
    for result, expected in zip(gradients(way), plain, strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("target", [target for target in targets() if target.device == "cpu"], ids=str)
def test_checkpointed_sequence(target):
    class Step(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            streams = states.unsqueeze(3)
            return STREAM_ATTENTION.public(states, states, states, streams, streams)

    steps = nn.Sequential(*(Step() for _ in range(4)))
    states = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(steps(states).sum(), states)
    (result,) = torch.autograd.grad(checkpoint_sequential(steps, 2, states, use_reentrant=False).sum(), states)
    assert torch.equal(result, expected)
