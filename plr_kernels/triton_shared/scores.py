"""Triton kernels for losses of the scores of all items: what pairwise_kl and linear_cross_entropy share.

Rows of states come in groups [B, N, D], all rows of a group in one tile, padded to GROUP = the next power of two of N;
a loss without groups has N = 1. A tile of scores is one product of a block of rows and a block of items, and nothing
larger than a tile is ever stored. The forward pass keeps a few numbers per row; the backward pass computes the scores
anew, once for the gradient of the states and once for that of the items, each summed in float32 by the one program that
owns those rows or items. Where that would occupy too few programs, the sum is split and the parts are added in a fixed
order, so that results are the same in every run.

Scores are held in units of log2, since the hardware's exponential is 2^x.

One entry per row is treated apart: of the cross-entropy the target, of the divergence the "top", the first item with
the largest score. Where a distribution is near one-hot, the gradient there is a small difference of numbers that are
not (csrc/pairwise_kl.cpp has the formulas). So the sums leave that entry out, and give its gradient without
cancellation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import LN_2, LOG2_E, dot_precision, load_tile, new_gradient

_LN_2 = tl.constexpr(LN_2)
# All states of a group share a tile of scores.
LARGEST_GROUP = 128
# Numbers that are kept of a row for the backward pass, side by side: one address serves all of them.
# Maximum, 1/sum, the probability of all items but the one treated apart, and that item; of a divergence also the mean
# deviation, its difference from that at the top, and the top that all rows of the group share. Items are int32 in the
# bits of a float32, NO_ITEM where there is none.
CROSS_ENTROPY_STATISTICS = 4
DIVERGENCE_STATISTICS = 8
NO_ITEM = tl.constexpr(-0x40800000)  # the bits of -1.0: others might be those of a NaN, which equals nothing


@triton.jit
def tile_rows(block, B, N, GROUP: tl.constexpr, BLOCK_R: tl.constexpr):
    """Of a tile's rows: group and member, which of them exist, and their number in [0, B·N)."""
    local = tl.arange(0, BLOCK_R)
    group = tl.cast(block, tl.int64) * (BLOCK_R // GROUP) + local // GROUP
    member = local % GROUP
    return group, member, (group < B) & (member < N), group * N + member


@triton.jit
def _products(
    left_tile,
    right_tile,
    left,
    left_offsets,
    left_mask,
    left_stride,
    right,
    right_offsets,
    right_mask,
    right_stride,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECE: tl.constexpr,
):
    """All products of two blocks of vectors, from their tiles where a PIECE is all D columns, else in pieces.

    Of each block: the address, each vector's offset, whether it exists, and the distance between columns.
    """
    if D <= PIECE:
        products = tl.dot(left_tile, tl.trans(right_tile), input_precision=PRECISION)
    else:
        products = tl.zeros([left_offsets.shape[0], right_offsets.shape[0]], tl.float32)
        for first in range(0, D, PIECE):
            columns = first + tl.arange(0, PIECE)
            inside = (columns < D)[None, :]
            left_piece = load_tile(left, left_offsets, 1, columns, left_stride, left_mask[:, None] & inside)
            right_piece = load_tile(right, right_offsets, 1, columns, right_stride, right_mask[:, None] & inside)
            products = tl.dot(left_piece, tl.trans(right_piece), acc=products, input_precision=PRECISION)
    return products


@triton.jit
def off_group_mean(tile, inverse_group, N, GROUP: tl.constexpr, ROWS_AXIS: tl.constexpr, PADDED: tl.constexpr):
    """Of each entry, the difference from the mean over the row's group, for a tile that is 0 in rows that do not exist.

    Exactly 0 where all rows of a group agree: where the sum over N rows divided by N would be rounded, which is where a
    group is PADDED to a power of two, the mean is taken of the differences from the group's first row. Where N is a
    power of two from 8 on, the sum may be rounded too, in some orders: there the differences would take up to a fifth
    more instructions.
    """
    if ROWS_AXIS == 0:
        grouped = tl.reshape(tile, [tile.shape[0] // GROUP, GROUP, tile.shape[1]])
        member = tl.arange(0, GROUP)[None, :, None]
    else:
        grouped = tl.reshape(tile, [tile.shape[0], tile.shape[1] // GROUP, GROUP])
        member = tl.arange(0, GROUP)[None, None, :]
    if PADDED:
        grouped -= tl.sum(tl.where(member == 0, grouped, 0.0), ROWS_AXIS + 1, keep_dims=True)
        grouped = tl.where(member < N, grouped, 0.0)
    grouped -= tl.sum(grouped, ROWS_AXIS + 1, keep_dims=True) * inverse_group
    return tl.reshape(grouped, tile.shape)


@triton.jit
def _off_mean_of_rows(numbers, inverse_group, N, GROUP: tl.constexpr, PADDED: tl.constexpr):
    """The same for one number per row."""
    return tl.reshape(off_group_mean(numbers[:, None], inverse_group, N, GROUP, 0, PADDED), numbers.shape)


@triton.jit
def join(
    maximum,
    total,
    deviation,
    at_top,
    top,
    other_maximum,
    other_total,
    other_deviation,
    other_at_top,
    other_top,
    inverse_group,
    N,
    GROUP: tl.constexpr,
    PADDED: tl.constexpr,
):
    """What `_forward_kernel` keeps of a row's divergence, of two parts of the items together, the second one behind.

    Both with the distances from the larger maximum, then the smaller added to the larger. Where the first maximum is
    the least finite number there is no first part yet.
    """
    begins = maximum == -3.4028234663852886e38
    raised = tl.maximum(maximum, other_maximum)
    at_top += _off_mean_of_rows(maximum - raised, inverse_group, N, GROUP, PADDED)
    other_at_top += _off_mean_of_rows(other_maximum - raised, inverse_group, N, GROUP, PADDED)
    higher = (other_maximum > maximum) | begins
    shrink = tl.where(begins, 0.0, tl.exp2(tl.where(higher, maximum, other_maximum) - raised))
    new_at_top = tl.where(higher, other_at_top, at_top)
    added = (1.0 + tl.where(higher, total, other_total)) * shrink
    offset = tl.where(begins, 0.0, tl.where(higher, at_top, other_at_top) - new_at_top)
    new_deviation = tl.where(higher, other_deviation, deviation)
    new_deviation += tl.where(higher, deviation, other_deviation) * shrink + added * offset
    new_total = tl.where(higher, other_total, total) + added
    return raised, new_total, new_deviation, new_at_top, tl.where(higher, other_top, top)


@triton.jit(do_not_specialize=["ignore_index", "per_split", "B", "N", "V"])
def _forward_kernel(
    states,
    states_strides,
    items,
    items_strides,
    targets,
    ignore_index,
    parts,
    tops,
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
    BLOCK_D: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Of a part of the items (`per_split` blocks), for each row, with t = s − m and m the maximum:

    with targets, m and Σ 2^t, both without the target; without, m, Σ 2^t without the top, r of the top,
    Σ 2^t (r − r of the top), and the top, with r the difference of t from its mean over the group.
    """
    group, member, row_exists, rows = tile_rows(tl.program_id(0), B, N, GROUP, BLOCK_R)
    row_mask = row_exists
    target = tl.zeros([BLOCK_R], tl.int32)
    if targets is not None:
        number = tl.load(targets + rows, mask=row_exists, other=ignore_index)
        row_mask = number != ignore_index
        target = number.to(tl.int32)
    row_offsets = group * states_strides[0] + member.to(tl.int64) * states_strides[1]
    columns = tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    h = load_tile(states, row_offsets, 1, columns, states_strides[2], row_mask[:, None] & inside)
    first = tl.program_id(1) * per_split * BLOCK_V
    last = tl.minimum(first + per_split * BLOCK_V, V)
    # The least finite number: a part of the items may consist of the target alone.
    maximum = tl.full([BLOCK_R], -3.4028234663852886e38, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    deviation = tl.zeros([BLOCK_R], tl.float32)
    at_top = tl.zeros([BLOCK_R], tl.float32)
    top = tl.zeros([BLOCK_R], tl.int32)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        item_offsets = numbers.to(tl.int64) * items_strides[0]
        e = load_tile(items, item_offsets, 1, columns, items_strides[1], item_mask[:, None] & inside)
        scores = scale * _products(
            h,
            e,
            states,
            row_offsets,
            row_mask,
            states_strides[2],
            items,
            item_offsets,
            item_mask,
            items_strides[1],
            D,
            PRECISION,
            BLOCK_D,
            PIECE,
        )
        if targets is not None:
            counted = item_mask[None, :] & (numbers[None, :] != target[:, None])
            raised = tl.maximum(maximum, tl.max(tl.where(counted, scores, float("-inf")), 1))
            weights = tl.where(counted, tl.exp2(scores - raised[:, None]), 0.0)
            total = total * tl.exp2(maximum - raised) + tl.sum(weights, 1)
            maximum = raised
        else:
            of_items = tl.where(item_mask[None, :], scores, float("-inf"))
            tile_maximum = tl.max(of_items, 1)
            tile_top = tl.min(tl.where(of_items == tile_maximum[:, None], numbers[None, :], V), 1)
            is_top = numbers[None, :] == tile_top[:, None]
            distances = scores - tile_maximum[:, None]
            off_mean = off_group_mean(distances, inverse_group, N, GROUP, 0, PADDED)
            tile_at_top = tl.sum(tl.where(is_top, off_mean, 0.0), 1)
            weights = tl.where(item_mask[None, :] & (is_top == 0), tl.exp2(distances), 0.0)
            tile_total = tl.sum(weights, 1)
            tile_deviation = tl.sum(weights * (off_mean - tile_at_top[:, None]), 1)
            maximum, total, deviation, at_top, top = join(
                maximum,
                total,
                deviation,
                at_top,
                top,
                tile_maximum,
                tile_total,
                tile_deviation,
                tile_at_top,
                tile_top,
                inverse_group,
                N,
                GROUP,
                PADDED,
            )
    all_rows = tl.cast(B, tl.int64) * N
    offsets = tl.program_id(1) * all_rows + rows
    part = tl.num_programs(1) * all_rows
    tl.store(parts + offsets, maximum, mask=row_exists)
    tl.store(parts + part + offsets, total, mask=row_exists)
    if targets is None:
        tl.store(parts + 2 * part + offsets, deviation, mask=row_exists)
        tl.store(parts + 3 * part + offsets, at_top, mask=row_exists)
        tl.store(tops + offsets, top, mask=row_exists)


@triton.jit
def _load_entry(of_rows, row_mask):
    """The number of an item, from the bits of a float32."""
    return tl.load(of_rows, mask=row_mask, other=-1.0).to(tl.int32, bitcast=True)


@triton.jit
def _counted(row_exists, statistics, rows, STATISTICS: tl.constexpr, CROSS_ENTROPY: tl.constexpr):
    """Which rows of a tile exist and, of a cross-entropy, have a target."""
    if CROSS_ENTROPY:
        row_exists = _load_entry(statistics + rows * STATISTICS + 3, row_exists) >= 0
    return row_exists


@triton.jit
def _load_statistics(
    statistics, weights, weights_stride, rows, row_mask, STATISTICS: tl.constexpr, CROSS_ENTROPY: tl.constexpr
):
    """What `_gradient_tile` takes of each row; a row that does not count gets p = 0."""
    of_rows = statistics + rows * STATISTICS
    maximum = tl.load(of_rows, mask=row_mask, other=0.0)
    inverse_sum = tl.load(of_rows + 1, mask=row_mask, other=0.0)
    others = tl.load(of_rows + 2, mask=row_mask, other=0.0)
    entry = _load_entry(of_rows + 3, row_mask)
    if CROSS_ENTROPY:
        weight = tl.load(weights + rows * weights_stride, mask=row_mask, other=0.0)
        return maximum, inverse_sum, others, entry, weight, weight, entry
    else:
        mean_deviation = tl.load(of_rows + 4, mask=row_mask, other=0.0)
        top_deviation = tl.load(of_rows + 5, mask=row_mask, other=0.0)
        return maximum, inverse_sum, others, entry, mean_deviation, top_deviation, _load_entry(of_rows + 6, row_mask)


@triton.jit
def _gradient_tile(
    scores,
    maximum,
    inverse_sum,
    others,
    entry,
    third,
    top_deviation,
    shared,
    numbers,
    item_mask,
    inverse_group,
    N,
    GROUP: tl.constexpr,
    ROWS_AXIS: tl.constexpr,
    PADDED: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    DETACH: tl.constexpr,
    SCALE: tl.constexpr,
):
    """The gradient by the logits, but for a factor common to all.

    Cross-entropy: w (p − [item is the target]), which is −w · others at the target. Divergence:
    p (r − r̄ + 1) − mean_j p_j, the last two terms not where the reference is detached, with r the deviation of
    t = s − m from its mean over the group and r̄ = Σ p r. At the row's own top r − r̄ is known better, and where all
    rows of a group share a top, so is 1 − p there. The tile's rows run along ROWS_AXIS, and what belongs to rows
    or items has a second dimension of size 1.
    """
    distances = scores - maximum
    p = tl.exp2(distances) * inverse_sum
    # Scores of items that do not exist are 0, and 2^(0 − maximum) may be infinite.
    p = tl.where(item_mask, p, 0.0)
    if CROSS_ENTROPY:
        gradient = tl.where(numbers == entry, -others, p) * third
    else:
        deviation = off_group_mean(distances, inverse_group, N, GROUP, ROWS_AXIS, PADDED) - third
        gradient = p * (tl.where(numbers == entry, -top_deviation, deviation) * _LN_2)
        if not DETACH:
            p = tl.where(numbers == shared, -others, p)  # p − 1 of all rows: the same difference from the mean
            gradient += off_group_mean(p, inverse_group, N, GROUP, ROWS_AXIS, PADDED)
    return gradient * SCALE


@triton.jit
def _outer(outer):
    """The number that multiplies a whole gradient, 1 where there is none."""
    factor = 1.0
    if outer is not None:
        factor = tl.load(outer).to(tl.float32)
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
    outer,
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
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Σ over a part of the items (`per_split` blocks) of gradient-by-logit times item, for one block of rows."""
    group, member, row_exists, rows = tile_rows(tl.program_id(0), B, N, GROUP, BLOCK_R)
    row_mask = _counted(row_exists, statistics, rows, STATISTICS, CROSS_ENTROPY)
    row_offsets = group * states_strides[0] + member.to(tl.int64) * states_strides[1]
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    h = load_tile(states, row_offsets, 1, columns, states_strides[2], row_mask[:, None] & inside)
    maximum, inverse_sum, others, entry, third, top_deviation, shared = _load_statistics(
        statistics, weights, weights_stride, rows, row_mask, STATISTICS, CROSS_ENTROPY
    )
    first = tl.program_id(1) * per_split * BLOCK_V
    last = tl.minimum(first + per_split * BLOCK_V, V)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(first, last, BLOCK_V):
        numbers = start + tl.arange(0, BLOCK_V)
        item_mask = numbers < last
        item_offsets = numbers.to(tl.int64) * items_strides[0]
        e = load_tile(items, item_offsets, 1, columns, items_strides[1], item_mask[:, None] & inside)
        scores = scale * _products(
            h,
            e,
            states,
            row_offsets,
            row_mask,
            states_strides[2],
            items,
            item_offsets,
            item_mask,
            items_strides[1],
            D,
            PRECISION,
            BLOCK_D,
            PIECE,
        )
        tile = _gradient_tile(
            scores,
            maximum[:, None],
            inverse_sum[:, None],
            others[:, None],
            entry[:, None],
            third[:, None],
            top_deviation[:, None],
            shared[:, None],
            numbers[None, :],
            item_mask[None, :],
            inverse_group,
            N,
            GROUP,
            0,
            PADDED,
            CROSS_ENTROPY,
            DETACH,
            SCALE,
        )
        total = tl.dot(tile.to(e.dtype), e, acc=total, input_precision=PRECISION)
    total *= _outer(outer) * factor
    # Counted from the block's first row: made of `rows`, the offsets would be kept in registers through the loop.
    first_row = tl.program_id(0).to(tl.int64) * (BLOCK_R // GROUP) * N
    gradient += (tl.program_id(1) * tl.cast(B, tl.int64) * N + first_row) * D
    local = tl.arange(0, BLOCK_R)
    offsets = (local // GROUP * N + local % GROUP)[:, None] * D + columns[None, :]
    tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=row_exists[:, None] & inside)


@triton.jit(do_not_specialize=["weights_stride", "per_split", "B", "N", "V"])
def _items_gradient_kernel(
    states,
    states_strides,
    items,
    items_strides,
    statistics,
    weights,
    weights_stride,
    outer,
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
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Σ over a part of the rows (`per_split` tiles) of gradient-by-logit times row, for one block of items."""
    numbers = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    item_mask = numbers < V
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    item_offsets = numbers.to(tl.int64) * items_strides[0]
    e = load_tile(items, item_offsets, 1, columns, items_strides[1], item_mask[:, None] & inside)
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, tl.cdiv(B, BLOCK_R // GROUP))
    total = tl.zeros([BLOCK_V, BLOCK_D], tl.float32)
    for block in range(first, last):
        group, member, row_mask, rows = tile_rows(block, B, N, GROUP, BLOCK_R)
        row_mask = _counted(row_mask, statistics, rows, STATISTICS, CROSS_ENTROPY)
        row_offsets = group * states_strides[0] + member.to(tl.int64) * states_strides[1]
        h = load_tile(states, row_offsets, 1, columns, states_strides[2], row_mask[:, None] & inside)
        scores = scale * _products(
            e,
            h,
            items,
            item_offsets,
            item_mask,
            items_strides[1],
            states,
            row_offsets,
            row_mask,
            states_strides[2],
            D,
            PRECISION,
            BLOCK_D,
            PIECE,
        )
        # After the product: held during it, they take some 25 more registers on sm_90 with Triton 3.6.
        maximum, inverse_sum, others, entry, third, top_deviation, shared = _load_statistics(
            statistics, weights, weights_stride, rows, row_mask, STATISTICS, CROSS_ENTROPY
        )
        tile = _gradient_tile(
            scores,
            maximum[None, :],
            inverse_sum[None, :],
            others[None, :],
            entry[None, :],
            third[None, :],
            top_deviation[None, :],
            shared[None, :],
            numbers[:, None],
            item_mask[:, None],
            inverse_group,
            N,
            GROUP,
            1,
            PADDED,
            CROSS_ENTROPY,
            DETACH,
            SCALE,
        )
        total = tl.dot(tile.to(h.dtype), h, acc=total, input_precision=PRECISION)
    total *= _outer(outer) * factor
    # Counted from the block's first item: made of `numbers`, the offsets would be kept in registers through the loop.
    start = tl.program_id(0) * BLOCK_V
    gradient += (tl.program_id(1) * tl.cast(V, tl.int64) + start) * D
    local = tl.arange(0, BLOCK_V)
    offsets = local[:, None] * D + columns[None, :]
    tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=(local < V - start)[:, None] & inside)


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
        float32 [2, parts, B, N] with targets, [4, parts, B, N] without, and the tops, int32 [parts, B, N] or None.
    """
    batch, group, dim = states.shape
    vocabulary = items.shape[0]
    check_group(group)
    options = launch.score_forward(group, dim, states.element_size(), states.device)
    row_blocks = launch.blocks(batch, options["BLOCK_R"] // options["GROUP"])
    per_split, splits = launch.split(launch.blocks(vocabulary, options["BLOCK_V"]), row_blocks, launch.FORWARD_PROGRAMS)
    parts = states.new_empty((4 if targets is None else 2, splits, batch, group), dtype=torch.float32)
    tops = states.new_empty((splits, batch, group), dtype=torch.int32) if targets is None else None
    with torch.cuda.device_of(states):
        _forward_kernel[(row_blocks, splits)](
            states,
            states.stride(),
            items,
            items.stride(),
            targets,
            ignore_index,
            parts,
            tops,
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
    return parts, tops


def backward(
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    weights: Tensor | None,
    outer: Tensor | None,
    factor: float,
    temperature: float,
    detach_reference: bool,
    needs_states: bool,
    needs_items: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed.

    Args:
        states: [B, N, D], not empty.
        items: [V, D], not empty.
        statistics: contiguous float32 [B, 1, CROSS_ENTROPY_STATISTICS] or [B, N, DIVERGENCE_STATISTICS].
        weights: float32 [B], what each row's cross-entropy is multiplied by, None for the divergence.
        outer: a scalar on the device that multiplies everything, read there; None for 1.
        factor: a further common factor.
        temperature: as in `forward`.
        detach_reference: whether the divergence's gradient skips the reference distribution.
        needs_states: whether to compute the gradient of the states.
        needs_items: whether to compute the gradient of the items.
    """
    batch, group, dim = states.shape
    vocabulary = items.shape[0]
    states_gradient, items_gradient = new_gradient(states, needs_states), new_gradient(items, needs_items)
    # A probability of 1/V is subnormal in float16: held in larger units, which a factor of at most 1 cannot
    # overflow, and a divergence, some ten units of logit, hardly.
    units = 1 if states.dtype != torch.float16 else 64 if weights is None else 1024
    for kernel, gradient in ((_states_gradient_kernel, states_gradient), (_items_gradient_kernel, items_gradient)):
        for_states = kernel is _states_gradient_kernel
        if not (needs_states if for_states else needs_items):
            continue
        choose = launch.states_gradient if for_states else launch.items_gradient
        options = choose(group, dim, states.element_size(), states.device)
        row_blocks = launch.blocks(batch, options["BLOCK_R"] // options["GROUP"])
        item_blocks = launch.blocks(vocabulary, options["BLOCK_V"])
        column_blocks = launch.blocks(dim, options["BLOCK_D"])
        owners, visited = (row_blocks, item_blocks) if for_states else (item_blocks, row_blocks)
        per_split, splits = launch.split(visited, owners * column_blocks, launch.GRADIENT_PROGRAMS)
        parts = gradient if splits == 1 else gradient.new_empty((splits, *gradient.shape), dtype=torch.float32)
        with torch.cuda.device_of(states):
            kernel[(owners, splits, column_blocks)](
                states,
                states.stride(),
                items,
                items.stride(),
                statistics,
                weights,
                0 if weights is None else weights.stride(0),
                outer,
                factor / (temperature * units),
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
                SCALE=units,
                PRECISION=dot_precision(),
                **options,
            )
        if splits > 1:
            gradient.copy_(parts.sum(0))
    return states_gradient, items_gradient


def check_group(group: int) -> None:
    """Raise where a group of states is larger than a tile of scores can hold."""
    if group > LARGEST_GROUP:
        raise ValueError(f"states must have at most N={LARGEST_GROUP} on the backend 'triton', got N={group}")
