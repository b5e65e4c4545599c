"""What the Triton kernels of several operators share."""

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

from plr_kernels.triton_shared.launch import float32_precision

# torch's precision of float32 products -> the input_precision of tl.dot. Products of half-precision numbers are exact.
_PRECISIONS: Final = {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}

LOG2_E: Final = 1.4426950408889634
LN_2: Final = 0.6931471805599453


def dot_precision() -> str:
    """How tl.dot multiplies float32 numbers: as torch's own products do at this moment."""
    return _PRECISIONS[float32_precision()]


def new_gradient(tensor: Tensor, wanted: bool) -> Tensor:
    """Uninitialised contiguous memory for the gradient of `tensor`, or an empty tensor where it is not wanted."""
    return tensor.new_empty(tensor.shape if wanted else (0,))


@triton.jit
def load_tile(base, rows, row_stride, columns, column_stride, mask):
    """A tile [rows, columns] of a matrix with any strides, zero where masked.

    Offsets are int64: a table of V items, or V times a stride, may exceed 2^31.
    """
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    return tl.load(base + offsets, mask=mask, other=0.0)


@triton.jit
def softmax_of_parts(parts, count, all_rows, rows, mask, BLOCK_S: tl.constexpr):
    """Of each row, the maximum m and Σ 2^(s − m) over all entries, from those of `count` parts of them.

    Maxima lie in parts [count, all_rows] and sums behind them, both float32; `BLOCK_S` parts are read at a time. A row
    without entries has the least finite number and 0.
    """
    maximum = tl.full([rows.shape[0]], -3.4028234663852886e38, tl.float32)
    total = tl.zeros([rows.shape[0]], tl.float32)
    for start in range(0, count, BLOCK_S):
        numbers = start + tl.arange(0, BLOCK_S)
        exists = mask[:, None] & (numbers < count)[None, :]
        offsets = numbers.to(tl.int64)[None, :] * all_rows + rows[:, None]
        maxima = tl.load(parts + offsets, mask=exists, other=-3.4028234663852886e38)
        sums = tl.load(parts + count * all_rows + offsets, mask=exists, other=0.0)
        raised = tl.maximum(maximum, tl.max(maxima, 1))
        total = total * tl.exp2(maximum - raised) + tl.sum(sums * tl.exp2(maxima - raised[:, None]), 1)
        maximum = raised
    return maximum, total
