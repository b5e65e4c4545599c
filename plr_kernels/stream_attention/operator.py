"""The public function stream_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, is_autocast_enabled

from plr_kernels.dispatch.backend import CPP_IS_BUILT, backend_module, checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_device,
    check_dropout_p,
    check_integer,
    check_not_empty,
    check_number,
    check_shape,
    check_values,
)
from plr_kernels.dispatch.dispatcher import autograd_records, can_bypass_dispatcher
from plr_kernels.dispatch.gradients import new_gradients, only_wanted, refuse_second_derivatives
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_reference
from plr_kernels.stream_attention import reference

_upcast_reference = register_reference(
    "stream_attention",
    "(Tensor query, Tensor prefix_key, Tensor prefix_value, Tensor stream_key, Tensor stream_value, "
    "Tensor? prefix_lengths, float scale, float dropout_p, Tensor? seed) -> Tensor",
    reference.stream_attention,
)


# Query, prefix_key, prefix_value, stream_key and stream_value, as they travel through the backends.
_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _run_reference(
    inputs: _Inputs, prefix_lengths: Tensor | None, scale: float, dropout_p: float, seed: Tensor | None
) -> Tensor:
    return _upcast_reference(*inputs, prefix_lengths, scale, dropout_p, seed).to(inputs[0].dtype)


@torch.library.custom_op("plr_kernels::stream_attention_forward", mutates_args=())
def _forward(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    stream_key: Tensor,
    stream_value: Tensor,
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    scale: float,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The output, and for the backward pass log2 of the sum of every softmax, float32 [B, H, M]."""
    inputs = (query, prefix_key, prefix_value, stream_key, stream_value)
    return backend_module("stream_attention", backend).forward(inputs, prefix_lengths, scale, dropout_p, seed)


@_forward.register_fake
def _(query, *_):
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=torch.float32)


