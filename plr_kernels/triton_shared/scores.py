"""Triton kernels for losses of the scores of all items: what pairwise_kl and linear_cross_entropy share.

Rows of states come in groups [B, N, D], all rows of a group in one tile, padded to GROUP = the next power of two of N;
a loss without groups has N = 1. A tile of scores is one product of a block of rows and a block of items, and nothing
larger than a tile is ever stored. The forward pass keeps a few numbers per row; the backward pass computes the scores
anew, once for the gradient of the states and once for that of the items, each summed in float32 by the one program that
owns those rows or items. Where that would occupy too few programs, the sum is split and the parts are added in a fixed
order, so that results are the same in every run.

Scores are held in units of log2, since the hardware's exponential is 2^x.

One entry per row is treated apart: of the cross-entropy the target, of the divergence the argmax, the first item with
the largest score. Where a distribution is near one-hot, the gradient there is a small difference of numbers that are
not (csrc/pairwise_kl.cpp has the formulas). So the sums leave that entry out, and give its gradient without
cancellation.

Sizes in comments: R rows and V items of a tile.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import (
    LN_2,
    LOG2_E,
    LOWEST,
    Strided,
    dot_precision,
    load_tile,
    part_of_items,
    strided,
)

# All states of a group share a tile of scores.
LARGEST_GROUP = 128

CROSS_ENTROPY_STATISTICS = tl.constexpr(4)  # columns of a row, of `Columns`
DIVERGENCE_STATISTICS = tl.constexpr(8)  # a power of two: the last is not read
NO_ITEM = tl.constexpr(-0x40800000)  # the bits of -1.0: others might be those of a NaN, which equals nothing


class Columns(NamedTuple):
    """What is kept of a row for the backward pass, side by side: one address serves all of them.

    The numbers come from `statistics_columns`, not from constants of the module: at every launch Triton compares each
    constant that a kernel mentions, which takes more than a microsecond.
    """

    maximum: Any  # m, the largest score
    inverse_sum: Any  # 1 / Σ 2^(s − m)
    prob_of_rest: Any  # 1 − p of the entry treated apart, without cancellation
    entry: Any  # that entry: int32 in the bits of a float32, NO_ITEM where there is none
    mean_deviation: Any  # of a divergence: r̄ = Σ p r
    argmax_deviation: Any  # r̄ − r at the argmax
    shared_argmax: Any  # the argmax that all rows of the group share, in bits as above


class Group(NamedTuple):
    """The rows that share a group: 1/N, N, N padded to a power of two, and whether that is more than N.

    To be made where it is passed: a tuple that is given a name loses its constants, which become tensors.
    """

    inverse_size: Any
    size: Any
    padded_size: Any
    padded: Any


class Vectors(NamedTuple):
    """A block of vectors in memory: the table's address, where each begins, which exist, the distance of columns."""

    data: Any
    offsets: Any
    exist: Any
    column_stride: Any


class PartialDivergence(NamedTuple):
    """What is known of a row's divergence from some of the items, with t = s − m.

    r is the difference of t from its mean over the group.
    """

    m: Any  # the largest score, LOWEST before the first item
    total: Any  # Σ 2^t without the argmax
    deviation: Any  # Σ 2^t (r − r of the argmax)
    argmax_r: Any  # r of the argmax
    argmax: Any


class RowStatistics(NamedTuple):
    """What `_score_gradient` takes of each row; the names of the columns above say more."""

    maximum: Any
    inverse_sum: Any
    prob_of_rest: Any
    entry: Any
    weight_or_mean: Any  # the weight of a row's cross-entropy, the mean deviation of a divergence
    argmax_deviation: Any
    shared_argmax: Any


@triton.jit
def statistics_columns():
    """The number of each column of the statistics."""
    return Columns(0, 1, 2, 3, 4, 5, 6)


