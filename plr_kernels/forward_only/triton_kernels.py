"""The "triton" backend: each kernel reads its rows once and writes them once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared import launch

_SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit(do_not_specialize=["repeat", "period", "R"])
def _sum_norm_kernel(
    left,
    left_stride,
    index,
    right,
    right_stride,
    bias,
    weight,
    shift,
    output,
    eps,
    repeat,
    period,
    R,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HELD_D: tl.constexpr,
):
    """LayerNorm of left[index[r]] (without an index left[r // repeat]) + right[r % period] + bias, a block of rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, HELD_D)
    within = columns < D
    mask = (rows < R)[:, None] & within[None, :]
    if index is not None:
        left_rows = tl.load(index + rows, mask=rows < R, other=0).to(tl.int64)
    else:
        left_rows = rows // repeat
    right_rows = rows % period
    total = tl.load(left + left_rows[:, None] * left_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    total += tl.load(right + right_rows[:, None] * right_stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + columns, mask=within, other=0.0).to(tl.float32)[None, :]
    # Rounded to nearest, which a GPU's plain quotient is not: of numbers that are all the same it would leave a unit or
    # two of rounding, and after the division by their spread, the root of eps, something of the size of the others.
    count = tl.full([BLOCK_R], D, tl.float32)
    centred = tl.where(mask, total - tl.div_rn(tl.sum(total, 1), count)[:, None], 0.0)  # [BLOCK_R, HELD_D]
    inverse = tl.rsqrt(tl.div_rn(tl.sum(centred * centred, 1), count) + eps)
    scale = tl.load(weight + columns, mask=within, other=0.0).to(tl.float32)[None, :]
    offset = tl.load(shift + columns, mask=within, other=0.0).to(tl.float32)[None, :]
    result = centred * inverse[:, None] * scale + offset
    tl.store(output + rows[:, None] * D + columns[None, :], result.to(output.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N"])
def _bias_gelu_kernel(inner, bias, N, F: tl.constexpr, BLOCK: tl.constexpr):
    """gelu(inner + bias) in place of inner, N numbers in rows of F."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < N
    total = tl.load(inner + places, mask=mask, other=0.0).to(tl.float32)
    total += tl.load(bias + places % F, mask=mask, other=0.0).to(tl.float32)
    result = total * 0.5 * (1.0 + tl.erf(total * _SQRT_HALF))
    tl.store(inner + places, result.to(inner.dtype.element_ty), mask=mask)


def sum_norm(
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    index: Tensor | None,
    repeat: int,
    bias: Tensor | None,
) -> Tensor:
    """LayerNorm of sums of rows; matrices whose columns are neighbours, vectors contiguous."""
    rows = len(left) * repeat if index is None else len(index)
    dim = left.shape[1]
    result = left.new_empty(rows, dim)
    options = launch.sum_norm(dim)
    with torch.cuda.device_of(left):
        _sum_norm_kernel[(launch.blocks(rows, options["BLOCK_R"]),)](
            left,
            left.stride(0),
            index,
            right,
            right.stride(0),
            bias,
            weight,
            shift,
            result,
            eps,
            repeat,
            len(right),
            rows,
            D=dim,
            **options,
        )
    return result


def bias_gelu(inner: Tensor, bias: Tensor) -> Tensor:
    """gelu(inner + bias) in place of inner, which is contiguous."""
    options = launch.bias_gelu()
    with torch.cuda.device_of(inner):
        _bias_gelu_kernel[(launch.blocks(inner.numel(), options["BLOCK"]),)](
            inner, bias, inner.numel(), F=inner.shape[1], **options
        )
    return inner
