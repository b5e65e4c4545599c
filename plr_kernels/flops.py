"""Floating-point operations of the fused operators, for torch.utils.flop_counter.FlopCounterMode.

Two per multiply-add of a matrix product, as PyTorch counts its own operators. A backward pass counts the scores, which
it computes anew, and one product for each gradient that is wanted.
"""

from __future__ import annotations

from torch import ops
from torch.utils.flop_counter import register_flop_formula


def _attention_product(query: tuple[int, ...], prefix_key: tuple[int, ...], stream_key: tuple[int, ...]) -> int:
    """Every query with every key that it may see."""
    batch, heads, streams, dim = query
    return 2 * batch * heads * streams * (prefix_key[2] + stream_key[3]) * dim


@register_flop_formula(ops.plr_kernels.stream_attention_forward)
def _stream_attention_forward(query, prefix_key, prefix_value, stream_key, *_, **__) -> int:
    return 2 * _attention_product(query, prefix_key, stream_key)


@register_flop_formula(ops.plr_kernels.stream_attention_backward)
def _stream_attention_backward(output_gradient, query, prefix_key, prefix_value, stream_key, *_, **__) -> int:
    # Scores, weights' gradient, and the gradients of queries, keys and values.
    return 5 * _attention_product(query, prefix_key, stream_key)


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
