"""The public function consistent_mixture_cross_entropy."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from plr_kernels.consistent_mixture_cross_entropy import reference
from plr_kernels.dispatch.backend import Implementation, checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_ids,
    check_ignore_index,
    check_number,
    check_states_and_items,
    check_targets,
    check_temperature,
    check_values,
)
from plr_kernels.dispatch.dispatcher import autograd_records
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_gradients_in_forward, register_reference
from plr_kernels.dispatch.workspace import rows_at_once
from plr_kernels.mixture_cross_entropy import operator as mixture_cross_entropy
from plr_kernels.pairwise_kl import operator as pairwise_kl

_run_reference = register_reference(
    "consistent_mixture_cross_entropy",
    "(Tensor states, Tensor log_weights, Tensor items, Tensor targets, Tensor drawn, float weight, float temperature, "
    "SymInt ignore_index) -> (Tensor, Tensor, Tensor)",
    reference.consistent_mixture_cross_entropy,
)
register_gradients_in_forward(
    "consistent_mixture_cross_entropy",
    tensors="Tensor states, Tensor log_weights, Tensor items, Tensor targets, Tensor drawn",
    differentiable=3,
    options="float weight, float temperature, SymInt ignore_index, SymInt chunk",
    parts=2,
)
_LANES: Final = 16  # histories that the C++ backend takes at once
# The gradients are made relative to the divergence's share of the loss: one that is next to none is left to itself.
_LEAST_WEIGHT: Final = 1e-6


def _run_fused(backend: str) -> Implementation:
    """One sweep of the item table on the C++ backend, which makes the gradients too; else two operators' sweeps."""
    cross_entropies = mixture_cross_entropy.IMPLEMENTATIONS[backend]
    divergences = pairwise_kl.IMPLEMENTATIONS[backend]

    def run(
        states: Tensor,
        log_weights: Tensor,
        items: Tensor,
        targets: Tensor,
        drawn: Tensor,
        weight: float,
        temperature: float,
        ignore_index: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if backend == "cpp" and not -_LEAST_WEIGHT < weight < _LEAST_WEIGHT:
            histories, views, streams, _ = states.shape
            of_history = views * streams
            chunk = rows_at_once(histories * of_history, items.shape[0], _LANES * of_history)
            if chunk > 0:
                differentiable = (states, log_weights, items)
                records = autograd_records(*differentiable)
                needs = [records and tensor.requires_grad for tensor in differentiable]
                return torch.ops.plr_kernels.consistent_mixture_cross_entropy_with_gradients(
                    states, log_weights, items, targets, drawn, weight, temperature, ignore_index, chunk, needs, backend
                )[:3]
        cross_entropy = cross_entropies(
            *reference.rows(states, log_weights), items, reference.of_rows(targets), temperature, ignore_index, "mean"
        )
        pairs = reference.drawn_states(states, drawn)
        if weight == 0:
            pairs, items = pairs.detach(), items.detach()
        divergence = divergences(pairs, items, temperature, False)
        return reference.weighed(cross_entropy, divergence, weight)

    return run


# Backend name -> implementation with the arguments of the reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}


def consistent_mixture_cross_entropy(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    drawn: Tensor,
    *,
    weight: float,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of a mixture in two views of each history, and how far a drawn stream's distributions differ.

    The training loss of PLR with R-Drop (arXiv 2106.14448). With p_m = softmax(states[n, i, m] itemsᵀ / temperature),

        loss          = cross_entropy + weight · divergence
        cross_entropy = the mean over n that counts and views i of −log Σ_m exp(log_weights[n, i, m]) p_m(targets[n])
        divergence    = the mean over all n of (KL(p ‖ q) + KL(q ‖ p)) / 2, p and q of states[n, 0 and 1, drawn[n]],

    which are `mixture_cross_entropy` and `pairwise_kl`. The C++ backend makes the scores that both need once, and the
    gradients in the forward pass, where |weight| is at least 1e-6 and `PLR_KERNELS_WORKSPACE_MB` allows it. Elsewhere,
    and on the Triton backend, these two operators run one after the other.

    A history whose target is `ignore_index` counts for nothing in the cross-entropy (0, with zero gradients, where no
    history counts), but in the divergence, which has no target. Of a weight of 0 the loss is the cross-entropy alone.
    Products of float32 numbers follow `torch.set_float32_matmul_precision`, as it is in each pass.

    Args:
        states: [N, 2, M, D], M >= 1, float32, bfloat16, float16 or (reference backend) float64.
        log_weights: [N, 2, M], in the dtype of `states`: the logarithms of the mixtures' weights; −inf leaves a stream
            out of its mixture.
        items: [V, D], V >= 1, in the dtype of `states`.
        targets: int64 [N], in [0, V) or `ignore_index`.
        drawn: int64 [N], in [0, M): the stream of which the divergence is.
        weight: of the divergence.
        temperature: what the logits are divided by, above 0.
        ignore_index: the target of histories that do not count.

    Returns:
        loss, cross_entropy and divergence: scalars, float32 (float64 for float64 inputs). Only the loss has gradients.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a target or a stream out of range fails
            asynchronously.
    """
    states, log_weights, items = floating_inputs(states=states, log_weights=log_weights, items=items)
    sizes = check_states_and_items("N 2 M D", states, items, log_weights)
    check_ids("targets", targets, "N", states, sizes)
    check_ids("drawn", drawn, "N", states, sizes)
    check_number("weight", weight)
    check_temperature(temperature)
    check_ignore_index(ignore_index)

    run = resolve("consistent_mixture_cross_entropy", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_targets(targets, sizes["V"], ignore_index)
    check_values("drawn", drawn, 0, sizes["M"], "in [0, M)", M=sizes["M"])
    with no_autocast(states):
        return run(states, log_weights, items, targets, drawn, weight, temperature, ignore_index)
