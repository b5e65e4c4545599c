"""Gradients that operators make: memory for them, None for those that nobody asked for, those made with the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def scaled(loss_gradient: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a loss times the gradient w.r.t. the loss, each in the dtype of its input; new tensors."""
    return [
        (gradient * loss_gradient).to(tensor.dtype) for tensor, gradient in zip(inputs, gradients, strict=True)
    ]


def scale_in_place(loss_gradient: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """The same in the memory of the gradients, where they have the dtype of their inputs."""
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
