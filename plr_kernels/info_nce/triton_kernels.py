"""The "triton" backend of info_nce.

A tile of similarities is the product of the views as they are, divided by both norms: no rounding of unit vectors comes
in between. One product serves both directions: a tile gives parts of the softmax of its rows and of its columns. The
backward pass computes a tile's similarities anew and uses P_row + P_col; it runs once per view that needs a gradient,
with the views exchanged.

Similarities are held in units of log2, since the hardware's exponential is 2^x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.linalg import vector_norm

from plr_kernels import launch
from plr_kernels.info_nce.reference import NORM_FLOOR
from plr_kernels.triton_common import LN_2, LOG2_E, dot_precision, load_tile, new_gradient


@triton.jit
def _similarities(
    left,
    left_strides,
    right,
    right_strides,
    rows,
    others,
    row_scale,
    other_scale,
    B,
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    PIECE: tl.constexpr,
):
    """A tile of similarities over the temperature, in units of log2; the scales hold 1/norm and 0 beyond B."""
    products = tl.zeros([rows.shape[0], others.shape[0]], tl.float32)
    for first in range(0, D, PIECE):
        columns = first + tl.arange(0, PIECE)
        inside = (columns < D)[None, :]
        u = load_tile(left, rows, left_strides[1], columns, left_strides[2], (rows < B)[:, None] & inside)
        v = load_tile(right, others, right_strides[1], columns, right_strides[2], (others < B)[:, None] & inside)
        products = tl.dot(u, tl.trans(v), acc=products, input_precision=PRECISION)
    return products * row_scale[:, None] * other_scale[None, :]


@triton.jit
def _forward_kernel(
    view1,
    view1_strides,
    view2,
    view2_strides,
    norms,
    row_parts,
    column_parts,
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
    """One tile of one group: maximum and Σ 2^(s − maximum) of its rows and of its columns, and the diagonal's s."""
    row_block, column_block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = row_block * BLOCK + tl.arange(0, BLOCK)
    others = column_block * BLOCK + tl.arange(0, BLOCK)
    all_rows = tl.cast(G, tl.int64) * B
    norm1 = tl.load(norms + group * B + rows, mask=rows < B, other=1.0)
    norm2 = tl.load(norms + all_rows + group * B + others, mask=others < B, other=1.0)
    s = _similarities(
        view1 + group * view1_strides[0],
        view1_strides,
        view2 + group * view2_strides[0],
        view2_strides,
        rows,
        others,
        scale / tl.maximum(norm1, floor),
        1.0 / tl.maximum(norm2, floor),
        B,
        D,
        PRECISION,
        PIECE,
    )
    # A row or column beyond B is computed too, on zeros, and not stored: no maximum is −inf.
    in_row = tl.where((others < B)[None, :], s, float("-inf"))
    maximum = tl.max(in_row, 1)
    offsets = column_block * all_rows + group * B + rows
    parts = tl.num_programs(1) * all_rows
    tl.store(row_parts + offsets, maximum, mask=rows < B)
    tl.store(row_parts + parts + offsets, tl.sum(tl.exp2(in_row - maximum[:, None]), 1), mask=rows < B)
    in_column = tl.where((rows < B)[:, None], s, float("-inf"))
    maximum = tl.max(in_column, 0)
    offsets = row_block * all_rows + group * B + others
    tl.store(column_parts + offsets, maximum, mask=others < B)
    tl.store(column_parts + parts + offsets, tl.sum(tl.exp2(in_column - maximum[None, :]), 0), mask=others < B)
    if row_block == column_block:
        own = tl.sum(tl.where(rows[:, None] == others[None, :], s, 0.0), 1)
        tl.store(diagonal + group * B + rows, own, mask=rows < B)


