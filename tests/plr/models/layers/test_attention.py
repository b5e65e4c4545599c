"""Attention with dropout of its weights against its formula in float64, with the same mask."""

import copy

import pytest
import torch
from torch.nn import functional

from plr.models.layers import attention, linear
from plr.models.layers.attention import keys_values, sequence_attention, split_heads
from plr.models.layers.dropout import keep_mask, keep_scale, levels
from plr.models.layers.linear import Linear

P = 0.3
B, H, L, D = 3, 2, 7, 5
LENGTHS = torch.tensor([7, 1, 4])
PADDING = (torch.arange(L) < LENGTHS[:, None])[:, None, None, :]  # [B, 1, 1, L]


def formula(query, key, value, keep, mask, is_causal):
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    allowed = torch.ones(L, L).tril().bool() if is_causal else torch.ones(L, L).bool()
    if mask is not None:
        allowed = allowed & mask
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return (weights * keep * keep_scale(levels(P))) @ value


def inputs():
    """Query, key and value as the layer has them: heads side by side, key and value in one tensor."""
    torch.manual_seed(0)
    query, key_value = torch.randn(B, L, H * D), torch.randn(B, L, 2 * H * D)
    key, value = key_value.chunk(2, dim=-1)
    return [part.unflatten(-1, (H, D)).transpose(1, 2).requires_grad_() for part in (query, key, value)]


def results(run, tensors, weights):
    attended = run(*tensors)
    return [attended, *torch.autograd.grad((attended * weights).sum(), tensors)]


def error(result, truth):
    return float((result.detach().double() - truth.detach()).abs().max() / truth.detach().abs().max())


@pytest.mark.parametrize(("mask", "is_causal"), [(None, True), (PADDING, False), (None, False)])
def test_results_and_gradients_are_those_of_float64(mask, is_causal):
    tensors, weights = inputs(), torch.randn(B, H, L, D)
    torch.manual_seed(1)
    keep = keep_mask((H, B, L, L), levels(P)).transpose(0, 1)
    torch.manual_seed(1)
    mine = results(lambda *qkv: sequence_attention(*qkv, mask=mask, is_causal=is_causal, dropout_p=P), tensors, weights)

    def plain(dtype):
        copies = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        return results(lambda *qkv: formula(*qkv, keep.to(dtype), mask, is_causal), copies, weights.to(dtype))

    for result, single, truth in zip(mine, plain(torch.float32), plain(torch.float64), strict=True):
        # Sums in another order err by as much as the formula's own in float32.
        assert error(result, truth) <= 4 * max(error(single, truth), torch.finfo(torch.float32).eps)


def test_keys_beyond_the_mask_get_no_gradient():
    tensors = inputs()
    attended = sequence_attention(*tensors, mask=PADDING, is_causal=False, dropout_p=P)
    _, key, value = torch.autograd.grad(attended.sum(), tensors)
    padded = ~PADDING.transpose(2, 3)
    assert not (key * padded).any()
    assert not (value * padded).any()


def test_masks_are_drawn_from_the_global_generator():
    tensors = inputs()

    def run():
        return sequence_attention(*tensors, mask=None, is_causal=True, dropout_p=P)

    torch.manual_seed(3)
    first, second = run(), run()
    torch.manual_seed(3)
    assert torch.equal(run(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("dtype", "dropout_p"), [(torch.float32, 0.0), (torch.float64, P)])
def test_all_else_is_pytorchs(monkeypatch, dtype, dropout_p):
    monkeypatch.setattr(attention, "_Attention", None)
    tensors = [tensor.detach().to(dtype) for tensor in inputs()]
    torch.manual_seed(0)
    attended = sequence_attention(*tensors, mask=PADDING, is_causal=False, dropout_p=dropout_p)
    torch.manual_seed(0)
    expected = functional.scaled_dot_product_attention(*tensors, attn_mask=PADDING, dropout_p=dropout_p)
    assert torch.equal(attended, expected)


@pytest.mark.parametrize("of", [torch.square, torch.neg])  # whose gradient depends on the inputs, and does not
def test_second_derivatives_are_refused(of):
    tensors = inputs()
    attended = sequence_attention(*tensors, mask=None, is_causal=True, dropout_p=P)
    (gradient,) = torch.autograd.grad(of(attended).sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_second_derivatives_of_keys_and_values_are_refused():
    states = torch.randn(B, L, 6, requires_grad=True)
    key, value = keys_values(states, Linear(6, 2 * H * D), heads=H)
    (gradient,) = torch.autograd.grad(key.sum() + value.sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@pytest.mark.parametrize("used", [(0, 1), (1,)])
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (2, 20)])
def test_keys_and_values_and_their_gradients_are_those_of_float64(monkeypatch, shape, used):
    monkeypatch.setattr(linear, "_BLOCK_ROWS", 16)
    torch.manual_seed(0)
    projection, states, weights = Linear(6, 2 * H * D), torch.randn(*shape, 6), torch.randn(2, *shape, H * D)

    def results(project, dtype):
        layer = copy.deepcopy(projection).to(dtype)
        leaf = states.detach().to(dtype).requires_grad_()
        parts = project(layer, leaf)
        loss = sum((parts[part] * split_heads(weights[part].to(dtype), H)).sum() for part in used)
        return [*parts, *torch.autograd.grad(loss, [leaf, *layer.parameters()])]

    def plain(layer, leaf):
        return [split_heads(half, H) for half in functional.linear(leaf, layer.weight, layer.bias).chunk(2, dim=-1)]

    mine = results(lambda layer, leaf: keys_values(leaf, layer, H), torch.float32)
    for result, single, truth in zip(mine, results(plain, torch.float32), results(plain, torch.float64), strict=True):
        assert error(result, truth) <= 4 * max(error(single, truth), torch.finfo(torch.float32).eps)


def test_a_frozen_projection_gets_no_gradient():
    projection, states = Linear(6, 2 * H * D).requires_grad_(False), torch.randn(2, 3, 6, requires_grad=True)
    key, value = keys_values(states, projection, H)
    (key.sum() + value.sum()).backward()
    torch.testing.assert_close(states.grad, projection.weight.sum(dim=0).expand(2, 3, 6))
    assert projection.weight.grad is None
