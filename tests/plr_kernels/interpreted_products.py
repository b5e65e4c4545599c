"""Products of Triton's interpreter in a fixed order.

The kernels take for granted that a product's sums are the same to the bit in every kernel, whatever the tile and
whichever operand comes first, as where every sum goes along the inner dimension. The interpreter multiplies with numpy,
whose library sums differently for different shapes; where logits are in the hundreds, the probabilities of the backward
pass would not be those of the forward pass.
"""

from typing import Any

from triton.runtime import interpreter


def _product_in_order(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """a · b + d, term by term along the inner dimension."""
    total = d.data.copy()
    for term in range(a.data.shape[-1]):
        total += a.data[..., :, term, None].astype(total.dtype) * b.data[..., None, term, :].astype(total.dtype)
    return interpreter.TensorHandle(total, d.dtype.scalar)


def use_products_in_order() -> None:
    """Replace the interpreter's product."""
    interpreter.InterpreterBuilder.create_dot = _product_in_order