@triton.jit
def tile_rows(block, B, N, GROUP: tl.constexpr, BLOCK_R: tl.constexpr):
    """Of a tile's rows: group and member, which of them exist, and their number in [0, B·N)."""
    local = tl.arange(0, BLOCK_R)
    group = tl.cast(block, tl.int64) * (BLOCK_R // GROUP) + local // GROUP
    member = local % GROUP
    return group, member, (group < B) & (member < N), group * N + member


@triton.jit
def _row_vectors(states, group, member, exist):
    """The vectors of a tile's rows in states [B, N, D]."""
    offsets = group * states.strides[0] + member.to(tl.int64) * states.strides[1]
    return Vectors(states.data, offsets, exist, states.strides[2])


@triton.jit
def _item_vectors(items, numbers, exist):
    """The vectors of numbered items [V, D]."""
    return Vectors(items.data, numbers.to(tl.int64) * items.strides[0], exist, items.strides[1])


@triton.jit
def _load_vectors(vectors, columns, D: tl.constexpr):
    """Some columns of a block of vectors, zero in vectors that do not exist and columns beyond D."""
    mask = vectors.exist[:, None] & (columns < D)[None, :]
    return load_tile(vectors.data, vectors.offsets, 1, columns, vectors.column_stride, mask)


@triton.jit
def _products(left_tile, right_tile, left, right, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr):
    """All products of two blocks of vectors: from their tiles where BLOCK_D is all D columns, else read in blocks."""
    if D <= BLOCK_D:
        products = tl.dot(left_tile, tl.trans(right_tile), input_precision=PRECISION)
    else:
        products = tl.zeros([left.offsets.shape[0], right.offsets.shape[0]], tl.float32)
        for first in range(0, D, BLOCK_D):
            columns = first + tl.arange(0, BLOCK_D)
            left_block = _load_vectors(left, columns, D)
            right_block = _load_vectors(right, columns, D)
            products = tl.dot(left_block, tl.trans(right_block), acc=products, input_precision=PRECISION)
    return products


@triton.jit
def off_group_mean(tile, group, ROWS_AXIS: tl.constexpr):
    """Of each entry, the difference from the mean over the row's group, for a tile that is 0 in rows that do not exist.

    Exactly 0 where all rows of a group agree: where the sum over N rows divided by N would be rounded, which is where a
    group is padded to a power of two, the mean is taken of the differences from the group's first row. Where N is a
    power of two from 8 on, the sum may be rounded too, in some orders: there the differences would take up to a fifth
    more instructions.
    """
    if ROWS_AXIS == 0:
        grouped = tl.reshape(tile, [tile.shape[0] // group.padded_size, group.padded_size, tile.shape[1]])
        member = tl.arange(0, group.padded_size)[None, :, None]
    else:
        grouped = tl.reshape(tile, [tile.shape[0], tile.shape[1] // group.padded_size, group.padded_size])
        member = tl.arange(0, group.padded_size)[None, None, :]
    if group.padded:
        grouped -= tl.sum(tl.where(member == 0, grouped, 0.0), ROWS_AXIS + 1, keep_dims=True)
        grouped = tl.where(member < group.size, grouped, 0.0)
    grouped -= tl.sum(grouped, ROWS_AXIS + 1, keep_dims=True) * group.inverse_size
    return tl.reshape(grouped, tile.shape)


@triton.jit
def _off_mean_of_rows(numbers, group):
    """The same for one number per row."""
    return tl.reshape(off_group_mean(numbers[:, None], group, 0), numbers.shape)


@triton.jit
def no_items(BLOCK_R: tl.constexpr):
    """The PartialDivergence of rows before the first item."""
    return PartialDivergence(
        tl.full([BLOCK_R], LOWEST, tl.float32),
        tl.zeros([BLOCK_R], tl.float32),
        tl.zeros([BLOCK_R], tl.float32),
        tl.zeros([BLOCK_R], tl.float32),
        tl.zeros([BLOCK_R], tl.int32),
    )


@triton.jit
def merge(left, right, group):
    """The PartialDivergence of two parts of the items together, the right one's items behind the left one's.

    Both with the distances from the larger maximum, then the part with the lower maximum added to the other:
    Σ 2^t counts the lower part's argmax too, which is no longer left out.
    """
    is_first = left.m == LOWEST  # there is no left part
    m_new = tl.maximum(left.m, right.m)
    left_r = left.argmax_r + _off_mean_of_rows(left.m - m_new, group)
    right_r = right.argmax_r + _off_mean_of_rows(right.m - m_new, group)
    right_wins = (right.m > left.m) | is_first
    shrink = tl.where(is_first, 0.0, tl.exp2(tl.where(right_wins, left.m, right.m) - m_new))
    argmax_r = tl.where(right_wins, right_r, left_r)
    lower_total = (1.0 + tl.where(right_wins, left.total, right.total)) * shrink
    lower_offset = tl.where(is_first, 0.0, tl.where(right_wins, left_r, right_r) - argmax_r)
    deviation = tl.where(right_wins, right.deviation, left.deviation)
    deviation += tl.where(right_wins, left.deviation, right.deviation) * shrink + lower_total * lower_offset
    total = tl.where(right_wins, right.total, left.total) + lower_total
    return PartialDivergence(m_new, total, deviation, argmax_r, tl.where(right_wins, right.argmax, left.argmax))


@triton.jit(do_not_specialize=["ignore_index", "per_split", "B", "N", "V"])
def _forward_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    ignore_index,
    parts,
    argmaxes,
    scale,
    inverse_group,
    per_split,
    B,
    N,
    V,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HELD_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of a part of the items (`per_split` blocks), for each row, with t = s − m and m the maximum:

    with targets, m and Σ 2^t, both without the target; without, the fields of PartialDivergence.
    """
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    group, member, row_exists, rows = tile_rows(tl.program_id(0), B, N, GROUP, BLOCK_R)
    counted = row_exists
    target = tl.zeros([BLOCK_R], tl.int32)
    if targets is not None:
        number = tl.load(targets + rows, mask=row_exists, other=ignore_index)
        counted = number != ignore_index
        target = number.to(tl.int32)
    row_vectors = _row_vectors(states, group, member, counted)
    columns = tl.arange(0, HELD_D)
    h = _load_vectors(row_vectors, columns, D)  # [R, HELD_D]
    first, last = part_of_items(per_split, V, BLOCK_V)
    # LOWEST, not −inf: a part of the items may consist of the target alone.
    m = tl.full([BLOCK_R], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    row = no_items(BLOCK_R)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_exists = numbers < last
        item_vectors = _item_vectors(items, numbers, item_exists)
        e = _load_vectors(item_vectors, columns, D)  # [V, HELD_D]
        scores = scale * _products(h, e, row_vectors, item_vectors, D, PRECISION, BLOCK_D)  # [R, V]
        if targets is not None:
            in_sum = item_exists[None, :] & (numbers[None, :] != target[:, None])
            m_new = tl.maximum(m, tl.max(tl.where(in_sum, scores, float("-inf")), 1))
            weights = tl.where(in_sum, tl.exp2(scores - m_new[:, None]), 0.0)
            total = total * tl.exp2(m - m_new) + tl.sum(weights, 1)
            m = m_new
        else:
            item_scores = tl.where(item_exists[None, :], scores, float("-inf"))
            tile_m = tl.max(item_scores, 1)
            tile_argmax = tl.min(tl.where(item_scores == tile_m[:, None], numbers[None, :], V), 1)
            is_argmax = numbers[None, :] == tile_argmax[:, None]
            t = scores - tile_m[:, None]
            r = off_group_mean(t, Group(inverse_group, N, GROUP, PADDED), 0)
            tile_r = tl.sum(tl.where(is_argmax, r, 0.0), 1)
            weights = tl.where(item_exists[None, :] & (is_argmax == 0), tl.exp2(t), 0.0)
            tile_total = tl.sum(weights, 1)
            tile_deviation = tl.sum(weights * (r - tile_r[:, None]), 1)
            tile = PartialDivergence(tile_m, tile_total, tile_deviation, tile_r, tile_argmax)
            row = merge(row, tile, Group(inverse_group, N, GROUP, PADDED))
    all_rows = tl.cast(B, tl.int64) * N
    offsets = tl.program_id(1) * all_rows + rows
    part = tl.num_programs(1) * all_rows
    if targets is not None:
        tl.store(parts + offsets, m, mask=row_exists)
        tl.store(parts + part + offsets, total, mask=row_exists)
    else:
        tl.store(parts + offsets, row.m, mask=row_exists)
        tl.store(parts + part + offsets, row.total, mask=row_exists)
        tl.store(parts + 2 * part + offsets, row.deviation, mask=row_exists)
        tl.store(parts + 3 * part + offsets, row.argmax_r, mask=row_exists)
        tl.store(argmaxes + offsets, row.argmax, mask=row_exists)


@triton.jit
def _load_item(bits, row_mask):
    """The number of an item, from the bits of a float32."""
    return tl.load(bits, mask=row_mask, other=-1.0).to(tl.int32, bitcast=True)


@triton.jit
def _counted(row_exists, statistics, rows, STATISTICS: tl.constexpr, CROSS_ENTROPY: tl.constexpr):
    """Which rows of a tile exist and, of a cross-entropy, have a target."""
    if CROSS_ENTROPY:
        row_exists = _load_item(statistics + rows * STATISTICS + statistics_columns().entry, row_exists) >= 0
    return row_exists


@triton.jit
def _load_statistics(
    statistics, weights, weights_stride, rows, row_mask, STATISTICS: tl.constexpr, CROSS_ENTROPY: tl.constexpr
):
    """The RowStatistics of each row; a row that does not count gets p = 0."""
    row_stats, column = statistics + rows * STATISTICS, statistics_columns()
    maximum = tl.load(row_stats + column.maximum, mask=row_mask, other=0.0)
    inverse_sum = tl.load(row_stats + column.inverse_sum, mask=row_mask, other=0.0)
    prob_of_rest = tl.load(row_stats + column.prob_of_rest, mask=row_mask, other=0.0)
    entry = _load_item(row_stats + column.entry, row_mask)
    if CROSS_ENTROPY:
        weight = tl.load(weights + rows * weights_stride, mask=row_mask, other=0.0)
        return RowStatistics(maximum, inverse_sum, prob_of_rest, entry, weight, weight, entry)
    else:
        mean = tl.load(row_stats + column.mean_deviation, mask=row_mask, other=0.0)
        argmax_deviation = tl.load(row_stats + column.argmax_deviation, mask=row_mask, other=0.0)
        shared = _load_item(row_stats + column.shared_argmax, row_mask)
        return RowStatistics(maximum, inverse_sum, prob_of_rest, entry, mean, argmax_deviation, shared)


@triton.jit
def _across_tile(row, ROWS_AXIS: tl.constexpr):
    """The RowStatistics with a second dimension of size 1, for a tile whose rows run along ROWS_AXIS."""
    return RowStatistics(
        tl.expand_dims(row.maximum, 1 - ROWS_AXIS),
        tl.expand_dims(row.inverse_sum, 1 - ROWS_AXIS),
        tl.expand_dims(row.prob_of_rest, 1 - ROWS_AXIS),
        tl.expand_dims(row.entry, 1 - ROWS_AXIS),
        tl.expand_dims(row.weight_or_mean, 1 - ROWS_AXIS),
        tl.expand_dims(row.argmax_deviation, 1 - ROWS_AXIS),
        tl.expand_dims(row.shared_argmax, 1 - ROWS_AXIS),
    )


@triton.jit
def _score_gradient(
    scores,
    row,
    numbers,
    item_exists,
    group,
    ROWS_AXIS: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    DETACH: tl.constexpr,
    GRAD_SCALE: tl.constexpr,
):
    """The gradient w.r.t. the logits, but for a factor common to all, of a tile whose rows run along ROWS_AXIS.

    Cross-entropy: w (p − [item is the target]), which is −w · prob_of_rest at the target. Divergence:
    p (r − r̄ + 1) − mean_j p_j, the last two terms not where the reference is detached, with r the deviation of
    t = s − m from its mean over the group and r̄ = Σ p r. At the row's own argmax r − r̄ is known better, and where all
    rows of a group share an argmax, so is 1 − p there.
    """
    row = _across_tile(row, ROWS_AXIS)
    numbers, item_exists = tl.expand_dims(numbers, ROWS_AXIS), tl.expand_dims(item_exists, ROWS_AXIS)
    t = scores - row.maximum
    p = tl.exp2(t) * row.inverse_sum
    # Scores of items that do not exist are 0, and 2^(0 − m) may be infinite. Those of rows that do not count are 0 too,
    # but beside an infinite item NaN.
    if CROSS_ENTROPY and ROWS_AXIS == 1:
        p = tl.where(item_exists & (row.inverse_sum != 0), p, 0.0)
    else:
        p = tl.where(item_exists, p, 0.0)
    if CROSS_ENTROPY:
        gradient = tl.where(numbers == row.entry, -row.prob_of_rest, p) * row.weight_or_mean
    else:
        deviation = off_group_mean(t, group, ROWS_AXIS) - row.weight_or_mean  # r − r̄
        gradient = p * (tl.where(numbers == row.entry, -row.argmax_deviation, deviation) * LN_2)
        if not DETACH:
            # p − 1 of all rows: the same difference from the mean
            p = tl.where(numbers == row.shared_argmax, -row.prob_of_rest, p)
            gradient += off_group_mean(p, group, ROWS_AXIS)
    return gradient * GRAD_SCALE


@triton.jit
def _load_factor(device_factor):
    """The number on the device that multiplies a whole gradient, 1 where there is none."""
    factor = 1.0
    if device_factor is not None:
        factor = tl.load(device_factor).to(tl.float32)
    return factor


@triton.jit(do_not_specialize=["weights_stride", "per_split", "B", "N", "V"])
def _states_gradient_kernel(
    states,
    states_strides,
    items,
    items_strides,
    statistics,
    weights,
    weights_stride,
    device_factor,
    factor,
    gradient,
    scale,
    inverse_group,
    per_split,
    B,
    N,
    V,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    STATISTICS: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    DETACH: tl.constexpr,
    GRAD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HELD_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dL/dh = Σ_v dL/ds(v) · e(v) over a part of the items (`per_split` blocks), for one block of rows."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    group, member, row_exists, rows = tile_rows(tl.program_id(0), B, N, GROUP, BLOCK_R)
    counted = _counted(row_exists, statistics, rows, STATISTICS, CROSS_ENTROPY)
    row_vectors = _row_vectors(states, group, member, counted)
    columns = tl.program_id(2) * HELD_D + tl.arange(0, HELD_D)
    h = _load_vectors(row_vectors, columns, D)  # [R, HELD_D]
    row = _load_statistics(statistics, weights, weights_stride, rows, counted, STATISTICS, CROSS_ENTROPY)
    first, last = part_of_items(per_split, V, BLOCK_V)
    total = tl.zeros([BLOCK_R, HELD_D], tl.float32)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_exists = numbers < last
        item_vectors = _item_vectors(items, numbers, item_exists)
        e = _load_vectors(item_vectors, columns, D)  # [V, HELD_D]
        scores = scale * _products(h, e, row_vectors, item_vectors, D, PRECISION, BLOCK_D)  # [R, V]
        ds = _score_gradient(
            scores,
            row,
            numbers,
            item_exists,
            Group(inverse_group, N, GROUP, PADDED),
            0,
            CROSS_ENTROPY,
            DETACH,
            GRAD_SCALE,
        )
        total = tl.dot(ds.to(e.dtype), e, acc=total, input_precision=PRECISION)
    if CROSS_ENTROPY:
        total = tl.where((row.inverse_sum == 0)[:, None], 0.0, total)  # a row that does not count: 0 · NaN is none
    total *= _load_factor(device_factor) * factor
    # Counted from the block's first row: made of `rows`, the offsets would be kept in registers through the loop.
    first_row = tl.program_id(0).to(tl.int64) * (BLOCK_R // GROUP) * N
    gradient += (tl.program_id(1) * tl.cast(B, tl.int64) * N + first_row) * D
    local = tl.arange(0, BLOCK_R)
    offsets = (local // GROUP * N + local % GROUP)[:, None] * D + columns[None, :]
    mask = row_exists[:, None] & (columns < D)[None, :]
    tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["weights_stride", "per_split", "B", "N", "V"])
def _items_gradient_kernel(
    states,
    states_strides,
    items,
    items_strides,
    statistics,
    weights,
    weights_stride,
    device_factor,
    factor,
    gradient,
    scale,
    inverse_group,
    per_split,
    B,
    N,
    V,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    STATISTICS: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    DETACH: tl.constexpr,
    GRAD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HELD_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dL/de = Σ_rows dL/ds(row) · h(row) over a part of the rows (`per_split` tiles), for one block of items."""
    states = Strided(states, states_strides)
    items = Strided(items, items_strides)
    numbers = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    item_exists = numbers < V
    item_vectors = _item_vectors(items, numbers, item_exists)
    columns = tl.program_id(2) * HELD_D + tl.arange(0, HELD_D)
    e = _load_vectors(item_vectors, columns, D)  # [V, HELD_D]
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, tl.cdiv(B, BLOCK_R // GROUP))
    total = tl.zeros([BLOCK_V, HELD_D], tl.float32)
    for block in range(first, last):
        group, member, row_exists, rows = tile_rows(block, B, N, GROUP, BLOCK_R)
        counted = _counted(row_exists, statistics, rows, STATISTICS, CROSS_ENTROPY)
        row_vectors = _row_vectors(states, group, member, counted)
        h = _load_vectors(row_vectors, columns, D)  # [R, HELD_D]
        scores = scale * _products(e, h, item_vectors, row_vectors, D, PRECISION, BLOCK_D)  # [V, R]
        # After the product: held during it, they take some 25 more registers on sm_90 with Triton 3.6.
        row = _load_statistics(statistics, weights, weights_stride, rows, counted, STATISTICS, CROSS_ENTROPY)
        ds = _score_gradient(
            scores,
            row,
            numbers,
            item_exists,
            Group(inverse_group, N, GROUP, PADDED),
            1,
            CROSS_ENTROPY,
            DETACH,
            GRAD_SCALE,
        )
        total = tl.dot(ds.to(h.dtype), h, acc=total, input_precision=PRECISION)
    total *= _load_factor(device_factor) * factor
    # Counted from the block's first item: made of `numbers`, the offsets would be kept in registers through the loop.
    start = tl.program_id(0) * BLOCK_V
    gradient += (tl.program_id(1) * tl.cast(V, tl.int64) + start) * D
    local = tl.arange(0, BLOCK_V)
    offsets = local[:, None] * D + columns[None, :]
    mask = (local < V - start)[:, None] & (columns < D)[None, :]
    tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=mask)


def forward(
    states: Tensor, items: Tensor, temperature: float, targets: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor | None]:
    """What `_forward_kernel` finds in each part of the items, in units of log2.

    Args:
        states: [B, N, D], not empty.
        items: [V, D], not empty.
        temperature: what the logits are divided by.
        targets: contiguous int64 [B] for cross-entropy (N = 1), None for the divergence.
        ignore_index: the target of rows that do not count.

    Returns:
        float32 [2, parts, B, N] with targets, [4, parts, B, N] without, and the argmaxes, int32 [parts, B, N] or None.
    """
    batch, group, dim = states.shape
    vocabulary = items.shape[0]
    check_group(group)
    options = launch.score_forward(group, dim, states.element_size(), states.device)
    row_blocks = launch.blocks(batch, options["BLOCK_R"] // options["GROUP"])
    per_split, splits = launch.split(launch.blocks(vocabulary, options["BLOCK_V"]), row_blocks, launch.FORWARD_PROGRAMS)
    parts = states.new_empty((4 if targets is None else 2, splits, batch, group), dtype=torch.float32)
    argmaxes = states.new_empty((splits, batch, group), dtype=torch.int32) if targets is None else None
    with torch.cuda.device_of(states):
        _forward_kernel[(row_blocks, splits)](
            *strided(states),
            *strided(items),
            targets,
            ignore_index,
            parts,
            argmaxes,
            LOG2_E / temperature,
            1 / group,
            per_split,
            batch,
            group,
            vocabulary,
            D=dim,
            PADDED=group != options["GROUP"],
            PRECISION=dot_precision(),
            **options,
        )
    return parts, argmaxes


def backward(
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    weights: Tensor | None,
    device_factor: Tensor | None,
    factor: float,
    temperature: float,
    detach_reference: bool,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, ...]:
    """The gradients of states and items; an empty tensor for one that is not needed.

    Args:
        states: [B, N, D], not empty.
        items: [V, D], not empty.
        statistics: contiguous float32 [B, 1, CROSS_ENTROPY_STATISTICS] or [B, N, DIVERGENCE_STATISTICS].
        weights: float32 [B], what each row's cross-entropy is multiplied by, None for the divergence.
        device_factor: a scalar on the device that multiplies everything, read there; None for 1.
        factor: a further common factor.
        temperature: as in `forward`.
        detach_reference: whether the divergence's gradient skips the reference distribution.
        needs_states: whether to compute the gradient of the states.
        needs_items: whether to compute the gradient of the items.
    """
    batch, group, dim = states.shape
    vocabulary = items.shape[0]
    needs = (needs_states, needs_items)
    gradients = new_gradients((states, items), needs)
    # A probability of 1/V is subnormal in float16: held scaled, which a factor of at most 1 cannot overflow, and
    # a divergence, some ten units of logit, hardly.
    grad_scale = 1 if states.dtype != torch.float16 else 64 if weights is None else 1024
    kernels = (_states_gradient_kernel, _items_gradient_kernel)
    for kernel, gradient, needed in zip(kernels, gradients, needs, strict=True):
        if not needed:
            continue
        for_states = kernel is _states_gradient_kernel
        choose = launch.states_gradient if for_states else launch.items_gradient
        options = choose(group, dim, states.element_size(), states.device)
        row_blocks = launch.blocks(batch, options["BLOCK_R"] // options["GROUP"])
        item_blocks = launch.blocks(vocabulary, options["BLOCK_V"])
        column_blocks = launch.blocks(dim, options["HELD_D"])
        owners, visited = (row_blocks, item_blocks) if for_states else (item_blocks, row_blocks)
        per_split, splits = launch.split(visited, owners * column_blocks, launch.GRADIENT_PROGRAMS)
        parts = gradient if splits == 1 else gradient.new_empty((splits, *gradient.shape), dtype=torch.float32)
        with torch.cuda.device_of(states):
            kernel[(owners, splits, column_blocks)](
                *strided(states),
                *strided(items),
                statistics,
                weights,
                0 if weights is None else weights.stride(0),
                device_factor,
                factor / (temperature * grad_scale),
                parts,
                LOG2_E / temperature,
                1 / group,
                per_split,
                batch,
                group,
                vocabulary,
                D=dim,
                PADDED=group != options["GROUP"],
                STATISTICS=statistics.shape[-1],
                CROSS_ENTROPY=weights is not None,
                DETACH=detach_reference,
                GRAD_SCALE=grad_scale,
                PRECISION=dot_precision(),
                **options,
            )
        if splits > 1:
            gradient.copy_(parts.sum(0))
    return gradients


def check_group(group: int) -> None:
    """Raise where a group of states is larger than a tile of scores can hold."""
    if group > LARGEST_GROUP:
        raise ValueError(f"states must have at most N={LARGEST_GROUP} on the backend 'triton', found N={group}")
