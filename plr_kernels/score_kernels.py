"""Triton kernels for losses of the scores of all items: what pairwise_kl and linear_cross_entropy share.

Rows of states come in groups [B, N, D], all rows of a group in one tile, padded to GROUP = the next power of two of N;
a loss without groups has N = 1. A tile of scores is one product of a block of rows and a block of items, and nothing
larger than a tile is ever stored. The forward pass keeps three numbers per row; the backward pass computes the scores
anew, once for the gradient of the states and once for that of the items, each summed in float32 by the one program that
owns those rows or items. Where that would occupy too few programs, the sum is split and the parts are added in a fixed
order, so that results are the same in every run.

Scores are held in units of log2, since the hardware's exponential is 2^x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels import launch
from plr_kernels.triton_common import LN_2, LOG2_E, dot_precision, load_tile, new_gradient

_LN_2 = tl.constexpr(LN_2)
# All states of a group share a tile of scores.
LARGEST_GROUP = 128


@triton.jit
def _tile_rows(block, B, N, GROUP: tl.constexpr, BLOCK_R: tl.constexpr):
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
    """All products of two blocks of vectors, from their tiles where these hold all D columns, else in pieces.

    Of each block: the address, each vector's offset, whether it exists, and the distance between columns.
    """
    if D <= BLOCK_D:
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
def _group_mean(tile, inverse_group, GROUP: tl.constexpr, ROWS_AXIS: tl.constexpr):
    """Each row's mean over its group, for a tile that is 0 in rows that do not exist."""
    if ROWS_AXIS == 0:
        grouped = tl.reshape(tile, [tile.shape[0] // GROUP, GROUP, tile.shape[1]])
        mean = tl.sum(grouped, 1, keep_dims=True) * inverse_group
    else:
        grouped = tl.reshape(tile, [tile.shape[0], tile.shape[1] // GROUP, GROUP])
        mean = tl.sum(grouped, 2, keep_dims=True) * inverse_group
    return tl.reshape(tl.broadcast_to(mean, grouped.shape), tile.shape)


@triton.jit
def _forward_kernel(
    states,
    states_strides,
    items,
    items_strides,
    maxima,
    sums,
    deviations,
    scale,
    inverse_group,
    per_split,
    B,
    N,
    V,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Of a part of the items (`per_split` blocks), for each row: the maximum m, Σ 2^(s − m) and, where wanted,
    Σ 2^(s − m)·(s − the mean of s over the group).
    """
    group, member, row_mask, rows = _tile_rows(tl.program_id(0), B, N, GROUP, BLOCK_R)
    row_offsets = group * states_strides[0] + member * states_strides[1]
    columns = tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    h = load_tile(states, row_offsets, 1, columns, states_strides[2], row_mask[:, None] & inside)
    first = tl.program_id(1) * per_split * BLOCK_V
    last = tl.minimum(first + per_split * BLOCK_V, V)
    maximum = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    deviation = tl.zeros([BLOCK_R], tl.float32)
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
        raised = tl.maximum(maximum, tl.max(tl.where(item_mask[None, :], scores, float("-inf")), 1))
        shrink = tl.exp2(maximum - raised)
        weights = tl.where(item_mask[None, :], tl.exp2(scores - raised[:, None]), 0.0)
        total = total * shrink + tl.sum(weights, 1)
        if deviations is not None:
            off_mean = scores - _group_mean(scores, inverse_group, GROUP, 0)
            deviation = deviation * shrink + tl.sum(weights * off_mean, 1)
        maximum = raised
    offsets = tl.program_id(1).to(tl.int64) * B * N + rows
    tl.store(maxima + offsets, maximum, mask=row_mask)
    tl.store(sums + offsets, total, mask=row_mask)
    if deviations is not None:
        tl.store(deviations + offsets, deviation, mask=row_mask)


@triton.jit
def _merge_kernel(maxima, sums, deviations, statistics, splits, R, BLOCK_R: tl.constexpr):
    """Statistics [2 or 3, R] from those of each part of the items: maximum, 1/sum and mean deviation."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < R
    maximum = tl.load(maxima + rows, mask=mask, other=0.0)
    total = tl.load(sums + rows, mask=mask, other=1.0)
    deviation = tl.zeros([BLOCK_R], tl.float32)
    if deviations is not None:
        deviation = tl.load(deviations + rows, mask=mask, other=0.0)
    for split in range(1, splits):
        offsets = rows + tl.cast(split, tl.int64) * R
        part = tl.load(maxima + offsets, mask=mask, other=0.0)
        raised = tl.maximum(maximum, part)
        shrink, part_shrink = tl.exp2(maximum - raised), tl.exp2(part - raised)
        total = total * shrink + tl.load(sums + offsets, mask=mask, other=0.0) * part_shrink
        if deviations is not None:
            part_deviation = tl.load(deviations + offsets, mask=mask, other=0.0)
            deviation = deviation * shrink + part_deviation * part_shrink
        maximum = raised
    tl.store(statistics + rows, maximum, mask=mask)
    tl.store(statistics + rows + R, 1.0 / total, mask=mask)
    if deviations is not None:
        tl.store(statistics + rows + 2 * tl.cast(R, tl.int64), deviation / total, mask=mask)


@triton.jit
def _load_statistics(statistics, targets, weights, rows, row_mask, R):
    """Maximum, 1/sum and mean deviation of each row, its target and weight; a row that does not exist gets p = 0."""
    maximum = tl.load(statistics + rows, mask=row_mask, other=0.0)
    inverse_sum = tl.load(statistics + rows + R, mask=row_mask, other=0.0)
    if targets is None:
        third = tl.load(statistics + rows + 2 * tl.cast(R, tl.int64), mask=row_mask, other=0.0)
        target = tl.zeros_like(rows).to(tl.int32)
    else:
        third = tl.load(weights + rows, mask=row_mask, other=0.0)
        target = tl.load(targets + rows, mask=row_mask, other=-1).to(tl.int32)
    return maximum, inverse_sum, third, target


@triton.jit
def _gradient_tile(
    scores,
    maximum,
    inverse_sum,
    third,
    target,
    numbers,
    item_mask,
    inverse_group,
    GROUP: tl.constexpr,
    ROWS_AXIS: tl.constexpr,
    CROSS_ENTROPY: tl.constexpr,
    DETACH: tl.constexpr,
    SCALE: tl.constexpr,
):
    """The gradient by the logits, but for a factor common to all.

    Cross-entropy: w (p − [item is the target]). Divergence: p (r − r̄ + 1) − mean_j p_j, the last two terms not where
    the reference is detached, with r the deviation of the logit from the mean of the group and r̄ = Σ p r. The tile's
    rows run along ROWS_AXIS, and what belongs to rows or items has a second dimension of size 1.
    """
    p = tl.exp2(scores - maximum) * inverse_sum
    # Scores of items that do not exist are 0, and 2^(0 − maximum) may be infinite.
    p = tl.where(item_mask, p, 0.0)
    if CROSS_ENTROPY:
        gradient = tl.where(numbers == target, p - 1.0, p) * third
    else:
        off_mean = scores - _group_mean(scores, inverse_group, GROUP, ROWS_AXIS)
        gradient = p * ((off_mean - third) * _LN_2)
        if not DETACH:
            gradient += p - _group_mean(p, inverse_group, GROUP, ROWS_AXIS)
    return gradient * SCALE


@triton.jit
def _states_gradient_kernel(
    states,
    states_strides,
    items,
    items_strides,
    statistics,
    targets,
    weights,
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
    DETACH: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECE: tl.constexpr,
):
    """Σ over a part of the items (`per_split` blocks) of gradient-by-logit times item, for one block of rows."""
    group, member, row_mask, rows = _tile_rows(tl.program_id(0), B, N, GROUP, BLOCK_R)
    row_offsets = group * states_strides[0] + member * states_strides[1]
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    R = tl.cast(B, tl.int64) * N
    h = load_tile(states, row_offsets, 1, columns, states_strides[2], row_mask[:, None] & inside)
    maximum, inverse_sum, third, target = _load_statistics(statistics, targets, weights, rows, row_mask, R)
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
            third[:, None],
            target[:, None],
            numbers[None, :],
            item_mask[None, :],
            inverse_group,
            GROUP,
            0,
            targets is not None,
            DETACH,
            SCALE,
        )
        total = tl.dot(tile.to(e.dtype), e, acc=total, input_precision=PRECISION)
    total *= tl.load(outer).to(tl.float32) * factor
    offsets = (tl.program_id(1) * R + rows)[:, None] * D + columns[None, :]
    tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=row_mask[:, None] & inside)


@triton.jit
def _items_gradient_kernel(
    states,
    states_strides,
    items,
    items_strides,
    statistics,
    targets,
    weights,
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
    R = tl.cast(B, tl.int64) * N
    item_offsets = numbers.to(tl.int64) * items_strides[0]
    e = load_tile(items, item_offsets, 1, columns, items_strides[1], item_mask[:, None] & inside)
    first = tl.program_id(1) * per_split
    last = tl.minimum(first + per_split, tl.cdiv(B, BLOCK_R // GROUP))
    total = tl.zeros([BLOCK_V, BLOCK_D], tl.float32)
    for block in range(first, last):
        group, member, row_mask, rows = _tile_rows(block, B, N, GROUP, BLOCK_R)
        row_offsets = group * states_strides[0] + member * states_strides[1]
        h = load_tile(states, row_offsets, 1, columns, states_strides[2], row_mask[:, None] & inside)
        maximum, inverse_sum, third, target = _load_statistics(statistics, targets, weights, rows, row_mask, R)
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
        tile = _gradient_tile(
            scores,
            maximum[None, :],
            inverse_sum[None, :],
            third[None, :],
            target[None, :],
            numbers[:, None],
            item_mask[:, None],
            inverse_group,
            GROUP,
            1,
            targets is not None,
            DETACH,
            SCALE,
        )
        total = tl.dot(tile.to(h.dtype), h, acc=total, input_precision=PRECISION)
    total *= tl.load(outer).to(tl.float32) * factor
    offsets = (tl.program_id(1) * tl.cast(V, tl.int64) + numbers)[:, None] * D + columns[None, :]
    tl.store(gradient + offsets, total.to(gradient.dtype.element_ty), mask=item_mask[:, None] & inside)


def forward(states: Tensor, items: Tensor, temperature: float, with_deviations: bool) -> Tensor:
    """Statistics of every row's softmax over the items, in units of log2.

    Args:
        states: [B, N, D], not empty.
        items: [V, D], not empty.
        temperature: what the logits are divided by.
        with_deviations: whether to compute the mean deviation from the logits' mean over the group.

    Returns:
        float32 [2 or 3, B, N]: maximum, 1/sum, and the mean deviation.
    """
    batch, group, dim = states.shape
    vocabulary = items.shape[0]
    check_group(group)
    options = launch.score_forward(group, dim, states.element_size(), states.device)
    row_blocks = launch.blocks(batch, options["BLOCK_R"] // options["GROUP"])
    per_split, splits = launch.split(launch.blocks(vocabulary, options["BLOCK_V"]), row_blocks, launch.FORWARD_PROGRAMS)
    kinds = 3 if with_deviations else 2
    parts = states.new_empty((kinds, splits, batch, group), dtype=torch.float32)
    statistics = states.new_empty((kinds, batch, group), dtype=torch.float32)
    deviations = parts[2] if with_deviations else None
    rows = batch * group
    with torch.cuda.device_of(states):
        _forward_kernel[(row_blocks, splits)](
            states,
            states.stride(),
            items,
            items.stride(),
            parts[0],
            parts[1],
            deviations,
            LOG2_E / temperature,
            1 / group,
            per_split,
            batch,
            group,
            vocabulary,
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
        _merge_kernel[(launch.blocks(rows, launch.ROWS_PER_PROGRAM),)](
            parts[0],
            parts[1],
            deviations,
            statistics,
            splits,
            rows,
            **launch.options(4, 1, BLOCK_R=launch.ROWS_PER_PROGRAM),
        )
    return statistics


def backward(
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    targets: Tensor | None,
    weights: Tensor | None,
    outer: Tensor,
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
        statistics: from `forward`.
        targets: int64 [B] for cross-entropy, None for the divergence.
        weights: float32 [B], what each row's cross-entropy is multiplied by.
        outer: a scalar on the device that multiplies everything, read there.
        factor: a further common factor.
        temperature: as in `forward`.
        detach_reference: whether the divergence's gradient skips the reference distribution.
        needs_states: whether to compute the gradient of the states.
        needs_items: whether to compute the gradient of the items.
    """
    batch, group, dim = states.shape
    vocabulary = items.shape[0]
    states_gradient, items_gradient = new_gradient(states, needs_states), new_gradient(items, needs_items)
    if vocabulary == 1:  # the only item has probability 1 whatever its score, which the kernels know up to rounding
        return states_gradient.zero_(), items_gradient.zero_()
    # A probability of 1/V is subnormal in float16: held in larger units, which a factor of at most 1 cannot
    # overflow, and a divergence, some ten units of logit, hardly.
    units = 1 if states.dtype != torch.float16 else 64 if targets is None else 1024
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
                targets,
                weights,
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
