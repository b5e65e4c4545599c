"""Gradients that operators make: memory for them, None for those that nobody asked for, those made with the loss.

And gradients that cannot be differentiated again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from plr_kernels.dispatch.dispatcher import can_bypass_dispatcher


def new_gradients(
    tensors: Iterable[Tensor], wanted: Iterable[bool], dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Uninitialised contiguous memory for the gradient of each tensor, an empty tensor for one that is not wanted.

    In `dtype`, or that of each tensor.
    """
    return tuple(
        tensor.new_empty(tensor.shape if want else (0,), dtype=dtype)
        for tensor, want in zip(tensors, wanted, strict=True)
    )


def only_wanted(gradients: Iterable[Tensor], wanted: Iterable[bool]) -> tuple[Tensor | None, ...]:
    """The gradients, with None for each that is not wanted."""
    return tuple(gradient if want else None for gradient, want in zip(gradients, wanted, strict=True))


def scaled(
    loss_gradient: Tensor, gradient: Tensor, tensor: Tensor, other: Tensor | None = None, another: Tensor | None = None
) -> Tensor:
    """The gradient of a loss w.r.t. a tensor times the gradient w.r.t. the loss, in the tensor's dtype; a new one.

    The loss' other inputs are not read.
    """
    return (gradient * loss_gradient).to(tensor.dtype)


def scale_in_place(loss_gradient: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a loss as `scaled` makes them, in their own memory where they have the dtype of their inputs."""
    if loss_gradient.item() != 1:
        for gradient in gradients:
            gradient.mul_(loss_gradient)
    return [gradient.to(tensor.dtype) for tensor, gradient in zip(inputs, gradients, strict=True)]


# Not public: where a version of PyTorch lacks it, every graph counts as retained.
_graph_is_retained = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def may_overwrite(*kept: Tensor) -> bool:
    """Within a backward pass, whether nothing will want what was kept for it, and no tracer sees it, on a CPU."""
    return (
        not torch.is_grad_enabled()
        and can_bypass_dispatcher(*kept)
        and all(tensor.device.type == "cpu" for tensor in kept)
        and not _graph_is_retained()
    )


def refuse_second_derivatives(ctx: Any, *_: Tensor) -> None:
    """As the autograd formula of an operator that makes gradients: says what has second derivatives."""
    raise RuntimeError(
        "trying to differentiate twice what this backend of plr_kernels differentiates once; "
        'with use_backend("reference") it has second derivatives'
    )


class _Refused(torch.autograd.Function):
    """The tensors as they are, with a backward pass that raises."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError("trying to differentiate twice what can be differentiated once")


def differentiable_once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Make the `backward` of an autograd function one whose gradients raise where they are differentiated.

    PyTorch's `once_differentiable` makes constants of them unless the gradient that it is given needs a gradient
    itself: what a gradient w.r.t. the inputs adds to a loss would be left out.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if not torch.is_grad_enabled():  # no graph of the gradients was asked for
            return found
        refused = iter(_Refused.apply(*[each.detach().requires_grad_() for each in found if each is not None]))
        return tuple(None if each is None else next(refused) for each in found)

    return once