@triton.jit
def _unit_gradient_kernel(
    view,
    view_strides,
    other,
    other_strides,
    norms,
    other_norms,
    statistics,
    other_statistics,
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
    """The gradient by the unit vectors of a block of one view's rows: Σ_j (P_ij + P_ji − 2 [i = j]) · unit_j."""
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (columns < D)[None, :]
    all_rows = tl.cast(G, tl.int64) * B
    own = group * B + rows
    row_scale = scale / tl.maximum(tl.load(norms + own, mask=rows < B, other=1.0), floor)
    row_maximum = tl.load(statistics + own, mask=rows < B, other=0.0)
    row_inverse = tl.load(statistics + all_rows + own, mask=rows < B, other=0.0)
    total = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for start in range(0, B, BLOCK_V):
        others = start + tl.arange(0, BLOCK_V)
        theirs = group * B + others
        other_scale = 1.0 / tl.maximum(tl.load(other_norms + theirs, mask=others < B, other=1.0), floor)
        other_maximum = tl.load(other_statistics + theirs, mask=others < B, other=0.0)
        other_inverse = tl.load(other_statistics + all_rows + theirs, mask=others < B, other=0.0)
        s = _similarities(
            view + group * view_strides[0],
            view_strides,
            other + group * other_strides[0],
            other_strides,
            rows,
            others,
            row_scale,
            other_scale,
            B,
            D,
            PRECISION,
            PIECE,
        )
        both = tl.exp2(s - row_maximum[:, None]) * row_inverse[:, None]
        both += tl.exp2(s - other_maximum[None, :]) * other_inverse[None, :]
        both = tl.where(rows[:, None] == others[None, :], both - 2.0, both)
        # Beyond B there is s = 0, and 2^(0 − maximum) may be infinite.
        both = tl.where((rows < B)[:, None] & (others < B)[None, :], both, 0.0) * SCALE
        base = other + group * other_strides[0]
        v = load_tile(base, others, other_strides[1], columns, other_strides[2], (others < B)[:, None] & inside)
        unit = (v.to(tl.float32) * other_scale[:, None]).to(v.dtype)
        total = tl.dot(both.to(v.dtype), unit, acc=total, input_precision=PRECISION)
    total *= tl.load(outer).to(tl.float32) * factor
    tl.store(gradient + own[:, None] * D + columns[None, :], total, mask=(rows < B)[:, None] & inside)


@triton.jit
def _view_gradient_kernel(
    view,
    view_strides,
    norms,
    unit_gradient,
    gradient,
    floor,
    B,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """From the gradient by a unit vector to that by the vector: what points along the vector changes nothing."""
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    mask = rows < B
    own = group * B + rows
    norm = tl.load(norms + own, mask=mask, other=1.0)
    inverse = 1.0 / tl.maximum(norm, floor)
    base = view + group * view_strides[0]
    along = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        v = load_tile(base, rows, view_strides[1], columns, view_strides[2], inside).to(tl.float32)
        along += tl.sum(load_tile(unit_gradient, own, D, columns, 1, inside) * (v * inverse[:, None]), 1)
    along = tl.where(norm >= floor, along, 0.0)  # a shorter vector is only scaled
    for first in range(0, D, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = mask[:, None] & (columns < D)[None, :]
        v = load_tile(base, rows, view_strides[1], columns, view_strides[2], inside).to(tl.float32)
        du = load_tile(unit_gradient, own, D, columns, 1, inside)
        dv = (du - v * (inverse * along)[:, None]) * inverse[:, None]
        tl.store(gradient + own[:, None] * D + columns[None, :], dv.to(gradient.dtype.element_ty), mask=inside)


def _norms(view1: Tensor, view2: Tensor) -> Tensor:
    """float32 [2, G, B]."""
    return torch.stack([vector_norm(view, dim=-1, dtype=torch.float32) for view in (view1, view2)])


def _merged(parts: Tensor, diagonal: Tensor) -> Tensor:
    """Maximum, 1/sum and the positive's similarity [3, G, B] from the parts [2, tiles, G, B] of a softmax."""
    maximum = parts[0].amax(0)
    return torch.stack([maximum, 1 / (parts[1] * torch.exp2(parts[0] - maximum)).sum(0), diagonal])


def forward(view1: Tensor, view2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss and, for the backward pass, statistics [2, 3, G, B] of both directions' distributions."""
    groups, batch, dim = view1.shape
    if groups == 0 or batch == 0:
        return view1.new_zeros((), dtype=torch.float32), view1.new_zeros((2, 3, groups, batch), dtype=torch.float32)
    options = launch.info_nce_forward(view1.element_size())
    tiles = launch.blocks(batch, options["BLOCK"])
    row_parts, column_parts = view1.new_empty((2, 2, tiles, groups, batch), dtype=torch.float32)
    diagonal = view1.new_empty((groups, batch), dtype=torch.float32)
    with torch.cuda.device_of(view1):
        _forward_kernel[(tiles, tiles, groups)](
            view1,
            view1.stride(),
            view2,
            view2.stride(),
            _norms(view1, view2),
            row_parts,
            column_parts,
            diagonal,
            LOG2_E / temperature,
            NORM_FLOOR,
            groups,
            batch,
            D=dim,
            PRECISION=dot_precision(),
            **options,
        )
    statistics = torch.stack([_merged(row_parts, diagonal), _merged(column_parts, diagonal)])
    maximum, inverse_sum, positive = statistics.unbind(1)
    # −log2 softmax of the positive, in both directions: (maximum − s) + log2(sum).
    losses = (maximum - positive) - inverse_sum.log2()
    return losses.sum() * (LN_2 / (groups * batch)), statistics


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
    if groups == 0 or batch <= 1:  # the only pair has probability 1, which the kernels know up to rounding
        return tuple(gradient.zero_() for gradient in gradients)
    statistics = statistics.contiguous()
    norms = _norms(view1, view2)
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
                (launch.blocks(batch, options["BLOCK_R"]), groups, launch.blocks(dim, options["BLOCK_D"]))
            ](
                views[this],
                views[this].stride(),
                views[that],
                views[that].stride(),
                norms[this],
                norms[that],
                statistics[this],
                statistics[that],
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
            _view_gradient_kernel[(launch.blocks(batch, row_options["BLOCK_R"]), groups)](
                views[this],
                views[this].stride(),
                norms[this],
                unit_gradient,
                gradients[this],
                NORM_FLOOR,
                batch,
                D=dim,
                **row_options,
            )
    return gradients
