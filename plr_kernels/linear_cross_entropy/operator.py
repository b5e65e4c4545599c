"""The public function linear_cross_entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import Implementation, checks_values, resolve
from plr_kernels.dispatch.checks import check_ids, check_loss_options, check_states_and_items, check_targets
from plr_kernels.dispatch.dispatcher import autograd_records
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import (
    register_gradients_in_forward,
    register_reference,
    register_with_gradients,
)
from plr_kernels.dispatch.workspace import rows_at_once
from plr_kernels.linear_cross_entropy import reference

_run_reference = register_reference(
    "linear_cross_entropy",
    "(Tensor states, Tensor items, Tensor targets, float temperature, SymInt ignore_index, str reduction) -> Tensor",
    reference.linear_cross_entropy,
)
register_with_gradients(
    "linear_cross_entropy",
    tensors="Tensor states, Tensor items, Tensor targets",
    options="float temperature, SymInt ignore_index",
    result="losses",
    statistics="Tensor statistics",
    new_result=lambda states: states.new_empty(states.shape[:1], dtype=torch.float32),
)
register_gradients_in_forward(
    "linear_cross_entropy",
    tensors="Tensor states, Tensor items, Tensor targets",
    differentiable=2,
    options="float temperature, SymInt ignore_index, str reduction, SymInt chunk",
)


def _run_fused(backend: str) -> Implementation:
    def run(
        states: Tensor, items: Tensor, targets: Tensor, temperature: float, ignore_index: int, reduction: str
    ) -> Tensor:
        if backend == "cpp" and reduction != "none" and autograd_records(states, items):
            chunk = rows_at_once(states.shape[0], items.shape[0])
            if chunk > 0:
                needs = [states.requires_grad, items.requires_grad]
                return torch.ops.plr_kernels.linear_cross_entropy_with_gradients(
                    states, items, targets, temperature, ignore_index, reduction, chunk, needs, backend
                )[0]
        losses, _ = torch.ops.plr_kernels.linear_cross_entropy_forward(
            states, items, targets, temperature, ignore_index, backend
        )
        return reference.reduced(losses, targets, ignore_index, reduction)

    return run


# Backend name -> implementation with the arguments of the reference.
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

    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each pass. On the C++ backend
    the gradients are made in the forward pass (`PLR_KERNELS_WORKSPACE_MB` bounds the memory for that): where none are
    wanted in the end, `torch.no_grad()` saves them.

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
    sizes = check_states_and_items("R D", states, items)
    check_ids("targets", targets, "R", states, sizes)
    check_loss_options(temperature, ignore_index, reduction)

    run = resolve("linear_cross_entropy", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_targets(targets, sizes["V"], ignore_index)
    with no_autocast(states):
        return run(states, items, targets, temperature, ignore_index, reduction)
