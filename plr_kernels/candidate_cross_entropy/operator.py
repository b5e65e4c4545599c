"""The public functions candidate_cross_entropy and candidate_mixture_cross_entropy."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import embedding

from plr_kernels.candidate_cross_entropy import reference
from plr_kernels.dispatch.backend import Implementation, checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_candidate_options,
    check_candidates,
    check_dense,
    check_flag,
    check_ids,
    check_log_q,
    check_loss_options,
    check_not_empty,
    check_states_and_items,
    check_targets,
    check_tensor,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_reference, register_with_gradients
from plr_kernels.linear_cross_entropy.reference import reduced
from plr_kernels.mixture_cross_entropy.reference import mixed

_run_reference = register_reference(
    "candidate_cross_entropy",
    "(Tensor states, Tensor items, Tensor targets, Tensor candidates, Tensor? log_q, str kind, float positive_power, "
    "float temperature, SymInt ignore_index, str reduction) -> Tensor",
    reference.candidate_cross_entropy,
)
_run_mixture_reference = register_reference(
    "candidate_mixture_cross_entropy",
    "(Tensor states, Tensor log_weights, Tensor items, Tensor targets, Tensor candidates, Tensor? log_q, "
    "float temperature, SymInt ignore_index, str reduction) -> Tensor",
    reference.candidate_mixture_cross_entropy,
)
register_with_gradients(
    "candidate_cross_entropy",
    tensors="Tensor states, Tensor items, Tensor targets, Tensor candidates, Tensor? log_q",
    options="str kind, float positive_power, float temperature, SymInt ignore_index",
    result="losses",
    statistics="Tensor weights, Tensor target_weights",
    new_result=lambda states: states.new_empty(states.shape[:1], dtype=torch.float32),
    statistics_of=4,
)


def _run_fused(backend: str) -> Implementation:
    def run(*arguments: Any) -> Tensor:
        *inputs, ignore_index, reduction = arguments
        losses, *_ = torch.ops.plr_kernels.candidate_cross_entropy_forward(*inputs, ignore_index, backend)
        return reduced(losses, inputs[2], ignore_index, reduction)

    return run


def _run_mixture_fused(backend: str) -> Implementation:
    """The mixture of the cross-entropies of all streams, which are M·R rows, as in mixture_cross_entropy."""

    def run(
        states: Tensor,
        log_weights: Tensor,
        items: Tensor,
        targets: Tensor,
        candidates: Tensor,
        log_q: Tensor | None,
        temperature: float,
        ignore_index: int,
        reduction: str,
    ) -> Tensor:
        streams = states.shape[1]
        losses, *_ = torch.ops.plr_kernels.candidate_cross_entropy_forward(
            states.flatten(0, 1),
            items,
            targets.repeat_interleave(streams),
            *reference.of_streams(streams, candidates, log_q),
            "softmax",
            1.0,
            temperature,
            ignore_index,
            backend,
        )
        return mixed(losses.view(-1, streams), log_weights, targets, ignore_index, reduction)

    return run


_IGNORED: Final = -100  # the target of rows that do not count, where rows are numbered anew

# Backend name -> implementation with the arguments of the reference.
IMPLEMENTATIONS = {"reference": _run_reference, "cpp": _run_fused("cpp"), "triton": _run_fused("triton")}
MIXTURE_IMPLEMENTATIONS = {
    "reference": _run_mixture_reference,
    "cpp": _run_mixture_fused("cpp"),
    "triton": _run_mixture_fused("triton"),
}


def candidate_cross_entropy(
    states: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    *,
    log_q: Tensor | None = None,
    kind: str = "softmax",
    positive_power: float = 1.0,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    sparse_gradient: bool = False,
) -> Tensor:
    """Loss of each state's target against a list of candidate items: none of the work grows with V.

    With s_v = states[r] · items[v] / temperature, y = targets[r], and C the candidates of row r other than y, each as
    often as it is listed, and z_c = s_c − log_q[c], the loss of row r is

        softmax:  −s_y + log(exp(s_y) + Σ_{c in C} exp(z_c))
        bce:      (−positive_power · log σ(s_y) − Σ_{c in C} log σ(−z_c)) / (K + 1).

    Where candidates are drawn at random and log_q is the logarithm of how often each is expected in the list, the sum
    is an unbiased estimate of that over all items but the target (sampled softmax with the logQ correction; the target
    itself is there for certain, and is not corrected). bce with a `positive_power` below 1 is gBCE (Petrov and
    Macdonald, RecSys 2023): β = α(t(1 − 1/α) + 1/α) for K of V − 1 negatives, α = K / (V − 1), and a t from 0, plain
    bce, to 1. Rows whose target is `ignore_index` count for nothing: their loss is 0, and the mean is over the others
    (0, with zero gradients, where there is none).

    Fused backends keep R·K float32 numbers from the forward to the backward pass. Products are of float32 numbers, on
    Triton of those of the inputs.

    Args:
        states: [R, D], float32, bfloat16, float16 or (reference backend) float64.
        items: [V, D], V >= 1, in the dtype of `states`.
        targets: int64 [R], in [0, V) or `ignore_index`.
        candidates: int64, [K] for all rows or [R, K] for each, K >= 1, in [0, V), or -1 to fill a list up.
        log_q: floating, in the shape of `candidates`: what is subtracted from their scores. It has no gradient.
        kind: "softmax" or "bce".
        positive_power: bce: the power of the target's sigmoid, 0 or more.
        temperature: what the scores are divided by, above 0.
        ignore_index: the target of rows that do not count.
        reduction: "mean", "sum", or "none" for the loss of every row.
        sparse_gradient: the gradient w.r.t. `items` as a sparse COO tensor of the rows that the call names, each once,
            as torch.optim.SparseAdam takes it, instead of a dense [V, D]. Not while torch.compile traces.

    Returns:
        A scalar, or [R] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU an id outside [0, V) fails asynchronously.
    """
    (states,), items = _floating_inputs(sparse_gradient, items, states=states)
    sizes = check_states_and_items("R D", states, items)
    check_ids("targets", targets, "R", states, sizes)
    check_ids("candidates", candidates, "K or R K", states, sizes)
    check_not_empty("candidates", "K", sizes)
    log_q = check_log_q(log_q, candidates, states)
    check_loss_options(temperature, ignore_index, reduction)
    check_flag("sparse_gradient", sparse_gradient)
    check_candidate_options(kind, positive_power)

    run = resolve("candidate_cross_entropy", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_targets(targets, sizes["V"], ignore_index)
        check_candidates(candidates, sizes["V"])
    if sparse_gradient:
        items, targets, candidates = _named_rows(items, targets, candidates, ignore_index, states.dtype)
        ignore_index = _IGNORED
    with no_autocast(states):
        return run(
            states,
            items,
            targets,
            candidates,
            log_q,
            kind,
            float(positive_power),
            temperature,
            ignore_index,
            reduction,
        )


def candidate_mixture_cross_entropy(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    candidates: Tensor,
    *,
    log_q: Tensor | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    sparse_gradient: bool = False,
) -> Tensor:
    """Negative log-likelihood of each row's target under a mixture of distributions over a list of candidate items.

    With p_m(y) = exp(−l_m), l_m the loss that `candidate_cross_entropy` of kind "softmax" has for stream m of row r,

        −log Σ_m exp(log_weights[r, m]) p_m(targets[r]),

    as `mixture_cross_entropy` over the target and the candidates. Among fixed candidates p_m is a distribution; with
    `log_q` each stream's sum over all items is estimated from the same ones.

    Args:
        states: [R, M, D], M >= 1, float32, bfloat16, float16 or (reference backend) float64.
        log_weights: [R, M], in the dtype of `states`: the logarithms of the mixture's weights; −inf leaves a stream
            out.
        items, targets, candidates, log_q: as `candidate_cross_entropy` takes them; all streams of a row have the same.
        temperature, ignore_index, reduction, sparse_gradient: likewise.

    Returns:
        A scalar, or [R] for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU an id outside [0, V) fails asynchronously.
    """
    (states, log_weights), items = _floating_inputs(sparse_gradient, items, states=states, log_weights=log_weights)
    sizes = check_states_and_items("R M D", states, items, log_weights)
    check_ids("targets", targets, "R", states, sizes)
    check_ids("candidates", candidates, "K or R K", states, sizes)
    check_not_empty("candidates", "K", sizes)
    log_q = check_log_q(log_q, candidates, states)
    check_loss_options(temperature, ignore_index, reduction)
    check_flag("sparse_gradient", sparse_gradient)

    run = resolve("candidate_mixture_cross_entropy", MIXTURE_IMPLEMENTATIONS, states)
    if not checks_values(run, MIXTURE_IMPLEMENTATIONS, states):
        check_targets(targets, sizes["V"], ignore_index)
        check_candidates(candidates, sizes["V"])
    if sparse_gradient:
        items, targets, candidates = _named_rows(items, targets, candidates, ignore_index, states.dtype)
        ignore_index = _IGNORED
    with no_autocast(states):
        return run(states, log_weights, items, targets, candidates, log_q, temperature, ignore_index, reduction)


def _floating_inputs(sparse_gradient: bool, items: Tensor, **others: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The others and the items, as `floating_inputs` casts and checks them.

    Items whose gradient is to be sparse are checked and left as they are, for their named rows to be cast: PyTorch does
    not cast a sparse gradient back, and the rest of the table needs no cast.
    """
    check_tensor("items", items)
    check_dense("items", items)
    some = items.detach()[:1] if sparse_gradient and items.ndim > 0 else items
    *cast, some = floating_inputs(**others, items=some)
    return tuple(cast), items if sparse_gradient else some


def _named_rows(
    items: Tensor, targets: Tensor, candidates: Tensor, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of items that targets and candidates name, each once, in `dtype`, and both as numbers of these rows.

    Rows that do not count have the target `_IGNORED`, since ignore_index may be one of the new numbers. What is made of
    the rows has a dense gradient; that of the items is sparse by PyTorch's own look-up, which on a GPU asserts the ids.
    """
    counted, listed = targets != ignore_index, candidates != -1
    ids = torch.unique(torch.cat([targets[counted], candidates[listed]]))
    if not len(ids):
        ids = ids.new_zeros(1)  # of an item table at least one row, here without a gradient
    return (
        embedding(ids, items, sparse=True).to(dtype),
        torch.searchsorted(ids, targets).where(counted, _IGNORED),
        torch.searchsorted(ids, candidates).where(listed, -1),
    )
