"""The public function mixture_cross_entropy."""

from __future__ import annotations

import torch
from torch import Tensor

from plr_kernels.dispatch.backend import Implementation, checks_values, resolve
from plr_kernels.dispatch.checks import check_ids, check_loss_options, check_states_and_items, check_targets
from plr_kernels.dispatch.dispatcher import autograd_records
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_gradients_in_forward, register_reference
from plr_kernels.dispatch.workspace import rows_at_once
from plr_kernels.linear_cross_entropy import operator as linear_cross_entropy
from plr_kernels.mixture_cross_entropy import reference

_run_reference = register_reference(
    "mixture_cross_entropy",
    "(Tensor states, Tensor log_weights, Tensor items, Tensor targets, float temperature, SymInt ignore_index, "
    "str reduction) -> Tensor",
    reference.mixture_cross_entropy,
)
register_gradients_in_forward(
    "mixture_cross_entropy",
    tensors="Tensor states, Tensor log_weights, Tensor items, Tensor targets",
    differentiable=3,
    options="float temperature, SymInt ignore_index, str reduction, SymInt chunk",
)


def _run_fused(backend: str) -> Implementation:
    """The mixture of the cross-entropies of all streams, which are M·R rows of one sweep of the item table.

    With CE_m the cross-entropy of stream m, −log p(y) = −logsumexp_m(log_weights[m] − CE_m). Its gradient w.r.t. CE_m
    is the responsibility r_m = exp(log_weights[m] − CE_m) / p(y), by which the backward pass of linear_cross_entropy
    scales the gradient w.r.t. the scores of each row: nothing else is new, and nothing of size V is kept.
    """
    cross_entropies = linear_cross_entropy.IMPLEMENTATIONS[backend]

    def run(
        states: Tensor,
        log_weights: Tensor,
        items: Tensor,
        targets: Tensor,
        temperature: float,
        ignore_index: int,
        reduction: str,
    ) -> Tensor:
        rows, streams, _ = states.shape
        if backend == "cpp" and reduction != "none" and autograd_records(states, log_weights, items):
            chunk = rows_at_once(rows * streams, items.shape[0], streams)
            if chunk > 0:
                needs = [states.requires_grad, log_weights.requires_grad, items.requires_grad]
                return torch.ops.plr_kernels.mixture_cross_entropy_with_gradients(
                    states, log_weights, items, targets, temperature, ignore_index, reduction, chunk, needs, backend
                )[0]
        losses = cross_entropies(
            states.flatten(0, 1), items, targets.repeat_interleave(streams), temperature, ignore_index, "none"
        ).view(rows, streams)
        return reference.mixed(losses, log_weights, targets, ignore_index, reduction)

    return run


# Backend name -> implementation with the arguments of the reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def mixture_cross_entropy(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of each row's target under a mixture of item distributions.

    With p_m = softmax(states[r, m] itemsᵀ / temperature), the loss of row r is

        −log Σ_m exp(log_weights[r, m]) p_m(targets[r]).

    A stream's gradient is that of its own cross-entropy times its responsibility for the target. Rows whose target is
    `ignore_index` count for nothing: their loss is 0, and the mean is over the others (0, with zero gradients, where
    there is none).

    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each pass. On the C++ backend
    the gradients are made in the forward pass (`PLR_KERNELS_WORKSPACE_MB` bounds the memory for that): where none are
    wanted in the end, `torch.no_grad()` saves them.

    Args:
        states: [R, M, D], M >= 1, float32, bfloat16, float16 or (reference backend) float64.
        log_weights: [R, M], in the dtype of `states`: the logarithms of the mixture's weights. That they sum to 1 is
            up to the caller (`log_softmax` of a gate's scores); −inf leaves a stream out.
        items: [V, D], V >= 1, in the dtype of `states`.
        targets: int64 [R], in [0, V) or `ignore_index`.
        temperature: what the logits are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.

    Returns:
        A scalar, or [R] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a target outside [0, V) fails asynchronously.
    """
    states, log_weights, items = floating_inputs(states=states, log_weights=log_weights, items=items)
    sizes = check_states_and_items("R M D", states, items, log_weights)
    check_ids("targets", targets, "R", states, sizes)
    check_loss_options(temperature, ignore_index, reduction)

    run = resolve("mixture_cross_entropy", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_targets(targets, sizes["V"], ignore_index)
    with no_autocast(states):
        return run(states, log_weights, items, targets, temperature, ignore_index, reduction)
