"""The token-wise part of a layer, block by block, against its operations one by one in float64, with the same masks."""

import pytest
import torch
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune

from plr.models.layers import linear
from plr.models.layers.dropout import keep_mask, keep_scale
from plr.models.layers.transformer import TransformerLayer
from plr.options import LayerOptions

pytestmark = pytest.mark.usefixtures("products")

DIM, FFN = 12, 20
PARTS = ("attention_output", "attention_norm", "ffn_in", "ffn_out", "ffn_norm")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(linear, "_BLOCK_ROWS", 8)


def new_layer(p):
    """A layer whose LayerNorms are no identity."""
    torch.manual_seed(0)
    layer = TransformerLayer(LayerOptions(dim=DIM, ffn_dim=FFN, hidden_dropout=p, attention_dropout=0.0))
    for norm in (layer.attention_norm, layer.ffn_norm):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return layer


def masks(rows, dropped):
    """[2, R, d]: for every block that of attention, then that of the feed-forward part."""
    blocks = [
        torch.stack([keep_mask((min(8, rows - first), DIM), dropped) for _ in range(2)]) for first in range(0, rows, 8)
    ]
    return torch.cat(blocks, dim=1)


def formula(layer, states, joined, keep, scale):
    """TransformerLayer._output with given masks."""
    keep = (keep * scale).unflatten(1, states.shape[:-1]).to(states.dtype)
    middle = layer.attention_norm(states + layer.attention_output(joined) * keep[0])
    return layer.ffn_norm(middle + layer.ffn_out(functional.gelu(layer.ffn_in(middle))) * keep[1])


def results(run, layer, states, joined, weights):
    states, joined = states.detach().requires_grad_(), joined.detach().requires_grad_()
    result = run(states, joined)
    parameters = [parameter for part in PARTS for parameter in getattr(layer, part).parameters()]
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), [states, joined, *parameters])]


def error(result, truth):
    return float((result.double() - truth).abs().max() / truth.abs().max())


def attended_of(joined):
    """[B, X, d] -> [B, H, X, D]."""
    return joined.unflatten(-1, (2, -1)).transpose(1, 2)


@pytest.mark.parametrize("p", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (2, 8)])
def test_results_and_gradients_are_those_of_float64(shape, p):
    layer = new_layer(p)
    states, joined, weights = torch.randn(3, *shape, DIM).unbind()
    dropped = layer.dropout.dropped()
    torch.manual_seed(1)
    keep = masks(states.shape[:-1].numel(), dropped)
    torch.manual_seed(1)
    mine = results(lambda x, y: layer._output(x, attended_of(y)), layer, states, joined, weights)

    def plain(dtype):
        copy = new_layer(p).to(dtype)
        arguments = (tensor.to(dtype) for tensor in (states, joined, weights))
        return results(lambda x, y: formula(copy, x, y, keep, keep_scale(dropped)), copy, *arguments)

    for result, single, truth in zip(mine, plain(torch.float32), plain(torch.float64), strict=True):
        # Sums in another order err by as much as the formula's own in float32.
        assert error(result, truth) <= 4 * max(error(single, truth), torch.finfo(torch.float32).eps)


def test_any_layout():
    layer = new_layer(0.0)
    states, joined = torch.randn(2, 3, 7, DIM).unbind()
    strided = torch.randn(7, 3, DIM).copy_(states.transpose(0, 1)).transpose(0, 1)
    result = layer._output(strided, attended_of(joined))
    assert torch.equal(result, layer._output(states, attended_of(joined)))


def test_evaluation_drops_nothing():
    layer = new_layer(0.5)
    states, joined = torch.randn(2, 3, 7, DIM).unbind()
    with torch.no_grad():
        evaluated = layer.eval()._output(states, attended_of(joined))
        assert torch.equal(evaluated, new_layer(0.0)._output(states, attended_of(joined)))


def test_frozen_parts_get_no_gradient_and_change_no_other():
    states, joined, weights = torch.randn(3, 3, 7, DIM).unbind()
    gradients = []
    for frozen in ((), ("attention_norm", "ffn_out")):
        layer = new_layer(0.0)
        for part in frozen:
            getattr(layer, part).requires_grad_(False)
        (layer._output(states, attended_of(joined)) * weights).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in layer.named_parameters()})
    every, others = gradients
    for name, gradient in others.items():
        if name.startswith(("attention_norm", "ffn_out")):
            assert gradient is None
        else:
            assert gradient is every[name] is None or torch.equal(gradient, every[name])


@pytest.mark.usefixtures("_default_dtype_restored")
def test_the_default_dtype_changes_nothing():
    layer, states, lengths = new_layer(0.0), torch.randn(3, 7, DIM), torch.tensor([7, 1, 4])
    gradients = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        leaf = states.detach().requires_grad_()
        result, _ = layer(leaf, lengths, causal=True)
        assert result.dtype == torch.float32
        gradients.append(torch.autograd.grad(result.square().sum(), [leaf, *layer.parameters()]))
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("of", [torch.square, torch.neg])  # whose gradient depends on the inputs, and does not
def test_second_derivatives_are_refused(of):
    states, joined = torch.randn(2, 3, 7, DIM).unbind()
    states.requires_grad_()
    result = new_layer(0.0)._output(states, attended_of(joined))
    (gradient,) = torch.autograd.grad(of(result).sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_hooks_of_every_part_are_called():
    layer, called = new_layer(0.25), []
    for name, part in layer.named_children():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    layer(torch.randn(3, 7, DIM), torch.tensor([7, 1, 4]), causal=True)
    assert set(called) == {*PARTS, "query", "key_value", "dropout"}


def test_a_hook_of_all_modules_sees_every_part():
    layer, called = new_layer(0.25), []
    handle = register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        layer(torch.randn(3, 7, DIM), torch.tensor([7, 1, 4]), causal=True)
    finally:
        handle.remove()
    seen = {name for name, module in layer.named_children() if any(module is part for part in called)}
    assert seen == {*PARTS, "query", "key_value", "dropout"}


@pytest.mark.parametrize("name", ["key_value", "attention_output", "ffn_in", "ffn_out"])
def test_pruned_weights_follow_training(name):
    layer, states = new_layer(0.0), torch.randn(3, 7, DIM)
    part = getattr(layer, name)
    prune.random_unstructured(part, "weight", 0.5)
    for _ in range(2):
        result, _ = layer(states, torch.tensor([7, 1, 4]), causal=True)
        result.square().sum().backward()
        with torch.no_grad():
            part.weight_orig.sub_(part.weight_orig.grad)
    layer(states, torch.tensor([7, 1, 4]), causal=True)
    assert torch.equal(part.weight, part.weight_orig * part.weight_mask)
