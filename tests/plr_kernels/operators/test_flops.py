"""FlopCounterMode sees the fused operators: counted on the meta device by their fake implementations' shapes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plr_kernels  # noqa: F401, registers the operators


def meta(*shape):
    return torch.empty(shape, device="meta")


def counted(operator, *arguments):
    with FlopCounterMode(display=False) as counter:
        getattr(torch.ops.plr_kernels, operator)(*arguments)
    return counter.get_total_flops()


ROWS, ITEMS, DIM = 12, 7, 5
PRODUCT = 2 * ROWS * ITEMS * DIM


@pytest.mark.parametrize(("needs", "products"), [((True, True), 3), ((False, True), 2)])
def test_losses(needs, products):
    states, items, targets = meta(ROWS, DIM), meta(ITEMS, DIM), meta(ROWS).long()
    groups = states.view(3, 4, DIM)
    view1, view2 = meta(2, 6, DIM), meta(2, 6, DIM)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert counted("pairwise_kl_forward", groups, items, 1.0, False, "triton") == PRODUCT
        assert counted("linear_cross_entropy_forward", states, items, targets, 1.0, -100, "triton") == PRODUCT
        assert counted("info_nce_forward", view1, view2, None, 1.0, "triton") == 2 * 2 * 6 * 6 * DIM
        assert counted("top_items_forward", states, items, 3, None, "triton") == PRODUCT
        assert counted("target_rank_forward", states, items, targets, None, "triton") == PRODUCT
        log_weights = meta(3, 4)
        mixture = (groups, log_weights, items)
        assert counted("top_mixture_items_forward", *mixture, 3, 1.0, None, "cpp") == PRODUCT
        assert counted("target_mixture_rank_forward", *mixture, targets[:3], 1.0, None, "cpp") == 2 * PRODUCT
        views, of_views = (meta(3, 2, 2, DIM), meta(3, 2, 2), items), (targets[:3], targets[:3])
        wanted = (needs[0], True, needs[1])
        options = (0.5, 1.0, -100, 64, wanted, "cpp")
        made = counted("consistent_mixture_cross_entropy_with_gradients", *views, *of_views, *options)
        assert made == products * PRODUCT
        arguments = (groups, items, meta(5, 3, 4), meta(3, 4).long(), 1.0, False)
        assert counted("pairwise_kl_backward", meta(), *arguments, *needs, "triton") == products * PRODUCT
        arguments = (states, items, targets, meta(3, ROWS), 1.0, -100)
        assert counted("linear_cross_entropy_backward", meta(ROWS), *arguments, *needs, "triton") == products * PRODUCT
        listed = (states, items, targets, meta(4).long(), None)
        options = ("softmax", 1.0, 1.0, -100)
        product = 2 * ROWS * (4 + 1) * DIM
        assert counted("candidate_cross_entropy_forward", *listed, *options, "cpp") == product
        arguments = (*listed, meta(1, 4, 32), meta(ROWS), *options)
        backward = counted("candidate_cross_entropy_backward", meta(ROWS), *arguments, *needs, "cpp")
        assert backward == (products - 1) * product


def test_stream_attention():
    query, prefix, suffix = meta(2, 3, 4, DIM), meta(2, 3, 6, DIM), meta(2, 3, 4, 1, DIM)
    product = 2 * 2 * 3 * 4 * (6 + 1) * DIM
    tensors = (query, prefix, prefix, suffix, suffix)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert counted("stream_attention_forward", *tensors, None, None, 1.0, 0.0, "triton") == 2 * product
        arguments = (*tensors, None, None, meta(2, 3, 4), 1.0, 0.0, [True] * 5, "triton")
        assert counted("stream_attention_backward", query, *arguments) == 5 * product


def test_stream_attention_counts_what_its_lengths_let_it_see():
    pytest.importorskip("plr_kernels._cpp", reason="the extension is not built")
    query, prefix, suffix = torch.randn(2, 3, 4, DIM), torch.randn(2, 3, 6, DIM), torch.randn(2, 3, 4, 1, DIM)
    tensors = (query, prefix, prefix, suffix, suffix)
    own = 2 * 4 * 1  # entries of the streams, of one head
    for lengths, seen in (([6, 2], 4 * (6 + 2)), ([[1, 1, 2, 3], [0, 4, 5, 6]], 7 + 15)):
        product = 2 * 3 * (seen + own) * DIM
        given = torch.tensor(lengths)
        assert counted("stream_attention_forward", *tensors, given, None, 1.0, 0.0, "cpp") == 2 * product
        arguments = (*tensors, given, None, torch.zeros(2, 3, 4), 1.0, 0.0, [True] * 5, "cpp")
        assert counted("stream_attention_backward", query, *arguments) == 5 * product
