"""What the Triton kernels share that rank items: tiles of scores, by dot products or under mixtures of streams.

An item's score depends on the row's states and the item's vector, not on their places in a tile, nor on the tile: items
with equal vectors tie, and a target's score in a tile of its own is that in any other.

A mixture's score is log2 Σ_m 2^(o_m + scale · (d_m − peak_m)), with d_m the product of the row's stream m and the item,
peak_m the largest of all items, scale = log2(e) / temperature, and o_m = log2(weight_m) − log2 of the sum of
2^(scale · (d_m − peak_m)) over all items. Differences come first: scaled, large products would overflow or lose their
last digits.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import (
    LOG2_E,
    LOWEST,
    Strided,
    dot_precision,
    load_tile,
    merge_partial_softmax,
    part_of_items,
    strided,
)

_LOG2_E = tl.constexpr(LOG2_E)


class Mixture(NamedTuple):
    """The mixtures of all rows: peaks and offsets o [R, M], M, and the scale of the products."""

    peaks: Any
    offsets: Any
    streams: Any
    scale: Any


class Exclusion(NamedTuple):
    """The ids [R, X] that rows leave out: address, strides, X."""

    data: Any
    row_stride: Any
    column_stride: Any
    count: Any


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
        of_stream = rows * mixture.streams + m
        peaks = tl.load(mixture.peaks + of_stream, mask=row_mask, other=0.0)
        offsets = tl.load(mixture.offsets + of_stream, mask=row_mask, other=0.0)
        terms = (products - peaks[:, None]) * mixture.scale + offsets[:, None]
        result = log2_sum(result, terms)
    return result


@triton.jit
def log2_sum(left, right):
    """log2(2^left + 2^right), of −∞ too."""
    m = tl.maximum(tl.maximum(left, right), LOWEST)
    return m + tl.log2(tl.exp2(left - m) + tl.exp2(right - m))


@triton.jit
def is_not_finite(numbers):
    """int32: 1 for NaN and infinite numbers, else 0."""
    return (numbers * 0.0 != 0.0).to(tl.int32)


@triton.jit
def update_softmax(peak, total, products, item_mask, scale):
    """The largest product of each row and Σ 2^(scale · (product − largest)), with those of a tile [rows, items]."""
    products = tl.where(item_mask[None, :], products, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(products, 1))
    total = total * tl.exp2((peak - new_peak) * scale) + tl.sum(tl.exp2((products - new_peak[:, None]) * scale), 1)
    return new_peak, total


@triton.jit
def store_softmax(parts, states_count, numbers, mask, peak, total):
    """What `update_softmax` found in this program's part of the items, into parts [2, parts, R · M]."""
    place = parts + tl.program_id(1) * states_count + numbers
    tl.store(place, peak, mask=mask)
    tl.store(place + tl.num_programs(1) * states_count, total, mask=mask)


@triton.jit
def load_excluded(exclusion, rows, row_mask, first, BLOCK_X: tl.constexpr):
    """Excluded ids [rows, BLOCK_X] of each row, from number `first` on."""
    columns = first + tl.arange(0, BLOCK_X)
    offsets = rows[:, None] * exclusion.row_stride + columns.to(tl.int64)[None, :] * exclusion.column_stride
    mask = row_mask[:, None] & (columns < exclusion.count)[None, :]
    return tl.load(exclusion.data + offsets, mask=mask, other=-1)


@triton.jit
def check_excluded(exclusion, rows, row_mask, V, BLOCK_X: tl.constexpr):
    """Assert that all excluded ids of some rows are the items', or padding."""
    for first in range(0, exclusion.count, BLOCK_X):
        ids = load_excluded(exclusion, rows, row_mask, first, BLOCK_X)
        tl.device_assert((ids >= -1) & (ids < V), "exclude must be in [0, V), or -1 as padding")


