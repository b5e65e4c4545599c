"""The public function pairwise_kl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import backend_module, resolve
from plr_kernels.dispatch.checks import check_not_empty, check_shape, check_temperature
from plr_kernels.dispatch.gradients import new_gradients, only_wanted
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.pairwise_kl import reference

torch.library.define(
    "plr_kernels::pairwise_kl",
    "(Tensor states, Tensor items, float temperature, bool detach_reference) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::pairwise_kl", "CompositeImplicitAutograd")(reference.pairwise_kl)


def _run_reference(states: Tensor, items: Tensor, temperature: float, detach_reference: bool) -> Tensor:
    return torch.ops.plr_kernels.pairwise_kl(upcast(states), upcast(items), temperature, detach_reference)


@torch.library.custom_op("plr_kernels::pairwise_kl_forward", mutates_args=())
def _forward(
    states: Tensor, items: Tensor, temperature: float, detach_reference: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and what the backend keeps of every state's distribution for its backward pass.

    The last result is the item with the largest score: csrc/pairwise_kl.cpp says why it is apart.

    `detach_reference` changes the gradient only.
    """
    return backend_module("pairwise_kl", backend).forward(states, items, temperature)


@_forward.register_fake
def _(states, items, temperature, detach_reference, backend):
    return states.new_empty((), dtype=torch.float32), *backend_module("pairwise_kl", backend).new_statistics(states)


@torch.library.custom_op("plr_kernels::pairwise_kl_backward", mutates_args=())
def _backward(
    loss_gradient: Tensor,
    states: Tensor,
    items: Tensor,
    statistics: Tensor,
    argmaxes: Tensor,
    temperature: float,
    detach_reference: bool,
    needs_states: bool,
    needs_items: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of states and items; an empty tensor for one that is not needed."""
    return backend_module("pairwise_kl", backend).backward(
        loss_gradient, states, items, statistics, argmaxes, temperature, detach_reference, needs_states, needs_items
    )


@_backward.register_fake
def _(
    loss_gradient,
    states,
    items,
    statistics,
    argmaxes,
    temperature,
    detach_reference,
    needs_states,
    needs_items,
    backend,
):
    return new_gradients((states, items), (needs_states, needs_items))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    states, items, *ctx.options, ctx.backend = inputs
    ctx.save_for_backward(states, items, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    gradients = torch.ops.plr_kernels.pairwise_kl_backward(
        loss_gradient, *ctx.saved_tensors, *ctx.options, *needs, ctx.backend
    )
    return *only_wanted(gradients, needs), None, None, None


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


def _run_fused(backend: str) -> Callable[..., Tensor]:
    def run(states: Tensor, items: Tensor, temperature: float, detach_reference: bool) -> Tensor:
        return torch.ops.plr_kernels.pairwise_kl_forward(states, items, temperature, detach_reference, backend)[0]

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def pairwise_kl(states: Tensor, items: Tensor, *, temperature: float = 1.0, detach_reference: bool = False) -> Tensor:
    """Mean divergence between the item distributions of a group's states (PLR, arXiv 2601.03153, Eq. 7).

    The mean, over b and over the N(N − 1) ordered pairs i != j, of KL(p_i || p_j) with
    p_i = softmax(states[b, i] itemsᵀ / temperature). N = 1 and B = 0 give 0, with zero gradients.

    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each of the two passes.

    Args:
        states: [B, N, D], N >= 1: for PLR the N = T·M reasoning states of a user; float32, bfloat16, float16
            or (reference backend) float64.
        items: [V, D], V >= 1, in the dtype of `states`.
        temperature: what the logits are divided by, above 0.
        detach_reference: stop the gradient through p_j, as ReaRec (arXiv 2503.22675) does.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or the temperature does not fit.
    """
    states, items = floating_inputs(states=states, items=items)
    sizes: dict[str, int] = {}
    check_shape("states", states, "B N D", sizes)
    check_shape("items", items, "V D", sizes)
    check_not_empty("states", "N", sizes)
    check_not_empty("states", "D", sizes)
    check_not_empty("items", "V", sizes)
    check_temperature(temperature)

    run = resolve("pairwise_kl", IMPLEMENTATIONS, states)
    with no_autocast(states):
        return run(states, items, temperature, bool(detach_reference))
