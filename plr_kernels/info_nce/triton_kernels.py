"""The "triton" backend of info_nce.

A tile of similarities is the product of the views as they are, divided by both norms: no rounding of unit vectors comes
in between. One product serves both directions: a tile gives parts of the softmax of its rows and of its columns. The
backward pass computes a tile's similarities anew and uses P_row + P_col; it runs once per view that needs a gradient,
with the views exchanged.

The sums leave the positive pair out. So the loss log(1 + Σ others / positive) and the gradient at the positive, minus
the others' probability, are right where the positive wins by far too.

Similarities are held in units of log2, since the hardware's exponential is 2^x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.info_nce.reference import NORM_FLOOR
from plr_kernels.triton_shared import launch
from plr_kernels.triton_shared.helpers import LN_2, LOG2_E, dot_precision, load_tile, new_gradient, softmax_of_parts

_LN_2 = tl.constexpr(LN_2)
# Numbers that are kept of a vector for the backward pass: maximum and 1/sum of its similarities, the probability of all
# but the positive, and its norm.
_STATISTICS = tl.constexpr(4)


@triton.jit
def _similarities(
    left,
    left_strides,
    right,
    right_strides,
    rows,
    others,
    row_inverse_norm,
    other_inverse_norm,
    scale,
    B,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    PIECE: tl.constexpr,
):
    """A tile of similarities over the temperature, in units of log2: the same to the bit with the views exchanged."""
    products = tl.zeros([rows.shape[0], others.shape[0]], tl.float32)
    for first in range(0, D, PIECE):
        columns = first + tl.arange(0, PIECE)
        inside = (columns < D)[None, :]
        u = load_tile(left, rows, left_strides[1], columns, left_strides[2], (rows < B)[:, None] & inside)
        v = load_tile(right, others, right_strides[1], columns, right_strides[2], (others < B)[:, None] & inside)
        products = tl.dot(u, tl.trans(v), acc=products, input_precision=PRECISION)
    return products * (row_inverse_norm[:, None] * other_inverse_norm[None, :]) * scale


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
    """The norms of both views' vectors, the last of their statistics [2, 4, G, B]."""
    group = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < B
    squares1 = tl.zeros([BLOCK_R], tl.float32)
    squares2 = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        u = load_tile(view1 + group * view1_strides[0], rows, view1_strides[1], columns, view1_strides[2], inside)
        v = load_tile(view2 + group * view2_strides[0], rows, view2_strides[1], columns, view2_strides[2], inside)
        u, v = u.to(tl.float32), v.to(tl.float32)
        squares1 += tl.sum(u * u, 1)
        squares2 += tl.sum(v * v, 1)
    all_rows = tl.cast(G, tl.int64) * B
    norms = statistics + (_STATISTICS - 1) * all_rows + group * B + rows
    # Rounded to nearest: the norm of a single component is exactly its size.
    tl.store(norms, tl.sqrt_rn(squares1), mask=mask)
    tl.store(norms + _STATISTICS * all_rows, tl.sqrt_rn(squares2), mask=mask)


