"""Layers under checkpoints and hooks of saved tensors: the gradients are those of a plain run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from plr.models.layers.transformer import TransformerLayer
from plr.options import LayerOptions


def plain(function, states):
    return function(states)


def reentrant(function, states):
    return checkpoint(function, states, use_reentrant=True)


def not_reentrant(function, states):
    return checkpoint(function, states, use_reentrant=False)


def nested(function, states):
    return not_reentrant(lambda inner: not_reentrant(function, inner), states)


def on_cpu(function, states):
    with save_on_cpu():
        return function(states)


def copied(function, states):
    with saved_tensors_hooks(lambda tensor: [tensor.clone()], lambda kept: kept[0].clone()):
        return function(states)


class Reasoning(nn.Module):
    """A layer that encodes two sequences and takes two steps in two streams: all that it has."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        options = LayerOptions(dim=8, heads=2, ffn_dim=12, hidden_dropout=0.2, attention_dropout=0.3)
        self.layer = TransformerLayer(options)

    def forward(self, states):
        lengths = torch.tensor([3, 5])
        encoded, prefix = self.layer(states, lengths, self.causal)
        tokens, stream = encoded[:, :2], None
        for _ in range(2):
            stream = self.layer.append(stream, tokens)
            tokens, _ = self.layer.step(tokens, prefix, lengths, stream)
        return tokens


def results(way, causal, training):
    torch.manual_seed(0)
    model = Reasoning(causal).train(training)
    states = torch.randn(2, 5, 8).requires_grad_()
    torch.manual_seed(1)
    output = way(model, states)
    output.square().sum().backward()
    return [output.detach(), states.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("way", [reentrant, not_reentrant, nested, on_cpu, copied], ids=lambda way: way.__name__)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("training", [True, False], ids=["dropout", "without"])
def test_gradients_are_those_of_a_plain_run(way, causal, training):
    for result, expected in zip(results(way, causal, training), results(plain, causal, training), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("way", [not_reentrant, on_cpu, copied], ids=lambda way: way.__name__)
def test_a_second_backward_pass_raises(way):
    model, states = Reasoning(causal=True), torch.randn(2, 5, 8).requires_grad_()
    output = way(model, states).sum()
    output.backward()
    with pytest.raises(RuntimeError, match=r"second time|already been freed"):
        output.backward()
