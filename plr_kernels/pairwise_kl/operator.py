"""The public function pairwise_kl."""

from __future__ import annotations

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import Implementation, resolve
from plr_kernels.dispatch.checks import check_flag, check_states_and_items, check_temperature
from plr_kernels.dispatch.dispatcher import autograd_records
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import (
    register_gradients_in_forward,
    register_reference,
    register_with_gradients,
)
from plr_kernels.dispatch.workspace import rows_at_once
from plr_kernels.pairwise_kl import reference

_run_reference = register_reference(
    "pairwise_kl",
    "(Tensor states, Tensor items, float temperature, bool detach_reference) -> Tensor",
    reference.pairwise_kl,
)
register_with_gradients(
    "pairwise_kl",
    tensors="Tensor states, Tensor items",
    options="float temperature",
    backward_options="bool detach_reference",
    result="loss",
    # The items with the largest scores are apart: csrc/pairwise_kl.cpp says why.
    statistics="Tensor statistics, Tensor argmaxes",
    new_result=lambda states: states.new_empty((), dtype=torch.float32),
)
register_gradients_in_forward(
    "pairwise_kl",
    tensors="Tensor states, Tensor items",
    differentiable=2,
    options="float temperature, bool detach_reference, SymInt chunk",
)
_LANES = 16  # groups that the C++ backend takes at once


def _run_fused(backend: str) -> Implementation:
    def run(states: Tensor, items: Tensor, temperature: float, detach_reference: bool) -> Tensor:
        if backend == "cpp" and autograd_records(states, items):
            batch, group, _ = states.shape
            chunk = rows_at_once(batch * group, items.shape[0], _LANES * group)
            if chunk > 0:
                needs = [states.requires_grad, items.requires_grad]
                return torch.ops.plr_kernels.pairwise_kl_with_gradients(
                    states, items, temperature, detach_reference, chunk, needs, backend
                )[0]
        return torch.ops.plr_kernels.pairwise_kl_forward(states, items, temperature, detach_reference, backend)[0]

    return run


# Backend name -> implementation with the arguments of the reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def pairwise_kl(states: Tensor, items: Tensor, *, temperature: float = 1.0, detach_reference: bool = False) -> Tensor:
    """Mean divergence between the item distributions of a group's states (PLR, arXiv 2601.03153, Eq. 7).

    The mean, over b and over the N(N − 1) ordered pairs i != j, of KL(p_i || p_j) with
    p_i = softmax(states[b, i] itemsᵀ / temperature). N = 1 and B = 0 give 0, with zero gradients.

    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each pass. On the C++ backend
    the gradients are made in the forward pass (`PLR_KERNELS_WORKSPACE_MB` bounds the memory for that): where none are
    wanted in the end, `torch.no_grad()` saves them.

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
    check_states_and_items("B N D", states, items)
    check_temperature(temperature)
    check_flag("detach_reference", detach_reference)

    run = resolve("pairwise_kl", IMPLEMENTATIONS, states)
    with no_autocast(states):
        return run(states, items, temperature, detach_reference)
