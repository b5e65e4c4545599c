"""The linear layer, by either product, against nn.Linear in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from plr.models.layers import linear
from plr.models.layers.linear import Linear
from plr.models.layers.transformer import TransformerLayer
from plr.options import LayerOptions

pytestmark = pytest.mark.usefixtures("products")


def error(result, truth):
    return float((result.detach().double() - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("shape", [(7, 5, 24), (1, 24), (300, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_those_of_float64(shape, bias):
    torch.manual_seed(0)
    layer = Linear(24, 31, bias=bias)
    states = torch.randn(*shape).transpose(0, -2).contiguous().transpose(0, -2).requires_grad_()  # any layout
    weights = torch.randn(*shape[:-1], 31)
    exact = nn.Linear(24, 31, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    exact_states = states.detach().double().requires_grad_()
    (layer(states) * weights).sum().backward()
    (exact(exact_states) * weights).sum().backward()
    assert error(layer(states), exact(exact_states)) < 1e-6
    assert error(states.grad, exact_states.grad) < 1e-6
    for mine, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        assert error(mine.grad, theirs.grad) < 2e-6


def test_only_float32_on_the_cpu_outside_autocast_takes_onednn(monkeypatch):
    calls, onednn = [], linear._onednn()
    if onednn is None:
        pytest.skip("this build of PyTorch has no oneDNN product")
    counted = onednn._replace(product=lambda *arguments: calls.append(1) or onednn.product(*arguments))
    monkeypatch.setattr(linear, "_ONEDNN", counted)
    layer = Linear(4, 3)
    layer(torch.ones(2, 4))
    assert len(calls) == 1
    layer.double()(torch.ones(2, 4).double())
    layer.float()(torch.ones(0, 4))
    assert layer(torch.ones(4)).shape == (3,)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(2, 4))
    assert len(calls) == 1


def test_second_derivatives_are_right_or_refused(products):
    layer, states = Linear(4, 3, bias=False), torch.ones(2, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(states).sum(), states, create_graph=True)
    if products == "oneDNN":
        with pytest.raises(RuntimeError, match="differentiate twice"):
            gradient.sum().backward()
    else:
        gradient.sum().backward()
        assert torch.equal(layer.weight.grad, torch.full((3, 4), 2.0))


def test_frozen_parts_get_no_gradient():
    layer = Linear(4, 3).requires_grad_(False)
    states = torch.ones(2, 4, requires_grad=True)
    layer(states).sum().backward()
    assert torch.allclose(states.grad, layer.weight.sum(0).expand(2, 4))
    assert layer.weight.grad is None


def test_operations_are_counted():
    layer = Linear(4, 3)
    with FlopCounterMode(display=False) as counter:
        layer(torch.ones(2, 5, 4, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 10 * 4 * 3


@pytest.mark.parametrize("missing", ["product", "weight gradient"])
def test_without_onednns_operators_there_is_no_onednn(monkeypatch, missing):
    without = SimpleNamespace(mkldnn=torch.ops.mkldnn, aten=torch.ops.aten)
    setattr(without, "mkldnn" if missing == "product" else "aten", SimpleNamespace())
    with monkeypatch.context() as patches:
        patches.setattr(torch, "ops", without)
        assert linear._onednn() is None


@pytest.mark.parametrize(
    ("capability", "maker", "taken"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("DEFAULT", "AuthenticAMD", False),
    ],
)
@pytest.mark.parametrize("system", ["Linux", "another"])
def test_onednn_is_taken_where_it_is_faster(monkeypatch, capability, maker, taken, system):
    def cpuinfo(path, **_):
        if system != "Linux":
            raise FileNotFoundError(path)
        return f"processor\t: 0\nvendor_id\t: {maker}\n"

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(linear.Path, "read_text", cpuinfo)
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", f"a family, {maker}")
    monkeypatch.setattr(linear.platform, "processor", str)
    assert linear._faster() == (linear._onednn() if taken else None)


def test_pytorchs_product_is_nn_linear(monkeypatch):
    monkeypatch.setattr(linear, "_ONEDNN", None)
    layer, states = Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    result = layer(states)
    assert torch.equal(result, nn.functional.linear(states, layer.weight, layer.bias))
    assert type(result.grad_fn).__name__ == "AddmmBackward0"


@pytest.mark.parametrize(
    ("states", "message"),
    [(torch.ones(2, 5), "shapes cannot be multiplied"), (torch.ones(2, 4, dtype=torch.float64), "dtype")],
    ids=["width", "dtype"],
)
def test_what_does_not_fit_gets_pytorchs_message(states, message):
    with pytest.raises(RuntimeError, match=message):
        Linear(4, 3)(states)


def test_other_weights_than_states_get_pytorchs_message():
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(4, 3).bfloat16()(torch.ones(2, 4))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_gradients_the_numbers_are_the_same_to_the_bit(mode, dropout):
    layer = TransformerLayer(LayerOptions(dim=24, heads=2, ffn_dim=40, hidden_dropout=dropout, attention_dropout=0.0))
    states, lengths = torch.randn(3, 7, 24), torch.tensor([7, 2, 5])
    torch.manual_seed(0)
    with_gradients = layer(states, lengths, True)
    torch.manual_seed(0)
    with mode():
        without = layer(states, lengths, True)
    assert with_gradients[0].requires_grad
    assert torch.equal(without[0], with_gradients[0])
    assert all(torch.equal(one, other) for one, other in zip(without[1], with_gradients[1], strict=True))


def test_forward_mode_derivatives_are_right_or_refused_without_gradients_too(products):
    """oneDNN's product has none; without the refusal they would be zeros."""
    layer, states, tangent = Linear(64, 64), torch.randn(512, 64), torch.randn(512, 64)
    with torch.no_grad():
        if products == "PyTorch":
            _, derivative = torch.func.jvp(layer, (states,), (tangent,))
            assert error(derivative, tangent.double() @ layer.weight.double().T) < 1e-6
            return
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.func.jvp(layer, (states,), (tangent,))
