"""The public function top_mixture_items."""

from __future__ import annotations

from torch import Tensor

from plr_kernels.dispatch.backend import checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_exclude,
    check_ids,
    check_list_length,
    check_states_and_items,
    check_temperature,
    check_where,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_ranking
from plr_kernels.dispatch.results import new_lists
from plr_kernels.top_mixture_items import reference

IMPLEMENTATIONS = register_ranking(
    "top_mixture_items",
    "Tensor states, Tensor log_weights, Tensor items, SymInt k, float temperature, Tensor? exclude",
    reference.top_mixture_items,
    lambda states, log_weights, items, k, *_: new_lists(states, k),
    optional="Tensor? where=None",
)


def top_mixture_items(
    states: Tensor,
    log_weights: Tensor,
    items: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    exclude: Tensor | None = None,
    where: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most probable items of each row under a mixture of item distributions, best first, ties to the smaller id.

    An item's score is its log-probability, log Σ_m exp(log_weights[m]) softmax(states[m] itemsᵀ / temperature)[item].
    The scores of all items are never held at once. Not differentiable: the scores carry no gradient.

    Args:
        states: [R, M, D], M >= 1, float32, bfloat16, float16 or (reference backend) float64.
        log_weights: [R, M], in the dtype of `states`: logarithms of the mixture's weights; −inf leaves a stream out.
        items: [V, D], in the dtype of `states`.
        k: how many items, 1 <= k <= V.
        temperature: what the logits are divided by, above 0.
        exclude: int64 [R, X], the ids that a row must not return, in [0, V), padded with -1; the distributions know
            them all the same.
        where: bool [V], the items that any row may return; None: all. The distributions know the others all the same.

    Returns:
        log-probabilities [R, k], float32 (float64 for float64 inputs), and ids int64 [R, k]. Where exclude and where
        leave fewer than k items, the rest have score -inf and id -1. So has an item whose logits are -inf in
        all streams that count.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU an excluded id outside [-1, V) fails
            asynchronously.
    """
    states, log_weights, items = floating_inputs(states=states, log_weights=log_weights, items=items)
    sizes = check_states_and_items("R M D", states, items, log_weights)
    check_temperature(temperature)
    check_list_length(k, sizes["V"])
    if exclude is not None:
        check_ids("exclude", exclude, "R X", states, sizes)
    if where is not None:
        check_where(where, states, sizes)

    run = resolve("top_mixture_items", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        optional = () if where is None else (where,)
        return run(states.detach(), log_weights.detach(), items.detach(), k, temperature, exclude, *optional)
