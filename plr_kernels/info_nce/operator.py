"""The public function info_nce."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import backend_module, resolve
from plr_kernels.dispatch.checks import check_not_empty, check_shape, check_temperature
from plr_kernels.dispatch.gradients import new_gradients, only_wanted
from plr_kernels.dispatch.precision import floating_inputs, no_autocast, upcast
from plr_kernels.info_nce import reference

torch.library.define(
    "plr_kernels::info_nce",
    "(Tensor view1, Tensor view2, float temperature) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.impl("plr_kernels::info_nce", "CompositeImplicitAutograd")(reference.info_nce)


def _run_reference(view1: Tensor, view2: Tensor, temperature: float) -> Tensor:
    return torch.ops.plr_kernels.info_nce(upcast(view1), upcast(view2), temperature)


@torch.library.custom_op("plr_kernels::info_nce_forward", mutates_args=())
def _forward(view1: Tensor, view2: Tensor, temperature: float, backend: str) -> tuple[Tensor, Tensor]:
    """The loss, and what the backend keeps of both directions' distributions for its backward pass."""
    return backend_module("info_nce", backend).forward(view1, view2, temperature)


@_forward.register_fake
def _(view1, view2, temperature, backend):
    return view1.new_empty((), dtype=torch.float32), backend_module("info_nce", backend).new_statistics(view1)


@torch.library.custom_op("plr_kernels::info_nce_backward", mutates_args=())
def _backward(
    loss_gradient: Tensor,
    view1: Tensor,
    view2: Tensor,
    statistics: Tensor,
    temperature: float,
    needs_view1: bool,
    needs_view2: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of the views; an empty tensor for one that is not needed."""
    return backend_module("info_nce", backend).backward(
        loss_gradient, view1, view2, statistics, temperature, needs_view1, needs_view2
    )


@_backward.register_fake
def _(loss_gradient, view1, view2, statistics, temperature, needs_view1, needs_view2, backend):
    return new_gradients((view1, view2), (needs_view1, needs_view2))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    view1, view2, ctx.temperature, ctx.backend = inputs
    ctx.save_for_backward(view1, view2, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    gradients = torch.ops.plr_kernels.info_nce_backward(
        loss_gradient, *ctx.saved_tensors, ctx.temperature, *needs, ctx.backend
    )
    return *only_wanted(gradients, needs), None, None


_forward.register_autograd(_gradients, setup_context=_save_for_backward)


def _run_fused(backend: str) -> Callable[..., Tensor]:
    def run(view1: Tensor, view2: Tensor, temperature: float) -> Tensor:
        return torch.ops.plr_kernels.info_nce_forward(view1, view2, temperature, backend)[0]

    return run


# Backend name -> implementation with the signature of _run_reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def info_nce(view1: Tensor, view2: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Contrastive loss between two views of the same batch (PLR, arXiv 2601.03153, Eq. 8).

    With s_ij the cosine similarity of view1[g, i] and view2[g, j] over the temperature, a group's loss is
    −(1/B) Σ_i [log softmax_j(s_ij)_i + log softmax_j(s_ji)_i], and the result is the mean over the groups. G
    = 0 and B = 0 give 0. Norms below 1e-8 count as 1e-8, so that a zero vector has similarity 0 to all.

    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each of the two passes.

    Args:
        view1: [G, B, D]: for PLR one group per reasoning step and stream; float32, bfloat16, float16 or
            (reference backend) float64.
        view2: [G, B, D], in the dtype of `view1`; its row (g, b) is the positive of row (g, b) of `view1`.
        temperature: what the similarities are divided by, above 0.

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or the temperature does not fit.
    """
    view1, view2 = floating_inputs(view1=view1, view2=view2)
    sizes: dict[str, int] = {}
    check_shape("view1", view1, "G B D", sizes)
    check_shape("view2", view2, "G B D", sizes)
    check_not_empty("view1", "D", sizes)
    check_temperature(temperature)

    run = resolve("info_nce", IMPLEMENTATIONS, view1)
    with no_autocast(view1):
        return run(view1, view2, temperature)
