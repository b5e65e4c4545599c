"""The functions of a forward pass without gradients, on the chosen backend.

They are for a caller that has packed its weights (`plr.serving.gpu_plan`): internal, without autograd and autocast, and
what they are given is not checked. Tensors share a dtype and a device; columns of matrices are neighbours.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from plr_kernels.dispatch.backend import Implementation, backend_module, resolve
from plr_kernels.dispatch.precision import upcast
from plr_kernels.forward_only import reference
from plr_kernels.stream_attention import operator as stream_attention_operator

__all__ = ["bias_gelu", "stream_attention_into", "sum_norm"]


def _by_formula(formula: Implementation) -> Implementation:
    def run(first: Tensor, *others: Any) -> Tensor:
        every = [upcast(each) if isinstance(each, Tensor) else each for each in (first, *others)]
        return formula(*every).to(first.dtype)

    return run


def _by_kernel(name: str) -> Implementation:
    return lambda *arguments: getattr(backend_module("forward_only", "triton"), name)(*arguments)


_SUM_NORM = {"reference": _by_formula(reference.sum_norm), "triton": _by_kernel("sum_norm")}
_BIAS_GELU = {"reference": _by_formula(reference.bias_gelu), "triton": _by_kernel("bias_gelu")}


def sum_norm(
    left: Tensor,
    right: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    *,
    index: Tensor | None = None,
    repeat: int = 1,
    bias: Tensor | None = None,
) -> Tensor:
    """LayerNorm of sums of rows: row r of left (or index[r], or r // repeat) + row r % P of right + bias.

    One function is the embedding (items by index, positions), a sublayer's residual sum, and the input of a reasoning
    step, whose streams begin with one state and have inputs of their own.

    Args:
        left: [X, D].
        right: [P, D]; the number of rows of the result is a multiple of P.
        weight: [D], of the LayerNorm.
        shift: [D], its bias.
        eps: what is added to the variance.
        index: int64 [R], rows of left; then repeat is not used.
        repeat: how often each row of left comes, one after the other: R = X · repeat.
        bias: [D], of the linear layer that right comes from.

    Returns:
        [R, D] in the dtype of left; half-precision numbers are added up in float32.
    """
    return resolve("sum_norm", _SUM_NORM, left)(left, right, weight, shift, eps, index, repeat, bias)


def bias_gelu(inner: Tensor, bias: Tensor) -> Tensor:
    """gelu(inner + bias), by the error function; inner [R, F] may be overwritten by it, bias [F]."""
    return resolve("bias_gelu", _BIAS_GELU, inner)(inner, bias)


def stream_attention_into(
    result: Tensor,
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    stream_key: Tensor,
    stream_value: Tensor,
    prefix_lengths: Tensor,
) -> None:
    """Write stream_attention's output to result [B, H, M, D], of any strides: a layer wants the heads side by side.

    The other arguments are `stream_attention`'s.
    """
    inputs = (query, prefix_key, prefix_value, stream_key, stream_value)
    implementations = stream_attention_operator.IMPLEMENTATIONS
    run = resolve("stream_attention", implementations, query)
    scale = query.shape[-1] ** -0.5
    if run is implementations["triton"]:
        backend_module("stream_attention", "triton").forward(inputs, prefix_lengths, scale, 0.0, None, result)
    else:
        result.copy_(run(inputs, prefix_lengths, scale, 0.0, None))
