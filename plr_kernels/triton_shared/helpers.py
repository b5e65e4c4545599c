"""What the Triton kernels of several operators share."""

from typing import Any, Final, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared.launch import float32_precision

# torch's precision of float32 products -> the input_precision of tl.dot. Products of half-precision numbers are exact.
_PRECISIONS: Final = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}

LOG2_E: Final = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)
# A maximum over nothing: the lowest finite float32, so that 2^(LOWEST − LOWEST) is 1 and not NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


def dot_precision() -> str:
    """How tl.dot multiplies float32 numbers: as torch's own products do at this moment."""
    return _PRECISIONS[float32_precision()]


class Strided(NamedTuple):
    """A tensor of any layout: its address, and the distance of neighbours along each dimension.

    Kernels take the two apart and put them together in their first lines: as an argument, a named tuple costs the host
    a microsecond or more at every launch.
    """

    data: Any
    strides: Any


def strided(tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor as two arguments of a kernel."""
    return tensor, tensor.stride()


@triton.jit
def load_tile(base, rows, row_stride, columns, column_stride, mask):
    """A tile [rows, columns] of a matrix with any strides, zero where masked.

    Offsets are int64: a table of V items, or V times a stride, may exceed 2^31.
    """
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    return tl.load(base + offsets, mask=mask, other=0.0)


@triton.jit
def part_of_items(per_split, V, BLOCK_V: tl.constexpr):
    """The first item and the one behind the last of this program's part, `per_split` blocks: program_id(1) counts."""
    first = tl.program_id(1) * per_split * BLOCK_V
    return first, tl.minimum(first + per_split * BLOCK_V, V)


@triton.jit
def merge_partial_softmax(parts, count, all_rows, rows, mask, scale, BLOCK_S: tl.constexpr):
    """Of each row, the maximum m and Σ 2^(scale · (s − m)) over all entries, from those of `count` parts of them.

    Maxima lie in parts [count, all_rows] and sums behind them, both float32; `BLOCK_S` parts are read at a time. A row
    without entries has LOWEST and 0.
    """
    m = tl.full([rows.shape[0]], LOWEST, tl.float32)
    total = tl.zeros([rows.shape[0]], tl.float32)
    for start in range(0, count, BLOCK_S):
        numbers = start + tl.arange(0, BLOCK_S)
        exists = mask[:, None] & (numbers < count)[None, :]  # [rows, BLOCK_S]
        offsets = numbers.to(tl.int64)[None, :] * all_rows + rows[:, None]
        maxima = tl.load(parts + offsets, mask=exists, other=LOWEST)
        sums = tl.load(parts + count * all_rows + offsets, mask=exists, other=0.0)
        m_new = tl.maximum(m, tl.max(maxima, 1))
        shrink = tl.exp2((maxima - m_new[:, None]) * scale)
        total = total * tl.exp2((m - m_new) * scale) + tl.sum(sums * shrink, 1)
        m = m_new
    return m, total