@triton.jit(do_not_specialize=["scale", "per_split", "R", "M", "V"])
def _softmax_kernel(
    states,
    states_strides,
    items,
    items_strides,
    parts,
    scale,
    per_split,
    R,
    M,
    V,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of every state [R, M, D] and a part of the items (`per_split` blocks), what `update_softmax` finds."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    states_count = tl.cast(R, tl.int64) * M
    numbers_of_states = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    state_mask = numbers_of_states < states_count
    vectors = vector_offsets(states, numbers_of_states // M, numbers_of_states % M)
    peak = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    first, last = part_of_items(per_split, V, BLOCK_V)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        products = dot_products(states, vectors, state_mask, items, numbers, item_mask, D, PRECISION, BLOCK_D)
        peak, total = update_softmax(peak, total, products, item_mask, scale)
    store_softmax(parts, states_count, numbers_of_states, state_mask, peak, total)


@triton.jit(do_not_specialize=["scale", "parts_count", "all_states", "M"])
def _mixture_kernel(
    parts,
    log_weights,
    log_weights_strides,
    peaks,
    offsets,
    scale,
    parts_count,
    all_states,
    M,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Peak and o of every stream, from those of parts of the items."""
    log_weights = Strided(log_weights, log_weights_strides)
    numbers = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = numbers < all_states
    all_states = tl.cast(all_states, tl.int64)
    peak, total = merge_partial_softmax(parts, parts_count, all_states, numbers, mask, scale, BLOCK_S)
    weights = log_weights.data + numbers // M * log_weights.strides[0] + numbers % M * log_weights.strides[1]
    log_weight = tl.load(weights, mask=mask, other=0.0).to(tl.float32)
    tl.store(peaks + numbers, peak, mask=mask)
    tl.store(offsets + numbers, log_weight * _LOG2_E - tl.log2(total), mask=mask)


def exclusion_arguments(exclude: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The ids and their strides."""
    return (None, 0, 0) if exclude is None else (exclude, exclude.stride(0), exclude.stride(1))


def mask_argument(where: Tensor | None) -> Tensor | None:
    """A mask of the items, bool [V], as kernels read it: a byte each, side by side."""
    return None if where is None else where.contiguous().view(torch.uint8)


def excluded_columns(exclude: Tensor | None) -> int:
    """X."""
    return 0 if exclude is None else exclude.shape[1]


def mixture_of_parts(parts: Tensor, log_weights: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Peaks and offsets o of every stream [R, M], from those of parts of the items: [2, parts, R · M]."""
    rows, streams = log_weights.shape
    peaks, offsets = (parts.new_empty((rows, streams)) for _ in range(2))
    options = launch.mixture_statistics()
    with torch.cuda.device_of(parts):
        _mixture_kernel[(launch.blocks(rows * streams, options["BLOCK_R"]),)](
            parts,
            *strided(log_weights),
            peaks,
            offsets,
            scale,
            parts.shape[1],
            rows * streams,
            streams,
            **options,
        )
    return peaks, offsets


def mixture_statistics(states: Tensor, log_weights: Tensor, items: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Peaks and offsets o of every stream [R, M]: one sweep of the items for all R · M states."""
    rows, streams, dim = states.shape
    options = launch.ranks(rows * streams, states.element_size())
    state_blocks, per_split, splits = launch.sweep(rows * streams, items.shape[0], options)
    parts = states.new_empty((2, splits, rows * streams), dtype=torch.float32)
    with torch.cuda.device_of(states):
        _softmax_kernel[(state_blocks, splits)](
            *strided(states),
            *strided(items),
            parts,
            scale,
            per_split,
            rows,
            streams,
            items.shape[0],
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
    return mixture_of_parts(parts, log_weights, scale)


def logit_scale(temperature: float) -> float:
    """The scale of the products, for logits in units of log2: above zero and finite in float32."""
    limits = torch.finfo(torch.float32)
    return min(max(LOG2_E / temperature, limits.tiny), limits.max)