@triton.jit(do_not_specialize=["G", "B"])
def _forward_kernel(
    view1,
    view1_strides,
    view2,
    view2_strides,
    statistics,
    parts,
    diagonal,
    scale,
    floor,
    G,
    B,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):
    """One tile of one group: of its rows and columns, off the diagonal, the maximum and Σ 2^(s − maximum); and the
    diagonal's s. Into parts [2 directions, maximum and sum, tiles, G, B] and diagonal [G, B].
    """
    group, row_block, column_block = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    rows = row_block * BLOCK + tl.arange(0, BLOCK)
    others = column_block * BLOCK + tl.arange(0, BLOCK)
    all_rows = tl.cast(G, tl.int64) * B
    norms = statistics + (_STATISTICS - 1) * all_rows + group * B
    norm1 = tl.load(norms + rows, mask=rows < B, other=1.0)
    norm2 = tl.load(norms + _STATISTICS * all_rows + others, mask=others < B, other=1.0)
    s = _similarities(
        view1 + group * view1_strides[0],
        view1_strides,
        view2 + group * view2_strides[0],
        view2_strides,
        rows,
        others,
        1.0 / tl.maximum(norm1, floor),
        1.0 / tl.maximum(norm2, floor),
        scale,
        B,
        D,
        PRECISION,
        PIECE,
    )
    # A row or column beyond B is computed too, on zeros, and not stored.
    counted = (rows[:, None] != others[None, :]) & (rows < B)[:, None] & (others < B)[None, :]
    # The least finite number: there may be nothing off the diagonal.
    off_diagonal = tl.where(counted, s, -3.4028234663852886e38)
    maximum = tl.max(off_diagonal, 1)
    of_tiles = tl.num_programs(1) * all_rows
    offsets = column_block * all_rows + group * B + rows
    tl.store(parts + offsets, maximum, mask=rows < B)
    weights = tl.where(counted, tl.exp2(off_diagonal - maximum[:, None]), 0.0)
    tl.store(parts + of_tiles + offsets, tl.sum(weights, 1), mask=rows < B)
    maximum = tl.max(off_diagonal, 0)
    offsets = row_block * all_rows + group * B + others
    tl.store(parts + 2 * of_tiles + offsets, maximum, mask=others < B)
    weights = tl.where(counted, tl.exp2(off_diagonal - maximum[None, :]), 0.0)
    tl.store(parts + 3 * of_tiles + offsets, tl.sum(weights, 0), mask=others < B)
    if row_block == column_block:
        own = tl.sum(tl.where(rows[:, None] == others[None, :], s, 0.0), 1)
        tl.store(diagonal + group * B + rows, own, mask=rows < B)


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
    """Of each vector of a view its loss, into losses [2, G, B], and the other three of its statistics [2, 4, G, B]."""
    group, view = tl.program_id(0).to(tl.int64), tl.program_id(2)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < B
    all_rows = tl.cast(G, tl.int64) * B
    own = group * B + rows
    positive = tl.load(diagonal + own, mask=mask, other=0.0)
    parts += view * 2 * tiles * all_rows
    others_maximum, others = softmax_of_parts(parts, tiles, all_rows, own, mask, BLOCK_S)
    maximum = tl.maximum(others_maximum, positive)
    others *= tl.exp2(others_maximum - maximum)
    total = others + tl.exp2(positive - maximum)
    # log(1 + others) where the positive is the largest: what rounding 1 + others loses is in the quotient.
    small = tl.where(total == 1.0, others, tl.log(total) * (others / (total - 1.0)))
    loss = tl.where(positive == maximum, small, (maximum - positive) * _LN_2 + tl.log(total))
    tl.store(losses + view * all_rows + own, loss, mask=mask)
    statistics += view * _STATISTICS * all_rows + own
    tl.store(statistics, maximum, mask=mask)
    tl.store(statistics + all_rows, 1.0 / total, mask=mask)
    tl.store(statistics + 2 * all_rows, others / total, mask=mask)


@triton.jit(do_not_specialize=["number", "G", "B"])
def _unit_gradient_kernel(
    view,
    view_strides,
    other,
    other_strides,
    number,
    statistics,
    outer,
    factor,
    gradient,
    scale,
    floor,
    G,
    B,
    D: tl.constexpr,
    SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PIECE: tl.constexpr,
):
    """The gradient by the unit vectors of a block of one view's rows: Σ_j (P_ij + P_ji − 2 [i = j]) · unit_j.

    The view is number 0 or 1.
    """
    group = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    all_rows = tl.cast(G, tl.int64) * B
    own = group * B + rows
    of_other = statistics + (1 - number) * _STATISTICS * all_rows
    statistics += number * _STATISTICS * all_rows
    row_inverse_norm = 1.0 / tl.maximum(tl.load(statistics + 3 * all_rows + own, mask=rows < B, other=1.0), floor)
    row_maximum = tl.load(statistics + own, mask=rows < B, other=0.0)
    row_inverse = tl.load(statistics + all_rows + own, mask=rows < B, other=0.0)
    not_positive = tl.load(statistics + 2 * all_rows + own, mask=rows < B, other=0.0)
    not_positive += tl.load(of_other + 2 * all_rows + own, mask=rows < B, other=0.0)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(0, B, BLOCK_V):
        others = start + tl.arange(0, BLOCK_V)
        theirs = group * B + others
        other_norm = tl.load(of_other + 3 * all_rows + theirs, mask=others < B, other=1.0)
        other_inverse_norm = 1.0 / tl.maximum(other_norm, floor)
        other_maximum = tl.load(of_other + theirs, mask=others < B, other=0.0)
        other_inverse = tl.load(of_other + all_rows + theirs, mask=others < B, other=0.0)
        s = _similarities(
            view + group * view_strides[0],
            view_strides,
            other + group * other_strides[0],
            other_strides,
            rows,
            others,
            row_inverse_norm,
            other_inverse_norm,
            scale,
            B,
            D,
            PRECISION,
            PIECE,
        )
        both = tl.exp2(s - row_maximum[:, None]) * row_inverse[:, None]
        both += tl.exp2(s - other_maximum[None, :]) * other_inverse[None, :]
        both = tl.where(rows[:, None] == others[None, :], -not_positive[:, None], both)
        # Beyond B there is s = 0, and 2^(0 − maximum) may be infinite.
        both = tl.where((rows < B)[:, None] & (others < B)[None, :], both, 0.0) * SCALE
        base = other + group * other_strides[0]
        v = load_tile(base, others, other_strides[1], columns, other_strides[2], (others < B)[:, None] & inside)
        unit = (v.to(tl.float32) * other_inverse_norm[:, None]).to(v.dtype)
        total = tl.dot(both.to(v.dtype), unit, acc=total, input_precision=PRECISION)
    total *= tl.load(outer).to(tl.float32) * factor
    tl.store(gradient + own[:, None] * D + columns[None, :], total, mask=(rows < B)[:, None] & inside)


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
    """From the gradient by a unit vector to that by the vector: what points along the vector changes nothing."""
    group = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < B
    own = group * B + rows
    norms = statistics + (number * _STATISTICS + 3) * tl.cast(G, tl.int64) * B
    norm = tl.load(norms + own, mask=mask, other=1.0)
    divisor = tl.maximum(norm, floor)[:, None]
    base = view + group * view_strides[0]
    along = tl.zeros([BLOCK_R], tl.float32)
    # Divided, and rounded to nearest: the only component of a vector is exactly 1 or −1, and its gradient 0.
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        v = load_tile(base, rows, view_strides[1], columns, view_strides[2], inside).to(tl.float32)
        unit = tl.div_rn(v, tl.broadcast_to(divisor, v.shape))
        along += tl.sum(load_tile(unit_gradient, own, D, columns, 1, inside) * unit, 1)
    along = tl.where(norm >= floor, along, 0.0)  # a shorter vector is only scaled
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        v = load_tile(base, rows, view_strides[1], columns, view_strides[2], inside).to(tl.float32)
        unit = tl.div_rn(v, tl.broadcast_to(divisor, v.shape))
        du = load_tile(unit_gradient, own, D, columns, 1, inside)
        dv = (du - unit * along[:, None]) / divisor
        tl.store(gradient + own[:, None] * D + columns[None, :], dv.to(gradient.dtype.element_ty), mask=inside)


