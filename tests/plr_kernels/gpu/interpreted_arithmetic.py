"""Arithmetic of Triton's interpreter as GPUs do it, where numpy's differs.

The kernels take for granted that a product's sums are the same to the bit in every kernel, whatever the tile and
whichever operand comes first, as where every sum goes along the inner dimension. The interpreter multiplies with numpy,
whose library sums differently for different shapes; where logits are in the hundreds, the probabilities of the backward
pass would not be those of the forward pass.

numpy has no bfloat16: the interpreter holds its bits in uint16, multiplies those, and cuts off what a conversion from
float32 should round.
"""

from __future__ import annotations

from typing import Any

import numpy
import triton.language as tl
from triton.runtime import interpreter

_convert_float = interpreter._convert_float


def _upcast(bits: Any) -> Any:
    """float32 numbers from the bits of bfloat16 ones."""
    return (bits.astype(numpy.uint32) << 16).view(numpy.float32)


def _rounded(numbers: Any) -> Any:
    """The bits of the nearest bfloat16 numbers, of two equally near the even one."""
    bits = numpy.ascontiguousarray(numbers).view(numpy.uint32)
    nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return numpy.where(numpy.isnan(numbers), 0x7FC0, nearest).astype(numpy.uint16)


def _converted(numbers: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
    """What the interpreter's function returns: numbers in another dtype, or their bits where numpy lacks it."""
    if source == tl.float32 and target == tl.bfloat16:
        return _rounded(numbers)
    if source == tl.bfloat16 and target == tl.float32:
        return _upcast(numbers)
    return _convert_float(numbers, source, target, rounding_mode)


def _product_in_order(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """a · b + d, term by term along the inner dimension."""
    total = d.data.copy()
    left, right = (
        (_upcast(operand.data) if operand.dtype.scalar == tl.bfloat16 else operand.data).astype(total.dtype)
        for operand in (a, b)
    )
    for term in range(left.shape[-1]):
        total += left[..., :, term, None] * right[..., None, term, :]
    return interpreter.TensorHandle(total, d.dtype.scalar)


def compute_as_gpus() -> None:
    """Replace the interpreter's products and conversions."""
    interpreter.InterpreterBuilder.create_dot = _product_in_order
    interpreter._convert_float = _converted
