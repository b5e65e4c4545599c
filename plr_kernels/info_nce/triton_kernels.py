"""The "triton" backend of info_nce.

A tile of similarities is the product of the views as they are, divided by both norms: no rounding of unit vectors comes
in between. One product serves both directions: a tile gives parts of the softmax of its rows and of its columns. The
backward pass computes a tile's similarities anew and uses P_row + P_col; it runs once per view that needs a gradient,
with the views exchanged.

The sums leave the positive pair out. So the loss log(1 + Σ rest / positive) and the gradient at the positive, minus the
probability of the rest, are right where the positive wins by far too.

Similarities are held in units of log2, since the hardware's exponential is 2^x.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.info_nce.reference import NORM_FLOOR
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import (
    LN_2,
    LOG2_E,
    LOWEST,
    Strided,
    dot_precision,
    load_tile,
    merge_partial_softmax,
    strided,
)

_STATISTICS = tl.constexpr(4)  # numbers that are kept of a vector for the backward pass


class _Statistics(NamedTuple):
    """Their order in statistics [2 views, 4, G, B]. Not constants, for the reason given in triton_shared/scores.py."""

    maximum: Any  # of its similarities
    inverse_sum: Any  # 1 / Σ 2^(s − maximum)
    prob_of_rest: Any  # of all but the positive
    norm: Any


class _Vectors(NamedTuple):
    """Some vectors of one group of a view: the group's address, the two strides, which vectors, and 1/norm of each."""

    data: Any
    row_stride: Any
    column_stride: Any
    rows: Any
    inverse_norm: Any


@triton.jit
def _order():
    return _Statistics(0, 1, 2, 3)


