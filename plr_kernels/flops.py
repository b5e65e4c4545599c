"""Floating-point operations of the fused operators, for torch.utils.flop_counter.FlopCounterMode.

Two per multiply-add of a matrix product, as PyTorch counts its own operators. A backward pass counts the scores, which
it computes anew, and one product for each gradient that is wanted; where the forward pass makes the gradients, it
counts one product and these. Prefix entries beyond a query's length are not read, and not counted.
"""

from __future__ import annotations

from torch import Tensor, ops
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula


def _attention_product(query: Tensor, prefix_key: Tensor, stream_key: Tensor, prefix_lengths: Tensor | None) -> int:
    """Every query with every key that it sees: the lengths are read, where they have values."""
    batch, heads, streams, dim = query.shape
    prefix_entries = batch * streams * prefix_key.shape[2]  # of one head
    if (
        prefix_lengths is not None
        and prefix_lengths.device.type != "meta"
        and not isinstance(prefix_lengths, FakeTensor)
    ):
        prefix_entries = int(prefix_lengths.sum()) * (streams if prefix_lengths.ndim == 1 else 1)
    return 2 * heads * (prefix_entries + batch * streams * stream_key.shape[3]) * dim


@register_flop_formula(ops.plr_kernels.stream_attention_forward, get_raw=True)
def _stream_attention_forward(query, prefix_key, prefix_value, stream_key, stream_value, prefix_lengths, *_, **__):
    return 2 * _attention_product(query, prefix_key, stream_key, prefix_lengths)


@register_flop_formula(ops.plr_kernels.stream_attention_backward, get_raw=True)
def _stream_attention_backward(
    output_gradient, query, prefix_key, prefix_value, stream_key, stream_value, prefix_lengths, *_, **__
):
    # Scores, weights' gradient, and the gradients of queries, keys and values.
    return 5 * _attention_product(query, prefix_key, stream_key, prefix_lengths)


def _product(states: tuple[int, ...], items: tuple[int, ...]) -> int:
    """Every state with every item of its group, or of all where there are no groups of items."""
    rows = 1
    for size in states[:-1]:
        rows *= size
    return 2 * rows * items[-2] * states[-1]


@register_flop_formula(
    [
        ops.plr_kernels.pairwise_kl_forward,
        ops.plr_kernels.linear_cross_entropy_forward,
        ops.plr_kernels.info_nce_forward,
        ops.plr_kernels.top_items_forward,
        ops.plr_kernels.target_rank_forward,
    ]
)
def _forward(states, items, *_, **__) -> int:
    return _product(states, items)


@register_flop_formula(ops.plr_kernels.top_mixture_items_forward)
def _top_mixture_items_forward(states, log_weights, items, *_, **__) -> int:
    # One sweep of the items. How many rows take a second one depends on the values.
    return _product(states, items)


@register_flop_formula(ops.plr_kernels.target_mixture_rank_forward)
def _target_mixture_rank_forward(states, log_weights, items, *_, **__) -> int:
    return 2 * _product(states, items)  # one sweep for the streams' normalisers, one for the counts


@register_flop_formula(
    [
        ops.plr_kernels.pairwise_kl_backward,
        ops.plr_kernels.linear_cross_entropy_backward,
        ops.plr_kernels.info_nce_backward,
    ]
)
def _backward(loss_gradient, states, items, *options, **__) -> int:
    # The last two flags say which gradients are wanted.
    needs = [option for option in options if isinstance(option, bool)][-2:]
    return (1 + sum(needs)) * _product(states, items)


@register_flop_formula(
    [ops.plr_kernels.pairwise_kl_with_gradients, ops.plr_kernels.linear_cross_entropy_with_gradients]
)
def _with_gradients(states, items, *options, **__) -> int:
    needs = options[-2]  # of states and items
    return (1 + sum(needs)) * _product(states, items)


@register_flop_formula(
    [
        ops.plr_kernels.mixture_cross_entropy_with_gradients,
        ops.plr_kernels.consistent_mixture_cross_entropy_with_gradients,
    ]
)
def _mixture_with_gradients(states, log_weights, items, *options, **__) -> int:
    of_states, _, of_items = options[-2]
    return (1 + of_states + of_items) * _product(states, items)


def _candidate_product(states: tuple[int, ...], candidates: tuple[int, ...]) -> int:
    """Every state with its target and its candidates."""
    return 2 * states[0] * states[1] * (candidates[-1] + 1)


@register_flop_formula(ops.plr_kernels.candidate_cross_entropy_forward)
def _candidate_forward(states, items, targets, candidates, *_, **__) -> int:
    return _candidate_product(states, candidates)


@register_flop_formula(ops.plr_kernels.candidate_cross_entropy_backward)
def _candidate_backward(losses_gradient, states, items, targets, candidates, *options, **__) -> int:
    # What the forward pass keeps serves: a product for each gradient.
    needs = [option for option in options if isinstance(option, bool)][-2:]
    return sum(needs) * _candidate_product(states, candidates)
