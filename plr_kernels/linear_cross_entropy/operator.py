"""The public function linear_cross_entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import backend_module, checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_index,
    check_integer,
    check_not_empty,
    check_reduction,
    check_shape,
    check_temperature,
    check_values,
)
from plr_kernels.dispatch.gradients import new_gradients, only_wanted
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.linear_cross_entropy import reference

torch.library.define(
    "plr_kernels::linear_cross_entropy",
    "(Tensor states, Tensor items, Tensor targets, float temperature, SymInt ignore_index, str reduction) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::linear_cross_entropy", "CompositeImplicitAutograd")(reference.linear_cross_entropy)


def _run_reference(
    states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int, reduction: str
) -> Tensor:
    return torch.ops.plr_kernels.linear_cross_entropy(
        upcast(states), upcast(items), targets, temperature, ignore_index, reduction
    )


@torch.library.custom_op("plr_kernels::linear_cross_entropy_forward", mutates_args=())
def _forward(
    states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int, backend: str
) -> tuple[Tensor, Tensor]:
    """The loss of every row, and what the backend keeps of its distribution for its backward pass."""
    return backend_module("linear_cross_entropy", backend).forward(states, items, targets, temperature, ignore_index)


@_forward.register_fake
def _(states, items, targets, temperature, ignore_index, backend):
    statistics = backend_module("linear_cross_entropy", backend).new_statistics(states)
    return states.new_empty(states.shape[:1], dtype=torch.float32), statistics


@torch.library.custom_op("plr_kernels::linear_cross_entropy_backward", mutates_args=())
def _backward(
    losses_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    statistics: Tensor,
    temperature: float,
    ignore_index: int,
    needs_states: bool,
    needs_items: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    return backend_module("linear_cross_entropy", backend).backward(
        losses_gradient, states, items, targets, statistics, temperature, ignore_index, needs_states, needs_items
    )


@_backward.register_fake
def _(
    losses_gradient,
    states,
    items,
    targets,
    statistics,
    temperature,
    ignore_index,
    needs_states,
    needs_items,
    backend,
):
    return new_gradients((states, items), (needs_states, needs_items))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    states, items, targets, *ctx.options, ctx.backend = inputs
    ctx.save_for_backward(states, items, targets, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, losses_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    gradients = torch.ops.plr_kernels.linear_cross_entropy_backward(
        losses_gradient, *ctx.saved_tensors, *ctx.options, *needs, ctx.backend
    )
    return *only_wanted(gradients, needs), None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


def _run_fused(backend: str) -> Callable[..., Tensor]:
    def run(
        states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int, reduction: str
    ) -> Tensor:
        losses, _ = torch.ops.plr_kernels.linear_cross_entropy_forward(
            states, items, targets, temperature, ignore_index, backend
        )
        return reference.reduced(losses, targets, ignore_index, reduction)

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def linear_cross_entropy(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of each state's target among all items (PLR, arXiv 2601.03153, Eq. 1).

    A row's loss is −log softmax(states[r] itemsᵀ / temperature)[targets[r]]. Rows whose target is
    `ignore_index` count for nothing: their loss is 0, and the mean is over the others (0, with zero
    gradients, where there is none).

    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each of the two passes.

    Args:
        states: [R, D], float32, bfloat16, float16 or (reference backend) float64.
        items: [V, D], V >= 1, in the dtype of `states`.
        targets: int64 [R], in [0, V) or `ignore_index`.
        temperature: what the logits are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.

    Returns:
        A scalar, or [R] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a target outside [0, V) fails
            asynchronously.
    """
    states, items = floating_inputs(states=states, items=items)
    sizes: dict[str, int] = {}
    check_shape("states", states, "R D", sizes)
    check_shape("items", items, "V D", sizes)
    check_not_empty("states", "D", sizes)
    check_not_empty("items", "V", sizes)
    check_integer("targets", targets, (torch.int64,), "states", states)
    check_shape("targets", targets, "R", sizes)
    check_temperature(temperature)
    check_index("ignore_index", ignore_index)
    check_reduction(reduction)

    run = resolve("linear_cross_entropy", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        sizes = {"V": sizes["V"], "ignore_index": ignore_index}
        check_values("targets", targets, 0, sizes["V"], "in [0, V) or ignore_index", besides=ignore_index, **sizes)
    with no_autocast(states):
        return run(states, items, targets, temperature, ignore_index, reduction)