@triton.jit
def _similarities(left, right, scale, B, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr):
    """A tile of similarities over the temperature, in units of log2: the same to the bit with the views exchanged."""
    products = tl.zeros([left.rows.shape[0], right.rows.shape[0]], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = (columns < D)[None, :]
        left_mask, right_mask = (left.rows < B)[:, None] & inside, (right.rows < B)[:, None] & inside
        u = load_tile(left.data, left.rows, left.row_stride, columns, left.column_stride, left_mask)
        v = load_tile(right.data, right.rows, right.row_stride, columns, right.column_stride, right_mask)
        products = tl.dot(u, tl.trans(v), acc=products, input_precision=PRECISION)
    return products * (left.inverse_norm[:, None] * right.inverse_norm[None, :]) * scale


@triton.jit
def _alike(labels, rows, others, B, LABELS: tl.constexpr):
    """Which pairs of a group have a label in common; labels [B, LABELS] of the group."""
    alike = tl.zeros([rows.shape[0], others.shape[0]], tl.int1)
    for column in tl.static_range(LABELS):
        own = tl.load(labels + rows * LABELS + column, mask=rows < B, other=0)
        other = tl.load(labels + others * LABELS + column, mask=others < B, other=0)
        alike |= own[:, None] == other[None, :]
    return alike


@triton.jit(do_not_specialize=["G", "B"])
def _norms_kernel(
    view1,
    view1_strides,
    view2,
    view2_strides,
    statistics,
    G,
    B,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The norms of both views' vectors, into their statistics."""
    view1 = Strided(view1, view1_strides)
    view2 = Strided(view2, view2_strides)
    group = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < B
    base1, base2 = view1.data + group * view1.strides[0], view2.data + group * view2.strides[0]
    squares1 = tl.zeros([BLOCK_R], tl.float32)
    squares2 = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        u = load_tile(base1, rows, view1.strides[1], columns, view1.strides[2], inside).to(tl.float32)
        v = load_tile(base2, rows, view2.strides[1], columns, view2.strides[2], inside).to(tl.float32)
        squares1 += tl.sum(u * u, 1)
        squares2 += tl.sum(v * v, 1)
    all_rows = tl.cast(G, tl.int64) * B
    norms = statistics + _order().norm * all_rows + group * B + rows
    # Rounded to nearest: the norm of a single component is exactly its size.
    tl.store(norms, tl.sqrt_rn(squares1), mask=mask)
    tl.store(norms + _STATISTICS * all_rows, tl.sqrt_rn(squares2), mask=mask)


@triton.jit(do_not_specialize=["G", "B"])
def _forward_kernel(
    view1,
    view1_strides,
    view2,
    view2_strides,
    labels,
    statistics,
    parts,
    diagonal,
    scale,
    floor,
    G,
    B,
    D: tl.constexpr,
    LABELS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One tile of one group: of its rows and columns, off the diagonal, the maximum and Σ 2^(s − maximum); and the
    diagonal's s. Into parts [2 directions, maximum and sum, tiles, G, B] and diagonal [G, B].
    """
    view1 = Strided(view1, view1_strides)
    view2 = Strided(view2, view2_strides)
    group, row_block, column_block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows1 = row_block * BLOCK + tl.arange(0, BLOCK)
    rows2 = column_block * BLOCK + tl.arange(0, BLOCK)
    all_rows = tl.cast(G, tl.int64) * B
    norms = statistics + _order().norm * all_rows + group * B
    norm1 = tl.load(norms + rows1, mask=rows1 < B, other=1.0)
    norm2 = tl.load(norms + _STATISTICS * all_rows + rows2, mask=rows2 < B, other=1.0)
    base1, base2 = view1.data + group * view1.strides[0], view2.data + group * view2.strides[0]
    vectors1 = _Vectors(base1, view1.strides[1], view1.strides[2], rows1, 1.0 / tl.maximum(norm1, floor))
    vectors2 = _Vectors(base2, view2.strides[1], view2.strides[2], rows2, 1.0 / tl.maximum(norm2, floor))
    s = _similarities(vectors1, vectors2, scale, B, D, PRECISION, BLOCK_D)  # [BLOCK, BLOCK]
    # A row or column beyond B is computed too, on zeros, and not stored.
    in_sum = (rows1[:, None] != rows2[None, :]) & (rows1 < B)[:, None] & (rows2 < B)[None, :]
    if LABELS > 0:
        in_sum &= ~_alike(labels + group * B * LABELS, rows1, rows2, B, LABELS)
    off_diagonal = tl.where(in_sum, s, LOWEST)  # not −inf: there may be nothing off the diagonal
    part = tl.num_programs(1) * all_rows
    m = tl.max(off_diagonal, 1)
    offsets = column_block * all_rows + group * B + rows1
    tl.store(parts + offsets, m, mask=rows1 < B)
    weights = tl.where(in_sum, tl.exp2(off_diagonal - m[:, None]), 0.0)
    tl.store(parts + part + offsets, tl.sum(weights, 1), mask=rows1 < B)
    m = tl.max(off_diagonal, 0)
    offsets = row_block * all_rows + group * B + rows2
    tl.store(parts + 2 * part + offsets, m, mask=rows2 < B)
    weights = tl.where(in_sum, tl.exp2(off_diagonal - m[None, :]), 0.0)
    tl.store(parts + 3 * part + offsets, tl.sum(weights, 0), mask=rows2 < B)
    if row_block == column_block:
        positive = tl.sum(tl.where(rows1[:, None] == rows2[None, :], s, 0.0), 1)
        tl.store(diagonal + group * B + rows1, positive, mask=rows1 < B)


@triton.jit(do_not_specialize=["tiles", "G", "B"])
def _loss_kernel(
    parts,
    diagonal,
    statistics,
    losses,
    tiles,
    G,
    B,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Of each vector of a view its loss, into losses [2, G, B], and all but the norm of its statistics."""
    group, view = tl.program_id(0).to(tl.int64), tl.program_id(2)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < B
    all_rows = tl.cast(G, tl.int64) * B
    offsets = group * B + rows
    positive = tl.load(diagonal + offsets, mask=mask, other=0.0)
    parts += view * 2 * tiles * all_rows
    rest_m, rest_sum = merge_partial_softmax(parts, tiles, all_rows, offsets, mask, 1.0, BLOCK_S)
    m = tl.maximum(rest_m, positive)
    rest_sum *= tl.exp2(rest_m - m)
    total = rest_sum + tl.exp2(positive - m)
    # log(1 + rest_sum) where the positive is the largest: what rounding 1 + rest_sum loses is in the quotient.
    log1p = tl.where(total == 1.0, rest_sum, tl.log(total) * (rest_sum / (total - 1.0)))
    loss = tl.where(positive == m, log1p, (m - positive) * LN_2 + tl.log(total))
    tl.store(losses + view * all_rows + offsets, loss, mask=mask)
    statistics += view * _STATISTICS * all_rows + offsets
    tl.store(statistics + _order().maximum * all_rows, m, mask=mask)
    tl.store(statistics + _order().inverse_sum * all_rows, 1.0 / total, mask=mask)
    tl.store(statistics + _order().prob_of_rest * all_rows, rest_sum / total, mask=mask)


@triton.jit(do_not_specialize=["number", "G", "B"])
def _unit_gradient_kernel(
    view,
    view_strides,
    other_view,
    other_view_strides,
    number,
    labels,
    statistics,
    loss_gradient,
    factor,
    gradient,
    scale,
    floor,
    G,
    B,
    D: tl.constexpr,
    LABELS: tl.constexpr,
    GRAD_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HELD_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient w.r.t. the unit vectors of a block of one view's rows: Σ_j (P_ij + P_ji − 2 [i = j]) · unit_j.

    The view is number 0 or 1.
    """
    view = Strided(view, view_strides)
    other_view = Strided(other_view, other_view_strides)
    group = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(2) * HELD_D + tl.arange(0, HELD_D)
    inside = (columns < D)[None, :]
    all_rows = tl.cast(G, tl.int64) * B
    offsets = group * B + rows
    other_statistics = statistics + (1 - number) * _STATISTICS * all_rows
    statistics += number * _STATISTICS * all_rows
    norm = tl.load(statistics + _order().norm * all_rows + offsets, mask=rows < B, other=1.0)
    inverse_norm = 1.0 / tl.maximum(norm, floor)
    row_m = tl.load(statistics + _order().maximum * all_rows + offsets, mask=rows < B, other=0.0)
    row_inverse_sum = tl.load(statistics + _order().inverse_sum * all_rows + offsets, mask=rows < B, other=0.0)
    probs_of_rest = tl.load(statistics + _order().prob_of_rest * all_rows + offsets, mask=rows < B, other=0.0)
    probs_of_rest += tl.load(other_statistics + _order().prob_of_rest * all_rows + offsets, mask=rows < B, other=0.0)
    base, other_base = view.data + group * view.strides[0], other_view.data + group * other_view.strides[0]
    vectors = _Vectors(base, view.strides[1], view.strides[2], rows, inverse_norm)
    total = tl.zeros([BLOCK_R, HELD_D], tl.float32)
    for start in range(0, B, BLOCK_V):
        others = start + tl.arange(0, BLOCK_V)
        other_offsets = group * B + others
        other_norm = tl.load(other_statistics + _order().norm * all_rows + other_offsets, mask=others < B, other=1.0)
        other_inverse_norm = 1.0 / tl.maximum(other_norm, floor)
        other_m = tl.load(other_statistics + _order().maximum * all_rows + other_offsets, mask=others < B, other=0.0)
        other_inverse_sum = tl.load(
            other_statistics + _order().inverse_sum * all_rows + other_offsets, mask=others < B, other=0.0
        )
        other_vectors = _Vectors(other_base, other_view.strides[1], other_view.strides[2], others, other_inverse_norm)
        s = _similarities(vectors, other_vectors, scale, B, D, PRECISION, BLOCK_D)  # [BLOCK_R, BLOCK_V]
        ds = tl.exp2(s - row_m[:, None]) * row_inverse_sum[:, None]  # P_ij
        ds += tl.exp2(s - other_m[None, :]) * other_inverse_sum[None, :]  # P_ji
        if LABELS > 0:
            ds = tl.where(_alike(labels + group * B * LABELS, rows, others, B, LABELS), 0.0, ds)
        ds = tl.where(rows[:, None] == others[None, :], -probs_of_rest[:, None], ds)
        # Beyond B there is s = 0, and 2^(0 − m) may be infinite.
        ds = tl.where((rows < B)[:, None] & (others < B)[None, :], ds, 0.0) * GRAD_SCALE
        mask = (others < B)[:, None] & inside
        v = load_tile(other_base, others, other_view.strides[1], columns, other_view.strides[2], mask)
        unit = (v.to(tl.float32) * other_inverse_norm[:, None]).to(v.dtype)
        total = tl.dot(ds.to(v.dtype), unit, acc=total, input_precision=PRECISION)
    total *= tl.load(loss_gradient).to(tl.float32) * factor
    tl.store(gradient + offsets[:, None] * D + columns[None, :], total, mask=(rows < B)[:, None] & inside)


@triton.jit
def _load_unit(base, rows, strides, columns, divisor, inside):
    """Columns of unit vectors. Divided, and rounded to nearest: the only component of a vector is exactly 1 or −1."""
    v = load_tile(base, rows, strides[1], columns, strides[2], inside).to(tl.float32)
    return tl.div_rn(v, tl.broadcast_to(divisor, v.shape))


@triton.jit(do_not_specialize=["number", "G", "B"])
def _view_gradient_kernel(
    view,
    view_strides,
    number,
    statistics,
    unit_gradient,
    gradient,
    floor,
    G,
    B,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """From the gradient du w.r.t. a unit vector u to that w.r.t. the vector v: dv = (du − (du · u) u) / |v|."""
    view = Strided(view, view_strides)
    group = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < B
    offsets = group * B + rows
    norms = statistics + (number * _STATISTICS + _order().norm) * tl.cast(G, tl.int64) * B
    norm = tl.load(norms + offsets, mask=mask, other=1.0)
    divisor = tl.maximum(norm, floor)[:, None]
    base = view.data + group * view.strides[0]
    # Pass 1: du · u.
    along = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        unit = _load_unit(base, rows, view.strides, columns, divisor, inside)
        along += tl.sum(load_tile(unit_gradient, offsets, D, columns, 1, inside) * unit, 1)
    along = tl.where(norm >= floor, along, 0.0)  # a shorter vector is only scaled
    # Pass 2: dv.
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        unit = _load_unit(base, rows, view.strides, columns, divisor, inside)
        du = load_tile(unit_gradient, offsets, D, columns, 1, inside)
        dv = (du - unit * along[:, None]) / divisor
        tl.store(gradient + offsets[:, None] * D + columns[None, :], dv.to(gradient.dtype.element_ty), mask=inside)


def _as_labels(labels: Tensor | None, unused: Tensor) -> tuple[Tensor, int]:
    """Labels [G, B, K] as the kernels take them, and K; 0 and any tensor without."""
    return (unused, 0) if labels is None else (labels.contiguous(), labels.shape[2])


def new_statistics(view1: Tensor) -> Tensor:
    """Memory for what is kept of both views' vectors for the backward pass: float32 [2, 4, G, B]."""
    return view1.new_empty((2, _STATISTICS.value, *view1.shape[:2]), dtype=torch.float32)


def forward(view1: Tensor, view2: Tensor, labels: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss and, for the backward pass, the statistics."""
    groups, batch, dim = view1.shape
    statistics = new_statistics(view1)
    if groups == 0 or batch == 0:
        return view1.new_zeros((), dtype=torch.float32), statistics
    options = launch.info_nce_forward(view1.element_size(), labels is not None)
    row_options, loss_options = launch.row_products(dim), launch.info_nce_losses()
    tiles = launch.blocks(batch, options["BLOCK"])
    parts = view1.new_empty((2, 2, tiles, groups, batch), dtype=torch.float32)
    diagonal = view1.new_empty((groups, batch), dtype=torch.float32)
    losses = view1.new_empty((2, groups, batch), dtype=torch.float32)
    views = (*strided(view1), *strided(view2))
    label_data, label_columns = _as_labels(labels, statistics)
    with torch.cuda.device_of(view1):
        _norms_kernel[(groups, launch.blocks(batch, row_options["BLOCK_R"]))](
            *views, statistics, groups, batch, D=dim, **row_options
        )
        _forward_kernel[(groups, tiles, tiles)](
            *views,
            label_data,
            statistics,
            parts,
            diagonal,
            LOG2_E / temperature,
            NORM_FLOOR,
            groups,
            batch,
            D=dim,
            LABELS=label_columns,
            PRECISION=dot_precision(),
            **options,
        )
        _loss_kernel[(groups, launch.blocks(batch, loss_options["BLOCK_R"]), 2)](
            parts, diagonal, statistics, losses, tiles, groups, batch, **loss_options
        )
    return losses.sum() / (groups * batch), statistics


def backward(
    loss_gradient: Tensor,
    view1: Tensor,
    view2: Tensor,
    labels: Tensor | None,
    statistics: Tensor,
    temperature: float,
    needs_view1: bool,
    needs_view2: bool,
) -> tuple[Tensor, ...]:
    """The gradients of the views; an empty tensor for one that is not needed."""
    groups, batch, dim = view1.shape
    views, needs = (view1, view2), (needs_view1, needs_view2)
    gradients = new_gradients(views, needs)
    if groups == 0 or batch == 0:
        return tuple(gradient.zero_() for gradient in gradients)
    statistics = statistics.contiguous()
    label_data, label_columns = _as_labels(labels, statistics)
    options = launch.info_nce_backward(dim, view1.element_size())
    # A probability of 1/B is close to the smallest normal float16; no entry exceeds 2, scaled 2048.
    grad_scale = 1024 if view1.dtype == torch.float16 else 1
    row_options = launch.row_products(dim)
    with torch.cuda.device_of(view1):
        for this, that in ((0, 1), (1, 0)):
            if not needs[this]:
                continue
            unit_gradient = view1.new_empty(view1.shape, dtype=torch.float32)
            _unit_gradient_kernel[
                (groups, launch.blocks(batch, options["BLOCK_R"]), launch.blocks(dim, options["HELD_D"]))
            ](
                *strided(views[this]),
                *strided(views[that]),
                this,
                label_data,
                statistics,
                loss_gradient,
                1 / (groups * batch * temperature * grad_scale),
                unit_gradient,
                LOG2_E / temperature,
                NORM_FLOOR,
                groups,
                batch,
                D=dim,
                LABELS=label_columns,
                GRAD_SCALE=grad_scale,
                PRECISION=dot_precision(),
                **options,
            )
            _view_gradient_kernel[(groups, launch.blocks(batch, row_options["BLOCK_R"]))](
                *strided(views[this]),
                this,
                statistics,
                unit_gradient,
                gradients[this],
                NORM_FLOOR,
                groups,
                batch,
                D=dim,
                **row_options,
            )
    return gradients
