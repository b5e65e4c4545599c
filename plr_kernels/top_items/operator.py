"""The public function top_items."""

from __future__ import annotations

from torch import Tensor

from plr_kernels.dispatch.backend import checks_values, resolve
from plr_kernels.dispatch.checks import (
    check_exclude,
    check_ids,
    check_list_length,
    check_states_and_items,
    check_where,
)
from plr_kernels.dispatch.precision import floating_inputs, no_autocast
from plr_kernels.dispatch.registration import register_ranking
from plr_kernels.dispatch.results import new_lists
from plr_kernels.top_items import reference

IMPLEMENTATIONS = register_ranking(
    "top_items",
    "Tensor states, Tensor items, SymInt k, Tensor? exclude",
    reference.top_items,
    lambda states, items, k, exclude: new_lists(states, k),
    optional="Tensor? where=None",
)


def top_items(
    states: Tensor, items: Tensor, k: int, *, exclude: Tensor | None = None, where: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k best items of each state by dot product, best first, ties to the smaller id.

    The scores of all items are never held at once. Not differentiable: the scores carry no gradient.

    Sums are float32 for half precision too. Products of float32 numbers follow `torch.set_float32_matmul_precision`.

    Args:
        states: [R, D], float32, bfloat16, float16 or (reference backend) float64.
        items: [V, D], in the dtype of `states`.
        k: how many items, 1 <= k <= V.
        exclude: int64 [R, X], the ids that a row must not return, in [0, V), padded with -1.
        where: bool [V], the items that any row may return; None: all.

    Returns:
        scores [R, k], float32 (float64 for float64 inputs), and ids int64 [R, k]. Where exclude and where leave
        fewer than k items, the rest have score -inf and id -1. So has an item whose score is -inf itself.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, a device or a value does not fit. On a GPU an excluded id outside [-1, V) fails
            asynchronously.
    """
    states, items = floating_inputs(states=states, items=items)
    sizes = check_states_and_items("R D", states, items)
    check_list_length(k, sizes["V"])
    if exclude is not None:
        check_ids("exclude", exclude, "R X", states, sizes)
    if where is not None:
        check_where(where, states, sizes)

    run = resolve("top_items", IMPLEMENTATIONS, states)
    if not checks_values(run, IMPLEMENTATIONS, states):
        check_exclude(exclude, sizes["V"])
    with no_autocast(states):
        return run(states.detach(), items.detach(), k, exclude, *(() if where is None else (where,)))
