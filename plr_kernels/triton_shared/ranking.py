"""What the Triton kernels share that rank items: tiles of scores, by dot products or under mixtures of streams.

An item's score depends on the row's states and the item's vector, not on their places in a tile, nor on the tile: items
with equal vectors tie, and a target's score in a tile of its own is that in any other.

A mixture's score is log2 Σ_m 2^(o_m + scale · d_m), with d_m the product of the row's stream m and the item, scale =
log2(e) / temperature and o_m = log2(weight_m) − Z_m, Z_m being log2 Σ 2^(scale · d_m) over all items.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared import launch, scores
from plr_kernels.triton_shared.helpers import LOG2_E, LOWEST, Strided, load_tile, merge_partial_softmax, strided

_LOG2_E = tl.constexpr(LOG2_E)


class Mixture(NamedTuple):
    """The mixtures of all rows: offsets o [R, M], M, and the scale of the products."""

    offsets: Any
    streams: Any
    scale: Any


@triton.jit
def vector_offsets(states, rows, stream):
    """Where the vectors of some rows begin, all of the same stream, or each of its own; states [R, M, D]."""
    return rows.to(tl.int64) * states.strides[0] + tl.cast(stream, tl.int64) * states.strides[1]


@triton.jit
def dot_products(
    states,
    vectors,
    row_mask,
    items,
    numbers,
    item_mask,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A tile of products [rows, items] of the vectors that begin at `vectors` and of numbered items."""
    products = tl.zeros([vectors.shape[0], numbers.shape[0]], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        h_mask, e_mask = row_mask[:, None] & (columns < D)[None, :], item_mask[:, None] & (columns < D)[None, :]
        h = load_tile(states.data, vectors, 1, columns, states.strides[2], h_mask)  # [rows, BLOCK_D]
        e = load_tile(items.data, numbers, items.strides[0], columns, items.strides[1], e_mask)  # [items, BLOCK_D]
        products = tl.dot(h, tl.trans(e), acc=products, input_precision=PRECISION)
    return products


@triton.jit
def log2_probabilities(
    states,
    mixture,
    rows,
    row_mask,
    items,
    numbers,
    item_mask,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The scores of a tile [rows, items] under the rows' mixtures."""
    result = tl.full([rows.shape[0], numbers.shape[0]], float("-inf"), tl.float32)
    for m in range(mixture.streams):
        vectors = vector_offsets(states, rows, m)
        products = dot_products(states, vectors, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
        offsets = tl.load(mixture.offsets + rows * mixture.streams + m, mask=row_mask, other=0.0)
        terms = products * mixture.scale + offsets[:, None]
        m_new = tl.maximum(tl.maximum(result, terms), LOWEST)
        result = m_new + tl.log2(tl.exp2(result - m_new) + tl.exp2(terms - m_new))
    return result


@triton.jit
def relative_probabilities(
    states,
    mixture,
    reference,
    rows,
    row_mask,
    items,
    numbers,
    item_mask,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The probabilities of a tile [rows, items] over 2^reference [rows]; and 1 where a product is not finite, else 0.

    Near 1, where they are compared, they tell more apart than logarithms would.
    """
    result = tl.zeros([rows.shape[0], numbers.shape[0]], tl.float32)
    not_finite = tl.zeros([rows.shape[0], numbers.shape[0]], tl.int32)
    for m in range(mixture.streams):
        vectors = vector_offsets(states, rows, m)
        products = dot_products(states, vectors, row_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
        offsets = tl.load(mixture.offsets + rows * mixture.streams + m, mask=row_mask, other=0.0)
        logits = products * mixture.scale
        result += tl.exp2(logits + (offsets - reference)[:, None])
        not_finite = tl.maximum(not_finite, is_not_finite(logits))
    return result, not_finite


@triton.jit
def is_not_finite(numbers):
    """int32: 1 for NaN and infinite numbers, else 0."""
    return (numbers * 0.0 != 0.0).to(tl.int32)


@triton.jit(do_not_specialize=["parts_count", "all_states", "M"])
def _offsets_kernel(
    parts,
    log_weights,
    log_weights_strides,
    offsets,
    parts_count,
    all_states,
    M,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """o of every stream, from maximum and sum over parts of the items."""
    log_weights = Strided(log_weights, log_weights_strides)
    numbers = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = numbers < all_states
    m, total = merge_partial_softmax(parts, parts_count, tl.cast(all_states, tl.int64), numbers, mask, BLOCK_S)
    row, stream = numbers // M, numbers % M
    weights = log_weights.data + row * log_weights.strides[0] + stream * log_weights.strides[1]
    log_weight = tl.load(weights, mask=mask, other=0.0).to(tl.float32)
    tl.store(offsets + numbers, log_weight * _LOG2_E - (m + tl.log2(total)), mask=mask)


def offsets_of_parts(parts: Tensor, log_weights: Tensor) -> Tensor:
    """o of every stream [R, M], from the maximum and Σ 2^(s − maximum) over parts of the items: [2, parts, R · M]."""
    rows, streams = log_weights.shape
    offsets = log_weights.new_empty((rows, streams), dtype=torch.float32)
    options = launch.mixture_offsets()
    with torch.cuda.device_of(log_weights):
        _offsets_kernel[(launch.blocks(rows * streams, options["BLOCK_R"]),)](
            parts, *strided(log_weights), offsets, parts.shape[1], rows * streams, streams, **options
        )
    return offsets


def mixture_offsets(states: Tensor, log_weights: Tensor, items: Tensor, temperature: float) -> Tensor:
    """o of every stream [R, M]: one sweep of the items for all R · M states."""
    rows, streams, dim = states.shape
    targets = states.new_full((rows * streams,), -1, dtype=torch.int64)  # no item is the target of any
    parts, _ = scores.forward(states.reshape(rows * streams, 1, dim), items, temperature, targets, -2)
    return offsets_of_parts(parts.flatten(2), log_weights)


def logit_scale(temperature: float) -> float:
    """The scale of the products, for logits in units of log2."""
    return LOG2_E / temperature