@torch.library.custom_op("plr_kernels::stream_attention_backward", mutates_args=())
def _backward(
    output_gradient: Tensor,
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    stream_key: Tensor,
    stream_value: Tensor,
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    lse: Tensor,
    scale: float,
    dropout_p: float,
    needs: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the five tensors; an empty tensor for one that is not needed."""
    inputs = (query, prefix_key, prefix_value, stream_key, stream_value)
    kernels = backend_module("stream_attention", backend)
    return kernels.backward(output_gradient, inputs, prefix_lengths, seed, lse, scale, dropout_p, needs)


@_backward.register_fake
def _(output_gradient, *arguments):
    *_, needs, _backend = arguments
    return new_gradients(arguments[:5], needs)


_backward.register_autograd(refuse_second_derivatives)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.dropout_p, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, output_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    saved = ctx.saved_tensors  # read once: each access unpacks anew, which checkpointing forbids
    inputs, options = saved[:5], (*saved[5:], ctx.scale, ctx.dropout_p, needs)
    read = (output_gradient, *inputs)
    if can_bypass_dispatcher(*read) and not autograd_records(*read):
        gradients = backend_module("stream_attention", ctx.backend).backward(output_gradient, inputs, *options)
    else:
        gradients = torch.ops.plr_kernels.stream_attention_backward(*read, *options, ctx.backend)
    return *only_wanted(gradients, needs), None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


class _DirectCall(torch.autograd.Function):
    """stream_attention_forward and its gradients, without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        prefix_lengths, seed, scale, dropout_p, backend = inputs[5:]
        outputs = backend_module("stream_attention", backend).forward(
            inputs[:5], prefix_lengths, scale, dropout_p, seed
        )
        _save_for_backward(ctx, inputs, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor, lse_gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, output_gradient, lse_gradient)


def _call_through_dispatcher(
    inputs: _Inputs, prefix_lengths: Tensor | None, scale: float, dropout_p: float, seed: Tensor | None, backend: str
) -> Tensor:
    operator = torch.ops.plr_kernels.stream_attention_forward
    return operator(*inputs, prefix_lengths, seed, scale, dropout_p, backend)[0]


def _call_kernel_directly(
    inputs: _Inputs, prefix_lengths: Tensor | None, scale: float, dropout_p: float, seed: Tensor | None, backend: str
) -> Tensor:
    if autograd_records(*inputs):
        return _DirectCall.apply(*inputs, prefix_lengths, seed, scale, dropout_p, backend)[0]
    return backend_module("stream_attention", backend).output(inputs, prefix_lengths, scale, dropout_p, seed)


def _run_fused(backend: str) -> Callable[..., Tensor]:
    def run(
        inputs: _Inputs, prefix_lengths: Tensor | None, scale: float, dropout_p: float, seed: Tensor | None
    ) -> Tensor:
        call = _call_kernel_directly if can_bypass_dispatcher(*inputs) else _call_through_dispatcher
        return call(inputs, prefix_lengths, scale, dropout_p, seed, backend)

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def _fast_path_applies(inputs: _Inputs) -> bool:
    """Whether the backend "cpp" is to run on these as they are, and they pass the checks of the operator.

    Decided with little Python, for the reason that dispatcher.py gives. False is inconclusive; the full checks decide.
    """
    return (
        can_bypass_dispatcher(*inputs)
        and not is_autocast_enabled("cpu")
        and CPP_IS_BUILT
        and backend_module("stream_attention", "cpp").takes(*inputs)
        and resolve("stream_attention", IMPLEMENTATIONS, inputs[0]) is IMPLEMENTATIONS["cpp"]
    )


def _checked_seed(seed: int | Tensor | None, query: Tensor) -> Tensor:
    """The seed as an int64 [] tensor on the device of the query, made without waiting for that device."""
    if seed is None:
        raise ValueError("seed must be an int or an int64 tensor of shape [] when dropout_p > 0, found None")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.ndim != 0:
            found = f"{seed.dtype} {list(seed.shape)}"
            raise TypeError(f"seed must be an int or an int64 tensor of shape [], found {found}")
        check_device("seed", seed, "query", query)
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int or an int64 tensor of shape [], found {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit into 64 bits, in [-2^63, 2^63), found {seed}")
    return torch.full((), seed, dtype=torch.int64, device=query.device)


def stream_attention(
    query: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    stream_key: Tensor,
    stream_value: Tensor,
    *,
    prefix_lengths: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """Attention of M reasoning streams to a shared prefix and to their own past (PLR, arXiv 2601.03153, Eq.
    5).

    Query (b, h, m) attends to the first `prefix_lengths[b]` prefix entries, or `prefix_lengths[b, m]` where each
    query has a length of its own, and to the S entries of its own stream, in one softmax over both. Streams never
    see each other. Where there is nothing to attend to the output is zero. Prefix entries beyond all lengths of b
    may hold anything, NaN included: they reach neither outputs nor gradients.

    With a length per query all positions of a sequence can reason at once: M is then positions × streams, and
    a query's length is how much of the sequence its position sees. The prefix is read once for all of them;
    neighbouring queries of similar lengths are computed together, so ascending lengths are the fastest. What
    some queries of b see and others do not reaches those others with weight 0, and their own numbers reach its
    gradients likewise: both must be finite.

    Args:
        query: [B, H, M, D], float32, bfloat16, float16 or (reference backend) float64; the others share its
            dtype.
        prefix_key: [B, H, P, D].
        prefix_value: [B, H, P, D].
        stream_key: [B, H, M, S, D], S >= 0.
        stream_value: [B, H, M, S, D].
        prefix_lengths: int32 or int64 [B] or, a length for every query, [B, M], with values in [0, P]; None
            means P.
        scale: what scores are multiplied by; None means 1/√D.
        dropout_p: the probability, in [0, 1), with which an attention probability is dropped; the others are
            scaled by 1/(1 − dropout_p).
        seed: what the dropout mask is drawn from, needed where dropout_p > 0: an int, or an int64 tensor of
            shape [] on the device of the query (a captured CUDA graph rereads the tensor). The mask is a pure
            function of the seed and of (b, h, m, entry), whatever the lengths, the same on every backend.

    Returns:
        [B, H, M, D] in the dtype of the inputs; sums are held in float32 for half-precision inputs.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a length outside [0, P] fails
            asynchronously.
    """
    inputs = (query, prefix_key, prefix_value, stream_key, stream_value)
    fast_path = _fast_path_applies(inputs)
    if fast_path:
        sizes = {"B": query.shape[0], "M": query.shape[2], "P": prefix_key.shape[2]}
        run = IMPLEMENTATIONS["cpp"]
    else:
        query, prefix_key, prefix_value, stream_key, stream_value = floating_inputs(
            query=query,
            prefix_key=prefix_key,
            prefix_value=prefix_value,
            stream_key=stream_key,
            stream_value=stream_value,
        )
        sizes = {}
        check_shape("query", query, "B H M D", sizes)
        check_shape("prefix_key", prefix_key, "B H P D", sizes)
        check_shape("prefix_value", prefix_value, "B H P D", sizes)
        check_shape("stream_key", stream_key, "B H M S D", sizes)
        check_shape("stream_value", stream_value, "B H M S D", sizes)
        check_not_empty("query", "D", sizes)
        run = resolve("stream_attention", IMPLEMENTATIONS, query)
    if prefix_lengths is not None:
        check_integer("prefix_lengths", prefix_lengths, (torch.int32, torch.int64), "query", query)
        check_shape("prefix_lengths", prefix_lengths, "B or B M", sizes)
        if not checks_values(run, IMPLEMENTATIONS, query):
            check_values("prefix_lengths", prefix_lengths, 0, sizes["P"] + 1, "in [0, P]", P=sizes["P"])
    if scale is None:
        scale = int(query.shape[-1]) ** -0.5  # a number, while shapes are traced as symbols too
    check_number("scale", scale)
    check_dropout_p(dropout_p)
    seed_tensor = _checked_seed(seed, query) if dropout_p > 0 else None

    if fast_path:
        return _call_kernel_directly(inputs, prefix_lengths, scale, dropout_p, seed_tensor, "cpp")
    inputs = (query, prefix_key, prefix_value, stream_key, stream_value)
    with no_autocast(query):
        return run(inputs, prefix_lengths, scale, dropout_p, seed_tensor)
