"""The "cpp" backend of stream_attention: csrc/stream_attention.cpp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import plr_kernels._cpp as _cpp
from plr_kernels.dispatch.gradients import new_gradients
from plr_kernels.extension import resources, type_name
from plr_kernels.stream_attention.keep_mask import dropout_threshold

_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # query, prefix_key, prefix_value, stream_key, stream_value
# Address, and the strides of batch, heads, streams or prefix entries, and a stream's suffix entries.
_Strided = tuple[int, int, int, int, int]

_cpp.read_tensors(Tensor, torch.nn.Parameter)


def _column_contiguous(tensor: Tensor) -> Tensor:
    """The tensor with adjacent columns; copied only where they are not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _strided(tensor: Tensor) -> _Strided:
    """A tensor from `_column_contiguous` for the extension. The caller keeps it alive."""
    strides = tensor.stride()
    return tensor.data_ptr(), strides[0], strides[1], strides[2], strides[3] if len(strides) == 5 else 0


def takes(*inputs: object) -> bool:
    """Whether these are five plain tensors that fit together, can be read in place and have something to compute.

    Also False where this PyTorch has no interface to read them by.
    """
    return _cpp.attention_operands(*inputs) is not None


class _Call:
    """The arguments that both passes share; keeps the tensors alive whose addresses they hold."""

    def __init__(
        self,
        inputs: _Inputs,
        prefix_lengths: Tensor | None,
        seed: Tensor | None,
        scale: float,
        dropout_p: float,
    ) -> None:
        self._inputs: Sequence[Tensor] = inputs
        operands = _cpp.attention_operands(*inputs)
        if operands is None:
            self._inputs = [_column_contiguous(tensor) for tensor in inputs]
            query, prefix_key, _, stream_key, _ = inputs
            batch, heads, streams, dim = query.shape
            sizes = (batch, heads, streams, prefix_key.shape[2], stream_key.shape[3], dim)
            operands = _cpp.AttentionOperands(type_name(query.dtype), sizes, [*map(_strided, self._inputs)])
        self._lengths = None if prefix_lengths is None else prefix_lengths.to(torch.int64).contiguous()
        self.arguments = (
            *resources(),
            operands,
            None if self._lengths is None else (self._lengths.data_ptr(), self._lengths.ndim == 2),
            scale,
            None if seed is None else (seed.item(), dropout_threshold(dropout_p), 1 / (1 - dropout_p)),
        )


def forward(
    inputs: _Inputs,
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output, and log2 of every softmax' sum: float32 [B, H, M]."""
    lse = inputs[0].new_empty(inputs[0].shape[:3], dtype=torch.float32)
    return _output(inputs, prefix_lengths, scale, dropout_p, seed, lse.data_ptr()), lse


def output(
    inputs: _Inputs,
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """The first result of `forward` alone."""
    return _output(inputs, prefix_lengths, scale, dropout_p, seed, lse=0)


def _output(
    inputs: _Inputs,
    prefix_lengths: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    lse: int,
) -> Tensor:
    """The output; `lse` is the address where the sums are wanted, or 0."""
    result = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
    if result.numel() > 0:
        call = _Call(inputs, prefix_lengths, seed, scale, dropout_p)
        _cpp.stream_attention_forward(*call.arguments, result.data_ptr(), lse)
    return result


def backward(
    output_gradient: Tensor,
    inputs: _Inputs,
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    lse: Tensor,
    scale: float,
    dropout_p: float,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    """The gradients of the five tensors; an empty tensor for one that is not needed.

    `lse` is not read: a row of scores is computed anew as a whole, and the probabilities that follow from its own
    largest score and sum are those of the forward pass to the bit, not to the rounding of a logarithm.
    """
    gradients = new_gradients(inputs, needs)
    if inputs[0].numel() == 0:
        return tuple(gradient.zero_() for gradient in gradients)
    call = _Call(inputs, prefix_lengths, seed, scale, dropout_p)
    output_gradient = _column_contiguous(output_gradient)
    addresses = [gradient.data_ptr() if need else 0 for gradient, need in zip(gradients, needs, strict=True)]
    _cpp.stream_attention_backward(*call.arguments, _strided(output_gradient), addresses)
    return gradients