def new_statistics(view1: Tensor) -> Tensor:
    """Memory for what is kept of both views' vectors for the backward pass: float32 [2, 4, G, B]."""
    return view1.new_empty((2, _STATISTICS.value, *view1.shape[:2]), dtype=torch.float32)


def forward(view1: Tensor, view2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss and, for the backward pass, the statistics."""
    groups, batch, dim = view1.shape
    statistics = new_statistics(view1)
    if groups == 0 or batch == 0:
        return view1.new_zeros((), dtype=torch.float32), statistics
    options = launch.info_nce_forward(view1.element_size())
    row_options, loss_options = launch.row_products(dim), launch.info_nce_losses()
    tiles = launch.blocks(batch, options["BLOCK"])
    parts = view1.new_empty((2, 2, tiles, groups, batch), dtype=torch.float32)
    diagonal = view1.new_empty((groups, batch), dtype=torch.float32)
    losses = view1.new_empty((2, groups, batch), dtype=torch.float32)
    views = (view1, view1.stride(), view2, view2.stride())
    with torch.cuda.device_of(view1):
        _norms_kernel[(groups, launch.blocks(batch, row_options["BLOCK_R"]))](
            *views, statistics, groups, batch, D=dim, **row_options
        )
        _forward_kernel[(groups, tiles, tiles)](
            *views,
            statistics,
            parts,
            diagonal,
            LOG2_E / temperature,
            NORM_FLOOR,
            groups,
            batch,
            D=dim,
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
    statistics: Tensor,
    temperature: float,
    needs_view1: bool,
    needs_view2: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of the views; an empty tensor for one that is not needed."""
    groups, batch, dim = view1.shape
    gradients = new_gradient(view1, needs_view1), new_gradient(view2, needs_view2)
    if groups == 0 or batch == 0:
        return tuple(gradient.zero_() for gradient in gradients)
    statistics = statistics.contiguous()
    views = (view1, view2)
    options = launch.info_nce_backward(dim, view1.element_size())
    # A probability of 1/B is close to the smallest normal float16; no entry exceeds 2 such units.
    units = 1024 if view1.dtype == torch.float16 else 1
    row_options = launch.row_products(dim)
    with torch.cuda.device_of(view1):
        for this, that in ((0, 1), (1, 0)):
            if not (needs_view1, needs_view2)[this]:
                continue
            unit_gradient = view1.new_empty(view1.shape, dtype=torch.float32)
            _unit_gradient_kernel[
                (groups, launch.blocks(batch, options["BLOCK_R"]), launch.blocks(dim, options["BLOCK_D"]))
            ](
                views[this],
                views[this].stride(),
                views[that],
                views[that].stride(),
                this,
                statistics,
                loss_gradient,
                1 / (groups * batch * temperature * units),
                unit_gradient,
                LOG2_E / temperature,
                NORM_FLOOR,
                groups,
                batch,
                D=dim,
                SCALE=units,
                PRECISION=dot_precision(),
                **options,
            )
            _view_gradient_kernel[(groups, launch.blocks(batch, row_options["BLOCK_R"]))](
                views[this],
                views[this].stride(),
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
