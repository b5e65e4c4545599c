"""The public function target_mixture_rank."""

from __future__ import annotations

from torch import Tensor

from plr_kernels.dispatch.backend import checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_exclude,
    check_ids,
    check_states_and_items,
    check_targets,
    check_temperature,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_ranking
from plr_kernels.dispatch.results import new_counts
from plr_kernels.target_mixture_rank import reference

IMPLEMENTATIONS = register_ranking(
    "target_mixture_rank",
    "Tensor states, Tensor log_weights, Tensor items, Tensor targets, float temperature, Tensor? exclude",
    reference.target_mixture_rank,
    lambda states, *_: new_counts(states),
)


def target_mixture_rank(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    exclude: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Count the other items that are more probable than each row's target, and as probable, under a mixture.

    An item's score is its log-probability, log Σ_m exp(log_weights[m]) softmax(states[m] itemsᵀ / temperature)[item].
    The rank of the target, ties counted half, is 1 + greater + equal / 2. Items with equal vectors tie exactly. The
    scores of all items are never held at once, and nothing is sorted. Not differentiable.

    Args:
        states: [R, M, D], M >= 1, float32, bfloat16, float16 or (reference backend) float64.
        log_weights: [R, M], in the dtype of `states`: logarithms of the mixture's weights; −inf leaves a stream out.
        items: [V, D], in the dtype of `states`.
        targets: int64 [R], in [0, V).
        temperature: what the logits are divided by, above 0.
        exclude: int64 [R, X], ids in [0, V), padded with -1, that do not count; the distributions know them all the
            same, and the target itself always stands.

    Returns:
        greater and equal, int64 [R] each. A row in which a score is not finite, whichever item's, has -1 in both.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU a target outside [0, V) or an excluded id
            outside [-1, V) fails asynchronously.
    """
    states, log_weights, items = floating_inputs(states=states, log_weights=log_weights, items=items)
    sizes = check_states_and_items("R M D", states, items, log_weights)
    check_temperature(temperature)
    check_ids("targets", targets, "R", states, sizes)
    if exclude is not None:
        check_ids("exclude", exclude, "R X", states, sizes)

    run = resolve("target_mixture_rank", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_targets(targets, sizes["V"])
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        return run(states.detach(), log_weights.detach(), items.detach(), targets, temperature, exclude)
